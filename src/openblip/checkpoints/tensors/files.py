"""Files of weights: which tensors they hold, read one at a time when asked for, and written whole or not at all."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import safe_open
from torch import Tensor

from openblip.checkpoints.tensors.header import (
    INDEX_SUFFIX,
    is_safetensors,
    read_header,
    read_index,
)
from openblip.checkpoints.tensors.readable import naming_faults, readable
from openblip.checkpoints.tensors.wrappers import peel, unwrap
from openblip.errors import CheckpointError, printable

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Transformers' names, the one it prefers first; each may be an index of shards instead."""
REOPEN_BYTES = 10**9
LET_GO_BYTES = 16 * 10**6
"""After so much, a loader lets go of what it has read."""


class SafetensorsFile:
    """A file of named tensors.

    It is mapped into memory, and what was read stays there, counted as this program's, for as long as the mapping does
    or until it is let go. So the file is opened anew every now and then, too: tensors that nobody holds any more are
    gone by then.

    Attributes:
        entries: of every tensor its type, shape and place; shapes: the same without the rest.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_header(path)
        self.shapes = {name: entry.shape for name, entry in self.entries.items()}
        self._mirrors: list[tuple[int, int]] = []
        with readable(path):
            self._open()

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, perhaps still on disk until its elements are looked at."""
        with naming_faults(self.path):
            if self._read > REOPEN_BYTES:
                self._open()
            tensor: Tensor = self._file.get_tensor(name)
            self._read += tensor.nbytes
            self._spans.append(_span(tensor))
            return tensor

    def let_go(self) -> None:
        """Tensors that were read stop counting as this program's memory; looked at again, they are read again.

        Nobody may have written into one.
        """
        if not self._mirrors:
            self._mirrors = _mirrors(self.path)
        _let_go(self._mirrors, self._spans)
        self._spans.clear()

    def _open(self) -> None:
        self._file = cast(Any, safe_open(self.path, framework="pt"))  # its methods have no types
        self._read = 0
        self._spans: list[tuple[int, int]] = []
        self._mirrors = []


class PickledFile:
    """A file of `torch.save`, of which nothing but tensors is unpickled.

    They may lie in dictionaries as training programs write them, beside a run's settings and counters.

    Raises:
        CheckpointError: the file is missing, truncated, or holds anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        from openblip.checkpoints.tensors.pickles import check_names, unpickle  # few folders are pickled

        self.path = path
        content = unpickle(path)
        self._mapped = zipfile.is_zipfile(path)
        found = unwrap(content)
        if not found.tensors or found.odd:
            names = ", ".join(map(repr, (found.odd if found.tensors else found.beside)[:3]))
            detail = f", {printable(names)}" if names else ""
            raise CheckpointError(
                f"{path} holds more than named tensors{detail}: get the file from its source again, or save "
                "model.state_dict() alone"
            )
        check_names(path, found.tensors)
        self._tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in found.tensors.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]

    def let_go(self) -> None:
        """As `SafetensorsFile.let_go`."""
        if self._mapped:
            _let_go(_mirrors(self.path), [_span(tensor) for tensor in self._tensors.values()])


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and ends."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _mirrors(path: Path) -> list[tuple[int, int]]:
    """Where this process' memory mirrors a file."""
    if sys.platform != "linux":
        return []
    place, found = os.fsencode(path.resolve()), []
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name == place:
            first, last = (int(address, 16) for address in addresses.split(b"-"))
            found.append((first, last))
    return found


def _let_go(mirrors: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> None:
    """Take pages from this process that lie in these spans of its memory, as far as they mirror a file.

    Args:
        spans: of tensors that live, so that nothing else has come to lie there.
    """
    if not mirrors:
        return
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for first, last in mirrors:
        for begin, end in spans:
            # Neighbours lie on the first and on the last page, too.
            start, stop = max(first, begin // page * page), min(last, -(-end // page) * page)
            if start < stop:
                libc.madvise(start, stop - start, mmap.MADV_DONTNEED)


WeightFile: TypeAlias = SafetensorsFile | PickledFile


def open_weights(path: Path) -> WeightFile:
    """A file of weights of either kind. Raises CheckpointError as they do."""
    with readable(path):
        safe = is_safetensors(path)
    return SafetensorsFile(path) if safe else PickledFile(path)


class WeightFolder:
    """All tensors of a folder that transformers wrote: one file, or shards and their index.

    Attributes:
        shapes: of every tensor.
    """

    def __init__(self, folder: Path, roots: Sequence[str] = ()) -> None:
        """
        Args:
            roots: how names begin; what stands in front of them all is taken off (see `peel`).

        Raises CheckpointError when there are no weights, or one of the files is missing or broken.
        """
        self.index: dict[str, str] = {}
        for name in SINGLE_FILES:
            listed = folder / (name + INDEX_SUFFIX)
            if (folder / name).is_file() or listed.is_file():
                break
        else:
            raise CheckpointError(f"{folder} holds no weights: it needs {' or '.join(SINGLE_FILES)}, or shards of one")
        self.main = folder / name
        if not self.main.is_file():
            self.main, self.index = listed, read_index(listed)
        paths = [folder / shard for shard in dict.fromkeys(self.index.values())] or [self.main]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, listed in {self.main.name}: get the rest")
        files = [SafetensorsFile(path) if path.suffix == ".safetensors" else PickledFile(path) for path in paths]
        self._files: dict[str, WeightFile] = {}
        for file in files:
            for name in file.shapes:
                if name in self._files and not torch.equal(file.read(name), self._files[name].read(name)):
                    both = f"{self._files[name].path.name} and {file.path.name}"
                    raise CheckpointError(f"{folder} has {name} in {both}, and they differ: get the folder again")
                self._files[name] = file
        self._stored = peel(self.main, self._files, roots) if roots else {name: name for name in self._files}
        self.shapes = {name: self._files[stored].shapes[stored] for name, stored in self._stored.items()}

    def read(self, name: str) -> Tensor:
        stored = self._stored[name]
        return self._files[stored].read(stored)

    def let_go(self) -> None:
        """As `SafetensorsFile.let_go`."""
        for file in dict.fromkeys(self._files.values()):
            file.let_go()

    def file_of(self, name: str) -> str:
        """The name of the file that holds a tensor, or should."""
        if name in self._stored:
            return self._files[self._stored[name]].path.name
        return self.index.get(name, self.main.name)


def refuse_misfits(source: Path, misfits: Sequence[str]) -> None:
    """Raises CheckpointError, naming the first few, when there are any."""
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise CheckpointError(f"{source} does not fit its config: {'; '.join(misfits[:3])}{more}")


def check_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raises CheckpointError, naming the first tensors that are missing, unknown or of another shape."""
    misfits = [f"{name} is missing" for name in expected if name not in found]
    misfits += [f"{name} is unknown" for name in found if name not in expected]
    misfits += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    refuse_misfits(source, misfits)
