"""Codes of quantized weights that stay in their file: the system reads them when they are used, and may drop them."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.tensors.header import TensorEntry

TYPES = {"I8": torch.int8, "U8": torch.uint8}
MAPPED_TOGETHER = 128 * 2**20
"""Bytes of neighbours that share a mapping: it ends with the last of them, when a layer keeps its weights in another
order by then. Each holds a file open."""


class MappedFile:
    """The tensors of whole numbers in a safetensors file that is known to be whole.

    The file has to stay as it is while a tensor lives: on Linux and macOS it may be replaced or deleted, not rewritten
    in place. What is written into a tensor goes to memory, never to the file.

    Args:
        path: of the file.
        entries: its tensors, as `read_header` gives them.
    """

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry]) -> None:
        self.path = path
        self._places: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]] = {}
        self._ends: dict[int, int] = {}
        self._mappings: dict[int, tuple[mmap.mmap, int]] = {}
        for name, entry in entries.items():
            if entry.kind in TYPES:
                start, end = entry.start, entry.end
                self._places[name] = TYPES[entry.kind], entry.shape, start, end
                group = start // MAPPED_TOGETHER
                self._ends[group] = max(end, self._ends.get(group, 0))

    def read(self, name: str) -> Tensor | None:
        """None when the tensor is of another type, or empty."""
        if name not in self._places:
            return None
        dtype, shape, start, end = self._places[name]
        if start == end:
            return None
        mapping, first = self._mapping(start // MAPPED_TOGETHER)
        return torch.frombuffer(mapping, dtype=dtype, count=end - start, offset=start - first).view(shape)

    def _mapping(self, group: int) -> tuple[mmap.mmap, int]:
        """Of a group of tensors, with the place in the file where it begins."""
        if group not in self._mappings:
            first = group * MAPPED_TOGETHER
            with self.path.open("rb") as file:
                length = self._ends[group] - first
                mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first)
            self._mappings[group] = mapping, first
        return self._mappings[group]
