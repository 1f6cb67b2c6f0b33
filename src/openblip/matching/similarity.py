"""Cosines of vectors that `embed_images` and `embed_texts` gave."""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.errors import OptionError


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """How alike each of N things is to each of M things: cosines [N, M] from -1 to 1.

    Args:
        a: unit vectors of texts [N, D], or of images [N, Q, D], of which the best fitting of Q counts.
        b: likewise, M of them.

    Raises:
        OptionError: no tensors, vectors of another shape, or of different widths.
    """
    for name, vectors in (("a", a), ("b", b)):
        if not isinstance(vectors, Tensor):
            raise OptionError(f"{name} is of the type {type(vectors).__name__}: give tensors, as embed_texts returns")
        if vectors.ndim not in (2, 3):
            raise OptionError(
                f"{name} has the shape {list(vectors.shape)}: give vectors [N, D] or [N, Q, D], of one thing in a batch"
            )
    if a.shape[-1] != b.shape[-1]:
        raise OptionError(f"a has vectors of {a.shape[-1]} numbers, b of {b.shape[-1]}: they are of different models")
    left, right = (vectors[:, None] if vectors.ndim == 2 else vectors for vectors in (a, b))
    if not left.shape[0] or not right.shape[0]:
        return a.new_zeros(left.shape[0], right.shape[0])
    return torch.einsum("nqd,mkd->nmqk", left, right).amax(dim=(-1, -2))
