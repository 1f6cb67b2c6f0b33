"""The task of classifying images: by contrast, by matching, by a question, by a head, or with labels from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.cells import to_id, to_text
from openblip.data.sources.json_rows import read_values
from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.lists import NAMES, TEMPLATES, find_list, read_list, read_names
from openblip.evaluation.metrics.accuracy import label_accuracy
from openblip.evaluation.metrics.vqa import normalize
from openblip.evaluation.outcome import Evaluation, Excluded, Progress, Row
from openblip.evaluation.settings import Decision, Settings, Task
from openblip.evaluation.tasks.images import excluded, grouped, name_of, sources
from openblip.evaluation.tasks.questions import ask_about
from openblip.evaluation.tasks.statements import by_images, judged
from openblip.models.abilities import matcher_of
from openblip.models.model import Model

NO_LABEL = "(none)"
"""The label of an answer that is not in `answers`: always wrong."""


def check_labelled(samples: Sequence[Sample], settings: Settings) -> None:
    """Checks samples, and the files of templates and names if there are any.

    Raises:
        OptionError: a sample has no label or, unless labels are given, not exactly one image.
        OpenBlipError: a file cannot be read, or does not fit the labels.
    """
    by = settings.classification.by
    if by is not Decision.GIVEN or not samples:
        _groups(samples, by)
    bare = next((number for number, sample in enumerate(samples) if not sample.label), None)
    if bare is not None:
        raise OptionError(f"row {samples[bare].sample_id or bare} has no label to compare with")
    if by in (Decision.CONTRAST, Decision.MATCH):
        names_of(_labels(samples, settings), settings)
        templates_of(settings)


def _groups(samples: Sequence[Sample], by: Decision) -> Mapping[Any, list[int]]:
    """The indices of samples by what is classified: an image, or all images of a statement."""
    return by_images(samples) if by is Decision.JUDGE else grouped(samples, "classes")


def templates_of(settings: Settings) -> list[str]:
    """The texts around a label, each with {} where it stands. Raises OpenBlipError for a file that cannot be read."""
    name = settings.classification.templates
    if name is None:
        return [settings.classification.text.replace("{label}", "{}")]
    path = find_list(name, settings.data_root, TEMPLATES)
    found = [text.replace("{label}", "{}") for text in read_list(path, "templates")]
    bare = next((text for text in found if "{}" not in text), None)
    if bare is not None:
        raise OpenBlipError(f"{path}: the template {bare!r} has no {{label}} in it: say where the label stands")
    return found


def names_of(labels: Sequence[str], settings: Settings) -> list[str]:
    """What each label is called. Raises OpenBlipError as `read_names` does."""
    name = settings.classification.names
    if name is None:
        return list(labels)
    called = read_names(find_list(name, settings.data_root, NAMES), sorted(labels))
    return [dict(zip(sorted(labels), called, strict=True))[label] for label in labels]


def _labels(samples: Sequence[Sample], settings: Settings) -> list[str]:
    return list(dict.fromkeys(settings.classification.labels or sorted({sample.label for sample in samples})))


def evaluate_labels(
    model: Model | None, samples: Sequence[Sample], settings: Settings, journal: Journal, progress: Progress
) -> Evaluation:
    """Choose a label for each sample, and score it.

    Raises:
        OptionError: no image can be read.
        OpenBlipError: the file of given labels is missing, malformed or incomplete.
        ImageError: an image cannot be read, and the policy is to stop.
    """
    chosen = settings.classification
    lost: list[Excluded] = []
    notes = []
    if chosen.by is Decision.GIVEN:
        for number, label in enumerate(read_labels(Path(str(chosen.predictions)), samples)):
            journal.done.setdefault(number, {"prediction": label})
        notes.append("The labels were read from a file: no model was run.")
    elif model is None:
        raise OptionError(f"classification by {chosen.by.value} needs a model")
    else:
        images = _groups(samples, chosen.by)
        left = {image: [row for row in rows if row not in journal.done] for image, rows in images.items()}
        left = {image: rows for image, rows in left.items() if rows}
        decide = DECIDE[chosen.by]
        progress(len(images) - len(left), len(images))
        found = decide(model, left, samples, settings)
        for done, (image, labels) in enumerate(found, start=len(images) - len(left) + 1):
            if isinstance(labels, ImageError):
                lost.append(excluded(_name(image), labels, settings.on_bad_image))
                labels = [{"error": labels.problem}] * len(left[image])
            for row, fields in zip(left[image], labels, strict=True):
                journal.add(row, image=_name(image), **fields)
            progress(done, len(images))
    rows = [_row(samples[number], fields) for number, fields in sorted(journal.done.items()) if "prediction" in fields]
    if not rows:
        raise OptionError(f"none of the images could be read: {lost[0].image}: {lost[0].problem}")
    metrics = label_accuracy([row.prediction for row in rows], [row.references[0] for row in rows])
    if chosen.by is Decision.ASK:
        metrics["without label"] = sum(row.prediction == NO_LABEL for row in rows) / len(rows)
        notes.append(
            "The labels are a language model's answers to a question, a probe without training: compare with other "
            "prompted models only, not with classifiers that were trained on this task."
        )
    return Evaluation(Task.CLASSIFICATION, metrics, rows, "accuracy", lost, tuple(notes))


def read_labels(path: Path, samples: Sequence[Sample]) -> list[str]:
    """Labels from JSON lines with `sample_id` and `label`, in the order of the samples.

    Raises:
        OpenBlipError: the file is missing or malformed, or lacks the label of a sample.
    """
    found: dict[str, str] = {}
    for place, row in read_values(path):
        if not isinstance(row, dict) or not {"sample_id", "label"} <= row.keys():
            raise OpenBlipError(f'{place} needs to be JSON with "sample_id" and "label"')
        found[to_id(row["sample_id"], place, "sample_id")] = to_text(row["label"], place, "label")
    missing = [sample.sample_id for sample in samples if sample.sample_id not in found]
    if missing:
        raise OpenBlipError(f"{path} has no label for {len(missing)} rows, the first being {missing[0]!r}")
    return [found[sample.sample_id] for sample in samples]


Labels = list[dict[str, Any]]


def _by_contrast(
    model: Model, images: dict[ImageFile, list[int]], samples: Sequence[Sample], settings: Settings
) -> Iterator[tuple[ImageFile, Labels | ImageError]]:
    """The label whose texts are nearest to each image."""
    labels = _labels(samples, settings)
    names = names_of(labels, settings)
    label_of = {name: label for label, name in reversed(list(zip(labels, names, strict=True)))}
    problems: dict[str, ImageError] = {}
    found = model.classify_many(
        sources(images, problems), names, templates=templates_of(settings), batch_size=settings.batch_size
    )
    for image, one in zip(images, found, strict=True):
        if one.error is not None:
            yield image, problems.get(name_of(image), one.error)
        else:
            best = one.labels[0]
            yield image, [{"prediction": label_of[best.label], "probability": best.probability}] * len(images[image])


def _by_match(
    model: Model, images: dict[ImageFile, list[int]], samples: Sequence[Sample], settings: Settings
) -> Iterator[tuple[ImageFile, Labels | ImageError]]:
    """The label whose text matches each image best."""
    labels = _labels(samples, settings)
    texts = [settings.classification.text.replace("{label}", name) for name in names_of(labels, settings)]
    problems: dict[str, ImageError] = {}
    scored = matcher_of(model, "match").score(
        sources(images, problems), texts, itm=True, batch_size=settings.batch_size
    )
    for image, found in zip(images, scored, strict=True):
        if found.itm is None:
            yield image, problems.get(name_of(image), cast(ImageError, found.error))
        else:
            best = int(found.itm.argmax())
            yield image, [{"prediction": labels[best], "probability": float(found.itm[best])}] * len(images[image])


def _by_question(
    model: Model, images: dict[ImageFile, list[int]], samples: Sequence[Sample], settings: Settings
) -> Iterator[tuple[ImageFile, Labels | ImageError]]:
    """The label of the model's answer about each image."""
    chosen = settings.classification
    meant = {normalize(answer): label for answer, label in chosen.answers.items()}
    questions_of = {
        image: [str(chosen.question).replace("{text}", _sentence(samples[row])) for row in rows]
        for image, rows in images.items()
    }
    for image, found in ask_about(model, questions_of, settings):
        if isinstance(found, ImageError):
            yield image, found
        else:
            yield (
                image,
                [
                    {"prediction": meant.get(normalize(one.text), NO_LABEL), "answer": one.text, "question": question}
                    for one, question in zip(found, questions_of[image], strict=True)
                ],
            )


DECIDE: Mapping[Decision, Callable[[Model, dict[Any, list[int]], Sequence[Sample], Settings], Iterator[Any]]] = {
    Decision.CONTRAST: _by_contrast,
    Decision.MATCH: _by_match,
    Decision.ASK: _by_question,
    Decision.JUDGE: judged,
}


def _name(shown: ImageFile | tuple[ImageFile, ...]) -> str:
    return ", ".join(map(name_of, shown)) if isinstance(shown, tuple) else name_of(shown)


def _sentence(sample: Sample) -> str:
    return " ".join(sample.captions).strip().rstrip(".")


def _row(sample: Sample, fields: dict[str, Any]) -> Row:
    prediction = str(fields["prediction"])
    right = float(prediction.strip().casefold() == sample.label.strip().casefold())
    return Row(
        image=_name(sample.images),
        prediction=prediction,
        references=(sample.label,),
        score=right,
        question=str(fields.get("question", " ".join(sample.captions))),
        image_id=sample.image_id,
        sample_id=sample.sample_id,
        scores={"accuracy": right},
        image_file=sample.images[0] if sample.images else None,
    )
