"""Turn a pretrained BLIP, whose text encoder and decoder share weights, into a model of one task."""

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
    """Keep the image encoder and the decoder, with its own copy of the shared weights."""
    old = parts.network.config
    if not old.shares_text:
        return parts
    config = BlipConfig(old.vision, decoder=old.decoder, decode_id=old.decode_id, encode_id=old.encode_id)
    return replace(parts, network=_built(parts, config), matching=None)


def prepare_answers(parts: Parts, recipe: Recipe) -> Parts:
    """Keep all three parts: the text encoder reads a question with its image, and the decoder what it gives.

    Raises:
        OptionError: image and text features differ in width, but the decoder's cross-attention fits the image's only.
    """
    old = parts.network.config
    if not old.shares_text or old.encoder is None:
        return parts
    if old.encoder.width != old.vision.width:
        raise OptionError(
            f"{parts.name} has image features of width {old.vision.width} and text features of {old.encoder.width}: "
            "start from a model of the base size, where both are equal"
        )
    config = BlipConfig(
        old.vision, old.encoder, old.decoder, answers=True, decode_id=old.decode_id, encode_id=old.encode_id
    )
    prompts = replace(PromptTemplates(**PROMPTS), caption=parts.prompts.caption)
    return replace(parts, network=_built(parts, config), matching=None, prompts=prompts)


def prepare_retrieval(parts: Parts, recipe: Recipe) -> Parts:
    """Keep the image encoder and the text encoder."""
    old = parts.network.config
    if not old.shares_text:
        return parts
    network = _built(parts, replace(old, decoder=None, shares_text=False))
    return replace(parts, network=network, tokenizer=None, prompts=PromptTemplates())


def _built(parts: Parts, config: BlipConfig) -> BlipNetwork:
    """A network with the weights of `parts`; shared weights of the decoder come from the text encoder."""
    network: BlipNetwork = empty_network(config, Path(parts.name), family=find_family(parts.family, Path(parts.name)))
    old: dict[str, Tensor] = parts.network.state_dict()

    def source(name: str) -> Tensor:
        return (old[name] if name in old else old[name.replace("decoder.", "encoder.", 1)]).clone()

    network.load_state_dict({name: source(name) for name in network.state_dict()}, assign=True)
    return network.eval()
