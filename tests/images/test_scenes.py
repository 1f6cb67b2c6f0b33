"""Where scenes begin: cuts, dissolves and fades, and what is none of these."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.images.scenes import SceneDetector
from openblip.images.video import scenes
from openblip.images.video_decode import VideoFile
from tests.videos import number_of, numbered, write_video

PHOTOS = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))
RATE = 25


@cache
def photo(index: int) -> np.ndarray:
    """A photo in grey, larger than a frame: float64 [72, 128]."""
    with Image.open(PHOTOS[index % len(PHOTOS)]) as image:
        return np.asarray(image.convert("L").resize((128, 72))).astype(float)


def frame(index: int, left: float = 32, top: float = 18) -> np.ndarray:
    """A part of a photo as a camera at this place sees it: [36, 64]; places between pixels are interpolated."""
    rows, columns = top + np.arange(36), left + np.arange(64)
    low_row, low_column = int(rows[0]), int(columns[0])
    part = photo(index)[low_row : low_row + 37, low_column : low_column + 65]
    down, right = rows[0] - low_row, columns[0] - low_column
    part = part[:36] * (1 - down) + part[1:37] * down
    return part[:, :64] * (1 - right) + part[:, 1:65] * right


def starts(frames: Iterable[np.ndarray], noise: float = 1.0, rate: float = RATE) -> list[float]:
    generator = np.random.default_rng(1)
    detector = SceneDetector()
    found = []
    for number, levels in enumerate(frames):
        seen = (levels + generator.normal(0, noise, levels.shape)).clip(0, 255).astype(np.uint8)
        start = detector.add(number / rate, seen)
        if start is not None:
            found.append(start)
    return found


def hold(index: int, seconds: float) -> list[np.ndarray]:
    return [frame(index)] * round(seconds * RATE)


def mixed(one: np.ndarray, other: np.ndarray, seconds: float) -> list[np.ndarray]:
    """A dissolve."""
    steps = round(seconds * RATE)
    return [one + (other - one) * (step + 1) / (steps + 1) for step in range(steps)]


BLACK = np.full((36, 64), 16.0)


@pytest.mark.parametrize("first", range(9))
def test_a_cut_is_found_at_its_frame(first: int) -> None:
    assert starts(hold(first, 2) + hold(first + 1, 2) + hold(first, 2)) == [2.0, 4.0]


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5])
def test_a_dissolve_is_found_in_its_middle(first: int, seconds: float) -> None:
    one, other = frame(first), frame(first + 1)
    found = starts(hold(first, 3) + mixed(one, other, seconds) + hold(first + 1, 3))
    assert found == [pytest.approx(3 + seconds / 2, abs=0.15 + seconds / 8)]


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("seconds", [0.4, 1.0])
def test_a_fade_out_and_in_is_one_boundary(first: int, seconds: float) -> None:
    out, into = mixed(frame(first), BLACK, seconds), mixed(BLACK, frame(first + 1), seconds)
    found = starts(hold(first, 3) + out + [BLACK] * 8 + into + hold(first + 1, 3))
    assert found == [pytest.approx(3 + seconds + 0.16, abs=0.15 + seconds / 4)]


def test_a_video_that_fades_in_and_out_is_one_scene() -> None:
    into, out = mixed(BLACK, frame(0), 1), mixed(frame(0), BLACK, 1)
    assert starts([BLACK] * 10 + into + hold(0, 3) + out + [BLACK] * 10) == []


@pytest.mark.parametrize("index", range(10))
def test_a_camera_that_moves_makes_no_scene(index: int) -> None:
    pan = [frame(index, left=60 * step / 100) for step in range(100)]
    assert starts(pan + pan[::-1]) == []
    shaken = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    assert starts(frame(index, 32 + right, 18 + down) for right, down in shaken) == []


@pytest.mark.parametrize("index", range(10))
def test_a_flash_makes_no_scene(index: int) -> None:
    assert starts([*hold(index, 2), np.full((36, 64), 250.0), *hold(index, 2)]) == []


def test_noise_makes_no_scene() -> None:
    assert starts(hold(0, 4), noise=12.0) == []


def test_a_scene_of_a_few_frames_is_none() -> None:
    assert starts(hold(0, 2) + hold(1, 0.2) + hold(2, 2)) == [2.0]


def test_scenes_of_a_video_with_an_image_from_each(tmp_path: Path) -> None:
    images = [numbered(number, (160, 96)) for number in (1, 4095, 0)]
    shown = [images[0]] * 50 + [images[1]] * 30 + [images[2]] * 20
    path = write_video(tmp_path / "a.mp4", shown)
    with VideoFile(path, print) as video:
        found = list(scenes(video))
    assert [(scene.start, scene.end, number_of(scene.image)) for scene in found] == [
        (0, 2, 1),
        (2, pytest.approx(3.2), 4095),
        (pytest.approx(3.2), 4, 0),
    ]
    for scene in found:
        quarter = (scene.end - scene.start) / 4
        assert scene.start + quarter - 0.08 <= scene.time <= scene.start + 2 * quarter
