"""What a model costs before anything of it is fetched or loaded: disk, memory, and whether this machine has them.

Numbers of memory are estimates for one image and five beams; those of disk are within one percent.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openblip.checkpoints.hub.repositories import hub_home
from openblip.checkpoints.model_entry import ModelEntry
from openblip.checkpoints.registry import did_you_mean, find_model
from openblip.errors import CheckpointError, OptionError
from openblip.fetch import HEADROOM

BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 4.5 / 8}
"""int8 and int4: of what is quantized, the rest being float32. int4: 4 bits a weight, and 32 for scale and centre of
every 64; the scales of int8, one a row, count for nothing."""
DTYPES = {**{name: name for name in BYTES_PER_WEIGHT}, "bf16": "bfloat16"}
"""What may be asked for, and what it is called here."""
PROGRAM_BYTES = 400 * 10**6
"""Python and PyTorch themselves."""
BEAMS = 5
PROMPT_TOKENS = 32 + 32
"""Queries of the Q-Former, and words."""
NEW_TOKENS = 30


@dataclass(frozen=True)
class Room:
    """Memory that one device has left now.

    Attributes:
        free: bytes; None where the system does not say.
    """

    device: str
    free: int | None
    fits: bool | None


@dataclass(frozen=True)
class Plan:
    """What running a model takes.

    Attributes:
        weights: bytes of them in memory.
        working: bytes for everything else while it runs.
        loading: bytes more for a moment, while the weights are converted.
        download: bytes still to fetch; `disk_free` are there for them.
        devices: this machine's.
    """

    name: str
    dtype: str
    parameters: int
    weights: int
    working: int
    loading: int
    download: int
    disk_free: int
    devices: tuple[Room, ...]

    @property
    def memory(self) -> int:
        """The most that is needed at any time."""
        return self.weights + max(self.working, self.loading)

    @property
    def download_fits(self) -> bool:
        return not self.download or self.download + HEADROOM <= self.disk_free


def make_plan(name: str, dtype: str = "float32") -> Plan:
    """What a model takes, and what this machine has.

    Raises:
        CheckpointError: no such model; the nearest names are told.
        OptionError: an unknown number format.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    dtype = DTYPES[dtype]
    model = find_model(name)
    if model is None:
        raise CheckpointError(f"{name} is no model that sizes are known of: {did_you_mean(name)}")
    weights = round(_weight_bytes(model, dtype))
    working = PROGRAM_BYTES + _activations(model, 2 if dtype == "bfloat16" else 4)
    # The word table is the largest matrix; converted, it is there twice.
    widest = 0 if model.language is None else model.language.vocab_size * model.language.width * 4
    loading = PROGRAM_BYTES + (0 if dtype == "float32" else widest)
    needed = weights + max(working, loading)
    return Plan(
        name=model.name,
        dtype=dtype,
        parameters=model.parameters,
        weights=weights,
        working=working,
        loading=loading,
        download=0 if model.cached else round(model.megabytes * 1e6),
        disk_free=_disk_free(hub_home()),
        devices=tuple(Room(device, free, None if free is None else needed <= free) for device, free in free_memory()),
    )


def memory_of(model: ModelEntry) -> dict[str, float]:
    """Megabytes of its weights in each number format."""
    return {dtype: round(_weight_bytes(model, dtype) / 1e6, 1) for dtype in BYTES_PER_WEIGHT}


def _weight_bytes(model: ModelEntry, dtype: str) -> float:
    """Of all weights; where large matrices are quantized, the rest stays float32."""
    if dtype not in ("int8", "int4"):
        return model.parameters * BYTES_PER_WEIGHT[dtype]
    quantized = model.parameters if model.int8_params is None else model.int8_params
    fewest = model.int4_params if dtype == "int4" else 0
    rest = (model.parameters - quantized) * BYTES_PER_WEIGHT["float32"]
    return rest + (quantized - fewest) * BYTES_PER_WEIGHT["int8"] + fewest * BYTES_PER_WEIGHT["int4"]


def _activations(model: ModelEntry, number_bytes: int) -> int:
    """What passes through the widest places: a block of the image encoder, then the cache of a beam search."""
    encoder = language = 0
    if model.vision is not None:
        # A block holds its input, the normed input, queries, keys and values, and the hidden layer twice.
        encoder = model.vision.tokens(model.image_size) * (6 * model.vision.width + 2 * model.vision.mlp_width)
    if model.language is not None:
        cache = model.language.cache_elements(PROMPT_TOKENS, NEW_TOKENS)
        # Reordering beams copies the cache; scores of all words are there as logits, probabilities and sums.
        language = BEAMS * (2 * cache + 3 * model.language.vocab_size)
    return max(encoder, language) * number_bytes


def free_memory() -> Sequence[tuple[str, int | None]]:
    """Each device of this machine with the bytes that it has left; None where the system does not say."""
    import torch

    found: list[tuple[str, int | None]] = [("cpu", _free_main_memory())]
    if torch.cuda.is_available():
        found += [(f"cuda:{index}", torch.cuda.mem_get_info(index)[0]) for index in range(torch.cuda.device_count())]
    return found


def _free_main_memory() -> int | None:
    """Linux: what programs can still get, in a container no more than its limit. macOS: all there is."""
    if sys.platform == "win32":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        # Cached files give way.
        free = min(free, limit - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass  # no such limit, which reads "max"
    return free


def _disk_free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
