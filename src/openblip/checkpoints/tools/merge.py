"""A model and low-rank adapters of it as one model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.lora.fit import base_of, find_adapter
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE
from openblip.checkpoints.openblip.file_names import WEIGHTS_FILE
from openblip.checkpoints.openblip.folder import STORAGES, save_native
from openblip.checkpoints.openblip.new_folder import new_folder
from openblip.checkpoints.read_options import ReadOptions
from openblip.errors import CheckpointError, OptionError


def merge_adapter(
    adapter: str | Path,
    folder: Path,
    base: str | Path | None = None,
    *,
    storage: str = "float32",
    checkpoint: str | Path | None = None,
) -> Path:
    """Write a model with an adapter merged into its weights; returns the file of weights.

    Args:
        adapter: a folder or a repository of the hub in peft's layout.
        folder: must be empty or not exist yet.
        base: what `openblip.load` takes; by default the model that the adapter says it was trained on.
        storage: number format, see `save_native`.
        checkpoint: see `openblip.load`.

    Raises:
        OptionError: the folder is in use, or an unknown storage.
        CheckpointError: model or adapter cannot be read, do not fit, or the adapter changes a language model that is
            external and so in no folder of ours.
        DownloadError: files cannot be had.
    """
    if storage not in STORAGES:
        raise OptionError(f"storage {storage!r} is not one of {', '.join(STORAGES)}")
    found = find_adapter(adapter)
    options = ReadOptions(checkpoint=None if checkpoint is None else Path(checkpoint), adapter=found)
    with new_folder(folder) as place:
        parts = load_parts(base_of(found) if base is None else base, options)
        if parts.external is not None and any(name.startswith(BLIP2_LANGUAGE) for name in found.layers):
            raise CheckpointError(
                f"{found.place} changes the language model {parts.external.place}, which {parts.name} only uses: "
                "load it with adapter= instead of merging it"
            )
        save_native(replace(parts, name=folder.resolve().name), place, storage)
    return folder / WEIGHTS_FILE
