"""A model -> files in LAVIS' layouts: the checkpoint, the frozen image encoder, the frozen language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.checkpoints.names.lavis import MATCHING, NORM, OPT_PROJECTION, T5_PROJECTION, VISION_PREFIX
from openblip.checkpoints.names.opt import LAVIS_PREFIX as OPT_PREFIX
from openblip.checkpoints.names.opt import OPT
from openblip.checkpoints.names.qformer import LAVIS_QFORMER, LAVIS_TIED, POSITION_NUMBERS, look_up
from openblip.checkpoints.names.t5 import LAVIS_PREFIX as T5_PREFIX
from openblip.checkpoints.names.t5 import t5_to_transformers
from openblip.checkpoints.names.vit import LAVIS_CLIP, LAVIS_EVA
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config
from openblip.nn.vit import VitConfig

CLIP_SQUEEZED = ("class_embedding", "positional_embedding")
"""CLIP stores these without our leading dimensions of one."""


@dataclass(frozen=True)
class LavisState:
    """Tensors by file, under the names they have there.

    Attributes:
        checkpoint: what LAVIS saves of what it trained, the strays included.
        vision: the bare image encoder (`eva_vit_g.pth`, `clip_vit_L.pth`).
        language: the language model alone, as a folder of transformers has it; empty for stage 1.
    """

    checkpoint: dict[str, Tensor]
    vision: dict[str, Tensor]
    language: dict[str, Tensor]

    def whole(self) -> dict[str, Tensor]:
        """The checkpoint as after fine-tuning, with the image encoder in it."""
        return self.checkpoint | {VISION_PREFIX + name: tensor for name, tensor in self.vision.items()}


def to_lavis(state: Mapping[str, Tensor], config: Blip2Config) -> LavisState:
    """A `Blip2Network` state under LAVIS' names; tensors are views where they can be.

    Raises:
        CheckpointError: LAVIS has no such image encoder or language model, or weights are quantised.
    """
    if not isinstance(config.vision, VitConfig):
        raise CheckpointError("LAVIS has BLIP-2 with EVA's or CLIP's ViT only: this model has another image encoder")
    if config.external is not None:
        raise CheckpointError("LAVIS has BLIP-2 with OPT or T5 only: this one has an external language model")
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise CheckpointError("LAVIS cannot read quantised weights: load the model in floating point")
    projection = OPT_PROJECTION if config.t5 is None else T5_PROJECTION
    others = _inverse({**NORM, **MATCHING, **projection})
    qformer = _inverse(LAVIS_QFORMER)
    clip = config.vision.pre_norm
    encoder = _inverse(LAVIS_CLIP if clip else LAVIS_EVA)
    found = LavisState({}, {}, {})
    parts: dict[str, dict[str, Tensor]] = {"decoder": {}, "t5": {}}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
        elif part == "vision":
            theirs = _named(rest, encoder)
            found.vision[theirs] = tensor[0] if clip and theirs in CLIP_SQUEEZED else tensor
        elif part == "qformer":
            found.checkpoint[_named(rest, qformer)] = tensor
        else:
            found.checkpoint[_named(name, others)] = tensor
    if clip:
        # LAVIS keeps CLIP's own shapes: [width] and [1 + patches, width].
        found.vision["class_embedding"] = found.vision["class_embedding"].flatten()
    found.language.update(_opt(parts["decoder"]) if parts["decoder"] else t5_to_transformers(parts["t5"]))
    found.checkpoint.update(_strays(found, config))
    return found


def _strays(found: LavisState, config: Blip2Config) -> dict[str, Tensor]:
    """What LAVIS' runner saves besides: second names of tied tensors, and a buffer that counts."""
    longest = config.qformer.max_positions
    strays = {POSITION_NUMBERS[0]: torch.arange(longest)[None]}
    strays |= {second: found.checkpoint[first] for second, first in LAVIS_TIED.items() if first in found.checkpoint}
    if config.decoder is not None:
        strays[f"{OPT_PREFIX}lm_head.weight"] = found.language["model.decoder.embed_tokens.weight"]
    if config.t5 is not None:
        for stack in ("encoder", "decoder"):
            strays[f"{T5_PREFIX}{stack}.embed_tokens.weight"] = found.language["shared.weight"]
    return strays


def _opt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Opt` state under the names of transformers' OPTForCausalLM."""
    table = _inverse(OPT)
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"model.decoder.{_named(name.replace('.qkv.', f'.{letter}.'), table)}"] = piece
        else:
            theirs[f"model.decoder.{_named(name, table)}"] = tensor
    return theirs


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


def _named(name: str, table: Mapping[str, str]) -> str:
    """Raises CheckpointError for a tensor that LAVIS has no place for."""
    found = look_up(name, table)
    if found is None:
        raise CheckpointError(f"LAVIS has no place for {name}: this model is no BLIP-2 of its layouts")
    return found
