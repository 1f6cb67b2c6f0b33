"""The number formats of a run: frozen parts in a fast type, learning parts with float32 weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from openblip.devices import is_emulated
from openblip.training.recipe_keys import Precision

LOG = logging.getLogger("openblip")
DTYPES = {Precision.FLOAT32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True)
class Arithmetic:
    """Contexts to compute in.

    Attributes:
        fast: for the image encoder and the language model.
        careful: for the Q-Former, its heads and the losses.
    """

    device: torch.device
    fast: torch.dtype = torch.float32
    careful: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: torch.device, precision: Precision, qformer_precision: Precision) -> Arithmetic:
        return cls(device, DTYPES[precision], DTYPES[qformer_precision])

    def tell_emulation(self) -> None:
        """Warn the user, through `logging`, of a type that this CPU emulates, which takes several times as long."""
        for dtype in dict.fromkeys((self.fast, self.careful)):
            if self.device.type == "cpu" and is_emulated(dtype):
                name = next(precision for precision, kind in DTYPES.items() if kind == dtype).value
                LOG.warning("this CPU emulates %s, which takes longer than float32: train with precision=float32", name)

    def quickly(self) -> AbstractContextManager[None]:
        return self._autocast(self.fast)

    def carefully(self) -> AbstractContextManager[None]:
        return self._autocast(self.careful)

    def shrink(self, modules: Iterable[nn.Module]) -> None:
        """Store frozen weights in the fast type: only weights that learn need float32, for small steps."""
        for layer in (layer for module in modules for layer in module.modules()):
            own = list(layer.parameters(recurse=False))
            if any(parameter.requires_grad for parameter in own):
                continue
            for tensor in (*own, *layer.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(self.fast)

    def _autocast(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        enabled = dtype != torch.float32
        return torch.autocast(self.device.type, dtype if enabled else None, enabled=enabled)
