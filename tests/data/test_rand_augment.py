"""RandAugment changes images as BLIP's code does, where that does what it means to."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from openblip.data import rand_augment as module
from openblip.data.rand_augment import MOVES, OPERATIONS, change, rand_augment

RECORDED = {
    "identity": "Identity",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "equalize": "Equalize",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "shift_x": "TranslateX",
    "shift_y": "TranslateY",
    "rotate": "Rotate",
}


def noise(width: int, height: int, low: int = 0, high: int = 256) -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(low, high, (height, width, 3), dtype=np.uint8))


@pytest.mark.real
def test_recorded_changes() -> None:
    """OpenCV places pixels in steps of 1/32: two levels of 255 at most."""
    folder = os.environ.get("OPENBLIP_LAVIS_ZOO")
    if folder is None:
        pytest.skip("OPENBLIP_LAVIS_ZOO names no folder of recordings")
    recorded = torch.load(Path(folder) / "processors.pth", weights_only=True)
    image = Image.fromarray(recorded["inputs"]["augment_picture"].numpy())
    for operation, name in RECORDED.items():
        for sign, end in ((1, "plus"), (-1, "minus")):
            wanted = recorded["outputs"].get(f"augment_{name}_{end}")
            if wanted is None:
                continue
            found = np.asarray(change(image, operation, sign)).astype(int)
            assert abs(found - wanted.numpy()).max() <= (2 if operation in MOVES else 0), operation


def test_moves() -> None:
    image = noise(40, 30)
    pixels = np.asarray(image)
    moved = np.asarray(change(image, "shift_x", 1))
    assert (moved[:, :35] == pixels[:, 5:]).all() and (moved[:, 35:] == 128).all()
    moved = np.asarray(change(image, "shift_y", -1))
    assert (moved[5:] == pixels[:25]).all() and (moved[:5] == 128).all()
    square = noise(41, 41)
    turned = np.asarray(square.rotate(-15, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))).astype(int)
    assert abs(np.asarray(change(square, "rotate", -1)).astype(int) - turned)[8:-8, 8:-8].mean() < 25
    sheared = np.asarray(change(image, "shear_x", 1)).astype(int)
    assert (sheared[0] == pixels[0]).all()
    assert abs(sheared[20, 10:] - pixels[20, 7:37].astype(int)).max() <= 1  # 20 rows down, 3 pixels aside


def test_contrast_is_stretched_not_lost() -> None:
    grey = noise(40, 30, 50, 200)
    found = np.asarray(change(grey, "auto_contrast"))
    assert found.min() == 0 and found.max() == 255 and len(np.unique(found)) > 100
    assert (np.asarray(change(grey, "equalize")) == np.asarray(ImageOps.equalize(grey))).all()


def test_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[tuple[str, int]] = Counter()
    monkeypatch.setattr(module, "change", lambda image, operation, sign: made.update([(operation, sign)]) or image)
    rng = random.Random(1)
    for _ in range(2000):
        rand_augment(noise(4, 4), rng)
    assert 1850 < made.total() < 2150
    assert {operation for operation, _ in made} == set(OPERATIONS)
    assert all(70 < made[operation, sign] < 130 for operation in MOVES for sign in (1, -1))
    monkeypatch.undo()
    image = noise(30, 20)
    one, two = (np.asarray(rand_augment(image, random.Random(5))) for _ in range(2))
    assert (one == two).all() and one.shape == (20, 30, 3)
