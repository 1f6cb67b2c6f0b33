"""What scripts around transformers' BLIP-2 do besides asking for a text, done with both libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import openblip.integrations.transformers as ours
from openblip.errors import OpenBlipError, OptionError
from tests.checkpoints.theirs import Theirs

from .cases import PROMPT

LIBRARIES: list[Any] = [ours, transformers]
TOLERANCE = 1e-4


def both(folder: Path, kind: str = "Blip2ForConditionalGeneration", **options: Any) -> list[tuple[Any, Any]]:
    """Model and processor of each library."""
    return [
        (
            getattr(library, kind).from_pretrained(folder, **options).eval(),
            library.Blip2Processor.from_pretrained(folder),
        )
        for library in LIBRARIES
    ]


def asked(processor: Any, images: list[Image.Image]) -> Any:
    return processor(images=images[0], text=PROMPT, return_tensors="pt")


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "output_scores": True},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=7, num_beams=3, length_penalty=0.5)},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=7, num_beams=3), "max_new_tokens": 3},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=7), "num_beams": 2, "max_length": 24},
    ],
)
@torch.no_grad()
def test_results_by_name_and_settings_in_objects(
    writer: Theirs, images: list[Image.Image], options: dict[str, Any]
) -> None:
    found = [
        model.generate(**asked(processor, images), **options, return_dict_in_generate=True)
        for model, processor in both(writer.folder)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.equal(found[0][0], found[0].sequences)
    if "output_scores" in options:
        assert torch.allclose(found[0].sequences_scores, found[1].sequences_scores, atol=TOLERANCE)


def test_what_a_script_sets_is_followed_where_a_call_says_nothing(writer: Theirs, images: list[Image.Image]) -> None:
    model, processor = both(writer.folder)[0]
    inputs = asked(processor, images)
    expected = model.generate(**inputs, num_beams=3, max_new_tokens=4)
    model.generation_config.num_beams, model.generation_config.max_new_tokens = 3, 4
    assert torch.equal(model.generate(**inputs), expected)
    assert torch.equal(
        model.generate(**inputs, num_beams=1, max_new_tokens=2),
        both(writer.folder)[0][0].generate(**inputs, max_new_tokens=2),
    )
    model.generation_config.guidance_scale = 2
    with pytest.raises(OptionError, match="guidance_scale"):
        model.generate(**inputs)
    with pytest.raises(OptionError, match="guidance_scale"):
        both(writer.folder)[0][0].generate(**inputs, generation_config=transformers.GenerationConfig(guidance_scale=2))


def test_scores_of_every_step_are_refused(writer: Theirs, images: list[Image.Image]) -> None:
    model, processor = both(writer.folder)[0]
    with pytest.raises(OptionError, match="log-probability of every token"):
        model.generate(**asked(processor, images), return_dict_in_generate=True, output_scores=True)


@torch.no_grad()
def test_results_as_tuples(writer: Theirs, matcher: Theirs, images: list[Image.Image]) -> None:
    for model, processor in both(writer.folder):
        inputs = asked(processor, images)
        labels = inputs["input_ids"].clamp(max=60)
        named, plain = (model(**inputs, labels=labels, return_dict=wanted) for wanted in (True, False))
        assert isinstance(plain, tuple)
        assert torch.equal(plain[0], named.loss) and torch.equal(plain[1], named.logits)
    pairs = []
    for model, processor in both(matcher.folder, "Blip2ForImageTextRetrieval"):
        inputs = processor(images=images[:2], text=["a dog", "the red ball"], padding=True, return_tensors="pt")
        pairs.append(model(**inputs, use_image_text_matching_head=True, return_dict=False)[0])
    assert torch.allclose(*pairs, atol=TOLERANCE)


@torch.no_grad()
def test_projections(matcher: Theirs, images: list[Image.Image]) -> None:
    for kind, given, vectors in (
        ("Blip2VisionModelWithProjection", {"images": images[:2]}, "image_embeds"),
        ("Blip2TextModelWithProjection", {"text": ["a dog", "the red ball"], "padding": True}, "text_embeds"),
    ):
        found = [model(**processor(**given, return_tensors="pt")) for model, processor in both(matcher.folder, kind)]
        for name in (vectors, "last_hidden_state"):
            assert found[0][name].shape == found[1][name].shape
            assert torch.allclose(found[0][name], found[1][name], atol=TOLERANCE)
        assert torch.equal(found[0].to_tuple()[0], found[0][vectors])


def test_a_processor_alone_is_found_again(
    writer: Theirs, matcher: Theirs, images: list[Image.Image], tmp_path: Path
) -> None:
    """As scripts keep it beside a model that lies elsewhere, whichever library wrote it."""
    for number, folder in enumerate((writer.folder, matcher.folder)):
        for place, library in zip(("ours", "theirs"), LIBRARIES, strict=True):
            saved = library.Blip2Processor.from_pretrained(folder)
            saved.save_pretrained(tmp_path / f"{place}{number}")
            expected = saved(images=images[0], text="a dog", return_tensors="pt")
            for reader in LIBRARIES:
                again = reader.AutoProcessor.from_pretrained(tmp_path / f"{place}{number}")
                found = again(images=images[0], text="a dog", return_tensors="pt")
                assert {name: tensor.tolist() for name, tensor in found.items()} == {
                    name: tensor.tolist() for name, tensor in expected.items()
                }


def test_loading_as_scripts_do(writer: Theirs, images: list[Image.Image], tmp_path: Path) -> None:
    options = {"attn_implementation": "sdpa", "weights_only": True, "trust_remote_code": False, "dtype": "auto"}
    for library in LIBRARIES:
        model = library.AutoModelForImageTextToText.from_pretrained(writer.folder, **options)
        assert model.can_generate()
        model.tie_weights()
        assert model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size
    ours_model, theirs_model = (library.Blip2ForConditionalGeneration for library in LIBRARIES)
    model = ours_model.from_pretrained(writer.folder)
    keys_biases = model.config.vision_config.num_hidden_layers * model.config.vision_config.hidden_size
    assert model.num_parameters() + keys_biases == theirs_model.from_pretrained(writer.folder).num_parameters()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    processor = ours.Blip2Processor.from_pretrained(writer.folder)
    inputs = asked(processor, images)
    expected = model.generate(**inputs, max_new_tokens=5)
    for kind in (ours_model, theirs_model):
        assert torch.equal(kind.from_pretrained(tmp_path).generate(**inputs, max_new_tokens=5), expected)
    for size in ("many", "0GB", 0):
        with pytest.raises(OptionError, match="max_shard_size"):
            model.save_pretrained(tmp_path / "no", max_shard_size=size)


def test_words_of_the_tokenizer(writer: Theirs) -> None:
    mine, theirs = (library.Blip2Processor.from_pretrained(writer.folder).tokenizer for library in LIBRARIES)
    assert mine.tokenize("a dog") == theirs.tokenize("a dog")
    assert mine.get_vocab() == theirs.get_vocab()


ODD: tuple[Any, ...] = (True, -1, 1.5, float("nan"), 10**30, "x", b"x", [], {}, [None], object(), int, np.array(3))
ODD += (torch.tensor(3), torch.zeros(0), torch.zeros(2, 3), torch.zeros(1, 2, dtype=torch.int64), "\0", "a" * 5_000)


def test_odd_values_are_taken_or_named(
    writer: Theirs, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands where a path, a text, ids, a tensor or an option of generation belongs."""
    monkeypatch.chdir(tmp_path)  # where odd names are saved to
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ours.Blip2ForConditionalGeneration.from_pretrained(writer.folder)
    processor: Any = ours.Blip2Processor.from_pretrained(writer.folder)
    inputs = dict(processor(images=images[0], text="a dog", return_tensors="pt"))
    tensors = ("pixel_values", "input_ids", "attention_mask")
    options = ("max_new_tokens", "max_length", "min_length", "num_beams", "do_sample", "eos_token_id", "streamer")
    taken = 0
    for value in (None, *ODD):
        calls: dict[str, Callable[[], Any]] = {
            "name": lambda value=value: ours.Blip2ForConditionalGeneration.from_pretrained(
                value, local_files_only=True
            ),
            "subfolder": lambda value=value: ours.Blip2Processor.from_pretrained(writer.folder, subfolder=value),
            "save": lambda value=value: model.save_pretrained(value),
            "save a processor": lambda value=value: processor.save_pretrained(value),
            "decode": lambda value=value: processor.decode(value),
            "batch_decode": lambda value=value: processor.batch_decode(value),
            "config": lambda value=value: model.generate(**inputs, generation_config=value, max_new_tokens=1),
            **{
                name: lambda value=value, name=name: processor(**{"images": images[0], "text": "a dog", name: value})
                for name in ("text", "padding", "truncation", "max_length")
            },
            **{
                f"generate {name}": lambda value=value, name=name: model.generate(
                    **{**inputs, "max_new_tokens": 1, name: value}
                )
                for name in (*tensors, *options)
                if not (name == "do_sample" and isinstance(value, torch.Tensor | np.ndarray))
            },
            **{
                f"forward {name}": lambda value=value, name=name: model(
                    **{**inputs, "labels": inputs["input_ids"], name: value}
                )
                for name in (*tensors, "labels")
                if name != "labels" or value is not None
            },
        }
        for name, call in calls.items():
            try:
                call()
                taken += 1
            except OpenBlipError as error:
                assert "\n" not in str(error), (name, value)
            except Exception as error:
                pytest.fail(f"{name}={value!r:.60} raises {type(error).__name__}: {error}")
    assert taken > 20
