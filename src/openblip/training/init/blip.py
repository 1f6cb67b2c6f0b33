"""A BLIP of one task, of one that was pre-trained, whose encoder and decoder share weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from openblip.checkpoints.blip_models import PROMPTS
from openblip.checkpoints.families import find_family
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import empty_network
from openblip.errors import OptionError
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.text import PromptTemplates
from openblip.training.recipe_keys import Recipe

Parts = ModelParts[BlipNetwork, Any]


def prepare_captions(parts: Parts, recipe: Recipe) -> Parts:
    """The image encoder and the decoder alone, which has its own copy of what it shared with the text encoder."""
    old = parts.network.config
    if not old.shares_text:
        return parts
    config = BlipConfig(old.vision, decoder=old.decoder, decode_id=old.decode_id, encode_id=old.encode_id)
    return replace(parts, network=_built(parts, config), matching=None)


def prepare_answers(parts: Parts, recipe: Recipe) -> Parts:
    """The same with the text encoder, which reads a question with its image for the decoder.

    Raises:
        OptionError: what the decoder reads has another width in the model.
    """
    old = parts.network.config
    if not old.shares_text or old.encoder is None:
        return parts
    if old.encoder.width != old.vision.width:
        raise OptionError(
            f"{parts.name} reads images of {old.vision.width} channels, and questions have {old.encoder.width}: give a "
            "model of the base size, whose images are as wide as its texts"
        )
    config = BlipConfig(
        old.vision, old.encoder, old.decoder, answers=True, decode_id=old.decode_id, encode_id=old.encode_id
    )
    prompts = replace(PromptTemplates(**PROMPTS), caption=parts.prompts.caption)
    return replace(parts, network=_built(parts, config), matching=None, prompts=prompts)


def prepare_retrieval(parts: Parts, recipe: Recipe) -> Parts:
    """The image encoder and the text encoder, without the decoder."""
    old = parts.network.config
    if not old.shares_text:
        return parts
    network = _built(parts, replace(old, decoder=None, shares_text=False))
    return replace(parts, network=network, tokenizer=None, prompts=PromptTemplates())


def _built(parts: Parts, config: BlipConfig) -> BlipNetwork:
    """A network of the weights of another one, whose decoder takes what it lacks from the text encoder."""
    network: BlipNetwork = empty_network(config, Path(parts.name), family=find_family(parts.family, Path(parts.name)))
    old: dict[str, Tensor] = parts.network.state_dict()

    def source(name: str) -> Tensor:
        return (old[name] if name in old else old[name.replace("decoder.", "encoder.", 1)]).clone()

    network.load_state_dict({name: source(name) for name in network.state_dict()}, assign=True)
    return network.eval()
