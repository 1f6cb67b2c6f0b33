"""Published outputs against official weights (`pytest -m official`), and how the comparison is told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

import openblip
from openblip import verification
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.registry import find_model
from openblip.cli import main
from openblip.data.pairs import ImageText
from openblip.errors import CheckpointError
from openblip.images.transform import to_pixels
from openblip.nn.blip import BlipNetwork
from openblip.training.input.batches import BatchRow
from openblip.training.loop.precision import Arithmetic
from openblip.training.recipe import Recipe, Stage
from openblip.training.tasks.table import learner_of
from openblip.training.tasks.task import Runtime, Views
from openblip.verification import (
    IMAGES,
    PUBLISHED,
    Published,
    PublishedAnswer,
    PublishedChoice,
    PublishedClasses,
    PublishedLoss,
    PublishedMatch,
    PublishedMean,
    PublishedText,
    published_outputs,
)
from tests.models.blip_models import small_parts

Verify = Callable[..., tuple[int, list[str]]]
NAME = "blip2_opt/pretrain_opt2.7b"
NEEDED: dict[type[Published], str] = {
    PublishedText: "caption",
    PublishedAnswer: "ask",
    PublishedChoice: "ask",
    PublishedMatch: "match",
    PublishedClasses: "classify",
    PublishedLoss: "caption",
    PublishedMean: "embed",
}


@pytest.mark.official
@pytest.mark.parametrize("name", PUBLISHED)
def test_official_weights_give_what_was_published(name: str) -> None:
    outcomes = list(verification.verify(openblip.load(name), published_outputs(name)))
    assert all(outcome.same for outcome in outcomes), outcomes


def test_the_table_is_of_official_models_and_known_photos() -> None:
    for name, published in PUBLISHED.items():
        model = find_model(name)
        assert model is not None and model.name == name
        for each in published:
            assert each.image in IMAGES
            assert NEEDED[type(each)] in model.abilities
            if isinstance(each, PublishedLoss | PublishedMean):
                assert model.family == "blip"
    assert published_outputs("blip2_feature_extractor/pretrain") == PUBLISHED["blip2/pretrain"]
    with pytest.raises(CheckpointError, match="no outputs of blip2/coco were published"):
        published_outputs("blip2/coco")


@pytest.fixture
def verify(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model_folder: Path,
    image_paths: list[Path],
) -> Verify:
    """`openblip verify` of the tiny model on a local photo, as if the given outputs had been published."""

    def run(
        *published: Published, arguments: tuple[str, ...] = (), weights: Path = tiny_model_folder
    ) -> tuple[int, list[str]]:
        monkeypatch.setattr(verification, "PUBLISHED", {NAME: published})
        with pytest.raises(SystemExit) as left:
            main(
                [
                    "verify",
                    NAME,
                    "--weights",
                    str(weights),
                    "--images",
                    str(image_paths[0].parent),
                    *arguments,
                ]
            )
        return left.value.code, capsys.readouterr().out.splitlines()  # type: ignore[return-value]

    return run


def test_same_outputs_pass(verify: Verify, tiny_model: openblip.Model, image_paths: list[Path]) -> None:
    prompt = "Question: what is it? Answer:"
    told = [
        tiny_model.caption(image_paths[0], prompt=asked, num_beams=5, min_new_tokens=1, max_new_tokens=30)
        for asked in ("", prompt)
    ]
    match = tiny_model.match(image_paths[0], "a dog")
    code, lines = verify(
        PublishedText("photo1.png", told[0]),
        PublishedText("photo1.png", told[1], prompt),
        PublishedMatch("photo1.png", "a dog", match.itm + 0.004, match.itc - 0.004),
        PublishedMatch("photo1.png", "a dog", None, match.itc),
    )
    assert code == 0
    assert [line.split()[0] for line in lines] == ["same"] * 4
    assert lines[1] == f"same       photo1.png, {prompt}: {told[1]}"


def test_any_other_output_fails(verify: Verify, tiny_model: openblip.Model, image_paths: list[Path]) -> None:
    match = tiny_model.match(image_paths[0], "a dog")
    wrong = (
        PublishedText("photo1.png", "a merlion"),
        PublishedMatch("photo1.png", "a dog", match.itm, match.itc + 0.006),
        PublishedMatch("photo1.png", "a dog", match.itm - 0.006, match.itc),
    )
    for each in wrong:
        code, lines = verify(each)
        assert code == 1
        assert lines[0].startswith("different  photo1.png, ")
        assert lines[1].startswith("           published: ")
    code, lines = verify(*wrong, arguments=("--json",))
    assert code == 1
    assert [json.loads(line)["same"] for line in lines] == [False] * 3
    assert json.loads(lines[0])["expected"] == "a merlion"


def test_an_unknown_name_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "blip2_opt/nothing"])
    assert capsys.readouterr().err.startswith("error: no outputs of blip2_opt/nothing were published")


@pytest.fixture(scope="module")
def blips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small BLIPs that answer, caption and match."""
    folder = tmp_path_factory.mktemp("blips")
    for task in ("answer", "caption", "match"):
        save_native(small_parts(task, folder / f"{task} words"), folder / task)
    return {task: folder / task for task in ("answer", "caption", "match")}


