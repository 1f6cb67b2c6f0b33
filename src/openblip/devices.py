"""Where a model runs and in which number format: decided here and nowhere else."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openblip.errors import OptionError

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("openblip")
QUANTIZED = {"int8": 8, "int4": 4}
"""Types that large matrices are stored in; everything else is then in what the device computes fast."""
SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
AMPERE = 8
"""First CUDA compute capability with fast bfloat16."""


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Attributes:
        dtype: floating-point type of what is not quantized.
        bits: of large matrices: 8, 4, or 0 for none quantized; None for what the model's files are.
        encoder_dtype: what the convolutions and the attention of an image encoder are computed in: half precision for a
            quantized model where that is fast, None for `dtype`.
    """

    device: torch.device
    dtype: torch.dtype
    bits: int | None = None
    encoder_dtype: torch.dtype | None = None


def choose_placement(device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Placement:
    """The user's wishes, or what this machine runs fast.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", or PyTorch's of these; None or "auto" for CUDA where there is one.
        dtype: float32, bfloat16 or float16, by PyTorch's, their full or their short names (bf16); or int8 or int4 for
            large matrices; None or "auto" for what the device computes fast.

    CUDA: bfloat16, which the official models were made for; float16 before Ampere, which has no fast
    bfloat16. CPU: float32, since most CPUs emulate the half types several times slower.

    Raises:
        OptionError: an unknown device or type, or a GPU asked for where there is none.
    """
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for called, value, kind in (("dtype", dtype, torch.dtype), ("device", device, torch.device)):
        if not isinstance(value, str | kind | None):
            raise OptionError(f"{called} is {value!r}: give its name as text, or a torch.{called}")
    if dtype is not None:
        dtype = str(dtype).lower().removeprefix("torch.")
        dtype = None if dtype == "auto" else SHORT_NAMES.get(dtype, dtype)
    if isinstance(device, str):
        device = device.lower()
    if dtype is not None and dtype not in (*dtypes, *QUANTIZED):
        raise OptionError(f"dtype {dtype!r} is not one of {', '.join(('auto', *dtypes, *QUANTIZED))}")
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"device {device!r} is unknown: use auto, cpu, cuda, cuda:0 or mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("CUDA was asked for but this PyTorch sees no GPU: use device='cpu'")
    if chosen.type == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise OptionError(f"device {str(chosen)!r} is not there: this PyTorch sees {there}")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("MPS was asked for but this PyTorch has no Apple GPU: use device='cpu'")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"device {device!r} is not supported: use auto, cpu, cuda, cuda:0 or mps")
    if dtype in dtypes:
        return Placement(chosen, dtypes[dtype], 0)
    bits = None if dtype is None else QUANTIZED[dtype]
    if chosen.type == "cuda":
        fast = torch.cuda.get_device_capability(chosen)[0] >= AMPERE
        return Placement(chosen, torch.bfloat16 if fast else torch.float16, bits)
    return Placement(chosen, torch.float32, bits, torch.bfloat16 if bits and has_fast_bfloat16() else None)


def use_threads(threads: int) -> bool:
    """Let so many threads share each operation that the calling thread starts on the CPU, and no other thread.

    Returns whether PyTorch could be told so.
    """
    from openblip.nn.threads import compute_with

    return compute_with(threads)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself (AVX-512 BF16, or AMX): others emulate it, which is slow."""
    import torch

    return not is_emulated(torch.bfloat16)


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies a floating-point type only with the help of another, several times slower."""
    import torch

    from openblip.nn.quant.linear import cpu_computes

    if not cpu_computes(dtype):
        return True
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return dtype == torch.bfloat16 and not any(probe is not None and probe() for probe in probes)


def substitution(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is computed otherwise than asked for on this device, in a sentence; None: nothing."""
    from openblip.nn.quant.linear import cpu_computes

    if device.type != "cpu" or cpu_computes(dtype):
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"this CPU does not compute {name} itself: weights are kept in {name}, products and convolutions are made in "
        "float32; float32 is faster, int8 is faster and smaller"
    )


def tell_substitution(device: torch.device, dtype: torch.dtype) -> None:
    """Warn the user, through `logging`, of what `substitution` finds."""
    sentence = substitution(device, dtype)
    if sentence is not None:
        LOG.warning("%s", sentence)
