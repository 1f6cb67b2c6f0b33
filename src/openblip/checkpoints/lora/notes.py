"""What a folder of low-rank adapters says of itself, without its weights being read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openblip.checkpoints.json_files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
"""What peft puts in front of a model's own names."""


@dataclass(frozen=True)
class AdapterNote:
    """What low-rank adapters stand on.

    Attributes:
        base: the model that they were trained on, a name or a folder; None where the file does not say.
        ranks: of the layers, without repeats.
        targets: what the layers are called, by the last part of transformers' names.
        layers: how many have one.
    """

    base: str | None
    ranks: tuple[int, ...]
    alpha: float | None
    targets: tuple[str, ...]
    layers: int


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()


def adapter_note(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> AdapterNote | None:
    """What the folder of an adapter says of it; None for anything else."""
    folder = path if path.is_dir() else path.parent
    factors = {name: shape for name, shape in shapes.items() if re.search(r"\.lora_A(\.[^.]+)?(\.weight)?$", name)}
    if not is_adapter(folder) or not factors:
        return None
    config = read_json(folder / CONFIG_FILE)
    base, alpha = config.get("base_model_name_or_path"), config.get("lora_alpha")
    layers = [name.rpartition(".lora_A")[0] for name in factors]
    return AdapterNote(
        base if isinstance(base, str) and base else None,
        tuple(sorted({shape[0] for shape in factors.values() if shape})),
        float(alpha) if isinstance(alpha, int | float) else None,
        tuple(sorted({layer.rpartition(".")[2] for layer in layers})),
        len(layers),
    )
