"""How a model is read, wherever its files lie: said once, and handed whole from `load_parts` down to each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from openblip.errors import OptionError
from openblip.nn.quant.swap import BITS

if TYPE_CHECKING:
    from openblip.checkpoints.lora.files import Adapter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ReadOptions:
    """What becomes of a model's weights as they are read, and what is read in place of its own files.

    Attributes:
        dtype: floating-point type of what is not quantized.
        device: where the weights go.
        bits: 8 or 4 to quantize large matrices as they are read; 0 to leave them in `dtype`; None: as they are stored.
        adapter: low-rank adapters (see `find_adapter`), merged into the weights before these are cast or quantized.
        checkpoint: a `.pth` that LAVIS saved, read instead of the official one of a LAVIS model.
        tokenizer: a folder (see `find_tokenizer`) whose vocabulary is read instead of that of a folder of transformers:
            checkpoints of its Trainer have none.
        needs_tokenizer: False to read a folder of transformers without a vocabulary as a model without a tokenizer.
        in_float32: beginnings of names of the network's tensors that are not cast to `dtype`.
        config: what counts instead of the config.json of a folder of transformers, for BLIP and CLIP.
        left_out: beginnings of names of the network's tensors that are not read, such as `assign.VISION`: they are on
            the meta device then. "" leaves out all.

    Raises:
        OptionError: a type that is no floating-point type, other numbers of bits, or a text where names begin.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    bits: int | None = None
    adapter: Adapter | None = None
    checkpoint: Path | None = None
    tokenizer: Path | None = None
    needs_tokenizer: bool = True
    in_float32: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.dtype.is_floating_point:
            raise OptionError(f"weights cannot be {self.dtype}: give a floating-point type, such as torch.float32")
        if self.bits not in (None, 0, *BITS):
            raise OptionError(f"bits is {self.bits}: give {', '.join(map(str, BITS))}, 0 or None")
        for name in ("in_float32", "left_out"):
            if not isinstance(getattr(self, name), tuple):
                raise OptionError(f"{name} is {getattr(self, name)!r}: give a tuple of beginnings of names")

    def leaves_out(self, name: str) -> bool:
        """Whether a tensor of the network of this name is not read."""
        return name.startswith(self.left_out)

    def dtype_of(self, name: str) -> torch.dtype:
        """The type that a tensor of the network of this name is cast to."""
        return torch.float32 if name.startswith(self.in_float32) else self.dtype


DEFAULT_OPTIONS = ReadOptions()
"""float32 on the CPU, or quantized as it is stored."""
