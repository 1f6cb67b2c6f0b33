"""`openblip match`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from openblip.images.decode import load_image
from openblip.images.heatmap import draw_heatmap
from openblip.models.model import Model
from openblip.nn.blip2 import Blip2Network

from .conftest import Run

TEXTS = ["a dog", "two children play with a red ball", "the beach"]


def test_the_best_text_comes_first(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    ran = run("match", image_paths[0], *TEXTS, "-m", tiny_model_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].split() == ["itm", "itc", "text"]
    expected = sorted(tiny_model.match(image_paths[0], TEXTS), key=lambda match: -match.itm)
    assert ran.lines[1:] == [f"{match.itm:.3f}  {match.itc:6.3f}  {match.text}" for match in expected]
    records = run("match", image_paths[0], *TEXTS, "-m", tiny_model_folder, "--json").records
    assert [record["text"] for record in records] == [match.text for match in expected]
    assert [record["itm"] for record in records] == pytest.approx([match.itm for match in expected])
    assert [record["itc"] for record in records] == pytest.approx([match.itc for match in expected], abs=1e-5)


def test_the_best_image_of_a_folder_comes_first(
    run: Run, tiny_model: Model, tiny_model_folder: Path, mixed_folder: Path
) -> None:
    ran = run("match", mixed_folder, TEXTS[0], "-m", tiny_model_folder, "-r", "--json")
    assert ran.code == 1
    assert ran.records[0]["error"].startswith("is not an image")
    good = ["a.png", "c.png", "more/d.png"]
    best = sorted(good, key=lambda name: -tiny_model.match(mixed_folder / name, TEXTS[0]).itm)
    assert [record["image"] for record in ran.records[1:]] == [str(mixed_folder / name) for name in best]
    text = run("match", mixed_folder, TEXTS[0], "-m", tiny_model_folder, "-r")
    assert text.lines[1].endswith(f"{mixed_folder / best[0]}: {TEXTS[0]}")


def test_images_of_a_list_are_each_looked_at_once(
    run: Run,
    tiny_model: Model,
    tiny_model_folder: Path,
    image_paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image at all")
    looks: list[int] = []
    encode = Blip2Network.image_features
    monkeypatch.setattr(
        Blip2Network, "image_features", lambda self, pixels: looks.append(len(pixels)) or encode(self, pixels)
    )
    listed = [image_paths[0], "-i", broken, "--image", image_paths[1], "-i", image_paths[2]]
    ran = run("match", *listed, *TEXTS, "-m", tiny_model_folder, "--batch-size", "2", "--json")
    assert ran.code == 1 and "broken.jpg" in ran.err
    assert looks == [1, 2]  # the broken one is in the first batch
    bad, *records = ran.records
    assert bad["image"] == str(broken) and "error" in bad
    expected = {
        (str(image_path), match.text): match.itm
        for image_path in image_paths[:3]
        for match in tiny_model.match(image_path, TEXTS)
    }
    assert {(record["image"], record["text"]): record["itm"] for record in records} == pytest.approx(expected, abs=1e-5)
    assert [record["itm"] for record in records] == sorted((record["itm"] for record in records), reverse=True)


def test_a_heatmap_of_blip2(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    ran = run("match", image_paths[0], TEXTS[1], "-m", tiny_model_folder, "--heatmap", tmp_path / "new/heat.png")
    assert (ran.code, ran.err) == (0, "") and ran.lines[1].endswith(TEXTS[1])
    with Image.open(tmp_path / "new/heat.png") as drawn:
        heat = tiny_model.heatmap(image_paths[0], TEXTS[1])
        assert drawn.tobytes() == draw_heatmap(load_image(image_paths[0]), heat).tobytes()
    for wrong, told in (
        (["-m", tiny_model_folder, "--heatmap", tmp_path / "heat.nothing"], "give a file such as heat.png"),
        (["-m", tiny_model_folder, "--dtype", "int8", "--heatmap", tmp_path / "other.png"], "load it in float32"),
        (["-m", tiny_model_folder, "a cat", "--heatmap", tmp_path / "other.png"], "one image and one text"),
    ):
        ran = run("match", image_paths[0], TEXTS[1], *wrong)
        assert ran.code == 2 and told in ran.err and not (tmp_path / "other.png").exists()
