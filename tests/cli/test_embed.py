"""`openblip embed`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from openblip.models.model import Model

from .conftest import Run

TEXTS = ["a dog", "the red ball"]


def test_both_file_kinds_hold_vectors_and_names(
    run: Run, tiny_model: Model, tiny_model_folder: Path, mixed_folder: Path, tmp_path: Path
) -> None:
    good = [mixed_folder / "a.png", mixed_folder / "c.png"]
    images, words = tiny_model.embed_images(good).numpy(), tiny_model.embed_texts(TEXTS).numpy()
    arguments = ["embed", mixed_folder, "-t", TEXTS[0], "--text", TEXTS[1], "-m", tiny_model_folder, "-o"]
    for name in ("features.npz", "features.safetensors"):
        path = tmp_path / name
        ran = run(*arguments, path, "--batch-size", "2")
        assert ran.code == 1
        assert "b.jpg" in ran.err
        assert ran.out == f"{path}: 2 images, 2 texts\n"
        if name.endswith("npz"):
            with np.load(path, allow_pickle=False) as file:
                found = dict(file)
        else:
            with safe_open(path, framework="np") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                found |= {key: json.loads(value) for key, value in file.metadata().items()}
        assert list(found["images"]) == [str(path) for path in good]
        assert list(found["texts"]) == TEXTS
        assert found["image_embeds"].dtype == found["text_embeds"].dtype == np.float32
        np.testing.assert_allclose(found["image_embeds"], images, atol=1e-5)
        np.testing.assert_allclose(found["text_embeds"], words, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features.npz",
        "features.safetensors",
        "photos",
    ]


def test_json_prints_the_vectors(run: Run, tiny_model: Model, tiny_model_folder: Path, mixed_folder: Path) -> None:
    ran = run("embed", mixed_folder, "-t", TEXTS[0], "-m", tiny_model_folder, "--json")
    assert ran.code == 1
    first, broken, second, text = ran.records
    assert [Path(record["image"]).name for record in (first, broken, second)] == ["a.png", "b.jpg", "c.png"]
    assert "error" in broken
    assert text["text"] == TEXTS[0]
    expected = tiny_model.embed_images([mixed_folder / "a.png"])[0]
    assert torch.allclose(torch.tensor(first["embedding"]), expected, atol=1e-5)
    assert text["embedding"] == pytest.approx(tiny_model.embed_texts(TEXTS[:1])[0].tolist(), abs=1e-5)


def test_texts_alone(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.npz"
    assert run("embed", "-t", TEXTS[0], "-m", tiny_model_folder, "-o", path).code == 0
    with np.load(path) as file:
        assert (file["image_embeds"].shape, file["text_embeds"].shape) == ((0, 4, 16), (1, 16))


def test_missing_and_clashing_arguments_are_explained(run: Run, image_paths: list[Path], tmp_path: Path) -> None:
    wrong: list[tuple[list[str | Path], str]] = [
        (["--json"], "nothing to embed"),
        ([image_paths[0]], "say where the vectors go"),
        ([image_paths[0], "--json", "-o", tmp_path / "x.npz"], "say where the vectors go"),
        ([image_paths[0], "-o", tmp_path / "x.csv"], "use .npz or .safetensors"),
        ([image_paths[0], "-o", tmp_path / "no" / "x.npz"], "cannot be written"),
    ]
    for arguments, message in wrong:
        ran = run("embed", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
