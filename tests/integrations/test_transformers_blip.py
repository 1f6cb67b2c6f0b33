"""transformers' BLIP classes give what transformers gives, and padding changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import openblip
from openblip.errors import CheckpointError, OptionError
from openblip.integrations.transformers import (
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    BlipProcessor,
)
from tests.pairs.blip_transformers import shake
from tests.pairs.gaps import difference

from .blip_theirs import NAMES, Pair, write_pair

TEXTS = ["a picture of a dog", "two children play with the red ball on the beach", "what is this?"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {task: write_pair(task, tmp_path_factory.mktemp(task)) for task in NAMES}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.effect_noise((30 + 9 * n, 41), 60 * n).convert("RGB") for n in range(1, 4)]


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert difference(ours.detach(), theirs.detach()) <= 2e-5 + 1e-4 * float(theirs.detach().abs().max())


def same(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name in theirs:
        close(ours[name], theirs[name])
    for one, other in zip(ours.to_tuple(), theirs.to_tuple(), strict=True):
        assert one.shape == other.shape


def pictured(pair: Pair, images: list[Image.Image], texts: Any, **options: Any) -> dict[str, Tensor]:
    return dict(pair.processor(images=images, text=texts, return_tensors="pt", **options))


def test_processor(pairs: dict[str, Pair], images: list[Image.Image], tmp_path: Path) -> None:
    theirs = pairs["caption"].processor
    ours = BlipProcessor.from_pretrained(pairs["caption"].folder)
    assert isinstance(AutoProcessor.from_pretrained(pairs["answer"].folder), BlipProcessor)
    calls: list[dict[str, Any]] = [
        {"images": images[0]},
        {"images": images, "text": TEXTS, "padding": True},
        {"text": TEXTS[0]},
        {"images": images[0], "text": "It's a Dog, isn't it?"},
        {"images": images[:1], "text": TEXTS[1:2], "padding": "max_length", "max_length": 8, "truncation": True},
        {"text": TEXTS[:1], "add_special_tokens": False},
    ]
    for call in calls:
        found, expected = ours(**call, return_tensors="pt"), theirs(**call, return_tensors="pt")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            close(found[name], tensor)
        assert found.get("input_ids", torch.zeros(1)).dtype == expected.get("input_ids", torch.zeros(1)).dtype
    assert ours(text=TEXTS[0])["input_ids"] == theirs(text=TEXTS[0])["input_ids"]
    ids = theirs(text="it's a dog, isn't it?")["input_ids"]
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    ours.save_pretrained(tmp_path)
    for again in (BlipProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert again(text=TEXTS[0])["input_ids"] == theirs(text=TEXTS[0])["input_ids"]
    reloaded: Any = type(theirs).from_pretrained(tmp_path)
    assert reloaded(text=TEXTS[0])["input_ids"] == theirs(text=TEXTS[0])["input_ids"]


@torch.no_grad()
def test_outputs(pairs: dict[str, Pair], images: list[Image.Image]) -> None:
    caption, answer, match = (pairs[task] for task in ("caption", "answer", "match"))
    for texts in ([TEXTS[0]] * 3, TEXTS):
        given = pictured(caption, images, texts, padding=True)
        found, expected = caption.ours(**given), caption.theirs(**given)
        seen = given["attention_mask"].bool()
        close(found.logits[seen], expected.logits[seen])
        close(found.image_embeds, expected.image_embeds)
        assert list(found) == list(expected)
    given = pictured(caption, images, [TEXTS[0]] * 3)
    same(caption.ours(**given, labels=given["input_ids"]), caption.theirs(**given, labels=given["input_ids"]))
    close(caption.ours(**given, logits_to_keep=2).logits, caption.theirs(**given, logits_to_keep=2).logits)
    assert isinstance(caption.ours(**given, return_dict=False), tuple)
    given = pictured(answer, images[:1], "what is this?")
    labels = answer.processor(text="a red ball", return_tensors="pt").input_ids
    same(answer.ours(**given, labels=labels), answer.theirs(**given, labels=labels))
    same(answer.ours(**given, decoder_input_ids=labels), answer.theirs(**given, decoder_input_ids=labels))
    given = pictured(match, images, TEXTS, padding=True)
    same(match.ours(**given, use_itm_head=False), match.theirs(**given, use_itm_head=False))
    same(match.ours(**given), match.theirs(**given))


def test_captions_are_learnt_as_there(tmp_path: Path, images: list[Image.Image]) -> None:
    """Losses and gradients, padding and label smoothing included."""
    pair = write_pair("caption", tmp_path, label_smoothing=0.1)
    given = pictured(pair, images, TEXTS, padding=True)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    for told in (given["input_ids"], labels):
        losses = [model(**given, labels=told).loss for model in (pair.ours, pair.theirs)]
        close(*losses)
        for loss, model in zip(losses, (pair.ours, pair.theirs), strict=True):
            model.zero_grad()
            loss.backward()
        own, theirs = dict(pair.ours.parts.network.named_parameters()), dict(pair.theirs.named_parameters())
        words = "text_decoder.bert.embeddings.word_embeddings.weight"
        close(own["decoder.words.weight"].grad, theirs[words].grad)
        close(own["vision.class_token"].grad, theirs["vision_model.embeddings.class_embedding"].grad)


def test_answers_are_learnt_as_there(tmp_path: Path, images: list[Image.Image]) -> None:
    """Where questions have no padding; theirs learns to read it."""
    pair = write_pair("answer", tmp_path, label_smoothing=0.1)
    given = pictured(pair, images, ["what is this?"] * 3)
    labels = pair.processor(text=["dog", "a red ball", "two"], padding=True, return_tensors="pt").input_ids
    losses = [model(**given, labels=labels).loss for model in (pair.ours, pair.theirs)]
    close(*losses)
    given = pictured(pair, images, TEXTS, padding=True)
    alone = []
    for row, text in enumerate(TEXTS):
        one = pictured(pair, images[row : row + 1], text)
        alone.append(pair.theirs(**one, labels=labels[row : row + 1]).loss)
        close(pair.ours(**one, labels=labels[row : row + 1]).loss, alone[-1])
    close(pair.ours(**given, labels=labels).loss, torch.stack(alone).mean())
    ignored = labels.masked_fill(labels == 0, -100)
    assert pair.ours(**given, labels=ignored).loss.isfinite()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 7},
    {"max_length": 12, "min_length": 9},
    {"num_beams": 3, "max_new_tokens": 12},
    {"num_beams": 5, "length_penalty": 0.5, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 4, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    {"repetition_penalty": 1.3, "max_new_tokens": 10},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "usual")
def test_generated_ids(pairs: dict[str, Pair], images: list[Image.Image], options: dict[str, Any]) -> None:
    caption, answer = pairs["caption"], pairs["answer"]
    for texts in (None, [TEXTS[0]] * 3):
        given = dict(caption.processor(images=images, text=texts, return_tensors="pt"))
        kept = {name: tensor.clone() for name, tensor in given.items()}
        found = caption.ours.generate(**given, **options)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in given.items())  # theirs changes the ids
        assert torch.equal(found, caption.theirs.generate(**given, **options))
    given = pictured(answer, images, ["what is this?"] * 3)
    assert torch.equal(answer.ours.generate(**given, **options), answer.theirs.generate(**given, **options))


def test_random_draws_are_the_same_ones(pairs: dict[str, Pair], images: list[Image.Image]) -> None:
    given = pictured(pairs["caption"], images[:1], TEXTS[0])
    drawn = []
    for model in (pairs["caption"].ours, pairs["caption"].theirs):
        torch.manual_seed(3)
        drawn.append(model.generate(**{**given}, do_sample=True, top_p=0.9, max_new_tokens=15))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task", ["caption", "answer"])
def test_padding_changes_nothing(pairs: dict[str, Pair], images: list[Image.Image], task: str, side: str) -> None:
    """Theirs goes on behind [SEP] and padding, or answers by the states of padding."""
    pair = pairs[task]
    options = {"num_beams": 3, "max_new_tokens": 8}
    alone = [
        pair.theirs.generate(**pictured(pair, images[row : row + 1], text), **options)[0].tolist()
        for row, text in enumerate(TEXTS)
    ]
    given = BlipProcessor.from_pretrained(pair.folder)
    given.tokenizer.padding_side = side
    together = pair.ours.generate(**given(images, TEXTS, padding=True, return_tensors="pt"), **options)
    pad, stop = 0, 3
    for row, expected in zip(together.tolist(), alone, strict=True):
        start = next(place for place, token in enumerate(row) if token != pad)
        text = row[start:]
        while len(text) > len(expected) and text[-1] == stop:
            text.pop()
        while len(expected) > len(text) and expected[-1] == stop:
            expected.pop()
        assert text == expected


def test_scores_and_streams(pairs: dict[str, Pair], images: list[Image.Image]) -> None:
    pair = pairs["caption"]
    given = pictured(pair, images, [TEXTS[0]] * 3)
    options = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 9}
    found, expected = pair.ours.generate(**given, **options), pair.theirs.generate(**{**given}, **options)
    assert torch.equal(found.sequences, expected.sequences)
    close(found.sequences_scores, expected.sequences_scores)

    class Listener:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    for task, text in (("caption", TEXTS[0]), ("answer", "what is this?")):
        heard = []
        for model in (pairs[task].ours, pairs[task].theirs):
            listener = Listener()
            given = pictured(pairs[task], images[:1], text)
            ids = model.generate(**given, streamer=listener, max_new_tokens=6)
            assert listener.ended and listener.ids == ids[0].tolist()
            heard.append(listener.ids)
        assert heard[0] == heard[1]


@pytest.mark.parametrize("task", NAMES)
def test_names_of_layers_and_round_trips(pairs: dict[str, Pair], task: str, tmp_path: Path) -> None:
    pair = pairs[task]
    linear = [name for name, one in pair.theirs.named_modules() if type(one) is torch.nn.Linear]
    ours = {name for name, one in pair.ours.named_modules() if isinstance(one, torch.nn.Linear)}
    assert ours == {name for name in linear if not name.endswith("predictions.decoder")}
    assert pair.ours.num_parameters() == sum(one.numel() for one in pair.theirs.parameters())
    pair.ours.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    state = pair.their_class.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in pair.theirs.state_dict().items())
    again = pair.our_class.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in pair.ours.state_dict().items())
    fresh = pair.our_class.from_pretrained(pair.folder)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(pair.theirs.state_dict(), strict=True)
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in pair.ours.state_dict().items())
    assert fresh.config.text_config.to_dict().items() >= {"pad_token_id": 0, "sep_token_id": 3}.items()


def test_folders_of_openblip_and_ways_to_load(
    pairs: dict[str, Pair], images: list[Image.Image], tmp_path: Path
) -> None:
    pair = pairs["caption"]
    own = openblip.load(pair.folder, device="cpu", dtype="float32").save(tmp_path / "own")
    given = pictured(pair, images, [TEXTS[0]] * 3)
    expected = pair.theirs.generate(**{**given, "input_ids": given["input_ids"].clone()})
    for folder in (own, pair.folder):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        assert type(model) is BlipForConditionalGeneration
        assert torch.equal(model.generate(**given), expected)
        inputs = AutoProcessor.from_pretrained(folder)(text=TEXTS[0], return_tensors="pt")
        assert torch.equal(inputs.input_ids, given["input_ids"][:1])
    assert type(AutoModelForVisualQuestionAnswering.from_pretrained(pairs["answer"].folder)) is BlipForQuestionAnswering
    half = BlipForConditionalGeneration.from_pretrained(pair.folder, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    small = BlipForConditionalGeneration.from_pretrained(pair.folder, load_in_8bit=True)
    assert small.generate(**given, max_new_tokens=3).shape == (3, 9)


def test_blip_model(images: list[Image.Image], tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """Its poolers and projections are its own: a second norm behind the image encoder, tanh behind the text's."""
    matching = pairs["match"]
    torch.manual_seed(4)
    theirs: Any = transformers.BlipModel(matching.theirs.config).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    ours = BlipModel.from_pretrained(tmp_path)
    given = pictured(matching, images, TEXTS, padding=True)
    text = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found, expected = ours(**given, return_loss=True), theirs(**given, return_loss=True)
        assert list(found) == list(expected)
        for name in list(found)[:5]:
            close(found[name], expected[name])
        for tower in ("text_model_output", "vision_model_output"):
            close(found[tower].pooler_output, expected[tower].pooler_output)
        close(ours.get_text_features(**text).pooler_output, theirs.get_text_features(**text).pooler_output)
        seen = {"pixel_values": given["pixel_values"]}
        same(ours.get_image_features(**seen), theirs.get_image_features(**seen))
        close(ours.get_multimodal_features(**given), theirs.get_multimodal_features(**given))
        larger = torch.nn.functional.interpolate(given["pixel_values"], size=(48, 48))
        wide = [model.get_image_features(larger, interpolate_pos_encoding=True) for model in (ours, theirs)]
        close(wide[0].last_hidden_state, wide[1].last_hidden_state)
    ours.save_pretrained(tmp_path / "again")
    state = type(theirs).from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    with pytest.raises(CheckpointError, match="is no BlipModel of transformers"):
        BlipModel.from_pretrained(matching.folder)