def test_a_choice_among_answers(verify: Verify, blips: dict[str, Path], image_paths: list[Path]) -> None:
    answers = ("a dog", "the beach", "two cats")
    best = openblip.load(blips["answer"]).rank_answers(image_paths[0], "what is this?", answers)[0].answer
    asked = PublishedChoice("photo1.png", "what is this?", answers, best)
    code, lines = verify(asked, weights=blips["answer"])
    assert (code, lines) == (0, [f"same       photo1.png, what is this? (a dog, the beach, two cats): {best}"])
    assert verify(replace(asked, text="a cow"), weights=blips["answer"])[0] == 1


def test_probabilities_of_classes(verify: Verify, blips: dict[str, Path], image_paths: list[Path]) -> None:
    model = openblip.load(blips["match"])
    odds = {
        one.label: one.probability for one in model.classify(image_paths[0], ["a dog", "the beach"], templates="{}")
    }
    near = {"a dog": odds["a dog"] + 0.004, "the beach": odds["the beach"] - 0.004}
    assert verify(PublishedClasses("photo1.png", near), weights=blips["match"])[0] == 0
    code, lines = verify(
        PublishedClasses("photo1.png", {**odds, "a dog": odds["a dog"] + 0.006}), weights=blips["match"]
    )
    assert code == 1 and lines[0].startswith("different  photo1.png, classes a dog, the beach: 0.")


def test_the_loss_of_a_caption(verify: Verify, blips: dict[str, Path], image_paths: list[Path]) -> None:
    """It is what the stage of training gives of the same text behind its prompt."""
    parts = load_parts(str(blips["caption"]))
    recipe = Recipe(Stage.CAPTION, "out", [], init="x")
    runtime = Runtime(Arithmetic(torch.device("cpu")))
    task = learner_of(Stage.CAPTION, "blip", "x").task(parts, recipe, [], runtime).eval()
    pixels = to_pixels([openblip.load_image(image_paths[0])], parts.transform)
    row = BatchRow(0, ImageText(image_paths[0], ("a dog on the beach",)), 0, random.Random(1))
    with torch.no_grad():
        loss = float(task([row], Views(pixels=pixels))["lm"])
    published = PublishedLoss("photo1.png", "a picture of a dog on the beach", loss)
    assert published.run(openblip.load(blips["caption"], dtype="float32"), image_paths[0]).found == f"{loss:.4f}"
    assert verify(published, weights=blips["caption"])[0] == 0
    assert verify(replace(published, loss=1.2 * loss), weights=blips["caption"])[0] == 1


def test_means_of_features(verify: Verify, blips: dict[str, Path], image_paths: list[Path]) -> None:
    """Each is the mean of what the network gives, by its own methods."""
    model = openblip.load(blips["match"])
    network, text = cast(BlipNetwork, model.network), "a dog on the beach"
    assert model.parts.matching is not None
    with torch.inference_mode():
        pixels = to_pixels([openblip.load_image(image_paths[0])], model.parts.transform)
        features = network.image_features(pixels)
        ids, mask = model.parts.matching.batch([text])
        hidden = network.encoder(ids, mask)
        found = {
            "image": features,
            "image projected": network.project_images(features),
            "text": hidden,
            "text projected": network.project_texts(hidden),
            "both": network.read_together(ids, mask, features),
        }
    assert len({round(float(tensor.mean()), 4) for tensor in found.values()}) == 5
    for of, tensor in found.items():
        mean = float(tensor.mean())
        published = PublishedMean("photo1.png", text, of, mean)  # type: ignore[arg-type]
        assert verify(published, weights=blips["match"])[0] == 0
        code, lines = verify(replace(published, mean=mean + 0.03 * abs(mean) + 1e-4), weights=blips["match"])
        assert (code, len(lines)) == (1, 2) and f"features: {of}: {mean:.6f}"[:-2] in lines[0]
