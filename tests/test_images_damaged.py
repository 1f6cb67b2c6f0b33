"""Damaged files, hostile files, and the manners of the image room: every failure is an ImageError."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from openblip.errors import ImageError, OptionError
from openblip.images import sources as image_sources
from openblip.images.decode import DEFAULT_MAX_PIXELS, load_image

Pixels = np.ndarray[Any, Any]
ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def blocks(height: int, width: int) -> Pixels:
    """Flat 8 x 8 squares: JPEG keeps their colours, run-length coders have something to do."""
    return np.kron(noise(height, width), np.ones((8, 8, 1), dtype=np.uint8))


def encode(image: Image.Image | Pixels, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, image_format, **options)
    return file.getvalue()


def loaded(source: Any, **options: Any) -> Pixels:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


PHOTO = noise(23, 37)
BLOCKS = blocks(3, 5)
FILES: dict[str, bytes] = {
    "jpeg": encode(PHOTO, "JPEG"),
    "jpeg, flat": encode(BLOCKS, "JPEG"),
    "jpeg, progressive": encode(PHOTO, "JPEG", progressive=True),
    "jpeg, CMYK": encode(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"),
    "jpeg, grey": encode(Image.fromarray(PHOTO).convert("L"), "JPEG"),
    "png": encode(PHOTO, "PNG"),
    "png, palette": encode(Image.fromarray(PHOTO).quantize(16), "PNG"),
    "gif": encode(Image.fromarray(PHOTO).quantize(64), "GIF"),
    "webp": encode(PHOTO, "WEBP"),
    "webp, lossless": encode(PHOTO, "WEBP", lossless=True),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
    "tiff, lzw": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff, packbits": encode(BLOCKS, "TIFF", compression="packbits"),
    "tga": encode(BLOCKS, "TGA", compression="tga_rle"),
    "ppm": encode(PHOTO, "PPM"),
    "jp2, tiled": encode(blocks(4, 4), "JPEG2000", tile_size=(16, 16)),
}


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(99)))


# ---- metadata


def jpeg_with_exif(payload: bytes) -> bytes:
    body = b"Exif\0\0" + payload
    return FILES["jpeg"][:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + FILES["jpeg"][2:]


def exif_tag(kind: int, count: int, value: bytes) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHI", 1, ORIENTATION, kind, count) + value + bytes(4)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"not a TIFF header at all",
        b"II*\0\xff\xff\xff\xff",
        exif_tag(3, 1, b"\x09\0\0\0"),  # no such orientation
        exif_tag(2, 4, b"six\0"),
        exif_tag(5, 1, b"\xff\xff\xff\x7f"),  # a fraction stored beyond the end
        exif_tag(3, 2**31, b"\x08\0\0\0"),
        exif_tag(99, 1, b"\x06\0\0\0"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_broken_metadata_do_not_cost_the_image(payload: bytes) -> None:
    assert np.array_equal(loaded(jpeg_with_exif(payload)), loaded(FILES["jpeg"]))


def test_a_broken_text_profile_does_not_cost_the_image() -> None:
    profile = png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nno hexadecimal digits")
    assert np.array_equal(loaded(FILES["png"][:33] + profile + FILES["png"][33:]), PHOTO)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(exif_tag, st.integers(0, 20), st.integers(0, 2**32 - 1), st.binary(min_size=4, max_size=4)),
    )
)
@pytest.mark.filterwarnings("ignore")
def test_any_metadata_leave_the_pixels_at_most_turned(payload: bytes) -> None:
    plain, result = loaded(FILES["jpeg"]), loaded(jpeg_with_exif(payload))
    turned = [np.rot90(side, turns) for side in (plain, plain[:, ::-1]) for turns in range(4)]
    assert any(np.array_equal(result, image) for image in turned)


# ---- damaged files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read")
def test_a_file_cut_anywhere_is_an_error_or_still_whole(name: str) -> None:
    data = FILES[name]
    whole = loaded(data)
    refused = 0
    for length in range(len(data)):
        try:
            rest = loaded(data[:length])
        except ImageError as error:
            refused += 1
            assert str(error).startswith(f"<{length} bytes>: ")
        else:
            assert np.array_equal(rest, whole), length
    assert refused > 0.9 * len(data)


@pytest.mark.parametrize("name", ["jpeg", "jpeg, progressive", "png", "tiff", "webp"])
def test_a_file_cut_in_the_middle_says_so_or_is_called_damaged(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.img"
    path.write_bytes(FILES[name][: len(FILES[name]) // 2])
    with pytest.raises(ImageError, match=r"cut\.img: is (cut short|damaged)|beginning is damaged"):
        load_image(path)


def test_a_jpeg_whose_tail_was_never_copied_is_cut_short() -> None:
    # A thumbnail inside the metadata has an end mark of its own, which must not count.
    data = jpeg_with_exif(FILES["jpeg, grey"])
    assert np.array_equal(loaded(data), loaded(FILES["jpeg"]))
    for length in range(len(data) - len(FILES["jpeg"]) // 2, len(data), 5):
        with pytest.raises(ImageError, match="cut short"):
            load_image(data[:length] + bytes(len(data) - length))


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_scribbled_files_raise_image_error_or_nothing(data: st.DataObject) -> None:
    whole = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    scribbled = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.one_of(st.integers(0, min(60, len(whole) - 1)), st.integers(0, len(whole) - 1)))
        scribbled[place] = data.draw(st.integers(0, 255))
    try:
        image = load_image(bytes(scribbled), max_pixels=100_000)
    except ImageError:
        return
    assert image.mode == "RGB" and image.width * image.height <= 100_000


@given(st.binary(max_size=200))
def test_any_bytes_raise_image_error_or_nothing(data: bytes) -> None:
    try:
        load_image(data, max_pixels=100_000)
    except ImageError as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"Dear photo, how are you?", "not an image in a known format"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS pointer"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC photo"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS drawings are not read"),
    ],
)
def test_files_that_are_no_images_say_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"holiday.jpg: .*{message}.*; ") as caught:
        load_image(path)
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    "error",
    [
        *(SyntaxError("x"), ValueError("x"), OSError("x"), MemoryError(), KeyError("x"), IndexError()),
        *(
            struct.error("x"),
            zlib.error("x"),
            RecursionError(),
            OverflowError(),
            EOFError(),
            AssertionError(),
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^<.* bytes>: .*; ") as caught:
        load_image(FILES["png"])
    assert caught.value.__cause__ is error


def test_stopping_the_program_is_no_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", stop)
    with pytest.raises(KeyboardInterrupt):
        load_image(FILES["png"])


# ---- size limits


def test_a_claim_of_sixty_thousand_pixels_square_is_refused_from_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(60_000, 60_000))

    def decode(self: object) -> None:
        pytest.fail("pixels were decoded before the size was checked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(
        ImageError, match=r"bomb\.png: has 60000 x 60000 pixels, more than the limit of 178956970; make"
    ):
        load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as applications do that trust their files
    with pytest.raises(ImageError, match=r"60000 x 60000 pixels, more than the limit of 178956970"):
        load_image(path)
    with pytest.raises(ImageError, match="more than the limit of 850"):
        load_image(FILES["gif"], max_pixels=850)


def test_the_limit_comes_from_argument_then_environment_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(FILES["png"], max_pixels=PHOTO.shape[0] * PHOTO.shape[1]).shape == PHOTO.shape
    monkeypatch.setenv("OPENBLIP_MAX_PIXELS", "850")
    for source in (FILES["png"], PHOTO, Image.fromarray(PHOTO)):
        with pytest.raises(ImageError, match="limit of 850"):
            load_image(source)
        assert loaded(source, max_pixels=851).shape == PHOTO.shape
    monkeypatch.setenv("OPENBLIP_MAX_PIXELS", "plenty")
    with pytest.raises(OptionError, match=r"OPENBLIP_MAX_PIXELS must be a positive whole .* 'plenty'"):
        load_image(FILES["png"])
    monkeypatch.setenv("OPENBLIP_MAX_PIXELS", "")
    assert loaded(FILES["png"]).shape == PHOTO.shape
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(OptionError, match=r"^max_pixels must be"):
            load_image(FILES["png"], max_pixels=wrong)  # type: ignore[arg-type]
    assert Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS == DEFAULT_MAX_PIXELS


@pytest.mark.filterwarnings("ignore")
def test_an_icon_that_lies_about_its_size() -> None:
    image = encode(noise(64, 64), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(image), 22) + image
    assert load_image(icon).size == (64, 64)
    with pytest.raises(ImageError, match="64 x 64 pixels, more than the limit of 1000"):
        load_image(icon, max_pixels=1000)


def test_text_that_unpacks_without_end() -> None:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000)))
    with pytest.raises(ImageError, match="damaged or of an unsupported kind"):
        load_image(FILES["png"][:33] + text + FILES["png"][33:])


# ---- manners


def test_nothing_global_changes_and_every_file_is_closed(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    paths = []
    for number, data in enumerate(FILES.values()):
        for part, content in enumerate((data, data[: len(data) // 2], png_claiming(60_000, 60_000), b"")):
            paths.append(tmp_path / f"{number}-{part}")
            paths[-1].write_bytes(content)
    before = state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for path in paths:
            with contextlib.suppress(ImageError):
                load_image(path)
        gc.collect()
    assert [warning for warning in caught if warning.category is ResourceWarning] == []
    assert state() == before


def test_many_threads_at_once() -> None:
    names = sorted(FILES) * 6
    expected = {name: loaded(FILES[name]) for name in FILES}
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda name: loaded(FILES[name]), names))
    assert all(np.array_equal(result, expected[name]) for name, result in zip(names, results, strict=True))


def run_fresh(program: str, stdin: bytes = b"") -> str:
    """Runs a program in an interpreter that has imported nothing yet."""
    source = str(Path(image_sources.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=stdin,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
        timeout=600,
    )
    return done.stdout.decode().strip()


def test_threads_that_meet_a_format_for_the_first_time() -> None:
    program = """
import sys, threading
from openblip.images.decode import load_image
data, sizes, gate = sys.stdin.buffer.read(), [], threading.Barrier(16)
def read():
    gate.wait()
    sizes.append(load_image(data).size)
threads = [threading.Thread(target=read) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(sizes.count((37, 23)))
"""
    assert run_fresh(program, FILES["webp"]) == "16"


def test_importing_costs_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "PIL", "urllib.request"}
    assert run_fresh(f"import openblip.images.decode, sys; print({heavy} & set(sys.modules))") == "set()"
