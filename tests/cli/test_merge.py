"""`openblip merge`, and `--adapter` of the commands that load a model."""

from __future__ import annotations

from pathlib import Path

import pytest

import openblip
from openblip.checkpoints.lora.files import write_adapter
from tests.checkpoints.lora.test_files import adapter_of

from .conftest import Run


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_folder: Path) -> Path:
    write_adapter(adapter_of(str(tiny_model_folder), tmp_path), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_folder_of_its_own(run: Run, adapter: Path, tmp_path: Path, image_paths: list[Path]) -> None:
    ran = run("merge", adapter, tmp_path / "merged", "--storage", "float16")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path / 'merged' / 'model.safetensors'} (")
    expected = openblip.load(adapter, device="cpu").caption(image_paths[0])
    assert run("caption", image_paths[0], "-m", tmp_path / "merged").out == f"{image_paths[0]}: {expected}\n"


def test_what_cannot_be_merged(run: Run, adapter: Path, tmp_path: Path) -> None:
    ran = run("merge", adapter, tmp_path / "merged", "--base", "mini")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "does not fit this model" in ran.err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("words", [["caption", "{}"], ["ask", "{}", "what is it?"], ["match", "{}", "a dog", "a cat"]])
def test_adapters_of_a_model_that_is_loaded(
    run: Run, adapter: Path, tiny_model_folder: Path, image_paths: list[Path], words: list[str]
) -> None:
    words = [word.format(image_paths[0]) for word in words]
    plain = run(*words, "-m", tiny_model_folder)
    adapted = run(*words, "-m", tiny_model_folder, "--adapter", adapter)
    assert adapted.code == 0
    assert plain.out != adapted.out == run(*words, "-m", adapter).out
