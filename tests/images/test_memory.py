"""How much memory images may take, one and many; and that nobody but us tells of them."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.errors import ImageError
from openblip.images import decode, rgb
from openblip.images.decode import load_image
from openblip.images.memory import MemoryBudget
from openblip.images.transform import ImageTransform, load_square
from tests import warm

SIDE = 3000


def image(mode: str, side: int = SIDE) -> Image.Image:
    random = np.random.default_rng(1)
    if mode == "F":
        return Image.fromarray(random.random((side, side), dtype=np.float32) * 300 - 20)
    if mode == "I":
        return Image.fromarray(random.integers(-5, 10**6, (side, side), dtype=np.int32))
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (side, side), dtype=np.uint16))
    coarse = Image.fromarray(random.integers(0, 256, (50, 50, 4), dtype=np.uint8))
    fine = coarse.resize((side, side), Image.Resampling.NEAREST)
    if mode == "P":  # with a transparent colour
        indexed = fine.convert("RGB").quantize(16)
        indexed.info["transparency"] = 3
        return indexed
    return fine.convert(mode)


CASES = [
    *(("PNG", mode) for mode in ("RGB", "RGBA", "LA", "P", "I;16")),
    *(("TIFF", mode) for mode in ("RGBA", "F", "I", "CMYK")),
    ("JPEG", "RGB"),
    ("BMP", "RGB"),
]
MEASURE = """
import sys
from pathlib import Path
from PIL import Image
from openblip.images.decode import load_image
from tests import warm
def measured(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
for mode in ("RGBA", "F"):
    load_image(Image.new(mode, (8, 8)))
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = measured("VmRSS")
    pixels = 1
    for side in load_image(path).size:
        pixels *= side
    print((measured("VmHWM") - before) / pixels)
"""


def small_peak_is_told() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not small_peak_is_told(), reason="reads the memory of a process as Linux tells it")
@pytest.mark.parametrize(("image_format", "mode"), CASES)
def test_an_image_takes_few_bytes_a_pixel(image_format: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "large"
    made = image(mode)
    options: dict[str, Any] = {}
    if mode == "RGBA":  # turned by its orientation mark, too
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    if "transparency" in made.info:
        options["transparency"] = made.info["transparency"]
    made.save(path, image_format, **options)
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "F", "I", "I;16", "CMYK", "L", "1"])
def test_strips_change_no_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = image(mode, side=130)
    whole = np.asarray(load_image(made))
    monkeypatch.setattr(rgb, "_STRIP_PIXELS", 1000)
    assert np.array_equal(np.asarray(load_image(made)), whole)
    monkeypatch.setattr(rgb, "_STRIP_PIXELS", 1)
    assert np.array_equal(np.asarray(load_image(made)), whole)


def claiming(image_format: str, width: int, height: int) -> bytes:
    """A whole small file whose header claims another size."""
    if image_format == "PNG":

        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        lines = zlib.compress(bytes((width // 8 + 1) * height), 9)
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, image_format)
    data = bytearray(file.getvalue())
    place = data.index(b"ihdr") + 4
    data[place : place + 8] = struct.pack(">II", height, width)
    size = data.index(b"\xff\x51") + 6
    data[size : size + 8] = struct.pack(">II", width, height)
    return bytes(data)


def test_decoders_that_take_more_have_lower_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 13,000 pixels square is within the limit of pixels.
    with pytest.raises(ImageError, match=r"takes 4\.2 GB of memory to decode, more than the limit of 2\.1; make"):
        load_image(claiming("JPEG2000", 13_000, 13_000))
    monkeypatch.setenv("OPENBLIP_MAX_PIXELS", str(4 * 10**8))
    with pytest.raises(ImageError, match=r"damaged|cut short"):
        load_image(claiming("JPEG2000", 13_000, 13_000))


def test_the_budget_is_that_of_all_threads() -> None:
    budget = MemoryBudget(100)
    lock, inside, most, alone = threading.Lock(), [0], [0], []

    def work(size: int) -> None:
        with budget.lease() as take:
            take(size)
            with lock:
                inside[0] += size
                most[0] = max(most[0], inside[0])
                alone.append(size <= 100 or inside[0] == size)
            threading.Event().wait(0.001)
            with lock:
                inside[0] -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (60, 30, 500, 60, 10, 100, 40, 200, 1) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(alone)
    assert most[0] == 500
    with budget.lease() as take:
        take(1)
        with pytest.raises(RuntimeError, match="taken already"):
            take(1)


def test_threads_that_decode_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_BUDGET", MemoryBudget(1))
    file = io.BytesIO()
    image("RGB", side=200).save(file, "PNG")
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_square(file.getvalue(), ImageTransform(8)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(one, found[0]) for one in found)


COMMAND = ["-m", "openblip", "caption", "--model"]


def test_the_limit_can_be_raised_and_pillow_says_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    """On the command line, for each file: all that is said is ours."""
    (tmp_path / "warned.png").write_bytes(claiming("PNG", 9_600, 9_600))  # above Pillow's limit, below ours
    (tmp_path / "bomb.png").write_bytes(claiming("PNG", 13_600, 13_600))  # above twice Pillow's limit, and ours
    file = io.BytesIO()
    image("RGB", side=300).save(file, "TIFF", compression="tiff_lzw")
    damaged = bytearray(file.getvalue())
    damaged[5_000:9_000] = bytes(255 for _ in range(4_000))
    (tmp_path / "damaged.tif").write_bytes(damaged)
    (tmp_path / "broken.tif").write_bytes(file.getvalue()[:8] + b"\xff" * 3000)
    names = ["warned.png", "bomb.png", "damaged.tif", "broken.tif"]
    command = [*COMMAND, str(tiny_model_folder), *(str(tmp_path / name) for name in names)]
    for limit, failing in (("", names[1:]), ("300000000", names[2:])):
        done = warm.run(command, env={**os.environ, "OPENBLIP_MAX_PIXELS": limit})
        said = done.stderr.splitlines()
        assert [line.split(": ")[1] for line in said] == [str(tmp_path / name) for name in failing]
        assert all(line.startswith("error: ") for line in said)
        assert len(done.stdout.splitlines()) == len(names) - len(failing)
