"""How the models of each family lie in the files of other projects: one row a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.checkpoints.hub.sources import LocalFile
from openblip.checkpoints.model_entry import ModelEntry
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.transformers.tokenizers import Task
from openblip.errors import CheckpointError


@dataclass(frozen=True)
class Layouts:
    """What reads and writes a family's models in the layouts of other projects.

    Attributes:
        read_lavis: a model by its entry, from its files as they lie on this machine or from the options' checkpoint.
        read_transformers: a folder.
        write_lavis: into a folder, checkpoint.pth last.
        write_transformers: into a folder; the task says which half of a model that does both.
    """

    read_lavis: Callable[[ModelEntry, Sequence[LocalFile], ReadOptions], ModelParts[Any, Any]]
    read_transformers: Callable[[Path, ReadOptions], ModelParts[Any, Any]]
    write_lavis: Callable[[ModelParts[Any, Any], Path], None]
    write_transformers: Callable[[ModelParts[Any, Any], Path, Task | None], None]


def _blip2() -> Layouts:
    from openblip.checkpoints.lavis.read import files_of, load_lavis
    from openblip.checkpoints.lavis.write import save_lavis
    from openblip.checkpoints.transformers.read import load_transformers
    from openblip.checkpoints.transformers.write import save_transformers

    def read_lavis(model: ModelEntry, found: Sequence[LocalFile], options: ReadOptions) -> ModelParts:
        return load_lavis(model, files_of(found, options.checkpoint), options)

    return Layouts(read_lavis, load_transformers, save_lavis, save_transformers)


def _blip() -> Layouts:
    from openblip.checkpoints.lavis.blip import load_blip, save_blip
    from openblip.checkpoints.transformers.blip import load_blip_folder, save_blip_folder

    return Layouts(load_blip, load_blip_folder, save_blip, save_blip_folder)


def _clip() -> Layouts:
    from openblip.checkpoints.lavis.clip import load_clip, save_clip
    from openblip.checkpoints.transformers.clip import load_clip_folder, save_clip_folder

    return Layouts(load_clip, load_clip_folder, save_clip, save_clip_folder)


# Imported as they are used: `mini`, a folder of OpenBLIP, needs none of them.
_LAYOUTS: dict[str, Callable[[], Layouts]] = {"blip2": _blip2, "clip": _clip, "blip": _blip}


def layouts_of(family: str) -> Layouts:
    """Raises CheckpointError for a family that lies in folders of OpenBLIP alone."""
    if family not in _LAYOUTS:
        raise CheckpointError(f"models of the family {family} lie in folders of OpenBLIP alone: give such a folder")
    return _LAYOUTS[family]()
