"""An exponential moving average of the weights that learn (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from openblip.training.parallel.fsdp import part_like, whole


class Ema:
    """An average of the weights. In the first steps its decay is smaller: the weights start far from where they end."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = parameters
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, steps_done: int) -> None:
        """Add the weights after a step."""
        share = 1 - min(self.decay, (1 + steps_done) / (10 + steps_done))
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), share)

    def whole(self) -> dict[str, Tensor]:
        """The averages, on the CPU. Every process has to call this."""
        return {name: whole(value).cpu().clone() for name, value in self.values.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from averages that were saved."""
        for name, value in self.values.items():
            value.copy_(part_like(values[name], value))
