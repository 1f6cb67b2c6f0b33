"""A model on each task: the same as asking it by hand, unreadable images left out, resumed without repeating."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.checkpoints.model_parts import ModelParts
from openblip.data.image_files import OnBadImage
from openblip.data.sample import PackedFile, Sample
from openblip.errors import CheckpointError, ImageError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.metrics.captions import score_captions
from openblip.evaluation.metrics.recall import score_retrieval
from openblip.evaluation.metrics.vqa import exact_accuracy, vqa_accuracy
from openblip.evaluation.score import score_model
from openblip.evaluation.settings import (
    Accuracy,
    CaptionSettings,
    ClassificationSettings,
    Decision,
    QuestionSettings,
    RetrievalSettings,
    Settings,
    Task,
    Wish,
)
from openblip.evaluation.tasks.classification import NO_LABEL
from openblip.models.load import model_of
from openblip.models.model import Model

PLAIN = CaptionSettings(Wish.NEVER, Wish.NEVER, Wish.NEVER)


def captions(**settings: object) -> Settings:
    return Settings(Task.CAPTIONS, captions=PLAIN, batch_size=2, **settings)  # type: ignore[arg-type]


def test_captions_are_the_models(tiny_model: Model, captioned: list[Sample]) -> None:
    seen: list[tuple[int, int]] = []
    text = {"prompt": "a dog", "num_beams": 2, "max_new_tokens": 5, "length_penalty": -1}
    found = score_model(tiny_model, captioned, captions(text=text), lambda done, total: seen.append((done, total)))
    said = tiny_model.caption(
        [sample.image for sample in captioned], prompt="a dog", num_beams=2, max_new_tokens=5, length_penalty=-1
    )
    assert [row.prediction for row in found.rows] == said
    names = [str(number) for number in range(5)]
    by_hand = score_captions(
        dict(zip(names, said, strict=True)),
        {name: sample.captions for name, sample in zip(names, captioned, strict=True)},
        False,
    )
    assert found.metrics == by_hand.table
    assert [row.score for row in found.rows] == by_hand.each["cider"]
    assert seen == [(done, 5) for done in range(6)]


def test_rows_of_one_image_are_its_references(tiny_model: Model, captioned: list[Sample]) -> None:
    apart = [replace(sample, captions=(text,)) for sample in captioned for text in sample.captions]
    together, spread = (score_model(tiny_model, rows, captions()) for rows in (captioned, apart))
    assert spread.metrics == together.metrics
    assert [row.references for row in spread.rows] == [sample.captions for sample in captioned]


def test_answers_are_the_models(tiny_model: Model, questioned: list[Sample]) -> None:
    found = score_model(tiny_model, questioned, Settings(Task.QUESTIONS))
    said = [
        answer
        for image_path in range(5)
        for answer in tiny_model.ask(
            questioned[2 * image_path].image,
            [sample.question for sample in questioned[2 * image_path : 2 * image_path + 2]],
        )
    ]
    assert [row.prediction for row in found.rows] == said
    each = [vqa_accuracy(answer, sample.answers) for answer, sample in zip(said, questioned, strict=True)]
    assert found.metrics == pytest.approx(
        {
            "accuracy": sum(each) / 10,
            "exact": sum(exact_accuracy(answer, questioned[0].answers) for answer in said) / 10,
            "accuracy (color)": sum(each[::2]) / 5,
            "accuracy (number)": sum(each[1::2]) / 5,
        }
    )


def test_questions_of_several_images_are_answered_together(
    tiny_model: Model, questioned: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = replace(questioned[0], images=(tmp_path / "broken.png",))
    # Of three questions and more the visual prompt is shared, of fewer it is not: their answers are the same.
    more = [replace(questioned[9], question=question) for question in ("where is it?", "what is the dog doing?")]
    rows = [*questioned[:3], broken, *questioned[3:], *more]
    batches: list[list[int]] = []
    ask_many = Model.ask_many

    def watched(self: Model, asked: Any, **options: Any) -> Any:
        rows = list(asked)
        batches.append([len(questions) for _, questions in rows])
        return ask_many(self, rows, **options)

    monkeypatch.setattr(Model, "ask_many", watched)
    found = score_model(tiny_model, rows, Settings(Task.QUESTIONS, batch_size=4))
    # The questions of an image stay together; a broken one takes its place in a batch, and is not asked about.
    assert batches == [[2, 2], [2, 2], [4]]
    said = [row.prediction for row in found.rows]
    assert said == [tiny_model.ask(row.image, row.question) for row in [*questioned, *more]]
    assert len(set(said)) > 1
    assert [each.image for each in found.excluded] == [str(tmp_path / "broken.png")]


def test_a_template_for_questions_is_what_the_model_reads(tiny_model: Model, questioned: list[Sample]) -> None:
    text = {"prompt": "Question: {question} Short answer:", "num_beams": 1, "max_new_tokens": 3}
    found = score_model(tiny_model, questioned[:1], Settings(Task.QUESTIONS, text=text))
    prompt = "Question: what color is the ball? Short answer:"
    assert found.rows[0].prediction == tiny_model.generate(questioned[0].image, prompt, num_beams=1, max_new_tokens=3)


def test_retrieval_is_that_of_rank_both(tiny_model: Model, captioned: list[Sample]) -> None:
    texts = [text for sample in captioned for text in sample.captions]
    for rerank in (0, 2, 128):
        settings = Settings(Task.RETRIEVAL, retrieval=RetrievalSettings(rerank), batch_size=2)
        found = score_model(tiny_model, captioned, settings)
        ranked = tiny_model.rank_both([sample.image for sample in captioned], texts, rerank=rerank, top=None)
        assert found.metrics == score_retrieval(ranked, [number // 2 for number in range(10)]).table
        assert [row.prediction for row in found.rows[:5]] == [best[0].source for best in ranked.texts]
        assert [row.prediction for row in found.rows[5:]] == [best[0].source for best in ranked.images]


@pytest.mark.parametrize("by", [Decision.CONTRAST, Decision.MATCH])
def test_classes_are_those_of_the_nearest_text(tiny_model: Model, captioned: list[Sample], by: Decision) -> None:
    rows = [
        replace(sample, label=label) for sample, label in zip(captioned, "dog ball dog ball dog".split(), strict=True)
    ]
    chosen = ClassificationSettings(by=by, text="the {label}")
    found = score_model(tiny_model, rows, Settings(Task.CLASSIFICATION, classification=chosen, batch_size=2))
    for row, sample in zip(found.rows, rows, strict=True):
        matches = tiny_model.match(sample.image, ["the ball", "the dog"])
        best = max(matches, key=lambda match: match.itc if by is Decision.CONTRAST else match.itm)
        assert row.prediction == best.text.removeprefix("the ")
    hits = sum(row.prediction == sample.label for row, sample in zip(found.rows, rows, strict=True))
    assert found.metrics["accuracy"] == hits / 5


def test_labels_asked_for(tiny_model: Model, captioned: list[Sample]) -> None:
    rows = [replace(sample, label="entailment") for sample in captioned]
    asked = [
        tiny_model.ask(sample.image, f"is it true that {sample.captions[0]} {sample.captions[1]}") for sample in rows
    ]
    chosen = ClassificationSettings(
        by=Decision.ASK, question="is it true that {text}", answers={f"The {asked[0]}.": "Entailment"}
    )
    found = score_model(tiny_model, rows, Settings(Task.CLASSIFICATION, classification=chosen))
    assert [row.prediction for row in found.rows] == ["Entailment" if said == asked[0] else NO_LABEL for said in asked]
    assert found.metrics["accuracy"] + found.metrics["without label"] == pytest.approx(1)
    assert "probe" in found.notes[0]


def test_given_labels_need_no_model(tmp_path: Path) -> None:
    from openblip.evaluation.outcome import silent
    from openblip.evaluation.tasks.classification import evaluate_labels

    rows = [Sample(sample_id=name, label=label) for name, label in (("a", "True"), ("b", "False"))]
    path = tmp_path / "labels.jsonl"
    chosen = ClassificationSettings(by=Decision.GIVEN, predictions=str(path))
    settings = Settings(Task.CLASSIFICATION, classification=chosen)
    path.write_text('{"sample_id": "b", "label": "False"}\n{"sample_id": "a", "label": "False"}\n', encoding="utf-8")
    assert evaluate_labels(None, rows, settings, Journal(), silent).metrics["accuracy"] == 0.5
    for content, message in (('{"sample_id": "b", "label": "x"}\n', "no label for 1 rows"), ("x\n", "line 1")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(Exception, match=message):
            evaluate_labels(None, rows, settings, Journal(), silent)


def broken(samples: list[Sample], tmp_path: Path) -> list[Sample]:
    """The same, but the second image is a file of text, and the fourth lies in an archive that is gone."""
    images = {samples[0].image: samples[0].image}
    text = tmp_path / "text.jpg"
    text.write_text("no image", encoding="utf-8")
    others = list(dict.fromkeys(sample.image for sample in samples))
    images = dict(zip(others, others, strict=True))
    images[others[1]] = text
    images[others[3]] = PackedFile(tmp_path / "gone.tar", 0, 10, "packed.jpg")
    return [replace(sample, images=(images[sample.image],)) for sample in samples]


@pytest.mark.parametrize("task", [Task.CAPTIONS, Task.QUESTIONS, Task.RETRIEVAL, Task.CLASSIFICATION])
def test_unreadable_images_are_left_out_or_end_the_run(
    task: Task, tiny_model: Model, captioned: list[Sample], questioned: list[Sample], tmp_path: Path
) -> None:
    samples = [replace(sample, label="dog") for sample in (questioned if task is Task.QUESTIONS else captioned)]
    settings = Settings(task, captions=PLAIN, batch_size=2)
    damaged = broken(samples, tmp_path)
    found = score_model(tiny_model, damaged, settings)
    assert [image.image for image in found.excluded] == [
        str(tmp_path / "text.jpg"),
        str(tmp_path / "gone.tar/packed.jpg"),
    ]
    assert "No such file" in found.excluded[1].problem
    good = [row for row, whole in zip(damaged, samples, strict=True) if row.images == whole.images]
    alone = score_model(tiny_model, good, settings)
    assert found.metrics == alone.metrics
    assert found.rows == alone.rows
    with pytest.raises(ImageError, match="on_bad_image=skip"):
        score_model(tiny_model, damaged, replace(settings, on_bad_image=OnBadImage.STOP))
    with pytest.raises(OptionError, match="none of the"):
        score_model(tiny_model, [row for row in damaged if row not in good], settings)


class StoppedError(Exception):
    pass


def stop_at(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise StoppedError

    return progress


@pytest.mark.parametrize("task", [Task.CAPTIONS, Task.QUESTIONS, Task.RETRIEVAL, Task.CLASSIFICATION])
def test_a_stopped_run_goes_on(
    task: Task,
    tiny_model: Model,
    captioned: list[Sample],
    questioned: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = [replace(sample, label="dog") for sample in (questioned if task is Task.QUESTIONS else captioned)]
    settings = Settings(task, captions=PLAIN, batch_size=1)
    whole = score_model(tiny_model, samples, settings)
    path = tmp_path / "journal.jsonl"
    for count in (3, 8 if task is Task.RETRIEVAL else 4):
        journal = Journal(path)
        with pytest.raises(StoppedError):
            score_model(tiny_model, samples, settings, stop_at(count), journal)
        journal.close()
        with path.open("a", encoding="utf-8") as file:
            file.write('{"row": 4, "predi')  # as a kill may leave it
    looks: list[int] = []
    features = tiny_model.network.image_features

    def count_looks(pixels: torch.Tensor) -> torch.Tensor:
        looks.append(len(pixels))
        return features(pixels)

    monkeypatch.setattr(tiny_model.network, "image_features", count_looks)
    tiny_model.image_cache.clear()
    journal = Journal(path)
    resumed = score_model(tiny_model, samples, settings, journal=journal)
    journal.close()
    assert sum(looks) == (2 if task is Task.RETRIEVAL else 1)
    assert resumed.metrics == whole.metrics
    assert resumed.rows == whole.rows
    assert [json.loads(line)["row"] for line in path.read_text(encoding="utf-8").splitlines()] == list(
        range(len(samples))
    )


def test_what_cannot_be_evaluated_is_told_first(
    tiny_parts: ModelParts, tiny_model: Model, captioned: list[Sample], questioned: list[Sample]
) -> None:
    blank = [replace(captioned[0], captions=())]
    pair = [replace(captioned[0], images=captioned[0].images * 2)]
    exact = QuestionSettings(Accuracy.EXACT)
    wrong: list[tuple[list[Sample], Settings, str]] = [
        ([], captions(), "nothing to evaluate"),
        (blank, captions(), "has no caption"),
        (pair, captions(), "2 images"),
        (blank, Settings(Task.RETRIEVAL), "has no caption"),
        (captioned, Settings(Task.QUESTIONS), "no question"),
        ([replace(questioned[0], answers=("red",))], Settings(Task.QUESTIONS), "accuracy=exact"),
        (captioned, Settings(Task.CLASSIFICATION), "no label"),
        (captioned, captions(), "at least 1"),
        (questioned, Settings(Task.QUESTIONS, text={"prompt": "Q: A:"}, questions=exact), "{question}"),
    ]
    for samples, settings, message in wrong:
        if message == "at least 1":
            settings = replace(settings, batch_size=0)
        with pytest.raises(OptionError) as caught:
            score_model(tiny_model, samples, settings)
        assert message in str(caught.value)
    mute = model_of(replace(tiny_model.parts, matching=None), tiny_model.placement)
    with pytest.raises(CheckpointError, match="no text side"):
        score_model(mute, captioned, Settings(Task.RETRIEVAL))
