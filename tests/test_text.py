"""Prompts and tokenizer files as users write them: blanks at the end, padding and cutting that a file asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

import openblip
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.transformers.tokenizers import read_matching, read_words
from openblip.errors import CheckpointError, OptionError
from openblip.models.model import Model
from openblip.text import PromptTemplates, Tokenizer, text_list, trim_prompt
from openblip.training.input.targets import Target, encode_target
from tests.checkpoints.theirs import FLAN, bert_words, opt_words, write_t5_writer, write_writer

BLANKS = (" ", "   ", "\t", "\n", "\r\n", "\v\f", "\u00a0", "\u202f", "\u2003", "\u3000", "\u200b", " \ufeff\u2060\n")
PROMPTS = ("", "a photo of", "Question: what is it? Answer:", " two  spaces")


@pytest.fixture(scope="module")
def t5_parts(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    folder = tmp_path_factory.mktemp("t5")
    write_t5_writer(folder, FLAN)
    return load_parts(folder)


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_blanks_at_the_end_of_a_prompt_are_not_read(
    tiny_parts: ModelParts, t5_parts: ModelParts, prompt: str, blank: str
) -> None:
    assert trim_prompt(prompt + blank) == prompt
    for parts in (tiny_parts, t5_parts):
        assert parts.prompt_ids(prompt + blank) == parts.prompt_ids(prompt)
    words = tiny_parts.tokenizer
    assert words is not None
    assert encode_target(Target(prompt + blank, " red"), "", words, 9) == encode_target(
        Target(prompt, " red"), "", words, 9
    )


@given(st.text())
def test_only_the_end_is_trimmed(text: str) -> None:
    trimmed = trim_prompt(text)
    assert text.startswith(trimmed)
    assert trimmed == trim_prompt(trimmed)
    assert trimmed == trimmed.rstrip()


@pytest.mark.parametrize("blank", [" ", "\u00a0\n"])
def test_a_blank_changes_no_answer(tiny_model: Model, image_paths: list[Path], blank: str) -> None:
    image_path = image_paths[0]
    caption = tiny_model.caption(image_path, prompt="a dog")
    assert tiny_model.caption(image_path, prompt="a dog" + blank) == caption
    assert "".join(tiny_model.caption(image_path, prompt="a dog" + blank, stream=True)) == "".join(
        tiny_model.caption(image_path, prompt="a dog", stream=True)
    )
    completed = [tiny_model.generate(image_path, prompt) for prompt in ("a dog", "a dog" + blank)]
    assert completed[0] == completed[1]
    templates = ("Question: {question} Answer:", "Question: {question} Answer:" + blank)
    answers = [tiny_model.ask(image_path, "who runs?", template=template) for template in templates]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_templates_of_a_folder_may_end_in_blanks(
    tiny_parts: ModelParts, tmp_path: Path, image_paths: list[Path], blank: str
) -> None:
    save_native(tiny_parts, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    plain = PromptTemplates()
    content["prompts"] = {"caption": "a dog" + blank, "question": plain.question + blank, "turn": plain.turn + blank}
    path.write_text(json.dumps(content))
    model, usual = openblip.load(tmp_path, device="cpu"), openblip.load(tmp_path, device="cpu")
    assert model.caption(image_paths[1]) == usual.caption(image_paths[1], prompt="a dog")
    assert model.parts.prompt_ids(model.parts.prompts.ask("who?")) == model.parts.prompt_ids(plain.ask("who?"))


def fill_and_cut(fast: FastTokenizer) -> None:
    fast.enable_padding(length=40)
    fast.enable_truncation(4)


TEXT = "a dog runs on the beach with a red ball"


def test_a_native_folder_does_not_obey_padding_and_truncation(tiny_parts: ModelParts, tmp_path: Path) -> None:
    save_native(tiny_parts, tmp_path)
    for name in ("decoder_tokenizer.json", "qformer_tokenizer.json"):
        fast = FastTokenizer.from_file(str(tmp_path / name))
        fill_and_cut(fast)
        fast.save(str(tmp_path / name))
    parts = load_parts(tmp_path)
    assert parts.prompt_ids(TEXT) == tiny_parts.prompt_ids(TEXT)
    assert parts.matching is not None
    assert tiny_parts.matching is not None
    assert parts.matching.encode(TEXT) == tiny_parts.matching.encode(TEXT)


def test_folders_of_transformers_do_not_either(tmp_path: Path) -> None:
    for name, fast, read in (
        ("opt", opt_words(), lambda folder: read_words(folder, 2, 1, 320)),
        ("bert", bert_words(), lambda folder: read_matching(folder, 32, 100).tokenizer),
    ):
        (tmp_path / name).mkdir()
        expected = fast.encode(TEXT, add_special_tokens=False).ids
        fill_and_cut(fast)
        fast.save(str(tmp_path / name / "tokenizer.json"))
        assert read(tmp_path / name).encode(TEXT) == expected


def test_a_whole_folder_of_transformers_writes_as_before(tmp_path: Path) -> None:
    write_writer(tmp_path)
    expected = load_parts(tmp_path).prompt_ids(TEXT)
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fill_and_cut(fast)
    fast.save(str(tmp_path / "tokenizer.json"))
    assert load_parts(tmp_path).prompt_ids(TEXT) == expected


def words_with(**changes: Any) -> dict[str, Any]:
    model = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1, "<pad>": 2}, "unk_token": "a"}
    return {"version": "1.0", "model": model, **changes}


BROKEN = {
    "a panic as it is read": words_with(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "a panic as it is used": words_with(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "an error as it is used": words_with(
        model={"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
        | {"vocab": {"a": 0, "</s>": 1, "<pad>": 2}}
    ),
    "a wrong pattern": words_with(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Removed"}),
    "another object": {"a": 1},
    "a list": [],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_fails_is_named(content: object, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer file \(") as raised:
        Tokenizer.from_file(path, "</s>", "<pad>")
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the vocabulary is broken \("):
        read_words(tmp_path, 1, 2, 10)


def test_half_of_a_character_is_no_text(tiny_parts: ModelParts) -> None:
    with pytest.raises(OptionError, match="cannot be split into tokens"):
        tiny_parts.prompt_ids("a \ud800 dog")


@pytest.mark.parametrize("given", [["ab", "c"], ("ab", "c"), iter(["ab", "c"]), {"ab": 1, "c": 2}.keys()])
def test_texts_in_any_iterable(given: Iterable[str]) -> None:
    assert text_list(given) == ["ab", "c"]
    assert text_list("ab") == ["ab"]


@pytest.mark.parametrize("given", [None, 5, b"ab", ["a", None], ["a", 5], [["a"]], {"a": "b"}])
def test_what_are_no_texts(given: Any) -> None:
    with pytest.raises(OptionError, match="give"):
        text_list(given)
