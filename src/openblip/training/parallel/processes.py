"""Several processes that train one model, each on its part of every batch.

What they compute together equals what one process computes on the whole batch: means are over all rows, candidates
come from all processes, and gradients, which are averaged over processes, are those of that mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is.

    Attributes:
        parts: how many rows each process has, where they differ; None: all have as many.
    """

    rank: int = 0
    size: int = 1
    parts: tuple[int, ...] | None = None

    @classmethod
    def current(cls) -> World:
        """The processes of the current process group; one process if there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def uneven(self, count: int, device: torch.device) -> World:
        """The same processes for rows of which this one has `count`, and each other one its own number."""
        if self.size == 1:
            return self
        counts = _gather(torch.tensor([count], device=device), self)
        return replace(self, parts=tuple(int(number) for number in counts.tolist()))

    def joined(self, count: int) -> int:
        """The rows of all processes, of which this one has `count`."""
        return count * self.size if self.parts is None else sum(self.parts)

    def rows(self, count: int) -> slice:
        """This process' part of the `count` rows of all; where all have as many, its size must divide them."""
        if self.parts is not None:
            start = sum(self.parts[: self.rank])
            return slice(start, start + self.parts[self.rank])
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [b, ...] of all processes in the order of ranks [b * size, ...], as constants."""
        if self.size == 1:
            return rows.detach()
        return _gather(rows.detach(), self)

    def gather_with_gradient(self, rows: Tensor) -> Tensor:
        """As `gather`; what any process does with a row sends its gradient to the process that the row is from."""
        if self.size == 1:
            return rows
        return cast(Tensor, _GatherWithGradient.apply(rows, self))  # type: ignore[no-untyped-call]

    def gather_padded(self, rows: Tensor, fill: int) -> Tensor:
        """As `gather` for [b, L] whose L differs from process to process: filled up on the right."""
        if self.size == 1:
            return rows
        longest = torch.tensor(rows.shape[1], device=rows.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        return _gather(F.pad(rows, (0, int(longest) - rows.shape[1]), value=fill), self)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes of a number that needs no gradient."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def all_of(self, own: list[Item]) -> list[Item]:
        """What all processes have, in the order of ranks."""
        if self.size == 1:
            return own
        found: list[list[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(found, own)
        return [item for part in found for item in part]

    def mean(self, total: Tensor, count: int | Tensor) -> Tensor:
        """A mean over the rows of all processes, of which this one has `count` with the sum `total`.

        The value is this process' share times `size`: the average over processes is the mean, and so are gradients.
        """
        if self.size == 1:
            return total / count
        return total * self.size / self.total(torch.as_tensor(count, device=total.device, dtype=total.dtype))


ALONE = World()


_LEFT: list[Any] = []
"""Process groups that were left, until the program ends.

The last one to let go of a Gloo group waits for its threads, and holds Python's lock meanwhile (PyTorch 2.13); a thread
that is just letting go of a tensor waits for that lock. Here nobody lets go of a group while its threads have work.
"""


def leave() -> None:
    """Leave the process group after all processes have come here: leaving while others still send data is a crash."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        _LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


def _gather(rows: Tensor, world: World) -> Tensor:
    # Gloo cannot send booleans.
    sent = rows.byte() if rows.dtype == torch.bool else rows
    if world.parts is not None:
        missing = max(world.parts) - rows.shape[0]
        sent = torch.cat([sent, sent.new_zeros(missing, *rows.shape[1:])])
    sent = sent.contiguous()
    gathered = [torch.empty_like(sent) for _ in range(world.size)]
    dist.all_gather(gathered, sent)
    if world.parts is not None:
        gathered = [part[:count] for part, count in zip(gathered, world.parts, strict=True)]
    return torch.cat(gathered).to(rows.dtype)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        return _gather(rows, world)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        gradient = grads[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.world.rows(gradient.shape[0])], None
