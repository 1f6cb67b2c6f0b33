"""The models that can be loaded by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias

from openblip.checkpoints.json_files import read_json
from openblip.checkpoints.tensors.header import count_elements
from openblip.checkpoints.zoo import BUNDLED
from openblip.errors import CheckpointError

DEFAULT_MODEL = BUNDLED
FolderKind: TypeAlias = Literal["openblip", "transformers"]


@dataclass(frozen=True)
class ModelInfo:
    """A line of the model table.

    Attributes:
        parameters: count of all weights; megabytes: size of its files on disk (10^6 bytes).
        abilities: what it can do (caption, ask, match, embed).
    """

    name: str
    kind: str
    summary: str
    parameters: int
    megabytes: float
    image_size: int
    abilities: tuple[str, ...]
    licence: str
    folder: Path


def bundled_folder(name: str) -> Path:
    """Where a model that ships inside the package lies."""
    return Path(str(resources.files("openblip"))) / "weights" / name


def list_models() -> list[ModelInfo]:
    """All models that `load` knows by name."""
    folder = bundled_folder(BUNDLED)
    return [
        ModelInfo(
            name=BUNDLED,
            kind="BLIP-2, EfficientNet-Lite2 + Q-Former + OPT-layout decoder",
            summary="trained by this project, inside the package; photos of people, animals and everyday scenes",
            parameters=count_parameters(folder),
            megabytes=round(sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) / 1e6, 1),
            image_size=288,
            abilities=("caption", "ask", "match", "embed"),
            licence="non-commercial research (see its LICENSE)",
            folder=folder,
        )
    ]


def count_parameters(folder: Path) -> int:
    """Elements of all tensors, read from the file's header alone; 0 when there is no file."""
    path = folder / "model.safetensors"
    return count_elements(path, leaving_out=(":scale", ":steps")) if path.is_file() else 0


def folder_kind(folder: Path) -> FolderKind:
    """Who wrote a model folder, by its config.json.

    Raises:
        CheckpointError: it has none, or one of another model.
    """
    content = read_json(folder / "config.json")
    if content.get("format") == "openblip":
        return "openblip"
    kind = content.get("model_type")
    if kind == "blip-2":
        return "transformers"
    what = "another program's model" if kind is None else f"a model of type {kind!r}"
    raise CheckpointError(f"{folder} holds {what}: give a folder of OpenBLIP, or one that transformers wrote of BLIP-2")