def test_what_is_wrong_is_named(pairs: dict[str, Pair], images: list[Image.Image], tiny_model_folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match="is no BlipForQuestionAnswering: load it with BlipForConditionalGeneration"
    ):
        BlipForQuestionAnswering.from_pretrained(pairs["caption"].folder)
    with pytest.raises(CheckpointError, match="is of the family blip2, no BLIP"):
        BlipForImageTextRetrieval.from_pretrained(tiny_model_folder)
    with pytest.raises(CheckpointError, match="is of the family blip2, no BLIP"):
        BlipProcessor.from_pretrained(tiny_model_folder)
    with pytest.raises(CheckpointError, match="load it with BlipForImageTextRetrieval"):
        AutoModelForImageTextToText.from_pretrained(pairs["match"].folder)
    pair = pairs["answer"]
    given = pictured(pair, images[:1], "what is this?")
    with pytest.raises(OptionError, match="there are no answers"):
        pair.ours(**given)
    with pytest.raises(OptionError, match="pixels are 40 x 40"):
        pair.ours.generate(given["input_ids"], torch.zeros(1, 3, 40, 40))
    with pytest.raises(OptionError, match="generate does not know num_beam"):
        pair.ours.generate(**given, num_beam=3)
    with pytest.raises(OptionError, match="2 images came with 1 texts"):
        pair.ours.generate(given["input_ids"], torch.zeros(2, 3, 32, 32))
