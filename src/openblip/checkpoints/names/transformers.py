"""BLIP-2 weights in a folder of transformers: where each tensor of ours lies in it.

One table of modules serves reading and writing; N stands for a layer's index. What transformers keeps apart and we
have in one, or the other way round, is said by `Rows`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.checkpoints.names.engine import look_up
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.qformer import TRANSFORMERS_QFORMER
from openblip.checkpoints.names.vit import TRANSFORMERS_BLIP2
from openblip.nn.blip2 import Blip2Config

NAMES = {
    "vision_norm": "vision_model.post_layernorm",
    "prompt_projection": "language_projection",
    "image_projection": "vision_projection",
    "text_projection": "text_projection",
    "itm_head": "itm_head",
    **{f"vision.{ours}": f"vision_model.{theirs}" for theirs, ours in TRANSFORMERS_BLIP2.items()},
    **{f"qformer.{ours}": theirs for theirs, ours in TRANSFORMERS_QFORMER.items()},
    **{
        f"{files.config.prefix}.{ours}": theirs
        for files in LANGUAGES.values()
        for ours, theirs in files.in_blip2.items()
    },
}
"""Our name to theirs."""

HEAD = "language_model.lm_head.weight"

IMAGE_BIASES = {".q_bias": 0, ".v_bias": 2}
"""Our biases of the image encoder's attention, and their place in the one that transformers has for q, k and v."""

NOT_THEIRS = ("temperature", "qformer.head.")
"""What stage 1 learns besides, and no folder of transformers holds: ITC's temperature, the head for ITG."""


@dataclass(frozen=True)
class Rows:
    """The `index`-th of `count` equal parts, along the first dimension, of a tensor in the folder."""

    name: str
    index: int = 0
    count: int = 1


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
    for ending, index in IMAGE_BIASES.items():
        if name.startswith("vision.") and name.endswith(ending):
            whole = look_up(name.removesuffix(ending) + ".qkv.bias", NAMES)
            return () if whole is None else (Rows(whole, index, 3),)
    return tuple(Rows(theirs) for part in _apart(name) if (theirs := look_up(part, NAMES)) is not None)


def layers_of(name: str) -> tuple[str, ...]:
    """Their names for our layer `name`, several where we have them in one; none for what they have no place for."""
    return tuple(rows.name.removesuffix(".weight") for rows in sources(f"{name}.weight"))


def _apart(name: str) -> list[str]:
    """Names of what is joined in one tensor of ours, as the tables have them."""
    files = next((one for one in LANGUAGES.values() if name.startswith(f"{one.config.prefix}.")), None)
    return [name] if files is None else files.apart(name)


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
        ValueError: a tensor that transformers' BLIP-2 has no place for.
    """
    parts: dict[str, dict[Rows, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        if not is_theirs(name):
            continue
        rows = sources(name)
        if not rows:
            raise ValueError(f"transformers' BLIP-2 has no place for {name}")
        for row, piece in zip(rows, tensor.chunk(len(rows)), strict=True):
            parts[row.name][row] = piece
    return {name: _whole(name, pieces) for name, pieces in parts.items()}


def _whole(name: str, pieces: Mapping[Rows, Tensor]) -> Tensor:
    """One of their tensors from the parts that we have; the others, EVA's key biases, are zero."""
    first, piece = next(iter(pieces.items()))
    if first.count == 1:
        return piece
    zeros = torch.zeros_like(piece)
    return torch.cat([pieces.get(Rows(name, index, first.count), zeros) for index in range(first.count)])
