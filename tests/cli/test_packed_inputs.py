"""Commands read images that are no files of their own: in a tar, in a Parquet table, on standard input."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from openblip.models.model import Model

from .conftest import Run


def in_tar(image_path: Path, folder: Path) -> str:
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(image_path, "one.png")
        text = b"a caption"
        entry = tarfile.TarInfo("one.txt")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return str(folder / "images.tar")


def in_parquet(image_path: Path, folder: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"image": [image_path.read_bytes()]}), folder / "images.parquet")
    return str(folder / "images.parquet")


def on_standard_input(image_path: Path, folder: Path) -> str:
    return "-"


@pytest.mark.parametrize("pack", [in_tar, in_parquet, on_standard_input])
def test_a_packed_image_is_captioned(
    pack: Callable[[Path, Path], str],
    run: Run,
    tiny_model: Model,
    tiny_model_folder: Path,
    image_paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(image_paths[0].read_bytes())))
    ran = run("caption", pack(image_paths[0], tmp_path), "-m", tiny_model_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith(f": {tiny_model.caption(image_paths[0])}\n")
