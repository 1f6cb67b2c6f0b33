"""The model inside the package: small enough, licensed, and it sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import openblip
from openblip.checkpoints.blip2_models import MINI
from openblip.models.model import Model

assert MINI.folder is not None
FOLDER = MINI.folder
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def mini() -> Model:
    return openblip.load()


def test_its_folder_is_complete_and_small() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "LICENSE"} <= files.keys()
    assert sum(files.values()) <= 40e6
    assert "non-commercial" in (FOLDER / "LICENSE").read_text(encoding="utf-8")


def test_loading_leaves_pytorchs_compiler_alone() -> None:
    program = "import sys, openblip; openblip.load(); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0, "it takes a second to import"


# What stands in the middle of each photo, by any of its names.
SEEN = {
    "000000126107.jpg": {"bird", "gull", "seagull"},
    "000000174375.jpg": {"tennis"},
    "000000214753.jpg": {"beach", "horse", "horses"},
    "000000358083.jpg": {"cat"},
    "000000377575.jpg": {"dog"},
    "000000405279.jpg": {"kite", "kites"},
    "000000551780.jpg": {"clock"},
}

SAID = {
    "000000358083.jpg": "a black and white cat in a bathroom",
    "000000377575.jpg": "a brown dog on a leash",
    "000000174375.jpg": "a tennis player on a court",
    "000000214753.jpg": "two people riding horses on the beach",
    "000000551780.jpg": "a large clock on a building",
    "000000511599.jpg": "people standing beside a boat on the river",
}


@pytest.mark.parametrize("image_name", sorted(SEEN))
def test_captions_name_what_is_there(mini: Model, image_name: str) -> None:
    caption = mini.caption(EXAMPLES / image_name)
    assert SEEN[image_name] & set(caption.split()), caption


def test_a_caption_repeats_no_content_word_of_its_prompt(mini: Model) -> None:
    repeated = 0
    for image_name in sorted(SEEN):
        word = mini.caption(EXAMPLES / image_name).split()[-1]
        prompt = f"a {word} and a"
        assert word not in mini.caption(EXAMPLES / image_name, prompt=prompt).split()
        assert word not in "".join(mini.caption(EXAMPLES / image_name, prompt=prompt, stream=True)).split()
        repeated += word in mini.caption(EXAMPLES / image_name, prompt=prompt, no_repeat_words=False).split()
    assert repeated, "nothing is repeated without the default, either"


def test_matching_tells_the_photos_apart(mini: Model) -> None:
    for image_name, text in SAID.items():
        best = max(mini.match(EXAMPLES / image_name, list(SAID.values())), key=lambda match: match.itm)
        assert best.text == text
    scores = mini.scores([EXAMPLES / image_name for image_name in SAID], list(SAID.values()))
    assert scores.itc.argmax(dim=0).tolist() == list(range(len(SAID)))


def test_answers_are_about_the_photo(mini: Model) -> None:
    for image_name, question, answer in (
        ("000000405279.jpg", "what is in the sky?", "kite"),
        ("000000551780.jpg", "what is on the building?", "clock"),
    ):
        assert mini.ask(EXAMPLES / image_name, question) == answer
    assert mini.ask(EXAMPLES / "000000214753.jpg", ["how many horses are there?", "what are the people riding?"]) == [
        "two",
        "horses",
    ]


def test_questions_that_people_ask_of_any_photo(mini: Model) -> None:
    for image_name, animal in {"000000358083.jpg": "cat", "000000377575.jpg": "dog"}.items():
        asked = ["what is this?", "what animal is this?", "what is in the picture?"]
        assert mini.ask(EXAMPLES / image_name, asked) == [animal] * 3
    asked = ["what animal is this?", "is there a horse?", "is there a cat?"]
    assert mini.ask(EXAMPLES / "000000214753.jpg", asked) == ["horse", "yes", "no"]
    with_dog = [image_name for image_name in SEEN if mini.ask(EXAMPLES / image_name, "is there a dog?") == "yes"]
    assert with_dog == ["000000377575.jpg"]


def test_vectors_of_image_and_text_agree_with_match(mini: Model) -> None:
    image_name = sorted(EXAMPLES.glob("*.jpg"))[0]
    cosine = (mini.embed_images([image_name])[0] @ mini.embed_texts(["a dog"])[0]).max()
    assert mini.match(image_name, "a dog").itc == pytest.approx(cosine.item(), abs=1e-5)
    assert torch.allclose(mini.embed_images([image_name]).norm(dim=-1), torch.ones(1, 16), atol=1e-5)
