"""Models and data that a stage learns nothing from: errors call them by the names that the user gave."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.checkpoints.openblip.folder import save_native
from openblip.errors import OpenBlipError, OptionError
from openblip.training.recipe import load_recipe
from openblip.training.run import train
from tests.models.blip_models import small_parts
from tests.training.recipes import write_small_recipe


@pytest.mark.parametrize(
    ("stage", "task", "said"),
    [
        ("retrieval", "caption", "cannot learn stage retrieval"),
        ("pretrain", "match", "cannot learn stage pretrain"),
        ("caption", "answer", "answers questions: train it with stage vqa"),
        ("vqa", "caption", "has no questions with answers, from which stage vqa learns"),
    ],
)
def test_errors_name_what_was_given(stage: str, task: str, said: str, data: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    save_native(small_parts(task, tmp_path / "words"), start)
    recipe = load_recipe(write_small_recipe(tmp_path, data, start, stage=stage, cache=None), [])
    with pytest.raises(OpenBlipError, match=said) as error:
        train(recipe)
    assert str(error.value).startswith("the data" if stage == "vqa" else f"{start} ")


def test_adapters_fit_the_model_that_they_are_saved_for(data: Path, tmp_path: Path) -> None:
    """A captioning model has a decoder of its own, the pre-trained one it is made of shares it with the encoder."""
    start = tmp_path / "start"
    save_native(small_parts("pretrain", tmp_path / "words"), start)
    lora = {"targets": ["language_model"], "rank": 4}
    recipe = load_recipe(write_small_recipe(tmp_path, data, start, stage="caption", lora=lora), [])
    with pytest.raises(OptionError, match=r"would not fit the original: train without lora first"):
        train(recipe)
