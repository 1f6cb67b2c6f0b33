"""How fast a run is and how much memory it takes: figures of the machine, kept apart from those of curves.csv."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

PROFILE_FILE = "profile.csv"


def peak_memory(device: torch.device) -> int:
    """Bytes, the most that this process has had so far.

    On CUDA what tensors took of the GPU (torch.cuda.max_memory_allocated: without the allocator's reserve and the
    driver's own). Elsewhere its resident memory, which is what the system has to provide: Python, PyTorch, what was
    loaded, and pages of mapped files. 0 where the system does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage gives a process that has just been started the peak of its parent.
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Bytes that this process has now; 0 where there is no /proc (not Linux)."""
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    """A line of Linux' account of this process, in bytes."""
    path = Path("/proc/self/status")
    if path.is_file():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def machine_name(device: torch.device) -> str:
    """What a run computes on, as people say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU with {threads} thread{'' if threads == 1 else 's'}"


def size_of(count: int) -> str:
    """Bytes, as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
