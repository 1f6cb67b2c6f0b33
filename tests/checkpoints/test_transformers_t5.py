"""BLIP-2 with T5: transformers' folders give its own answers, go back as they were, and are held by our own format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, Blip2ForConditionalGeneration

import openblip
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import empty_network, load_native, save_native
from openblip.checkpoints.transformers.read import load_transformers
from openblip.checkpoints.transformers.write import save_transformers
from openblip.errors import CheckpointError
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.models.model import Model
from openblip.nn.t5 import T5Config
from tests.pairs.prompts import prompt_row

from .theirs import FLAN, QUERIES, T5, Theirs, write_t5_writer

TOLERANCE = 1e-5
PROMPT = "Question: what is it? Answer:"
KINDS = {"flan": {**FLAN, "dense_act_fn": "gelu"}, "t5": T5}


@pytest.fixture(scope="module", params=KINDS)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """FLAN-T5's layout as LAVIS runs it, with a head of its own, and T5 1.0's with one table for all."""
    return write_t5_writer(tmp_path_factory.mktemp("models") / "writer", KINDS[request.param])


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_t5_writer(tmp_path_factory.mktemp("models") / "flan", FLAN)


@pytest.fixture(scope="module")
def our_writer(writer: Theirs) -> Model:
    return openblip.load(writer.folder, device="cpu")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def load_theirs(folder: Path) -> Blip2ForConditionalGeneration:
    model, report = Blip2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def inputs_of(theirs: Theirs, path: Path, prompt: str | None) -> dict[str, Tensor]:
    inputs = theirs.processor(images=Image.open(path).convert("RGB"), text=prompt, return_tensors="pt")
    return dict(inputs)


def same_state(first: ModelParts, second: ModelParts) -> bool:
    ours, others = first.network.state_dict(), second.network.state_dict()
    return list(ours) == list(others) and all(torch.equal(ours[name], others[name]) for name in ours)


@torch.no_grad()
def test_logits_are_theirs(writer: Theirs, our_writer: Model, image_paths: list[Path]) -> None:
    config, t5 = our_writer.network.config.language, our_writer.network.t5
    assert config is not None
    labels = torch.tensor([[5, 9, 30, 41, 1]])
    for path in image_paths[:2]:
        inputs = inputs_of(writer, path, PROMPT)
        words = our_writer.parts.tokenizer
        assert words is not None
        assert inputs["input_ids"][0, QUERIES:].tolist() == [*words.encode(PROMPT), our_writer.parts.stop_id]
        prompt = prompt_row(our_writer, path, PROMPT)[None]
        expected = writer.model(**inputs, labels=labels).logits
        assert expected.std() > 0.1
        logits = t5.logits(t5.hidden_before(prompt, None, labels))
        assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("prompt", [None, "a dog", PROMPT])
def test_ids_are_those_of_their_generate(
    writer: Theirs, our_writer: Model, image_paths: list[Path], beams: int, prompt: str | None
) -> None:
    found = our_writer.caption_many(
        image_paths, prompt=prompt or "", num_beams=beams, max_new_tokens=9, min_new_tokens=2
    )
    said = set()
    for path, captioned in zip(image_paths, found, strict=True):
        inputs = inputs_of(writer, path, prompt)
        ids = writer.model.generate(**inputs, num_beams=beams, max_new_tokens=9, min_new_tokens=2)[0].tolist()
        assert ids.pop(0) == 0  # what T5's texts begin with
        options = GenerationOptions(max_new_tokens=9, min_new_tokens=2, num_beams=beams, stop_ids=(1,))
        row = prompt_row(our_writer, path, prompt or "")
        ours = generate(our_writer.network.language_model, [row], options)[0][0].ids
        assert list(ours) == (ids[: ids.index(1)] if 1 in ids else ids)
        decode = writer.processor.tokenizer.decode
        assert captioned.captions[0].tokens == tuple(decode([token], skip_special_tokens=True) for token in ours)
        said.add(ours)
    assert len(said) > 1  # it depends on what is seen


def test_answers_are_theirs_and_a_chat_goes_on(writer: Theirs, our_writer: Model, image_paths: list[Path]) -> None:
    def theirs(prompt: str) -> str:
        ids = writer.model.generate(**inputs_of(writer, image_paths[0], prompt), max_new_tokens=7, do_sample=False)[0]
        return " ".join(writer.processor.tokenizer.decode(ids, skip_special_tokens=True).split())

    questions = ["What is it?", "is the dog red"]
    asked = [theirs(f"Question: {question.lower().rstrip('?')}? Short answer:") for question in questions]
    assert our_writer.ask(image_paths[0], questions, num_beams=1, max_new_tokens=7, min_new_tokens=0) == asked
    chat = our_writer.chat(image_paths[0])
    first = theirs(f"Question: {questions[0].lower()} Answer:")
    assert chat.ask(questions[0], num_beams=1, max_new_tokens=7, min_new_tokens=0) == first
    told = f"{PROMPT} {first}. Question: is the dog red? Answer:"
    assert chat.ask(questions[1], num_beams=1, max_new_tokens=7, min_new_tokens=0) == theirs(told)
    # No positions: nothing that was said is ever left out.
    assert our_writer.components.writer is not None
    assert our_writer.components.writer.fits(our_writer.encode_image(image_paths[0]), "a red dog " * 500, 10)


@torch.no_grad()
def test_a_folder_goes_there_and_back(writer: Theirs, image_paths: list[Path], tmp_path: Path) -> None:
    parts = load_transformers(writer.folder)
    save_transformers(parts, tmp_path)
    found, processor = load_theirs(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    ours, before = found.state_dict(), writer.model.state_dict()
    assert ours.keys() == before.keys() and all(torch.equal(ours[name], before[name]) for name in before)
    stored, old = load_file(tmp_path / "model.safetensors"), load_file(writer.folder / "model.safetensors")
    assert stored.keys() == old.keys() and all(torch.equal(stored[name], old[name]) for name in old)
    images = [Image.open(path).convert("RGB") for path in image_paths[:2]]
    labels = torch.tensor([[5, 9, 30, 41, 1]] * 2)
    for text in (PROMPT, "a dog\n runs </s> on"):
        inputs = writer.processor(images=images, text=[text] * 2, return_tensors="pt")
        new = processor(images=images, text=[text] * 2, return_tensors="pt")
        assert inputs.keys() == new.keys() and all(torch.equal(inputs[name], new[name]) for name in inputs)
        assert torch.equal(found(**new, labels=labels).logits, writer.model(**inputs, labels=labels).logits)
        ids = found.generate(**new, max_new_tokens=6, do_sample=False)
        assert torch.equal(ids, writer.model.generate(**inputs, max_new_tokens=6, do_sample=False))
    again = load_transformers(tmp_path)
    assert again.network.config == parts.network.config
    assert (again.transform, again.prompts, again.defaults) == (parts.transform, parts.prompts, parts.defaults)
    assert same_state(again, parts)


@torch.no_grad()
def test_a_full_word_table_grows_by_a_row_that_is_never_chosen(
    writer: Theirs, image_paths: list[Path], tmp_path: Path
) -> None:
    parts = load_transformers(writer.folder)
    assert isinstance(parts.network.config.language, T5Config) and parts.tokenizer is not None
    rows = parts.tokenizer.vocab_size
    network = empty_network(
        replace(parts.network.config, language=replace(parts.network.config.language, vocab_size=rows)), tmp_path
    )
    state = parts.network.state_dict()
    wanted = network.state_dict()
    network.load_state_dict(
        {name: state[name][: len(wanted[name])] if wanted[name].ndim else state[name] for name in wanted}, assign=True
    )
    save_transformers(replace(parts, network=network.eval()), tmp_path)
    theirs = load_theirs(tmp_path)
    inputs = AutoProcessor.from_pretrained(tmp_path)(
        images=Image.open(image_paths[0]).convert("RGB"), text=PROMPT, return_tensors="pt"
    )
    assert inputs["input_ids"].max() == rows
    logits = theirs(**inputs, labels=torch.tensor([[5, 9]])).logits
    assert logits.shape[-1] == rows + 1 and (logits[..., rows] - logits[..., 0]).abs().max() <= TOLERANCE
    labels = torch.tensor([[5, 9]])
    expected = writer.model(**inputs_of(writer, image_paths[0], PROMPT), labels=labels).logits[..., :rows]
    assert (logits[..., :rows] - expected).abs().max() <= TOLERANCE


def test_our_own_folder_holds_it(writer: Theirs, our_writer: Model, image_paths: list[Path], tmp_path: Path) -> None:
    parts = load_transformers(writer.folder)
    save_native(parts, tmp_path)
    found = load_native(tmp_path)
    assert found.network.config == parts.network.config and isinstance(found.network.config.language, T5Config)
    assert same_state(found, parts)
    assert found.tokenizer is not None and (found.tokenizer.start_id, found.tokenizer.pad_id) == (1, 0)
    assert found.defaults == parts.defaults and found.defaults.stop_token == "</s>"
    ours = openblip.load(tmp_path, device="cpu")
    assert ours.caption(image_paths, num_beams=2, max_new_tokens=6) == our_writer.caption(
        image_paths, num_beams=2, max_new_tokens=6
    )
    assert ours.ask(image_paths[1], "What is it?") == our_writer.ask(image_paths[1], "What is it?")


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["t5"].update(activation="silu"), "T5 activation 'silu' is not one of gelu, gelu_new, relu"),
    (lambda c: c["t5"].update(colour="red"), "unknown settings for T5Config: colour"),
    (lambda c: c["t5"].update(decoder_depth=3), "t5.decoder.layers.2"),
    (lambda c: c["t5"].update(tied_head=True), "t5.head.weight is unknown"),
    (lambda c: c["t5"].update(vocab_size=50), "has 68 tokens, the model knows 50"),
    (lambda c: c.update(decoder=DECODER), "one language model, not decoder, t5 at once"),
]
DECODER = {"vocab_size": 9, "width": 4, "depth": 1, "num_heads": 1, "ffn_width": 4, "max_positions": 9}


def test_what_is_wrong_in_our_own_folder_is_named(flan: Theirs, tmp_path: Path) -> None:
    save_native(load_transformers(flan.folder), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole = config.read_text(encoding="utf-8")
    state = load_file(weights)
    for change, message in CHANGES:
        config.write_text(whole, encoding="utf-8")
        edit(config, change)
        if "tokens" in message:
            save_file(
                {n: t[:50].clone() if n in ("t5.tokens.weight", "t5.head.weight") else t for n, t in state.items()},
                weights,
            )
        with pytest.raises(CheckpointError) as caught:
            load_native(tmp_path)
        assert message in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        save_file(state, weights)
