"""Weights are divided among processes (FSDP), and gathered again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from openblip.training.parallel.processes import World


def shard(task: nn.Module, large: Sequence[nn.Module], world: World, device: torch.device) -> None:
    """Keep only a part of each weight in this process; the other parts are fetched when they are needed.

    Args:
        large: the parts in which nearly all weights are: their blocks are fetched one at a time, the rest for the whole
            step.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    for block in _blocks(large):
        fully_shard(block, mesh=mesh)
    # A number cannot be divided: every process keeps it, and shares its gradient.
    scalars = {parameter for parameter in task.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_hook(lambda gradient: world.total(gradient) / world.size)  # type: ignore[no-untyped-call]
    fully_shard(task, mesh=mesh, ignored_params=scalars)


def _blocks(large: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for owner in large:
        for module in owner.modules():
            if isinstance(module, nn.ModuleList):
                yield from module


def whole(tensor: Tensor) -> Tensor:
    """The whole weight, in every process. All processes have to call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' part of a whole tensor, divided as `like` is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)
