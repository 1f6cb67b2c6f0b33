"""Speed and memory of a run, which depend on the machine and so are not in curves.csv."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

PROFILE_FILE = "profile.csv"


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process, in bytes.

    On CUDA, the memory of tensors on the GPU (torch.cuda.max_memory_allocated), without the allocator's reserve and the
    driver's memory. Otherwise the resident memory: Python, PyTorch, everything loaded, and pages of mapped files. 0 if
    the system does not report it (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage reports the parent's peak for a new process.
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
    """Current memory of this process, in bytes; 0 without /proc (not Linux)."""
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    """A line of /proc/self/status, in bytes."""
    path = Path("/proc/self/status")
    if path.is_file():
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def machine_name(device: torch.device) -> str:
    """The name of the CPU or GPU, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU with {threads} thread{'' if threads == 1 else 's'}"


def size_of(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
