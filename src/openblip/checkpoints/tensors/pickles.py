"""What `torch.save` wrote, of which nothing but tensors and plain values is unpickled."""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.tensors.header import MAX_NAME, MAX_TENSORS
from openblip.checkpoints.tensors.readable import readable
from openblip.checkpoints.tensors.torchscript import is_torchscript, read_torchscript
from openblip.errors import CheckpointError, printable

MOST_SHARERS = 8
"""How many times over a file may hold the same elements: T5 has its word table under four names."""


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
