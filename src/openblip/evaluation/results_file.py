"""Files of results in the forms that evaluation servers take: VQA's and those of COCO captions and NoCaps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from openblip.data.sample import Sample
from openblip.errors import OptionError
from openblip.evaluation.outcome import Evaluation
from openblip.evaluation.settings import Task
from openblip.evaluation.tasks.images import name_of
from openblip.saving import write_text

LONGEST_NUMBER = 18
NAMES = {Task.CAPTIONS: "captions.json", Task.QUESTIONS: "answers.json"}
"""The tasks whose results have a server, and what their files are called by default."""


def results_ids(samples: Sequence[Sample], task: Task) -> list[str]:
    """The id of each sample on a server: of its question, or of its image.

    Raises:
        OptionError: the task has no server, or an id is missing, there twice, or no number where the servers take only
            numbers.
    """
    if task not in NAMES:
        raise OptionError(f"{task.value} has no file of results: leave results out")
    if task is Task.QUESTIONS:
        ids = [sample.sample_id for sample in samples]
        _check_once(ids, "question", "question_id")
        return ids
    images = dict.fromkeys(sample.images for sample in samples)
    # The number in the annotation file; where it numbers captions or is none, the image's.
    own = len(images) == len(samples) and all(_is_number(sample.sample_id) for sample in samples)
    ids = [sample.sample_id if own else sample.image_id for sample in samples]
    for sample, image_id in zip(samples, ids, strict=True):
        if not _is_number(image_id):
            raise OptionError(
                f"the image {name_of(sample.image)} has the id {image_id!r}, and the servers of COCO and NoCaps take "
                "numbers: give a column image_id"
            )
    _check_once(
        list({sample.images: image_id for sample, image_id in zip(samples, ids, strict=True)}.values()),
        "image",
        "image_id",
    )
    return ids


def write_results(path: Path, samples: Sequence[Sample], found: Evaluation) -> str:
    """Write a list of `question_id` and `answer`, or of `image_id` and `caption`, each of them once.

    Numbers are numbers, as the servers take them. What could not be answered has an empty text: without it, the
    servers refuse the file.

    Returns:
        A sentence about the empty texts; "" if there are none.

    Raises:
        OptionError: as `results_ids`.
    """
    ids = results_ids(samples, found.task)
    answers = found.task is Task.QUESTIONS
    said = {(row.image, row.question): row.prediction for row in found.rows}
    texts: dict[str, str] = {}
    for sample, name in zip(samples, ids, strict=True):
        texts[name] = said.get((name_of(sample.image), sample.question if answers else ""), "")
    keys = ("question_id", "answer") if answers else ("image_id", "caption")
    rows = [
        dict(zip(keys, (int(name) if _is_number(name) else name, text), strict=True)) for name, text in texts.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows, ensure_ascii=False) + "\n")
    empty = sum(not text for text in texts.values())
    what = "answers" if answers else "captions"
    return f"{path.name} has {empty:,} empty {what}, of images that could not be read." if empty else ""


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= LONGEST_NUMBER


def _check_once(ids: Sequence[str], what: str, column: str) -> None:
    seen: set[str] = set()
    for number, name in enumerate(ids):
        if not name:
            raise OptionError(f"row {number} has no {column}, by which its {what} is known in a file of results")
        if name in seen:
            raise OptionError(f"the {what} {name} is there twice: a file of results has each once")
        seen.add(name)
