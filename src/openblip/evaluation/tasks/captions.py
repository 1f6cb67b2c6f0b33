"""The task of captioning images, and its scores."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.data.sample import Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.metrics.captions import score_captions
from openblip.evaluation.outcome import CERTAINTY, Evaluation, Excluded, Progress, Row, certainty
from openblip.evaluation.settings import Settings, Task
from openblip.evaluation.tasks.images import excluded, grouped, name_of, sources
from openblip.models.model import Model


def check_captioned(samples: Sequence[Sample], settings: Settings) -> None:
    """Checks samples for captions and retrieval. Raises OptionError if an image, or a caption to compare with, is
    missing.
    """
    if settings.task is Task.CAPTIONS and settings.captions.hidden:
        grouped(samples, "captions")
        return
    for image, rows in grouped(samples, "captions and retrieval").items():
        if not any(samples[row].captions for row in rows):
            raise OptionError(
                f"{name_of(image)} has no caption: leave it out, or choose another split "
                "(for captions that are not public: captions.hidden=true)"
            )


def evaluate_captions(
    model: Model, samples: Sequence[Sample], settings: Settings, journal: Journal, progress: Progress
) -> Evaluation:
    """Caption each image, and score the caption against all captions of its samples.

    Raises:
        OptionError: no image can be read.
        ImageError: an image cannot be read, and the policy is to stop.
    """
    images = grouped(samples, "captions")
    chosen = settings.captions
    references = [tuple(text for number in rows for text in samples[number].captions) for rows in images.values()]
    names = [name_of(image) for image in images]
    left = [number for number in range(len(names)) if number not in journal.done]
    problems: dict[str, ImageError] = {}
    listed = list(images)
    found = model.caption_many(
        sources((listed[number] for number in left), problems),
        prompt=settings.prompt,
        batch_size=settings.batch_size,
        **settings.text_options(),
    )
    progress(len(names) - len(left), len(names))
    lost: list[Excluded] = []
    for done, (number, captioned) in enumerate(zip(left, found, strict=True), start=len(names) - len(left) + 1):
        if captioned.error is not None:
            lost.append(excluded(names[number], problems.get(names[number], captioned.error), settings.on_bad_image))
            journal.add(number, image=names[number], error=lost[-1].problem)
        else:
            best = captioned.captions[0]
            journal.add(number, image=names[number], prediction=best.text, log_probability=best.score)
        progress(done, len(names))
    predictions = {
        number: fields["prediction"] for number, fields in sorted(journal.done.items()) if "prediction" in fields
    }
    if not predictions:
        raise OptionError(f"none of the {len(names)} images could be read: {lost[0].image}: {lost[0].problem}")
    if chosen.hidden:
        return Evaluation(
            Task.CAPTIONS,
            {},
            [
                Row(
                    image=names[number],
                    prediction=text,
                    references=(),
                    score=certainty(journal.done[number]["log_probability"]),
                    image_id=samples[images[listed[number]][0]].image_id,
                    scores={CERTAINTY: certainty(journal.done[number]["log_probability"])},
                    image_file=listed[number],
                )
                for number, text in predictions.items()
            ],
            CERTAINTY,
            lost,
        )
    scores = score_captions(
        {str(number): text for number, text in predictions.items()},
        {str(number): references[number] for number in predictions},
        chosen.tokenizer.choice,
        meteor=chosen.meteor.choice,
        spice=chosen.spice.choice,
    )
    rows = [
        Row(
            image=names[number],
            prediction=text,
            references=references[number],
            score=scores.each["cider"][place],
            image_id=samples[images[listed[number]][0]].image_id,
            scores={name: values[place] for name, values in scores.each.items()},
            image_file=listed[number],
        )
        for place, (number, text) in enumerate(predictions.items())
    ]
    return Evaluation(Task.CAPTIONS, scores.table, rows, "cider", lost, scores.notes)
