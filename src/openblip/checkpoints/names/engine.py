"""How tensors go from one project's names to another's: tables of names, read in both directions.

A component, such as an image encoder, has one `NameTable` a layout, which says what that project calls its modules. The
names of a whole model are a `Layout`: a list of components with what stands in front of their names, in ours and in
theirs. To add a component, write its table beside the component's others (`names/vit.py`, say), give it a row in the
layout of each model that has it, and use these:

    layout.sources(name)      which tensors of theirs one of ours consists of; nothing for what they have no place for
    layout.plan(names)        which tensors of ours a file of theirs holds, by its names alone; nothing is read
    layout.to_ours(state)     tensors under their names to ours
    layout.to_theirs(state)   and back; tensors are views where they can be

In a table N stands for a layer's index. For example, of a text encoder that joins queries, keys and values in one:

    NameTable(
        "text encoder",
        {
            "token_embedding": "tokens",
            "blocks.N.attn.q": "layers.N.q",  # the parts of what is joined have names of their own
            "blocks.N.attn.k": "layers.N.k",
            "blocks.N.attn.v": "layers.N.v",
            "blocks.N.attn.out": "layers.N.out",
        },
        joined={"qkv": ("q", "k", "v")},
        second_names={"head.weight": "token_embedding.weight"},
        unused=("position_ids",),
    )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from openblip.errors import CheckpointError

BLIP2_LANGUAGE = "language_model."
"""Beginning of the names of a language model's tensors in a BLIP-2 folder of transformers."""
NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Rows:
    """The `index`-th of `count` equal parts, along the first dimension, of a tensor of theirs.

    Attributes:
        squeezed: how many leading dimensions of one ours has more.
        transposed: whether it is a matrix that lies on its side there.
    """

    name: str
    index: int = 0
    count: int = 1
    squeezed: int = 0
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor of theirs, in our shape; a view."""
        part = tensor if self.count == 1 else tensor.chunk(self.count)[self.index]
        if self.transposed:
            part = part.T
        return part.reshape((1,) * self.squeezed + tuple(part.shape)) if self.squeezed else part

    def put(self, piece: Tensor) -> Tensor:
        """Our tensor, or the piece of it that this is, in their shape; a view."""
        return piece.reshape(piece.shape[self.squeezed :]) if not self.transposed else piece.T

    def stored_shape(self, shape: tuple[int, ...], pieces: int) -> tuple[int, ...]:
        """The shape that this has in the file, of a tensor of ours that is stacked from so many pieces."""
        part = (shape[0] // pieces, *shape[1:])[self.squeezed :] if shape else shape
        return part[::-1] if self.transposed else part


@dataclass(frozen=True)
class NameTable:
    """What one project calls the tensors of one component.

    Attributes:
        what: the component, as errors call it.
        modules: their module, or single tensor, to ours.
        joined: the end of the name of a module of ours, and of those in `modules` whose rows it stacks.
        slices: the end of the name of a tensor of ours that is one of equal parts of one of theirs: the end that the
            whole would have with us, which of the parts it is, and of how many. What we lack of the whole is zero.
        squeezed: tensors of ours, and how many leading dimensions of one they have more than theirs.
        transposed: matrices of ours that lie on their side there.
        second_names: names of theirs that repeat another tensor of theirs, and that tensor's.
        unused: modules and tensors of theirs that nothing of ours needs.
        fronts: what may stand in front of all their names; the first is written.
        roots: how names of the component begin, where others stand beside them in the file.
        depth: our number of layers, where theirs may have more; None for as many.
    """

    what: str
    modules: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    slices: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    squeezed: Mapping[str, int] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    second_names: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    fronts: tuple[str, ...] = ("",)
    roots: tuple[str, ...] = ("",)
    depth: int | None = None

    @cached_property
    def theirs(self) -> Mapping[str, str]:
        """Our module, or single tensor, to theirs."""
        return {ours: theirs for theirs, ours in self.modules.items()}

    def apart(self, name: str) -> list[str]:
        """Names of the parts that a tensor of ours joins: its own if it joins none."""
        module, dot, leaf = name.rpartition(".")
        for whole, parts in self.joined.items():
            if f".{module}".endswith(f".{whole}"):
                return [f"{module.removesuffix(whole)}{part}{dot}{leaf}" for part in parts]
        return [name]

    def whole(self, part: str) -> str:
        """The name of the tensor of ours that a part, as `apart` has it, is joined in: its own if in none."""
        module, dot, leaf = part.rpartition(".")
        for whole, parts in self.joined.items():
            for end in parts:
                if f".{module}".endswith(f".{end}"):
                    return f"{module.removesuffix(end)}{whole}{dot}{leaf}"
        return part

    def sources(self, name: str) -> tuple[Rows, ...]:
        """What our tensor is stacked from, equal heights each; nothing for what they have no place for."""
        front = self.fronts[0]
        for end, (whole, index, count) in self.slices.items():
            if name.endswith(end):
                theirs = look_up(name.removesuffix(end) + whole, self.theirs)
                return () if theirs is None else (Rows(front + theirs, index, count),)
        found = [look_up(part, self.theirs) for part in self.apart(name)]
        squeezed, transposed = self.squeezed.get(name, 0), name in self.transposed
        return tuple(
            Rows(front + theirs, squeezed=squeezed, transposed=transposed) for theirs in found if theirs is not None
        )

    def bare(self, name: str) -> str:
        """A name of theirs without what may stand in front."""
        return name.removeprefix(max((front for front in self.fronts if name.startswith(front)), key=len, default=""))

    def is_unused(self, bare: str) -> bool:
        number = NUMBER.search(bare)
        if number is not None and self.depth is not None and int(number[1]) >= self.depth:
            return True
        return bare in self.unused or bare.rpartition(".")[0] in self.unused

    def plan(self, names: Iterable[str]) -> Plan:
        """Raises CheckpointError: see `Layout.plan`."""
        stored: dict[str, str] = {}
        seconds: dict[str, str] = {}
        for name in names:
            bare = self.bare(name)
            (seconds if bare in self.second_names else stored)[bare] = name
        if not stored and not seconds:
            raise CheckpointError(f"the checkpoint holds no {self.what}: its weights are in another file")
        repeats = []
        for second, name in seconds.items():
            first = self.second_names[second]
            if stored.setdefault(first, name) != name:
                repeats.append((name, stored[first]))
        found, unknown = {}, []
        for bare, name in stored.items():
            ours = look_up(bare, self.modules)
            if self.is_unused(bare):
                continue
            if ours is None:
                unknown.append(name)
            else:
                found[ours] = name
        if unknown:
            raise CheckpointError(_unknown_names(f"the {self.what}", unknown))
        plan: dict[str, tuple[Rows, ...]] = {}
        for part in found:
            whole = self.whole(part)
            if whole in plan:
                continue
            apart = self.apart(whole)
            missing = [name for name in apart if name not in found]
            if missing:
                raise CheckpointError(f"the checkpoint has {part} without {missing[0]}: get the file again")
            squeezed, transposed = self.squeezed.get(whole, 0), whole in self.transposed
            plan[whole] = tuple(Rows(found[name], squeezed=squeezed, transposed=transposed) for name in apart)
        return Plan(plan, tuple(repeats))


@dataclass(frozen=True)
class Plan:
    """Where tensors of ours lie in a file.

    Attributes:
        rows: of each of ours, under the names that are stored.
        repeats: names that are stored of tensors that have to be equal.
    """

    rows: Mapping[str, tuple[Rows, ...]]
    repeats: tuple[tuple[str, str], ...] = ()

    def check_repeats(self, read: Callable[[str], Tensor]) -> None:
        """Raises CheckpointError when tensors differ that the networks here have as one."""
        for second, first in self.repeats:
            if not torch.equal(read(second), read(first)):
                raise CheckpointError(_differ(second, first))

    def pieces(self, name: str, read: Callable[[str], Tensor]) -> list[Tensor]:
        """What our tensor is stacked from."""
        return [row.of(read(row.name)) for row in self.rows[name]]


@dataclass(frozen=True)
class Part:
    """One component of a layout, with what stands in front of our names and of theirs."""

    ours: str
    theirs: str
    table: NameTable

    def claims(self, name: str) -> bool:
        """Whether a name of theirs belongs to this component."""
        if not name.startswith(self.theirs):
            return False
        own = name.removeprefix(self.theirs)
        return own.startswith(self.table.roots) or own in self.table.modules


class Layout:
    """What one project calls the tensors of a whole model.

    Args:
        what: the model, as errors call it.
        parts: where several claim a name, it belongs to the first.
        second_names: modules and tensors of theirs that repeat those of another component, and these.
    """

    def __init__(self, what: str, parts: Sequence[Part], second_names: Mapping[str, str] | None = None) -> None:
        self.what = what
        self.parts = tuple(parts)
        self.second_names = second_names or {}

    def sources(self, name: str) -> tuple[Rows, ...]:
        """What our tensor is stacked from, equal heights each; nothing for what they have no place for."""
        for part in self.parts:
            if name.startswith(part.ours):
                rows = part.table.sources(name.removeprefix(part.ours))
                if rows:
                    return tuple(replace(row, name=part.theirs + row.name) for row in rows)
        return ()

    def plan(self, names: Iterable[str]) -> Plan:
        """Where our tensors are among theirs, by the names that a file has.

        Raises:
            CheckpointError: a component that is missing altogether, tensors that are joined with missing ones, or names
                that no component knows, of which the first few are listed. Single missing tensors are not noticed.
        """
        groups: list[list[str]] = [[] for _ in self.parts]
        unknown = []
        stored, repeats = self._apart(names)
        for name in stored:
            for part, own in zip(self.parts, groups, strict=True):
                if part.claims(name):
                    own.append(name.removeprefix(part.theirs))
                    break
            else:
                unknown.append(name)
        if unknown:
            raise CheckpointError(_unknown_names(self.what, unknown))
        rows: dict[str, tuple[Rows, ...]] = {}
        for part, own in zip(self.parts, groups, strict=True):
            plan = part.table.plan(own)
            for name, pieces in plan.rows.items():
                rows[part.ours + name] = tuple(replace(row, name=stored[part.theirs + row.name]) for row in pieces)
            repeats += [(part.theirs + second, part.theirs + first) for second, first in plan.repeats]
        return Plan(rows, tuple(repeats))

    def _apart(self, names: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """First names, each with the name that its tensor is stored under; and names that repeat one of these."""
        names = list(names)
        seconds = {name: first for name in names if (first := look_up(name, self.second_names)) is not None}
        stored = {name: name for name in names if name not in seconds}
        repeats = [(name, stored.setdefault(first, name)) for name, first in seconds.items()]
        return stored, [(second, first) for second, first in repeats if second != first]

    def repeated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of theirs, by the second names that `second_names` has for them."""
        return {
            other: tensor
            for second, first in self.second_names.items()
            for name, tensor in state.items()
            if (other := look_up(name, {first: second})) is not None
        }

    def places(self, names: Iterable[str]) -> dict[str, Rows]:
        """Where each whole tensor of theirs is among ours: the rows of ours that it is, by its name.

        Args:
            names: of our tensors.
        """
        found = {}
        for name in names:
            rows = self.sources(name)
            # What we have but parts of is nowhere as a whole.
            found.update({row.name: Rows(name, at, len(rows)) for at, row in enumerate(rows) if row.count == 1})
        return found

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under our names.

        Raises:
            CheckpointError: see `plan`; or tensors that are one in our networks differ.
        """
        plan = self.plan(state)
        plan.check_repeats(state.__getitem__)
        return {name: _joined(plan.pieces(name, state.__getitem__)) for name in plan.rows}

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under their names, each once; views if they can be.

        Raises:
            CheckpointError: a tensor that they have no place for.
        """
        parts: dict[str, dict[int, Tensor]] = {}
        counts: dict[str, int] = {}
        for name, tensor in state.items():
            rows = self.sources(name)
            if not rows:
                raise CheckpointError(f"{self.what} has no place for {name}")
            for row, piece in zip(rows, tensor.chunk(len(rows)) if tensor.ndim else [tensor], strict=True):
                parts.setdefault(row.name, {})[row.index] = row.put(piece)
                counts[row.name] = row.count
        return {name: _whole(pieces, counts[name]) for name, pieces in parts.items()}


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _whole(pieces: Mapping[int, Tensor], count: int) -> Tensor:
    """One of their tensors from the parts that we have; the others are zero."""
    if count == 1:
        return pieces[0]
    zeros = torch.zeros_like(next(iter(pieces.values())))
    return torch.cat([pieces.get(index, zeros) for index in range(count)])


