"""Small models of transformers, and images to show them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.checkpoints.theirs import FLAN, Theirs, write_matcher, write_t5_writer, write_writer

KINDS: dict[str, Callable[[Path], Theirs]] = {
    "opt": write_writer,
    "flan": lambda folder: write_t5_writer(folder, {**FLAN, "dense_act_fn": "gelu"}),
}


@pytest.fixture(scope="module", params=KINDS)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_writer(tmp_path_factory.mktemp("opt"))


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_matcher(tmp_path_factory.mktemp("matcher"))


@pytest.fixture
def folder(opt: Theirs, tmp_path: Path) -> Path:
    """A copy of the OPT that a test may change."""
    return Path(shutil.copytree(opt.folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def images(image_paths: list[Path]) -> list[Image.Image]:
    return [Image.open(image_path).convert("RGB") for image_path in image_paths]
