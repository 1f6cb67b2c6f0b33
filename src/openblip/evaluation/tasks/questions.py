"""The task of answering questions about images, and its accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openblip.data.sample import ImageFile, Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.lists import ANSWERS, find_list, read_list
from openblip.evaluation.metrics.vqa import exact_accuracy, lemma_accuracy, simple_accuracy, vqa_accuracy
from openblip.evaluation.outcome import CERTAINTY, Evaluation, Progress, Row, certainty
from openblip.evaluation.settings import Accuracy, Settings, Task
from openblip.evaluation.tasks.images import excluded, grouped, load_images, name_of
from openblip.models.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

RULES = {
    Accuracy.VQA: vqa_accuracy,
    Accuracy.LEMMAS: lemma_accuracy,
    Accuracy.SIMPLE: simple_accuracy,
    Accuracy.EXACT: exact_accuracy,
}


@dataclass(frozen=True)
class Answer:
    """What a model answered; score: the sum of log-probabilities, of an answer from a list smoothed as in training."""

    text: str
    score: float


def check_questioned(samples: Sequence[Sample], settings: Settings) -> None:
    """Checks samples, and the list of answers if there is one.

    Raises:
        OptionError: a sample has no image or question, or too few answers for the accuracy.
        OpenBlipError: the list of answers cannot be read.
    """
    grouped(samples, "questions")
    accuracy = settings.questions.accuracy
    for number, sample in enumerate(samples):
        if accuracy is Accuracy.HIDDEN:
            if not sample.question.strip() or not sample.sample_id:
                raise OptionError(
                    f"row {sample.sample_id or number} has no question, or no id, which the challenge needs"
                )
            continue
        if not sample.question.strip() or not sample.answers:
            raise OptionError(
                f"row {sample.sample_id or number} has no question, or no answer to compare with (for answers that are "
                "not public: questions.accuracy=hidden)"
            )
        RULES[accuracy](sample.answers[0], sample.answers)
    answers_of(settings)


def answers_of(settings: Settings) -> list[str] | None:
    """The answers that the model chooses from; None if it writes its own. Raises OpenBlipError as `read_list` does."""
    name = settings.questions.answer_list
    if name is None:
        return None
    return read_list(find_list(name, settings.data_root, ANSWERS), "answers")


def evaluate_answers(
    model: Model, samples: Sequence[Sample], settings: Settings, journal: Journal, progress: Progress
) -> Evaluation:
    """Answer the question of each sample, and score it; an image is encoded once for all its questions.

    Besides the chosen accuracy, the result has the chosen accuracy for each kind of question, and the share of exact
    matches. If the right answers are hidden, it has no scores.

    Raises:
        OptionError: no image can be read.
        ImageError: an image cannot be read, and the policy is to stop.
    """
    images = grouped(samples, "questions")
    accuracy = settings.questions.accuracy
    lost = [
        excluded(name_of(image), error, settings.on_bad_image)
        for image, error in _ask_all(model, images, samples, settings, journal, progress)
    ]
    rows = []
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    for number, fields in sorted(journal.done.items()):
        if "prediction" not in fields:
            continue
        sample, prediction = samples[number], str(fields["prediction"])
        if accuracy is Accuracy.HIDDEN:
            scores = {CERTAINTY: certainty(fields["log_probability"])}
        else:
            scores = {
                "accuracy": RULES[accuracy](prediction, sample.answers),
                "exact": exact_accuracy(prediction, sample.answers),
            }
        rows.append(
            Row(
                image=name_of(sample.image),
                prediction=prediction,
                references=sample.answers,
                score=next(iter(scores.values())),
                question=sample.question,
                image_id=sample.image_id,
                sample_id=sample.sample_id,
                scores=scores,
                image_file=sample.image,
            )
        )
        if sample.kind and "accuracy" in scores:
            by_kind[sample.kind].append(scores["accuracy"])
    if not rows:
        raise OptionError(f"none of the {len(images)} images could be read: {lost[0].image}: {lost[0].problem}")
    notes = [NOTES[accuracy]]
    if settings.questions.answer_list is not None:
        notes.append(f"Each answer is the likeliest of the {len(answers_of(settings) or ())} in the list.")
    if accuracy is Accuracy.HIDDEN:
        return Evaluation(Task.QUESTIONS, {}, rows, CERTAINTY, lost, tuple(notes))
    metrics = {"accuracy": _mean([row.score for row in rows])}
    if accuracy is not Accuracy.EXACT:
        metrics["exact"] = _mean([row.scores["exact"] for row in rows])
    metrics |= {f"accuracy ({kind})": _mean(values) for kind, values in sorted(by_kind.items())}
    return Evaluation(Task.QUESTIONS, metrics, rows, "accuracy", lost, tuple(notes))


NOTES = {
    Accuracy.VQA: "Accuracy is the VQA challenge's, each of the people left out in turn.",
    Accuracy.LEMMAS: "Accuracy is the VQA challenge's over lemmas (simplemma's, on both sides).",
    Accuracy.SIMPLE: "Accuracy is min(1, people who agree / 3), not the VQA challenge's.",
    Accuracy.EXACT: "Accuracy is the share of answers equal to a right one after the VQA challenge's normalization.",
    Accuracy.HIDDEN: "The right answers are not public: only the challenge can score the model's.",
}


def ask_about(
    model: Model, images: dict[ImageFile, list[str]], settings: Settings, answers: Sequence[str] | None = None
) -> Iterator[tuple[ImageFile, list[Answer] | ImageError]]:
    """Each image with the answers to its questions, or its error; images are read ahead.

    Args:
        answers: those that the model chooses from; None if it writes its own.
    """
    batch: list[tuple[ImageFile, Image | ImageError]] = []
    size = 0
    for image, opened in load_images(list(images)):
        batch.append((image, opened))
        size += len(images[image])
        if size >= settings.batch_size:
            yield from _answered(model, batch, images, settings, answers)
            batch, size = [], 0
    if batch:
        yield from _answered(model, batch, images, settings, answers)


def _answered(
    model: Model,
    batch: Sequence[tuple[ImageFile, Image | ImageError]],
    images: Mapping[ImageFile, list[str]],
    settings: Settings,
    answers: Sequence[str] | None,
) -> Iterator[tuple[ImageFile, list[Answer] | ImageError]]:
    pairs = [(opened, images[image]) for image, opened in batch if not isinstance(opened, ImageError)]
    found = _written(model, pairs, settings) if answers is None else _chosen(model, pairs, settings, answers)
    for image, opened in batch:
        yield image, opened if isinstance(opened, ImageError) else next(found)


def _written(model: Model, pairs: Sequence[tuple[Image, list[str]]], settings: Settings) -> Iterator[list[Answer]]:
    options = settings.text_options()
    for found in model.ask_many(pairs, template=settings.prompt, batch_size=max(1, len(pairs)), **options):
        yield [Answer(one.text, one.score) for one in found.answers]


def _chosen(
    model: Model, pairs: Sequence[tuple[Image, list[str]]], settings: Settings, answers: Sequence[str]
) -> Iterator[list[Answer]]:
    first = settings.questions.candidates
    for image, questions in pairs:
        ranked = model.rank_answers(image, questions, answers, top=1, first=first, template=settings.prompt)
        yield [Answer(best.answer, best.score) for (best,) in ranked]


def _ask_all(
    model: Model,
    images: dict[ImageFile, list[int]],
    samples: Sequence[Sample],
    settings: Settings,
    journal: Journal,
    progress: Progress,
) -> Iterator[tuple[ImageFile, ImageError]]:
    """Fill the journal, and yield the images that cannot be read."""
    left = {image: [row for row in rows if row not in journal.done] for image, rows in images.items()}
    left = {image: rows for image, rows in left.items() if rows}
    questions_of = {image: [samples[row].question for row in rows] for image, rows in left.items()}
    done = len(images) - len(left)
    progress(done, len(images))
    for image, found in ask_about(model, questions_of, settings, answers_of(settings)):
        for place, row in enumerate(left[image]):
            about = {"image": name_of(image), "question": samples[row].question}
            if isinstance(found, ImageError):
                journal.add(row, **about, error=found.problem)
            else:
                answer = found[place]
                journal.add(row, **about, prediction=answer.text, log_probability=answer.score)
        if isinstance(found, ImageError):
            yield image, found
        done += 1
        progress(done, len(images))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
