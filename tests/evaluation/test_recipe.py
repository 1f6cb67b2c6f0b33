"""Evaluation recipes: every file in recipes/evaluate is valid, every wrong key or value is one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.checkpoints.registry import all_models
from openblip.data.image_files import OnBadImage
from openblip.errors import OpenBlipError
from openblip.evaluation.recipe import load_evaluation
from openblip.evaluation.report import NAMES
from openblip.evaluation.settings import Task, Wish
from openblip.recipes import write_recipe

RECIPES = Path(__file__).parents[2] / "recipes/evaluate"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path, tmp_path: Path) -> None:
    recipe = load_evaluation(path)
    assert recipe.title
    assert recipe.output == f"runs/evaluate/{path.stem}"
    assert recipe.model in {model.name for model in all_models()}
    for figure in recipe.published:
        assert figure.metric in NAMES or figure.metric.startswith("accuracy (")
        assert 0 < figure.value < 1.5, "shares, not percent"
        assert "arXiv" in figure.source or "LAVIS" in figure.source
    again = tmp_path / "again.yaml"
    again.write_text(write_recipe(recipe), encoding="utf-8")
    assert load_evaluation(again) == recipe


def write(path: Path, text: str = "") -> Path:
    path.write_text("task: captions\noutput: out\ndata: {name: a, captions: a.jsonl}\n" + text)
    return path


def test_overrides(tmp_path: Path) -> None:
    recipe = load_evaluation(
        write(tmp_path / "r.yaml", "text: {num_beams: 3}\n"),
        ["text.prompt=a photo of", "captions.spice=required", "on_bad_image=stop", "data.split=val", "limit=5"],
    )
    assert (recipe.text["num_beams"], recipe.prompt, recipe.data.split) == (3, "a photo of", "val")
    assert (recipe.task, recipe.captions.spice, recipe.on_bad_image) == (Task.CAPTIONS, Wish.REQUIRED, OnBadImage.STOP)
    assert recipe.text_options() == {"num_beams": 3}
    for frame in ("Question: {question} Answer:", "{question} Answer:", "Q: {question}"):
        asked = load_evaluation(tmp_path / "r.yaml", ["task=questions", f"text.prompt={frame}"])
        assert asked.prompt == frame


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("num_beams: 3\n", [], "num_beams"),
        ("text: {beam: 3}\n", [], "beam"),
        ("text: {num_beams: many}\n", [], "many"),
        ("captions: {meteor: off}\n", [], "meteor"),
        ("", ["limit=0"], "limit is 0"),
        ("", ["data.stream=true"], "leave stream out"),
        ("", ["batch_size=0"], "batch_size is 0"),
        ("", ["examples=-1"], "examples is -1"),
        ("", ["task=questions", "text.prompt=why?"], "{question}"),
        ("", ["task=classification", "classification.text=a photo"], "{label}"),
        ("", ["task=classification", "classification.by=ask"], "needs a question"),
        ("", ["task=classification", "classification.by=given"], "needs predictions"),
        ("", ["task"], "key=value"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, text: str, overrides: list[str], words: str) -> None:
    with pytest.raises(OpenBlipError) as caught:
        load_evaluation(write(tmp_path / "r.yaml", text), overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
