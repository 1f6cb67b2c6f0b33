"""Conversations: the paper's template, forgetting, and looking once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from openblip.errors import OptionError
from openblip.generation.options import ResolvedOptions
from openblip.images.encoded_image import EncodedImage
from openblip.models.model import Model
from openblip.results import GeneratedText
from openblip.text import SHORT_QUESTION, PromptTemplates


class Scripted:
    """Stands in for a model's generation: notes the prompts and gives fixed answers."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch, answers: Sequence[str]) -> None:
        self.prompts: list[str] = []
        self.options: list[ResolvedOptions] = []
        self.answers = iter(answers)
        monkeypatch.setattr(model.components.writer, "texts", self.texts)

    def texts(self, image: EncodedImage, prompts: Sequence[str], options: ResolvedOptions) -> list[GeneratedText]:
        self.prompts += prompts
        self.options.append(options)
        return [GeneratedText(next(self.answers), 0.0) for _ in prompts]


def fits(model: Model, image_path: Path, prompt: str, max_new_tokens: int | None = None) -> bool:
    writer = model.components.writer
    assert writer is not None
    longest = (
        writer.options({}, model.parts.defaults.answers).max_new_tokens if max_new_tokens is None else max_new_tokens
    )
    return writer.fits(model.encode_image(image_path), prompt, longest)


def test_the_template_is_the_papers(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted(tiny_model, monkeypatch, ["singapore", "it has a statue of a merlion", "yes"])
    chat = tiny_model.chat(image_paths[0])
    assert chat.ask("Which city is this?") == "singapore"
    assert chat.ask("why") == "it has a statue of a merlion"
    assert chat.ask("really ?", num_beams=2) == "yes"
    assert scripted.prompts == [
        "Question: which city is this? Answer:",
        "Question: which city is this? Answer: singapore. Question: why? Answer:",
        "Question: which city is this? Answer: singapore. "
        "Question: why? Answer: it has a statue of a merlion. Question: really? Answer:",
    ]
    assert [options.num_beams for options in scripted.options] == [5, 5, 2]
    assert chat.turns[0] == ("which city is this?", "singapore")


def test_a_dialogue_goes_on_as_its_turns_are_written() -> None:
    """Also for models that lone questions are put to in another way."""
    prompts = PromptTemplates(question=SHORT_QUESTION)
    assert prompts.ask("why?") == "Question: why? Short answer:"
    assert prompts.chat([("what?", "a dog")], "why?") == "Question: what? Answer: a dog. Question: why? Answer:"
    assert prompts.chat([], "{why}?") == "Question: {why}? Answer:"
    assert PromptTemplates(turn="F: {question} A: {answer}\n").chat([("a", "b")], "c") == "F: a A: b\nF: c A:"


def test_the_first_question_is_answered_as_ask_does(tiny_model: Model, image_paths: list[Path]) -> None:
    questions = ["what color is the ball?", "how many children are there?"]
    chat = tiny_model.chat(image_paths[0])
    assert chat.ask(questions[0]) == tiny_model.ask(image_paths[0], questions[0])
    told = f"Question: {questions[0]} Answer: {chat.turns[0][1]}. Question: {questions[1]} Answer:"
    expected = tiny_model.generate(image_paths[0], told)
    assert chat.ask(questions[1]) == expected


def test_the_oldest_turns_are_forgotten_and_no_more_than_needed(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [f"{'red ' * (number % 4)}ball {number}" for number in range(12)]
    scripted = Scripted(tiny_model, monkeypatch, answers)
    chat = tiny_model.chat(image_paths[0])
    for number in range(12):
        chat.ask(f"what is {number}?")
    assert len(chat.turns) == 12
    forgotten = 0
    for number, prompt in enumerate(scripted.prompts):
        turns, question = chat.turns[:number], chat.turns[number][0]
        kept = [first for first in range(number + 1) if prompt == chat._prompt(turns[first:], question)]
        assert len(kept) == 1
        assert fits(tiny_model, image_paths[0], prompt)
        assert kept[0] == 0 or not fits(tiny_model, image_paths[0], chat._prompt(turns[kept[0] - 1 :], question))
        forgotten = max(forgotten, kept[0])
    assert forgotten > 1


def test_fits_is_what_generation_accepts(tiny_model: Model, image_paths: list[Path]) -> None:
    outcomes = set()
    for count in range(140, 160):
        prompt = "~" * count  # the vocabulary has no longer piece of it
        try:
            tiny_model.generate(image_paths[0], prompt, num_beams=1)
            accepted = True
        except OptionError:
            accepted = False
        assert fits(tiny_model, image_paths[0], prompt) == accepted
        assert fits(tiny_model, image_paths[0], prompt, 160 - 5 - count)
        assert not fits(tiny_model, image_paths[0], prompt, 160 - 4 - count)
        outcomes.add(accepted)
    assert outcomes == {True, False}


def test_a_long_conversation_stays_within_the_positions(tiny_model: Model, image_paths: list[Path]) -> None:
    chat = tiny_model.chat(image_paths[0])
    for number in range(6):
        assert isinstance(chat.ask("how many children play on the beach?", max_new_tokens=10 + 10 * number), str)


def test_a_question_that_cannot_fit_is_refused(tiny_model: Model, image_paths: list[Path]) -> None:
    chat = tiny_model.chat(image_paths[0])
    with pytest.raises(OptionError, match="position"):
        chat.ask("zebra " * 50)
    assert chat.turns == []


def test_a_new_chat_knows_nothing_of_the_last(tiny_model: Model, image_paths: list[Path]) -> None:
    first = tiny_model.chat(image_paths[0])
    answer = first.ask("what color is the ball?")
    second = tiny_model.chat(image_paths[0])
    assert second.turns == []
    assert second.ask("what color is the ball?") == answer
