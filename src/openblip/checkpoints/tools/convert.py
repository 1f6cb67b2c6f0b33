"""From any layout of a model to any other."""

from __future__ import annotations

from pathlib import Path

from openblip.checkpoints.layouts import layouts_of
from openblip.checkpoints.loading import find_tokenizer, load_parts
from openblip.checkpoints.openblip.folder import STORAGES, save_native
from openblip.checkpoints.openblip.new_folder import new_folder
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.transformers.tokenizers import Task
from openblip.errors import OptionError

LAYOUTS = ("openblip", "transformers", "lavis")
TASKS: dict[str, Task] = {"write": "write", "match": "match"}


def convert(
    source: str | Path,
    folder: Path,
    to: str,
    *,
    storage: str = "float32",
    task: str | None = None,
    checkpoint: Path | None = None,
    tokenizer: str | Path | None = None,
) -> list[Path]:
    """Write a model in another layout; returns the files of weights.

    Tensors keep their values bit for bit, except under `storage` of fewer bits. Transformers and LAVIS know nothing of
    our quantized weights: for them these are written as the numbers in floating point that they stand for.

    Args:
        source: what `openblip.load` takes.
        folder: must be empty or not exist yet.
        to: "openblip", "transformers", or "lavis": checkpoint.pth beside the parts that were frozen,
            eva_vit_g.pth or clip_vit_L.pth and language_model/model.safetensors.
        storage: number format, for "openblip" alone.
        task: for "transformers" and a model that does both: which half to write, "write" or "match".
        checkpoint, tokenizer: see `openblip.load`.

    Raises:
        OptionError: the folder is in use, or options do not go together.
        CheckpointError: the source cannot be read, or the layout has no place for its parts.
        OpenBlipError: the folder cannot be written; nothing is left in it then.
    """
    if to not in LAYOUTS:
        raise OptionError(f"there is no layout {to!r}: use {', '.join(LAYOUTS)}")
    if storage not in STORAGES or (storage != "float32" and to != "openblip"):
        raise OptionError(f"storage {storage!r} does not go with {to}: use {', '.join(STORAGES)}, with openblip alone")
    if task not in (None, *TASKS) or (task is not None and to != "transformers"):
        raise OptionError(f"task {task!r} does not go with {to}: use {' or '.join(TASKS)}, with transformers alone")
    folder = folder.expanduser()
    options = ReadOptions(
        bits=None if to == "openblip" else 0,
        checkpoint=checkpoint,
        tokenizer=None if tokenizer is None else find_tokenizer(tokenizer),
    )
    with new_folder(folder) as place:
        parts = load_parts(source, options)
        if to == "openblip":
            save_native(parts, place, storage)
        elif to == "transformers":
            layouts_of(parts.family).write_transformers(parts, place, TASKS[task] if task else None)
        else:
            layouts_of(parts.family).write_lavis(parts, place)
    return sorted(path for path in folder.rglob("*") if path.suffix in (".pth", ".safetensors"))
