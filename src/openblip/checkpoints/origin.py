"""Which files a model's weights come from, and whether they are what they were before."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from openblip.checkpoints.hub.download import REPOSITORY_NAME, find_files
from openblip.checkpoints.lora.notes import is_adapter
from openblip.checkpoints.registry import find_model, folder_of

ENDS = frozenset({".json", ".safetensors", ".bin", ".pth"})
"""Of files that say what a model is; words and texts beside them change none of its numbers."""


def origin_of(name: str) -> list[tuple[str, int, int]] | None:
    """Path, size in bytes and time of change in ns of each file that a model of this name is read from.

    Nothing of it is read but an adapter's own files, and no network is used. None when a part of it is not there.

    Raises:
        CheckpointError: a folder of an adapter that cannot be read, or does not say on which model it stands.
    """
    files = model_files(name)
    if files is None:
        return None
    try:
        states = [(str(path.resolve()), path.stat()) for path in files]
    except OSError:  # one went away
        return None
    return [(path, state.st_size, state.st_mtime_ns) for path, state in states]


def model_files(name: str, ends: Collection[str] = ENDS, revision: str | None = None) -> list[Path] | None:
    """The files on this machine of a folder, of an adapter with the model below it, of a model of the hub, or of LAVIS.

    Args:
        ends: how names end of those that count.
        revision: branch, tag or commit of a repository of the hub.

    Returns:
        None when a part of it is not there, or there can be no such model.

    Raises:
        CheckpointError: a folder of an adapter that cannot be read, or does not say on which model it stands.
    """
    try:
        return _files(name, ends, revision)
    except (OSError, RuntimeError, ValueError):  # no path at all
        return None


def _files(name: str, ends: Collection[str], revision: str | None = None) -> list[Path] | None:
    folder = folder_of(name) or Path(name).expanduser()
    if folder.is_dir():
        return _files_in(folder, ends)
    if find_model(name) is None and not REPOSITORY_NAME.fullmatch(name):
        return None
    found = find_files(name, revision=revision)
    if not found:
        return None
    several = [_files_in(file.path, ends) if file.path.is_dir() else [file.path] for file in found]
    return [path for group in several if group is not None for path in group] if None not in several else None


def _files_in(folder: Path, ends: Collection[str]) -> list[Path] | None:
    own = sorted(path for path in folder.iterdir() if path.suffix in ends and path.is_file())
    if not is_adapter(folder):
        return own
    # These load torch, which a command that asks for the files of a model may have no other use for.
    from openblip.checkpoints.lora.files import read_adapter
    from openblip.checkpoints.lora.fit import base_of

    below = _files(str(base_of(read_adapter(folder))), ends)
    return None if below is None else own + below
