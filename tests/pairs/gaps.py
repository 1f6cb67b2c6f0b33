"""How far two tensors are apart, and the random inputs they are computed from."""

from __future__ import annotations

import torch
from torch import Tensor


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference of tensors of one shape; 0 for empty ones."""
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item() if ours.numel() else 0.0


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def right_padded(batch: int, length: int) -> Tensor:
    """[B, length] bool; the first row is full, each next one two tokens shorter."""
    return torch.arange(length)[None] < (length - 2 * torch.arange(batch))[:, None]
