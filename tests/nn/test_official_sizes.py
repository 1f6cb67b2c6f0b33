"""BLIP and CLIP at the sizes of official models, with two layers of each kind, against transformers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.pairs import official

TOLERANCE = 1e-5
FEW = ("ViT-B-32",)
"""Of the others, `make parity` says as much; `pytest -m slow` tests them, too."""


def check(measured: Iterable[official.Measured]) -> None:
    found = list(measured)
    assert len(found) >= 1
    for one in found:
        assert one.value <= (TOLERANCE if one.count is None else 0), one


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in official.BLIPS]
)
def test_blip(name: str) -> None:
    check(official.blip_gaps(name))


@pytest.mark.parametrize(
    "size", [size if size in FEW else pytest.param(size, marks=pytest.mark.slow) for size in official.CLIPS]
)
def test_clip(size: str) -> None:
    check(official.clip_gaps(size))


def test_the_resnet() -> None:
    check(official.resnet_gaps())