def rename(state: Mapping[str, Tensor], table: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Every tensor under the other name that a table of modules has for it.

    Raises:
        CheckpointError: naming the first few that the table does not know.
    """
    names = {name: look_up(name, table) for name in state}
    unknown = [name for name, other in names.items() if other is None]
    if unknown:
        raise CheckpointError(_unknown_names(f"the {what}", unknown))
    return {other: state[name] for name, other in names.items() if other is not None}


def look_up(name: str, table: Mapping[str, str]) -> str | None:
    """What a table whose N stands for a number calls a tensor, or the module it belongs to; None if it has neither.

    A name with the number itself in it comes first.
    """
    if (exact := _entry(name, table)) is not None:
        return exact
    number = NUMBER.search(name)
    if number is None:
        return None
    other = _entry(f"{name[: number.start()]}.N.{name[number.end() :]}", table)
    return None if other is None else other.replace(".N.", f".{number[1]}.")


def _entry(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table else None


def first_few(names: Sequence[str]) -> str:
    """Three of the names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _differ(second: str, first: str) -> str:
    return f"{second} and {first} differ: only checkpoints that tie them can be read"


def _unknown_names(what: str, names: Sequence[str]) -> str:
    return f"{what} has no place for {first_few(names)}: give a file and a config that fit each other"
