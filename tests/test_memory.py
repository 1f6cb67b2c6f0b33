"""Memory does not grow with the number of captions."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MEGABYTE = 2**20
PROGRAM = """
import json, os, sys
from pathlib import Path
import openblip

folder, count, every = sys.argv[1], *map(int, sys.argv[2:])
files = sorted(Path(folder).iterdir())
model, resident = openblip.load(device="cpu"), []
sources = (files[n % len(files)] if n % 2 else files[n % len(files)].read_bytes() for n in range(count))
for number, found in enumerate(model.caption_many(sources, num_beams=2, max_new_tokens=6), 1):
    if number % every == 0:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
print(json.dumps(resident))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process as Linux tells it")
def test_a_thousand_captions_take_the_memory_of_the_first_hundred(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(40):
        size = tuple(random.integers(40, 1600, 2))
        colours = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size)
        file = io.BytesIO()
        colours.convert(["RGB", "L", "CMYK"][number % 3]).save(file, ["JPEG", "TIFF"][number % 2])
        # One in ten cannot be read.
        data = file.getvalue() if number % 10 else file.getvalue()[:99]
        (tmp_path / f"{number:02}.image").write_bytes(data)
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "1000", "100"],
        check=True,
        capture_output=True,
        text=True,
    )
    resident = json.loads(told.stdout)
    assert len(resident) == 10
    # What allocators keep wavers; what a caption left behind would be there nine hundred times.
    assert max(resident[5:]) - max(resident[:3]) < 24 * MEGABYTE, [value // MEGABYTE for value in resident]
