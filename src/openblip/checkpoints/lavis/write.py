"""A model -> files in LAVIS' layouts: the checkpoint, the frozen image encoder, the frozen language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.engine import look_up
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.lavis import MATCHING, NORM, VISION_PREFIX
from openblip.checkpoints.names.qformer import LAVIS_QFORMER, LAVIS_TIED, POSITION_NUMBERS
from openblip.checkpoints.names.vit import LAVIS_CLIP, LAVIS_EVA
from openblip.checkpoints.tensors.files import save_pickled, write_together
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config
from openblip.nn.vit import VitConfig

CLIP_SQUEEZED = ("class_embedding", "positional_embedding")
"""CLIP stores these without our leading dimensions of one."""


FINE_TUNED_SIDE = 364
"""Official files of models that read images of this side hold their own copy of the image encoder."""


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
        CheckpointError: LAVIS has no such image encoder or language model, or weights are quantized.
    """
    if not isinstance(config.vision, VitConfig):
        raise CheckpointError("LAVIS has BLIP-2 with EVA's or CLIP's ViT only: this model has another image encoder")
    if config.language is not None and config.language.is_external:
        raise CheckpointError("LAVIS has BLIP-2 with OPT or T5 only: this one has an external language model")
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise CheckpointError("LAVIS cannot read quantized weights: load the model in floating point")
    language = config.own_language
    projection = {} if language is None else {LANGUAGES[language.kind].lavis_projection: "prompt_projection"}
    others = _inverse({**NORM, **MATCHING, **projection})
    qformer = _inverse(LAVIS_QFORMER)
    clip = config.vision.pre_norm
    encoder = _inverse(LAVIS_CLIP if clip else LAVIS_EVA)
    found = LavisState({}, {}, {})
    written: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if language is not None and part == language.prefix:
            written[rest] = tensor
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
    if language is not None:
        found.language.update(LANGUAGES[language.kind].to_transformers(written))
    found.checkpoint.update(_strays(found, config))
    return found


def save_lavis(parts: ModelParts, folder: Path) -> None:
    """Write a model's files, checkpoint.pth last.

    Raises:
        CheckpointError: see `to_lavis`.
    """
    config = parts.network.config
    written = to_lavis(parts.network.state_dict(), config)
    folder.mkdir(parents=True, exist_ok=True)
    whole = parts.transform.image_size >= FINE_TUNED_SIDE
    assert isinstance(config.vision, VitConfig)  # else to_lavis had refused it
    if not whole:
        name = "clip_vit_L.pth" if config.vision.pre_norm else "eva_vit_g.pth"
        save_pickled(written.vision, folder / name)
    if written.language:
        about = f"The language model of {parts.name}, which was frozen in training. LAVIS takes its own copy.\n"
        write_together(folder / "language_model", {"README.md": about}, {"model.safetensors": written.language})
    # Last: until it is there, nobody can take the folder for a whole one.
    save_pickled({"model": written.whole() if whole else written.checkpoint}, folder / "checkpoint.pth")


def _strays(found: LavisState, config: Blip2Config) -> dict[str, Tensor]:
    """What LAVIS' runner saves besides: second names of tied tensors, and a buffer that counts."""
    longest = config.qformer.max_positions
    strays = {POSITION_NUMBERS[0]: torch.arange(longest)[None]}
    strays |= {second: found.checkpoint[first] for second, first in LAVIS_TIED.items() if first in found.checkpoint}
    if config.own_language is not None:
        files = LANGUAGES[config.own_language.kind]
        strays |= {files.lavis_prefix + second: found.language[first] for second, first in files.tied.items()}
    return strays


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


def _named(name: str, table: Mapping[str, str]) -> str:
    """Raises CheckpointError for a tensor that LAVIS has no place for."""
    found = look_up(name, table)
    if found is None:
        raise CheckpointError(f"LAVIS has no place for {name}: this model is no BLIP-2 of its layouts")
    return found
