"""The tensors inside a TorchScript archive, as OpenAI published CLIP, without running any of its code.

Such an archive is a zip file: `data.pkl` pickles a tree of modules, whose classes lie beside it as source code, and
`data/0`, `data/1` and so on hold the elements of their tensors. Only the pickle and the elements are read. A class in
the pickle becomes a bare holder of attributes, whatever its code says, and what else it names is refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.tensors.header import MAX_TENSORS
from openblip.errors import CheckpointError, printable

CONSTANTS = "constants.pkl"
"""What such an archive has, and a file of `torch.save` has not."""
PICKLE = "data.pkl"
LONGEST_PICKLE = 64 * 10**6
"""Bytes; that of a model with thousands of tensors has some hundred thousand."""
LOCAL_HEADER = 30
"""Bytes in front of the name of a file in a zip archive."""
KEY = re.compile(r"[0-9]+")
CODE = "__torch__."
"""How names of classes begin whose code is in the archive."""
TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    return any(name.partition("/")[2] == CONSTANTS for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor of an archive by its name in the tree of modules; on disk until its elements are looked at.

    Raises:
        CheckpointError: the archive is damaged, compressed where PyTorch never does so, or its pickle names more than
            tensors and modules.
        pickle.UnpicklingError, zipfile.BadZipFile, OSError, RuntimeError: it is no such archive.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.partition("/")[2] == CONSTANTS).partition("/")[0]
        order = f"{root}/byteorder"
        if order in archive.namelist() and archive.getinfo(order).file_size < 10 and archive.read(order) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine: get it from its source")
        entry = archive.getinfo(f"{root}/{PICKLE}")
        _require_stored(path, entry)
        if entry.file_size > LONGEST_PICKLE:
            raise CheckpointError(f"{path} describes its tensors in {entry.file_size} bytes, more than any model does")
        unpickler = _Unpickler(path, archive, root, archive.read(entry))
        content = unpickler.load()
    return dict(_tensors(path, content, unpickler.module))


class _Function:
    """What a pickle may call; without attributes that a pickle could set for later ones."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)


class _Elements:
    """The elements of one or several tensors, where they lie in the file."""

    def __init__(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.storage = storage
        self.dtype = dtype


class _Unpickler(pickle.Unpickler):
    """Builds modules without code, tensors, and Python's plain values."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str, content: bytes) -> None:
        super().__init__(BytesIO(content))
        self.path, self.archive, self.root = path, archive, root
        self.module: type[Any] = type("Module", (), {})  # own to this file: a pickle may write into it
        self.file: Any = None  # an untyped storage, whose stub lacks most
        self.read: dict[str, _Elements] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.".startswith(CODE):
            return self.module
        if module == "torch" and name in TYPES:
            return TYPES[name]
        functions: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": _rebuild,
            "torch._utils._rebuild_parameter": _keep,
            "torch.jit._pickle.restore_type_tag": _keep,
            "torch.jit._pickle.build_intlist": _keep,
            "torch.jit._pickle.build_doublelist": _keep,
            "torch.jit._pickle.build_boollist": _keep,
            "torch.jit._pickle.build_tensorlist": _keep,
            "collections.OrderedDict": dict,
        }
        full = f"{module}.{name}"
        if full not in functions:
            raise pickle.UnpicklingError(f"GLOBAL {printable(full)} was not an allowed global")
        return dict if functions[full] is dict else _Function(functions[full])

    def persistent_load(self, pid: Any) -> _Elements:
        """Elements by what the pickle says of them: a type, a number, a device, how many there are."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not KEY.fullmatch(key) or type(count) is not int:
            raise CheckpointError(f"{self.path} is broken (it has no elements for a tensor): get the file again")
        if key not in self.read:
            self.read[key] = _Elements(self._elements(key, count * dtype.itemsize), dtype)
        found = self.read[key]
        if found.dtype != dtype or found.storage.nbytes() != count * dtype.itemsize:
            raise CheckpointError(f"{self.path} is broken (data/{key} is of two kinds): get the file again")
        return found

    def _elements(self, key: str, nbytes: int) -> torch.UntypedStorage:
        entry = self.archive.getinfo(f"{self.root}/data/{key}")
        _require_stored(self.path, entry)
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(LOCAL_HEADER)
            size = file.seek(0, 2)
        start = entry.header_offset + LOCAL_HEADER
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if header[:4] != b"PK\x03\x04" or entry.file_size != nbytes or nbytes < 0 or start + nbytes > size:
            raise CheckpointError(f"{self.path} is cut short or damaged at data/{key}: get the file again")
        if self.file is None:
            # Private: who writes into a tensor does not write into the file.
            self.file = torch.UntypedStorage.from_file(str(self.path), False, size)
        part: torch.UntypedStorage = self.file[start : start + nbytes]
        return part


def _rebuild(elements: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor:
    """A tensor of elements; PyTorch raises RuntimeError where it would reach beyond them."""
    if not isinstance(elements, _Elements):
        raise pickle.UnpicklingError("a tensor without elements")
    return torch.empty(0, dtype=elements.dtype).set_(elements.storage, offset, shape, strides)


def _keep(value: Any, *others: Any) -> Any:
    """Of what says of which type a value is, or that a tensor is a parameter: the value."""
    return value


def _tensors(path: Path, content: Any, module: type[Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors with their names; of a module that has several places, under the first."""
    visited: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    count = 0
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, Tensor):
            count += 1
            if count > MAX_TENSORS:
                raise CheckpointError(f"{path} holds more tensors than any model has ({MAX_TENSORS})")
            yield name, one
        elif isinstance(one, module) and id(one) not in visited:
            visited.add(id(one))
            front = f"{name}." if name else ""
            waiting += [(front + str(own), value) for own, value in reversed(vars(one).items())]


def _require_stored(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED:
        # A few bytes could unfold to any number of them.
        raise CheckpointError(f"{path} is compressed, as PyTorch never saves: get the file from its source")
