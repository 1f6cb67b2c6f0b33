"""Real files of every kind become the right RGB pixels, and pixels the right tensor."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from openblip.errors import ImageError, OptionError
from openblip.images.decode import load_image
from openblip.images.transform import CLIP_TRANSFORM_MEAN, CLIP_TRANSFORM_STD, ImageTransform, to_pixels

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
PNG = encode(PHOTO, "PNG")


# ---- where an image may come from


def test_every_kind_of_source_gives_the_same_new_image(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    written = io.BytesIO()
    Image.fromarray(PHOTO).save(written, "PNG")  # leaves the position at the end
    as_pil = Image.fromarray(PHOTO)
    with path.open("rb") as file:
        sources = [str(path), path, PNG, bytearray(PNG), memoryview(PNG)]
        for source in [*sources, written, file, as_pil, PHOTO, Image.open(path)]:
            assert np.array_equal(loaded(source), PHOTO)
        assert not file.closed and not written.closed
    copy = load_image(as_pil)
    copy.putpixel((0, 0), (1, 2, 3))
    assert as_pil.getpixel((0, 0)) != (1, 2, 3)


def test_a_pipe_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as end:
        end.write(PNG)  # less than a pipe holds
    with os.fdopen(reader, "rb") as pipe:
        assert np.array_equal(loaded(pipe), PHOTO)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        *(("PNG", {}), ("BMP", {}), ("PPM", {}), ("TGA", {}), ("WEBP", {"lossless": True}), ("TIFF", {})),
        *(("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"})),
    ],
)
def test_lossless_formats_come_back_exactly(image_format: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "image with a wrong suffix.jpg"
    path.write_bytes(encode(PHOTO, image_format, **options))
    assert np.array_equal(loaded(path), PHOTO)


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [
        *(("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "P"), ("GIF", "P")),
        *(("GIF", "RGB"), ("PNG", "P"), ("BMP", "P"), ("TIFF", "CMYK"), ("TIFF", "YCbCr"), ("JPEG2000", "L")),
    ],
)
def test_decoding_is_that_of_pillow(image_format: str, mode: str) -> None:
    data = encode(Image.fromarray(PHOTO).convert(mode), image_format)
    assert np.array_equal(loaded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame_or_the_one_it_stands_on(image_format: str) -> None:
    first, second = (Image.new("RGB", (16, 12), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(first, image_format, save_all=True, append_images=[second], **options)
    assert np.array_equal(loaded(data), np.asarray(first))
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    assert np.array_equal(loaded(opened), np.asarray(second))


# ---- colours


def over_white(rgba: Pixels) -> Pixels:
    alpha = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_over_white(image_format: str) -> None:
    rgba = noise(31, 17, 4)
    rgba[:8, :, 3] = 0
    rgba[8:16, :, 3] = 255
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    result = loaded(encode(rgba, image_format, **options))
    assert (result[:8] == 255).all()
    assert np.array_equal(result[8:16], rgba[8:16, :, :3])
    assert np.abs(result.astype(int) - over_white(rgba)).max() <= 1


def test_transparency_of_greys_palettes_and_colour_keys() -> None:
    la = noise(9, 11, 2)
    expected = over_white(np.dstack([la[..., 0]] * 3 + [la[..., 1]]))
    assert np.abs(loaded(encode(Image.fromarray(la, "LA"), "PNG")).astype(int) - expected).max() <= 1

    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    half = loaded(encode(palette, "PNG", transparency=bytes([255, 0, 128])))
    assert half.tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 255]]]
    one_index = loaded(encode(palette, "GIF", transparency=2))
    assert one_index.tolist() == [[[255, 0, 0], [0, 255, 0], [255, 255, 255]]]

    key = Image.fromarray(np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8))
    assert loaded(encode(key, "PNG", transparency=(9, 9, 9))).tolist() == [[[255, 255, 255], [1, 2, 3]]]
    grey_key = Image.fromarray(np.array([[9, 10]], np.uint8))
    assert loaded(encode(grey_key, "PNG", transparency=9)).tolist() == [[[255] * 3, [10] * 3]]


def test_one_bit_images() -> None:
    bits = Image.fromarray(noise(9, 21, 1)[..., 0] > 128)
    assert bits.mode == "1"
    for image_format in ("PNG", "TIFF", "BMP", "GIF"):
        expected = np.asarray(bits.convert("RGB"))
        assert np.array_equal(loaded(encode(bits, image_format)), expected)


def test_cmyk_jpegs_keep_their_colours() -> None:
    colours = [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]
    stripes = np.kron(np.array([colours], np.uint8), np.ones((16, 16, 1), np.uint8))
    data = encode(Image.fromarray(stripes).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data  # Photoshop's convention: stored inverted
    assert np.abs(loaded(data).astype(int) - stripes).max() <= 6


def grey(result: Pixels) -> Pixels:
    assert (result[..., 0] == result[..., 1]).all() and (result[..., 0] == result[..., 2]).all()
    return result[..., 0]


@pytest.mark.parametrize(("image_format", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_sixteen_bit_greys_are_scaled_not_clipped(image_format: str, order: str) -> None:
    values = np.arange(65536, dtype=f"{order}u2").reshape(256, 256)
    image = Image.frombytes("I;16B" if order == ">" else "I;16", (256, 256), values.tobytes())
    expected = (values.astype(np.int64) * 255 + 32767) // 65535
    assert np.array_equal(grey(loaded(encode(image, image_format))), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 10**6, 2 * 10**6]], np.int32), [0, 128, 255]),
        (np.array([[-7, -7, -7]], np.int32), [0, 0, 0]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.4, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[300.0, 400.0, 500.0]], np.float32), [0, 128, 255]),
    ],
)
def test_deep_greys_without_a_stated_range(values: Pixels, expected: list[int]) -> None:
    assert grey(loaded(encode(values, "TIFF")))[0].tolist() == expected


@given(arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_brighter_never_becomes_darker(values: Pixels) -> None:
    result = grey(loaded(Image.fromarray(values))).ravel()
    assert (np.diff(result[np.argsort(values.ravel(), kind="stable")].astype(int)) >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_files_with_holes_are_refused(bad: float) -> None:
    with pytest.raises(ImageError, match="NaN or infinite"):
        load_image(encode(np.array([[0.5, bad]], np.float32), "TIFF"))


# ---- camera metadata

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_marks_are_applied_once(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    plain = loaded(encode(PHOTO, image_format, **options))
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = encode(PHOTO, image_format, exif=exif, **options)
        image = load_image(data)
        assert np.array_equal(np.asarray(image), turn(plain)), orientation
        assert np.array_equal(loaded(image), turn(plain))
        assert np.array_equal(loaded(Image.open(io.BytesIO(data))), turn(plain))
        assert not image.info and np.array_equal(loaded(pickle.loads(pickle.dumps(image))), turn(plain))


# ---- arrays


def test_arrays_of_every_accepted_shape_and_type() -> None:
    rgba = noise(6, 5, 4)
    grey_array = PHOTO[..., 0]
    for array in (grey_array, grey_array[..., None]):
        assert np.array_equal(grey(loaded(array)), grey_array)
    assert np.abs(loaded(rgba).astype(int) - over_white(rgba)).max() <= 1
    for dtype in (np.float16, np.float32, np.float64, ">f4"):
        assert np.array_equal(loaded((PHOTO / 255).astype(dtype)), PHOTO)
    assert np.array_equal(loaded(PHOTO[::-1, ::2]), PHOTO[::-1, ::2])
    assert np.array_equal(loaded(np.asfortranarray(PHOTO)), PHOTO)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"array of shape \(3, 20, 30\)>: .*transpose\(1, 2, 0\)"),
        (np.zeros((20, 30, 2), np.uint8), "height x width x 1, 3 or 4$"),
        (np.zeros((2, 20, 30, 3), np.uint8), "height x width"),
        (np.zeros(20, np.uint8), "height x width"),
        (np.ones((), np.uint8), "height x width"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((0, 5, 3), np.float32), "no pixels"),
        (np.zeros((4, 5), bool), "must be uint8"),
        (np.zeros((4, 5), np.int64), "must be uint8"),
        (np.zeros((4, 5), np.uint16), "must be uint8"),
        (np.zeros((4, 5), complex), "must be uint8"),
        (np.zeros((4, 5), object), "must be uint8"),
        (np.full((4, 5), np.nan), "from 0 to 1"),
        (np.array([[0.5, np.nan]]), "from 0 to 1"),
        (np.array([[0.5, np.inf]]), "from 0 to 1"),
        (np.array([[0.0, 200.0]]), "divide by 255"),
        (np.array([[-0.1, 1.0]], np.float32), "from 0 to 1"),
    ],
)
def test_arrays_that_are_no_images(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array)


# ---- pixels


def reference_pixels(images: list[Image.Image], size: int) -> torch.Tensor:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    assert isinstance(pixels, torch.Tensor)
    return pixels


def test_pixels_are_bit_for_bit_those_of_transformers() -> None:
    for mode, size in (("RGB", 224), ("L", 364), ("P", 32), ("CMYK", 7), ("1", 224), ("RGBA", 33)):
        images = []
        for seed, (height, width) in enumerate([(1, 1), (3, 500), (41, 2), (333, 257), (size, size)]):
            rgb = Image.fromarray(noise(height, width, seed=seed))
            images.append(rgb.quantize(50) if mode == "P" else rgb.convert(mode))
        ours = to_pixels([load_image(image) for image in images], ImageTransform(size))
        assert ours.dtype == torch.float32 and ours.shape == (5, 3, size, size) and ours.is_contiguous()
        assert torch.equal(ours, reference_pixels(images, size)), mode
        assert torch.equal(to_pixels(images, ImageTransform(size)), ours)


def test_every_level_is_normalized_to_the_same_bits() -> None:
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    ours = to_pixels([levels], ImageTransform(16))
    assert torch.equal(ours, reference_pixels([levels], 16))
    exact = (np.arange(256).reshape(16, 16) / 255 - CLIP_TRANSFORM_MEAN[1]) / CLIP_TRANSFORM_STD[1]
    assert np.abs(ours[0, 1].numpy() - exact).max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_pixels_of_random_sizes(height: int, width: int, size: int, seed: int) -> None:
    image = Image.fromarray(noise(height, width, seed=seed))
    assert torch.equal(to_pixels([image], ImageTransform(size)), reference_pixels([image], size))


def test_pixels_of_no_images_of_paths_and_of_other_statistics() -> None:
    assert to_pixels([], ImageTransform(5)).shape == (0, 3, 5, 5)
    with pytest.raises(ImageError, match=r"^photo\.jpg: is not loaded yet"):
        to_pixels(["photo.jpg"], ImageTransform(5))  # type: ignore[list-item]
    other = ImageTransform(2, (0.5, 0.0, 1.0), (0.5, 2.0, 1.0))
    white = to_pixels([Image.new("RGB", (9, 4), "white")], other)
    assert white.amax((0, 2, 3)).tolist() == white.amin((0, 2, 3)).tolist() == [1.0, 0.5, 0.0]
    wrong: list[dict[str, Any]] = [{"image_size": 0}, {"std": (1.0, 0.0, 1.0)}, {"mean": (0.5,)}]
    for options in wrong:
        with pytest.raises(OptionError):
            ImageTransform(**{"image_size": 9, **options})
