"""Stage 2 behind a language model of transformers: by the same recipe, with the language model left as it is.

What is checked with tiny random models is checked with the real SmolLM2-135M, too (a minute or two on one core), when
OPENBLIP_SMOLLM2 names its folder, as transformers has it:
    OPENBLIP_SMOLLM2=SmolLM2-135M pytest -m slow tests/training/test_external.py -s
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import openblip
from openblip.checkpoints.loading import with_language_model
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.devices import choose_placement
from openblip.errors import OpenBlipError, OptionError
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.models.load import model_of
from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.recipe import load_recipe
from openblip.training.run import train
from tests.pairs.prompts import visual_prompt
from tests.training.loop.test_trainer import curve, weights, write_recipe

from ..checkpoints.theirs import Theirs, write_matcher, write_writer
from ..language_models import both, write_language_model

VARIABLE = "OPENBLIP_SMOLLM2"
REAL = pytest.param("smollm2", marks=pytest.mark.slow)
STEPS_AN_EPOCH = 4
# A random language model that stays frozen can be driven only so far.
FALLS = {"llama": 0.93, "bart": 0.97}
REAL_FALL = 0.85


@pytest.fixture(scope="module")
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model: a tiny one, or the real one."""
    if request.param != "smollm2":
        return write_language_model(request.param, tmp_path_factory.mktemp("language") / request.param, std=0.2)
    path = os.environ.get(VARIABLE)
    if path is None:
        pytest.skip(f"{VARIABLE} is unset: it names a folder with SmolLM2-135M as transformers has it")
    if not Path(path).is_dir():
        pytest.fail(f"{VARIABLE} names {path}, which is no folder")
    return Path(path)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("language", ["llama", "bart", REAL], indirect=True)
def test_a_recipe_trains_what_lies_before_it(
    language: Path, tmp_path: Path, data: Path, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    fall = FALLS.get(language.name, REAL_FALL)
    epochs = 10 if language.name in FALLS else 8
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage2")
    overrides = [f"language_model={language}", f"epochs={epochs}"]
    before, theirs = weights(tiny_model_folder), digests(language)
    output = train(load_recipe(recipe, overrides))
    after = weights(output)
    assert digests(language) == theirs
    # Nothing of it is in the trained model, nothing in what a killed run goes on from.
    assert set(after) == {name for name in before if not name.startswith("decoder.")}
    changed = {name for name in after if after[name].shape != before[name].shape or (after[name] != before[name]).any()}
    learns = ("vision_norm.", "qformer.", "prompt_projection.")
    assert all(name.startswith(learns) for name in changed)
    assert {"prompt_projection.weight", "qformer.queries"} <= changed
    state = torch.load(output / CHECKPOINT_FILE, weights_only=True)
    assert all(name.startswith(learns) for name in state["parameters"])
    rows = [float(row["lm"]) for row in curve(output)]
    assert len(rows) == epochs * STEPS_AN_EPOCH
    first, last = float(np.mean(rows[:4])), float(np.mean(rows[-4:]))
    print(f"loss over the first and the last epoch: {first:.3f}, {last:.3f}; at the first step {rows[0]:.3f}")
    assert last < fall * first
    model = openblip.load(output, device="cpu")
    again = openblip.load(output, device="cpu")
    for options in ({"num_beams": 1}, {"num_beams": 3}, {"top_p": 0.9, "seed": 2}):
        captions = model.caption(list(image_paths), **options)
        assert captions == again.caption(list(image_paths), **options)
    print(captions, model.ask(image_paths[0], "what color is the ball?"))
    assert model.parts.external is not None and model.parts.external.place == str(language.resolve())
    # A trained model goes on being trained.
    train(load_recipe(recipe, [f"init={output}", f"output={tmp_path / 'more'}", "epochs=1"]))
    more = [float(row["lm"]) for row in curve(tmp_path / "more")]
    assert np.mean(more) < (first + last) / 2


@pytest.mark.parametrize("language", ["llama"], indirect=True)
@pytest.mark.parametrize("write", [write_matcher, write_writer], ids=["stage1", "stage2"])
def test_a_folder_of_transformers_can_be_the_start(
    language: Path, write: Callable[[Path], Theirs], tmp_path: Path, data: Path, image_paths: list[Path]
) -> None:
    start = write(tmp_path / "official").folder
    recipe = write_recipe(tmp_path, data, start, "stage2")
    model = openblip.load(train(load_recipe(recipe, [f"language_model={language}", "epochs=1"])), device="cpu")
    assert isinstance(model.caption(image_paths[0]), str)
    before = openblip.load(start, device="cpu").network.vision.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.vision.state_dict().items())


@pytest.mark.parametrize("language", ["llama", REAL], indirect=True)
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_said_behind_visual_prompts_is_transformers_own(
    language: Path, beams: int, tiny_parts: ModelParts, image_paths: list[Path]
) -> None:
    model = model_of(with_language_model(tiny_parts, language), choose_placement("cpu"))
    theirs, _ = both(language)
    prompts = ["", "a photo of", "Question: what color is the ball? Answer:"]
    rows = [
        torch.cat(
            [
                visual_prompt(model, image_path),
                model.network.language_model.embed(torch.tensor(model.parts.prompt_ids(text))),
            ]
        )
        for image_path, text in zip(image_paths, prompts, strict=False)
    ]
    longest = max(map(len, rows))
    embeds = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    stop = model.parts.stop_id
    expected = theirs.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=12,
        num_beams=beams,
        do_sample=False,
        pad_token_id=stop,
    ).tolist()
    found = generate(
        model.network.language_model, rows, GenerationOptions(max_new_tokens=12, num_beams=beams, stop_ids=(stop,))
    )
    assert [texts[0].ids for texts in found] == [
        tuple(row[: row.index(stop)] if stop in row else row) for row in expected
    ]


@pytest.mark.parametrize("language", ["llama"], indirect=True)
@pytest.mark.parametrize("change", ["train_decoder=true", "self_critical=2", "decoder=other", "stage=language"])
def test_a_external_model_cannot_be_trained_or_replaced(
    language: Path, tmp_path: Path, data: Path, tiny_parts: ModelParts, change: str
) -> None:
    save_native(with_language_model(tiny_parts, language), tmp_path / "behind")
    recipe = write_recipe(tmp_path, data, tmp_path / "behind", "stage2")
    with pytest.raises(OptionError, match="is an external language model, which is not trained"):
        train(load_recipe(recipe, [change]))


def test_it_comes_in_stage_2(tmp_path: Path, data: Path, tiny_model_folder: Path) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage1")
    with pytest.raises(OptionError, match="language_model is for stage2: leave it out of stage stage1"):
        load_recipe(recipe, ["language_model=some/model"])
    with pytest.raises(OpenBlipError, match="is not there"):
        train(replace(load_recipe(recipe, ["stage=stage2"]), language_model="no/such/folder"))
