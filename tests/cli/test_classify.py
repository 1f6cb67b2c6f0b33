"""`openblip classify`."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.models.model import Model

from .conftest import Run

LABELS = ["dog", "ball", "beach"]


def test_the_most_probable_label_comes_first(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    expected = tiny_model.classify(image_paths[0], LABELS)
    (tmp_path / "labels.txt").write_text("ball\n\n  beach \n", encoding="utf-8")
    common = ("-l", "dog", "--labels", tmp_path / "labels.txt", "-m", tiny_model_folder)
    ran = run("classify", image_paths[0], *common)
    assert (ran.code, ran.err) == (0, "")
    best = expected[0]
    assert ran.lines == [f"{image_paths[0]}: {best.label} ({best.probability:.3f})"]
    (record,) = run("classify", image_paths[0], *common, "--top", "9", "--json").records
    assert [one["label"] for one in record["labels"]] == [one.label for one in expected]
    found = [one["probability"] for one in record["labels"]]
    assert found == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_templates_are_averaged(run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    templates = ["the {}", "a {} and a ball"]
    expected = tiny_model.classify(image_paths[0], LABELS, templates=templates)
    flags = [flag for template in templates for flag in ("--template", template)]
    labels = [flag for label in LABELS for flag in ("-l", label)]
    (record,) = run(
        "classify", image_paths[0], *labels, *flags, "-m", tiny_model_folder, "--top", "3", "--json"
    ).records
    found = {one["label"]: one["probability"] for one in record["labels"]}
    assert found == pytest.approx({one.label: one.probability for one in expected}, abs=1e-5)


def test_a_folder_goes_into_a_file_and_a_bad_image_is_told(
    run: Run, tiny_model_folder: Path, mixed_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "classes.txt"
    ran = run("classify", mixed_folder, "-l", "dog", "-l", "cat", "-m", tiny_model_folder, "-r", "-o", target)
    assert ran.code == 1 and "b.jpg" in ran.err
    assert [line.partition(": ")[0] for line in target.read_text().splitlines()] == [
        str(mixed_folder / name) for name in ("a.png", "c.png", "more/d.png")
    ]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "there are no labels: give some with --label"),
        (("--labels", "gone.txt"), "gone.txt cannot be read"),
        (("-l", "dog", "--template", "a photo"), "'a photo' has no {} in it"),
        (("-l", "dog", "-l", "cat", "-l", "dog"), "the label 'dog' is there twice"),
        (("-l", "dog", "-l", " "), "one of the labels is blank"),
    ],
)
def test_what_is_missing_is_told(
    run: Run, tiny_model_folder: Path, image_paths: list[Path], flags: tuple[str, ...], told: str
) -> None:
    ran = run("classify", image_paths[0], *flags, "-m", tiny_model_folder)
    assert ran.code == 2 and told in ran.err
