"""A model -> files in LAVIS' layouts: the checkpoint, the frozen image encoder, the frozen language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.lavis import VISION_PREFIX, lavis_layout
from openblip.checkpoints.names.qformer import LAVIS_TIED, POSITION_NUMBERS
from openblip.checkpoints.tensors.writing import save_pickled, write_together
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config
from openblip.nn.vit import VitConfig

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
    layout = lavis_layout(config)
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise CheckpointError("LAVIS cannot read quantized weights: load the model in floating point")
    found = LavisState({}, {}, {})
    files = None if config.own_language is None else LANGUAGES[config.own_language.kind]
    for name, tensor in layout.to_theirs(state).items():
        if name.startswith(VISION_PREFIX):
            found.vision[name.removeprefix(VISION_PREFIX)] = tensor
        elif files is not None and name.startswith(files.lavis_prefix):
            found.language[name.removeprefix(files.lavis_prefix)] = tensor
        else:
            found.checkpoint[name] = tensor
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
    strays = {POSITION_NUMBERS: torch.arange(longest)[None]}
    strays |= {second: found.checkpoint[first] for second, first in LAVIS_TIED.items() if first in found.checkpoint}
    if config.own_language is not None:
        files = LANGUAGES[config.own_language.kind]
        strays |= {files.lavis_prefix + second: found.language[first] for second, first in files.tied.items()}
    return strays
