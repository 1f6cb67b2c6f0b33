"""A few samples about the images of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openblip.data.sample import Sample

SAID = ["a dog runs on the beach", "two children play with a red ball", "the ball", "a red dog", "two dogs play"]


@pytest.fixture(scope="session")
def captioned(image_paths: list[Path]) -> list[Sample]:
    """Five images of two captions each."""
    return [
        Sample((image_path,), image_path.stem, captions=(said, f"{said} today"))
        for image_path, said in zip(image_paths, SAID, strict=True)
    ]


@pytest.fixture(scope="session")
def questioned(image_paths: list[Path]) -> list[Sample]:
    """Ten questions about five images, by ten people each."""
    return [
        Sample(
            (image_path,),
            image_path.stem,
            f"{image_path.stem}-{place}",
            question=question,
            answers=("red",) * 5 + ("two",) * 5,
            kind=("color", "number")[place],
        )
        for image_path in image_paths
        for place, question in enumerate(["what color is the ball", "how many children are there?"])
    ]


@pytest.fixture
def recipe(image_paths: list[Path], tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A caption recipe over six images, the third of which is broken."""
    (tmp_path / "data").mkdir()
    names = [*image_paths[:2], tmp_path / "data/broken.jpg", *image_paths[2:]]
    names[2].write_bytes(b"no image at all")
    lines = [{"image": str(name), "captions": [said]} for name, said in zip(names, [*SAID, "a"], strict=True)]
    (tmp_path / "data/captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"task: captions\n"
        f"model: {json.dumps(str(tiny_model_folder))}\n"
        f"device: cpu\n"
        f"data_root: {json.dumps(str(tmp_path / 'data'))}\n"
        "data: {name: images, captions: captions.jsonl}\n"
        f"output: {json.dumps(str(tmp_path / 'out'))}\n"
        "batch_size: 2\n"
        "captions: {tokenizer: never, meteor: never, spice: never}\n",
        encoding="utf-8",
    )
    return path
