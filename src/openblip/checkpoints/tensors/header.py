"""Which tensors a safetensors file holds, and which files an index lists; neither is taken at its word.

A file begins with eight bytes, the length of its header, and the header: JSON of each tensor's type, shape and place.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from openblip.checkpoints.json_files import read_json
from openblip.checkpoints.tensors.readable import refuse_stand_ins
from openblip.errors import CheckpointError, printable
from openblip.files import open_file

INDEX_SUFFIX = ".index.json"
METADATA = "__metadata__"
MAX_HEADER_BYTES = 10 * 10**6
MAX_TENSORS = 50_000
"""No file of a model has more than a few thousand; a language model of 540 billion weights has 2,000."""
MAX_NAME = 1_000
MAX_SIDES = 64
LENGTH_BYTES = 8
FIELDS = {"dtype", "shape", "data_offsets"}

BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
    **{"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of an element of each type."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        kind: its type, as safetensors calls it.
        start, end: of its bytes in the file.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def is_safetensors(path: Path) -> bool:
    """By its name or, whatever that is, by its first bytes: the length of a header, and the header."""
    if path.suffix == ".safetensors":
        return True
    with open_file(path) as file:
        return bool(file.read(LENGTH_BYTES + 1)[LENGTH_BYTES:] == b"{")


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a file by name, in the order of their bytes, which fill the file.

    Raises:
        CheckpointError: no safetensors file, or one that is cut short, damaged, or made to cost more than it holds.
    """
    refuse_stand_ins(path)
    try:
        with open_file(path) as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 2 <= length <= size - LENGTH_BYTES:
                raise CheckpointError(f"{path} is no whole safetensors file: get it again")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} has a header of {length} bytes, more than any model's ({MAX_HEADER_BYTES}): get it again"
                )
            content = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        problem = f"is broken ({error})" if isinstance(error, _RepeatedError) else "is no whole safetensors file"
        raise CheckpointError(f"{path} {problem}: get it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no whole safetensors file: get it again")
    content.pop(METADATA, None)
    if len(content) > MAX_TENSORS:
        raise CheckpointError(f"{path} lists {len(content)} tensors, more than any model has ({MAX_TENSORS})")
    try:
        entries = {name: _entry(name, entry) for name, entry in content.items()}
        return _in_order(entries, LENGTH_BYTES + length, size)
    except ValueError as error:
        raise CheckpointError(f"{path} is broken ({error}): get it again") from error


class _RepeatedError(ValueError):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _RepeatedError("its header says something twice")
    return content


def _entry(name: str, entry: Any) -> TensorEntry:
    """Offsets are still those behind the header. Raises ValueError."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name)} characters: {printable(name)}")
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        raise ValueError(f"{printable(name)} has no type, shape and place")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        raise ValueError(f"{printable(name)} is of the unknown type {printable(str(kind), 40)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(shape) > MAX_SIDES or len(offsets) != 2:
        raise ValueError(f"{printable(name)} has no possible shape or place")
    start, end = offsets
    # Python's whole numbers do not overflow.
    if prod(shape) * BITS[kind] != (end - start) * 8:
        raise ValueError(f"the shape of {printable(name)} does not fit its {end - start} bytes")
    return TensorEntry(kind, tuple(shape), start, end)


def _are_counts(values: Any) -> bool:
    # No generator: for thousands of tensors those take milliseconds.
    return values == [] or (
        isinstance(values, list) and set(map(type, values)) == {int} and min(values) >= 0 and max(values) < 2**63
    )


def _in_order(entries: dict[str, TensorEntry], first: int, size: int) -> dict[str, TensorEntry]:
    """Entries with places in the file. Raises ValueError when they overlap or leave gaps."""
    end = first
    placed = {}
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if first + entry.start != end:
            raise ValueError(f"{printable(name)} overlaps the tensor before it, or leaves a gap")
        end = first + entry.end
        placed[name] = TensorEntry(entry.kind, entry.shape, first + entry.start, end)
    if end != size:
        raise ValueError(f"it has {size} bytes, its header says {end}")
    return placed


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, by an index of several files, all of which lie beside it.

    Raises:
        CheckpointError: the index is missing or broken, or lists what is no file of its folder.
    """
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path} lists no weights: get the file again")
    if len(index) > MAX_TENSORS:
        raise CheckpointError(f"{path} lists {len(index)} tensors, more than any model has ({MAX_TENSORS})")
    for shard in index.values():
        # A path could lead out of the folder.
        if not isinstance(shard, str) or not _is_bare(shard):
            shown = printable(repr(shard))
            raise CheckpointError(f"{path} lists {shown}, which is no file of this folder: get the file again")
    return index


def _is_bare(name: str) -> bool:
    """Whether a name has no folder in it, on any system."""
    return name not in ("", ".", "..") and len(name) <= MAX_NAME and not any(mark in name for mark in "/\\:\0")
