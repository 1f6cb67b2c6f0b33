"""Files of weights and the texts beside them, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.saving import naming, put_names_on_disk, put_on_disk, replacing

LOCK_FILE = ".writing.lock"
"""Beside files while they are written together."""


def write_together(folder: Path, texts: Mapping[str, str], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write text files and safetensors files; drafts until all are written, so a kill or a power cut never leaves
    half of them.
    Another process that writes to the folder is waited for.

    Raises CheckpointError when they cannot be written; what was there before is kept.
    """
    from filelock import FileLock

    drafts = {name: folder / f"{name}.draft" for name in (*weights, *texts)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK_FILE):
            try:
                _write_drafts(drafts, texts, weights)
                for draft in drafts.values():
                    put_on_disk(draft)
                for name, draft in drafts.items():
                    draft.replace(folder / name)
                put_names_on_disk(folder)
            finally:
                for path in (*drafts.values(), folder / LOCK_FILE):
                    with suppress(OSError):
                        path.unlink()
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror}): make room, or see to its permissions, and give the "
            "command again"
        ) from error


def _write_drafts(
    drafts: Mapping[str, Path], texts: Mapping[str, str], weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    for name, text in texts.items():
        with naming(drafts[name]):
            drafts[name].write_text(text, encoding="utf-8")
    for name, tensors in weights.items():
        stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        with naming(drafts[name]):
            save_file(stored, drafts[name], metadata={"format": "pt"})
        # safetensors makes files that only their owner may read
        shutil.copymode(drafts[next(iter(texts))], drafts[name])


def save_pickled(content: object, path: Path) -> None:
    """Replace a file by what torch.save makes of `content`; a kill leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; the old file is kept.
    """
    with replacing(path) as draft:
        write_pickled(content, draft)


def write_pickled(content: object, path: Path) -> None:
    """torch.save, but what is wrong with the disk is an OSError."""
    with path.open("wb") as file:
        noted = _NotedFile(file)
        try:
            torch.save(content, cast("IO[bytes]", noted))
        except RuntimeError as error:
            # What writes archives makes a RuntimeError of its own of whatever goes wrong beneath it.
            if noted.error is None:
                raise
            raise noted.error from error


class _NotedFile:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
