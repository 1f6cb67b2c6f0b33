"""BLIP in folders of transformers: theirs are read, and ours are loaded by their classes and processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

import openblip
from openblip.checkpoints.json_files import read_json, to_json
from openblip.checkpoints.tools.convert import convert
from openblip.checkpoints.transformers.blip import save_blip_folder
from openblip.errors import CheckpointError
from openblip.images.decode import load_image
from tests.models.blip_models import small_parts
from tests.pairs.gaps import difference

CLASSES: dict[str, Any] = {
    "caption": BlipForConditionalGeneration,
    "answer": BlipForQuestionAnswering,
    "match": BlipForImageTextRetrieval,
}
CLOSE = 2e-5


@pytest.mark.parametrize("task", CLASSES)
@torch.no_grad()
def test_transformers_reads_what_is_written(tmp_path: Path, image_paths: list[Path], task: str) -> None:
    parts = small_parts(task, tmp_path)
    save_blip_folder(parts, tmp_path / "theirs")
    theirs = CLASSES[task].from_pretrained(tmp_path / "theirs").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    given = processor(images=load_image(image_paths[0]), text="what is this?", return_tensors="pt")
    network = parts.network
    features = network.image_features(given["pixel_values"])
    ids, mask = given["input_ids"], given["attention_mask"]
    if task == "caption":
        hidden = network.decoder.decode(network.decoder.embed(ids), mask, network.decoder.remember(features))
        assert difference(network.decoder.logits(hidden), theirs(**given).logits) <= 10 * CLOSE
    elif task == "answer":
        ids[:, 0] = network.config.encode_id
        expected = theirs.text_encoder(ids, attention_mask=mask, encoder_hidden_states=features)[0]
        assert difference(network.read_together(ids, mask, features), expected) <= CLOSE
    else:
        given["input_ids"][:, 0] = network.config.encode_id
        assert difference(network.itm_logits(ids, mask, features), theirs(**given).itm_score) <= 10 * CLOSE
    assert difference(features, theirs.vision_model(given["pixel_values"])[0]) <= CLOSE


@pytest.mark.parametrize("task", CLASSES)
def test_round_trip(tmp_path: Path, image_paths: list[Path], task: str) -> None:
    """Through a folder of ours, transformers' own saving, and back, by the public functions alone."""
    parts = small_parts(task, tmp_path)
    save_blip_folder(parts, tmp_path / "first")
    first = openblip.load(tmp_path / "first", device="cpu", dtype="float32")
    CLASSES[task].from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    second = openblip.load(tmp_path / "second", device="cpu", dtype="float32", tokenizer=tmp_path / "first")
    own = parts.network.state_dict()
    for model in (first, second):
        assert model.network.config == parts.network.config
        found = model.network.state_dict()
        assert all(torch.equal(own[name], found[name]) for name in own)
    assert first.parts.prompts == parts.prompts and first.parts.defaults == parts.defaults
    for layout in ("openblip", "lavis", "transformers"):
        assert convert(tmp_path / "first", tmp_path / layout, layout)
    third = openblip.load(tmp_path / "openblip", device="cpu", dtype="float32")
    if task == "caption":
        assert first.caption(image_paths) == second.caption(image_paths) == third.caption(image_paths)
    elif task == "answer":
        assert len({model.ask(image_paths[0], "what is this?") for model in (first, second, third)}) == 1
    else:
        texts = ["a dog", "a red ball"]
        one, two, three = (model.scores(image_paths, texts, itm=True) for model in (first, second, third))
        assert one.itm is not None and two.itm is not None and three.itm is not None
        assert torch.equal(one.itm, two.itm) and torch.equal(one.itm, three.itm)


def test_another_class_is_refused(tmp_path: Path) -> None:
    parts = small_parts("caption", tmp_path)
    save_blip_folder(parts, tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(to_json({**read_json(path), "architectures": ["BlipModel"]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is of a BlipModel: only BlipForConditionalGeneration, "):
        openblip.load(tmp_path / "theirs", device="cpu")


def test_a_model_that_they_have_no_class_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers has no BLIP of the parts of embed"):
        save_blip_folder(small_parts("embed", tmp_path), tmp_path / "theirs")
