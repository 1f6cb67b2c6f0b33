"""BLIP-2 weights in a folder of transformers: where each tensor of ours lies in it.

One layout serves reading, writing and adapters; see `openblip.checkpoints.names.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from openblip.checkpoints.names import opt, t5
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE, Layout, NameTable, Part, Rows
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.qformer import TRANSFORMERS_QFORMER
from openblip.checkpoints.names.vit import TRANSFORMERS_BLIP2
from openblip.nn.blip2 import Blip2Config

VISION = NameTable(
    "image encoder",
    TRANSFORMERS_BLIP2,
    # Our biases of the image encoder's attention are two parts of the one that transformers has for q, k and v.
    slices={".q_bias": (".qkv.bias", 0, 3), ".v_bias": (".qkv.bias", 2, 3)},
)
BESIDE = NameTable(
    "BLIP-2",
    {
        "vision_model.post_layernorm": "vision_norm",
        "language_projection": "prompt_projection",
        "vision_projection": "image_projection",
        "text_projection": "text_projection",
        "itm_head": "itm_head",
    },
)
LAYOUT = Layout(
    "transformers' BLIP-2",
    [
        Part("vision.", "vision_model.", VISION),
        Part("qformer.", "", NameTable("Q-Former", TRANSFORMERS_QFORMER)),
        Part("decoder.", BLIP2_LANGUAGE, opt.TABLE),
        Part("t5.", BLIP2_LANGUAGE, t5.TABLE),
        Part("", "", BESIDE),
    ],
)

HEAD = "language_model.lm_head.weight"

NOT_THEIRS = ("temperature", "qformer.head.")
"""What stage 1 learns besides, and no folder of transformers holds: ITC's temperature, the head for ITG."""


def tied(config: Blip2Config) -> dict[str, str]:
    """Second names of one tensor, and its first: files hold one of them or several."""
    language = config.own_language
    if language is None:
        return {}
    files = LANGUAGES[language.kind]
    tables = dict.fromkeys(files.second_words, files.words)
    return {**tables, HEAD: files.words} if files.ties_head(language) else tables


def sources(name: str) -> tuple[Rows, ...]:
    """What our tensor `name` is stacked from, equal heights each; nothing for `NOT_THEIRS` and what is unknown."""
    return LAYOUT.sources(name)


def layers_of(name: str) -> tuple[str, ...]:
    """Their names for our layer `name`, several where we have them in one; none for what they have no place for."""
    return tuple(rows.name.removesuffix(".weight") for rows in sources(f"{name}.weight"))


def is_theirs(name: str) -> bool:
    return not name.startswith(NOT_THEIRS)


def fresh(name: str, shape: tuple[int, ...]) -> Tensor:
    """The start of a tensor that is not theirs: LAVIS' temperature, a head that passes on what it gets."""
    if name == "temperature":
        return torch.tensor(0.07)
    if name == "qformer.head.dense.weight":
        return torch.eye(shape[0])
    return torch.ones(shape) if name == "qformer.head.norm.weight" else torch.zeros(shape)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `Blip2Network` state under transformers' names, without what is `NOT_THEIRS`; tensors are views if they can be.

    Raises:
        CheckpointError: a tensor that transformers' BLIP-2 has no place for.
    """
    return LAYOUT.to_theirs({name: tensor for name, tensor in state.items() if is_theirs(name)})
