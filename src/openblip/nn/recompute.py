"""Gradient checkpointing: what a layer computes is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(
    layer: nn.Module, recompute: bool, x: Tensor, *others: Any, call: Callable[..., Tensor] | None = None
) -> Tensor:
    """What `layer` gives for `x` and `others`.

    Args:
        recompute: keep only what enters the layer, where a gradient is going to pass through it.
        call: what is run, if it is not the layer itself: a function of `x` and `others` that uses its weights.
    """
    run = layer if call is None else call
    if recompute and torch.is_grad_enabled() and (x.requires_grad or _learns(layer)):
        again: Tensor = checkpoint(run, x, *others, use_reentrant=False)
        return again
    found: Tensor = run(x, *others)
    return found


def _learns(layer: nn.Module) -> bool:
    return any(value.requires_grad for value in layer.parameters())
