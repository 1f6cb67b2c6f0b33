"""Random weights that make a difference."""

from __future__ import annotations

import torch
from torch import nn


def shake(model: nn.Module) -> None:
    """Weights so large that what is said depends on what is seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0 if "embed" in name or "words" in name else 2 * parameter.shape[-1] ** -0.5)
            elif name.lower().endswith("norm.weight"):
                parameter.normal_(1.0, 0.3)
            else:
                parameter.normal_(std=0.3)
