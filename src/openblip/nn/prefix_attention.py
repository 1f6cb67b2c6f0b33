"""Attention of many rows to keys that all of them share and to keys of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_to_both(
    query: Tensor, shared_keys: Tensor, shared_values: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """One softmax over shared and own keys, as if the shared ones stood in front of each row's own.

    All rows' queries are laid side by side in front of the shared keys: those are read once and never copied.

    Args:
        query: [P, heads, T, head width].
        shared_keys, shared_values: [heads, S, head width], which every query sees.
        keys, values: [P, heads, L, head width].
        mask: [P or 1, 1, T, L] bool, True where a query may look among its row's own; None: everywhere.

    Returns:
        [P, heads, T, head width].
    """
    rows, heads, length, width = query.shape
    query = query * width**-0.5  # before the product, which could overflow in half precision
    side_by_side = query.transpose(0, 1).reshape(heads, rows * length, width)
    first = (side_by_side @ shared_keys.transpose(1, 2)).view(heads, rows, length, -1).transpose(0, 1)
    own = query @ keys.transpose(2, 3)
    if mask is not None:
        own = own.masked_fill(~mask, -torch.inf)
    weights = torch.cat([first, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    to_shared, to_own = weights[..., : first.shape[-1]], weights[..., first.shape[-1] :]
    mixed = to_shared.transpose(0, 1).reshape(heads, rows * length, -1) @ shared_values
    attended: Tensor = mixed.view(heads, rows, length, width).transpose(0, 1) + to_own @ values
    return attended
