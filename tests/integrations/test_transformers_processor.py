"""transformers' processors by their names: the same inputs of the same images and texts, from folders of every form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import openblip.integrations.transformers as ours
from openblip.errors import ImageError
from tests.checkpoints.theirs import Theirs

from .cases import ASKED, PROMPT, edit, given


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_inputs(writer: Theirs, images: list[Image.Image], asked: dict[str, Any], side: str) -> None:
    processor = ours.Blip2Processor.from_pretrained(str(writer.folder))
    processor.tokenizer.padding_side = writer.processor.tokenizer.padding_side = side
    found = processor(**given(images, asked), return_tensors="pt")
    expected = writer.processor(**given(images, asked), return_tensors="pt")
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and found[name].equal(expected[name]), name
    if "text" in asked:
        listed = processor(**given(images, asked))["input_ids"]
        assert listed == writer.processor(**given(images, asked))["input_ids"]
        for skipped in (True, False):
            texts = processor.batch_decode(found.input_ids, skip_special_tokens=skipped)
            assert texts == writer.processor.batch_decode(expected.input_ids, skip_special_tokens=skipped)
            assert processor.decode(found.input_ids[0], skip_special_tokens=skipped) == texts[0]


def test_images_of_every_kind(opt: Theirs, images: list[Image.Image], image_paths: list[Path]) -> None:
    processor = ours.BlipImageProcessor(ours.AutoProcessor.from_pretrained(opt.folder).image_processor.transform)
    expected = opt.processor(images=images[:2], return_tensors="pt").pixel_values
    arrays = [np.asarray(image) for image in images[:2]]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for told in (images[:2], arrays, tensors, [str(image_paths[0]), image_paths[1]], [[images[0]], [images[1]]]):
        assert processor(told, return_tensors="pt").pixel_values.equal(expected)
    assert processor(tensors[0][None], return_tensors="pt").pixel_values.equal(expected[:1])
    clear = images[0].copy()
    clear.putalpha(90)
    theirs = opt.processor(images=clear, return_tensors="pt").pixel_values
    assert processor(clear, return_tensors="pt").pixel_values.equal(theirs)
    with pytest.raises(ImageError, match="nowhere"):
        processor("nowhere.jpg")


def test_a_batch_moves_and_is_cast_where_it_has_fractions(opt: Theirs, images: list[Image.Image]) -> None:
    inputs = ours.AutoProcessor.from_pretrained(opt.folder)(images[0], PROMPT, return_tensors="pt")
    assert inputs.to("cpu", torch.float16) is inputs
    assert inputs.pixel_values.dtype == torch.float16 and inputs["input_ids"].dtype == torch.int64
    assert inputs.to(torch.bfloat16)["pixel_values"].dtype == torch.bfloat16
    assert {**inputs}.keys() == {"input_ids", "attention_mask", "pixel_values"}
    with pytest.raises(AttributeError, match="only input_ids, attention_mask, pixel_values"):
        _ = inputs.labels


def test_a_processor_is_saved_and_found_again(writer: Theirs, images: list[Image.Image], tmp_path: Path) -> None:
    processor = ours.AutoProcessor.from_pretrained(writer.folder)
    processor.tokenizer.padding_side = "left"
    processor.save_pretrained(tmp_path / "saved")
    shutil.copy(writer.folder / "config.json", tmp_path / "saved")
    told = {"images": images[:2], "text": [PROMPT, "a dog"], "padding": True, "return_tensors": "pt"}
    expected = processor(**told)
    for found in (ours.AutoProcessor, transformers.AutoProcessor):
        again = found.from_pretrained(tmp_path / "saved")(**told)
        assert again.keys() == expected.keys() and all(again[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("form", ["settings overruled", "older files"])
def test_vocabularies_of_every_vintage(folder: Path, images: list[Image.Image], form: str) -> None:
    said = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": form == "older files"}
    edit(folder / "tokenizer_config.json", lambda content: content.update(said))
    if form == "older files":
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        (folder / "tokenizer.json").unlink()
    for text in (PROMPT, "two\nlines </s> on"):
        found = ours.AutoProcessor.from_pretrained(folder)(images[0], text)["input_ids"]
        assert found == transformers.AutoProcessor.from_pretrained(folder)(images[0], text)["input_ids"]
