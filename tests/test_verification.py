"""Published outputs against official weights (`pytest -m official`), and how the comparison is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import openblip
from openblip import verification
from openblip.checkpoints.registry import find_model
from openblip.cli import main
from openblip.errors import CheckpointError
from openblip.verification import (
    IMAGES,
    PUBLISHED,
    Published,
    PublishedAnswer,
    PublishedMatch,
    PublishedText,
    published_outputs,
)

Verify = Callable[..., tuple[int, list[str]]]
NAME = "blip2_opt/pretrain_opt2.7b"


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
            needed = {PublishedMatch: "match", PublishedAnswer: "ask", PublishedText: "caption"}
            assert needed[type(each)] in model.abilities
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

    def run(*published: Published, arguments: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        monkeypatch.setattr(verification, "PUBLISHED", {NAME: published})
        with pytest.raises(SystemExit) as left:
            main(
                [
                    "verify",
                    NAME,
                    "--weights",
                    str(tiny_model_folder),
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
