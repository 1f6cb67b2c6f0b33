"""How tensors go from one project's names to another's, by tables of modules in which N stands for a layer's index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from openblip.errors import CheckpointError

BLIP2_LANGUAGE = "language_model."
"""Beginning of the names of a language model's tensors in a BLIP-2 folder of transformers."""


def select(state: Mapping[str, Tensor], prefixes: Sequence[str], what: str) -> dict[str, Tensor]:
    """The tensors of one part of a model, under their full names.

    Raises:
        CheckpointError: there are none.
    """
    part = {name: tensor for name, tensor in state.items() if name.startswith(tuple(prefixes))}
    if not part:
        raise CheckpointError(f"the checkpoint holds no {what}: its weights are in another file")
    return part


def drop_tied(state: dict[str, Tensor], second_names: Mapping[str, str]) -> None:
    """Drop tensors that repeat another; keep them as that other where it is missing.

    Raises:
        CheckpointError: the two differ, which the networks here cannot express.
    """
    for second, first in second_names.items():
        if second not in state:
            continue
        repeated = state.pop(second)
        kept = state.setdefault(first, repeated)
        if kept is not repeated and not torch.equal(kept, repeated):
            raise CheckpointError(f"{second} and {first} differ: only checkpoints that tie them can be read")


def rename(state: Mapping[str, Tensor], table: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Every tensor under our name for it.

    Raises:
        CheckpointError: naming the first few that the table does not know.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        ours = look_up(name, table)
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(f"no weights of a {what} of this layout: {first_few(unknown)}")
    return renamed


def look_up(name: str, table: Mapping[str, str]) -> str | None:
    """What a table whose N stands for a number calls a tensor, or the module it belongs to; None if it has neither."""
    exact = _find(name, table)
    number = re.search(r"\.(\d+)\.", name)
    if exact is not None or number is None:
        return exact
    other = _find(f"{name[: number.start()]}.N.{name[number.end() :]}", table)
    return None if other is None else other.replace(".N.", f".{number[1]}.")


def _find(name: str, table: Mapping[str, str]) -> str | None:
    module, _, leaf = name.rpartition(".")
    return table[name] if name in table else f"{table[module]}.{leaf}" if module in table else None


def first_few(names: Sequence[str]) -> str:
    """Three of the names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
