"""Files of weights: which tensors they hold, read one at a time when asked for, and written whole or not at all."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openblip.checkpoints.tensors.header import (
    INDEX_SUFFIX,
    MAX_NAME,
    MAX_TENSORS,
    is_safetensors,
    read_header,
    read_index,
)
from openblip.checkpoints.tensors.stand_ins import refuse_stand_ins
from openblip.checkpoints.tensors.torchscript import is_torchscript, read_torchscript
from openblip.checkpoints.tensors.wrappers import peel, unwrap
from openblip.errors import CheckpointError, printable
from openblip.saving import naming, put_names_on_disk, put_on_disk, replacing

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Transformers' names, the one it prefers first; each may be an index of shards instead."""
REOPEN_BYTES = 10**9
LOCK_FILE = ".writing.lock"
"""Beside files while they are written together."""
MOST_SHARERS = 8
"""How many times over a file may hold the same elements: T5 has its word table under four names."""
LET_GO_BYTES = 16 * 10**6
"""After so much, a loader lets go of what it has read."""

GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed")
"""PyTorch's words for a class that it does not unpickle."""


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


def unpickle(path: Path) -> Any:
    """What `torch.save` wrote, if it is made of tensors and plain values; nothing else is ever run or built.

    Of a TorchScript archive, the tensors of its modules by their names.

    Tensors stay on disk until they are looked at; those of a file from before PyTorch 1.6 cannot.

    Raises:
        CheckpointError: the file is missing, broken, or holds more than that.
    """
    with readable(path):
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                if is_torchscript(archive):
                    found = read_torchscript(path)
                    _refuse_unfolding(path, found)
                    return found
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    # A few bytes could unfold to any number of them.
                    raise CheckpointError(f"{path} is compressed, as PyTorch never saves: get the file from its source")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was pickled, which nobody can change
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        _refuse_unfolding(path, content)
        return content


def check_names(path: Path, names: Collection[object]) -> None:
    """Raises CheckpointError when a file has more tensors, or longer names, than any model."""
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(names)} tensors, more than any model has ({MAX_TENSORS})")
    longest = max((str(name) for name in names), key=len, default="")
    if len(longest) > MAX_NAME:
        raise CheckpointError(f"{path} has a tensor whose name has {len(longest)} characters: {printable(longest)}")


def _refuse_unfolding(path: Path, content: object) -> None:
    """Raises CheckpointError for tensors that would take more memory than they have in the file.

    A few bytes may be a tensor of any size: by strides of zero, by strides that overlap, as a sparse tensor, or as many
    tensors that share their elements.
    """
    shared: Counter[int] = Counter()
    for tensor in _tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(f"{path} holds a tensor that is no plain one: save it again with dense tensors")
        stored, size = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        shared[stored.data_ptr()] += size
        if size > stored.nbytes() or shared[stored.data_ptr()] > MOST_SHARERS * stored.nbytes():
            raise CheckpointError(
                f"{path} holds {list(tensor.shape)} of which it stores {stored.nbytes()} bytes: save it again with "
                "contiguous tensors"
            )


def _tensors_in(content: object) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries and lists, which may hold themselves."""
    visited: set[int] = set()
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, Mapping | list | tuple | set | frozenset) and id(one) not in visited:
            visited.add(id(one))
            waiting.extend(one.values() if isinstance(one, Mapping) else one)


WeightFile: TypeAlias = SafetensorsFile | PickledFile


def open_weights(path: Path) -> WeightFile:
    """A file of weights of either kind. Raises CheckpointError as they do."""
    with readable(path):
        safe = is_safetensors(path)
    return SafetensorsFile(path) if safe else PickledFile(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """As `naming_faults`, for a file that is opened now: what stands in for it is refused first."""
    refuse_stand_ins(path)
    with naming_faults(path):
        yield


@contextmanager
def naming_faults(path: Path) -> Iterator[None]:
    """Turns what the libraries raise about a file into a CheckpointError that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        kind = GLOBAL.search(str(error))
        detail = f" (it names {printable(kind[1])})" if kind else ""
        hint = ", or save its weights alone: torch.save(model.state_dict(), PATH)" if kind else ""
        raise CheckpointError(
            f"{path} is broken or holds more than tensors, which could run code{detail}: get the file from its source "
            f"again{hint}"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        first = printable(str(error).partition("\n")[0].partition(". ")[0])
        raise CheckpointError(f"{path} is broken ({first}): get the file again") from error
    except Exception as error:  # bytes that are no pickle at all take the unpickler anywhere
        raise CheckpointError(f"{path} is broken, or no file of weights: get it again") from error


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
