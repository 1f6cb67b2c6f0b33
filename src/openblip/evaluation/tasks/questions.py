"""Answers to questions about pictures, and how many are right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from openblip.data.sample import Picture, Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.metrics.vqa import exact_accuracy, lemma_accuracy, simple_accuracy, vqa_accuracy
from openblip.evaluation.outcome import Evaluation, Progress, Row
from openblip.evaluation.settings import Accuracy, Settings, Task
from openblip.evaluation.tasks.images import excluded, grouped, load_pictures, name_of
from openblip.models.model import Model
from openblip.results import GeneratedText

if TYPE_CHECKING:
    from PIL.Image import Image

RULES = {
    Accuracy.VQA: vqa_accuracy,
    Accuracy.LEMMAS: lemma_accuracy,
    Accuracy.SIMPLE: simple_accuracy,
    Accuracy.EXACT: exact_accuracy,
}


def check_questioned(samples: Sequence[Sample], accuracy: Accuracy) -> None:
    """Raises OptionError for a sample without a picture or question, or with too few answers for the accuracy."""
    grouped(samples, "questions")
    for number, sample in enumerate(samples):
        if not sample.question.strip() or not sample.answers:
            raise OptionError(f"row {sample.sample_id or number} has no question, or no answer to compare with")
        RULES[accuracy](sample.answers[0], sample.answers)


def evaluate_answers(
    model: Model, samples: Sequence[Sample], settings: Settings, journal: Journal, progress: Progress
) -> Evaluation:
    """One answer a sample; each picture is looked at once for all questions about it.

    Beside the chosen accuracy the plain share of answers equal to one of the right ones is given, and the chosen one
    for each kind of question.

    Raises:
        OptionError: no picture can be read.
        ImageError: a picture cannot be read, and the policy is to stop.
    """
    pictures = grouped(samples, "questions")
    rule = RULES[settings.questions.accuracy]
    lost = [
        excluded(name_of(picture), error, settings.on_bad_image)
        for picture, error in _ask_all(model, pictures, samples, settings, journal, progress)
    ]
    rows = []
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    for number, fields in sorted(journal.done.items()):
        if "prediction" not in fields:
            continue
        sample, said = samples[number], str(fields["prediction"])
        scores = {"accuracy": rule(said, sample.answers), "exact": exact_accuracy(said, sample.answers)}
        rows.append(
            Row(
                image=name_of(sample.image),
                prediction=said,
                references=sample.answers,
                score=scores["accuracy"],
                question=sample.question,
                image_id=sample.image_id,
                sample_id=sample.sample_id,
                scores=scores,
                picture=sample.image,
            )
        )
        if sample.kind:
            by_kind[sample.kind].append(scores["accuracy"])
    if not rows:
        raise OptionError(f"none of the {len(pictures)} pictures could be read: {lost[0].image}: {lost[0].problem}")
    metrics = {"accuracy": _mean([row.score for row in rows])}
    if settings.questions.accuracy is not Accuracy.EXACT:
        metrics["exact"] = _mean([row.scores["exact"] for row in rows])
    metrics |= {f"accuracy ({kind})": _mean(values) for kind, values in sorted(by_kind.items())}
    return Evaluation(Task.QUESTIONS, metrics, rows, "accuracy", lost, (NOTES[settings.questions.accuracy],))


NOTES = {
    Accuracy.VQA: "Accuracy is the VQA challenge's, each of the people left out in turn.",
    Accuracy.LEMMAS: "Accuracy is the VQA challenge's over lemmas (simplemma's, on both sides).",
    Accuracy.SIMPLE: "Accuracy is min(1, people who agree / 3), not the VQA challenge's.",
    Accuracy.EXACT: "Accuracy is the share of answers equal to a right one after the VQA challenge's normalisation.",
}


def ask_about(
    model: Model, pictures: dict[Picture, list[str]], settings: Settings
) -> Iterator[tuple[Picture, list[GeneratedText] | ImageError]]:
    """Each picture with the answers to the questions about it, or what is wrong with it; pictures are read ahead."""
    batch: list[tuple[Picture, Image | ImageError]] = []
    size = 0
    for picture, image in load_pictures(list(pictures)):
        batch.append((picture, image))
        size += len(pictures[picture])
        if size >= settings.batch_size:
            yield from _answered(model, batch, pictures, settings)
            batch, size = [], 0
    if batch:
        yield from _answered(model, batch, pictures, settings)


def _answered(
    model: Model,
    batch: Sequence[tuple[Picture, Image | ImageError]],
    pictures: Mapping[Picture, list[str]],
    settings: Settings,
) -> Iterator[tuple[Picture, list[GeneratedText] | ImageError]]:
    asked = [(image, pictures[picture]) for picture, image in batch if not isinstance(image, ImageError)]
    found = model.ask_many(asked, template=settings.prompt, batch_size=max(1, len(asked)), **settings.text_options())
    for picture, image in batch:
        yield picture, image if isinstance(image, ImageError) else list(next(found).answers)


def _ask_all(
    model: Model,
    pictures: dict[Picture, list[int]],
    samples: Sequence[Sample],
    settings: Settings,
    journal: Journal,
    progress: Progress,
) -> Iterator[tuple[Picture, ImageError]]:
    """Fill the journal; gives the pictures that cannot be read."""
    left = {picture: [row for row in rows if row not in journal.done] for picture, rows in pictures.items()}
    left = {picture: rows for picture, rows in left.items() if rows}
    asked = {picture: [samples[row].question for row in rows] for picture, rows in left.items()}
    done = len(pictures) - len(left)
    progress(done, len(pictures))
    for picture, found in ask_about(model, asked, settings):
        for place, row in enumerate(left[picture]):
            about = {"image": name_of(picture), "question": samples[row].question}
            if isinstance(found, ImageError):
                journal.add(row, **about, error=found.problem)
            else:
                answer = found[place]
                journal.add(row, **about, prediction=answer.text, log_probability=answer.score)
        if isinstance(found, ImageError):
            yield picture, found
        done += 1
        progress(done, len(pictures))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
