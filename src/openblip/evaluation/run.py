"""Run an evaluation recipe, and write metrics.json, predictions.jsonl and report.html."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from openblip import __version__
from openblip.checkpoints.origin import origin_of
from openblip.data.sample import Sample
from openblip.data.sources.open import keep_held_out_part, read_source
from openblip.errors import OpenBlipError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.outcome import Evaluation, Progress, silent
from openblip.evaluation.recipe import EvaluationRecipe
from openblip.evaluation.report import write_report
from openblip.evaluation.results_file import NAMES, results_ids, write_results
from openblip.evaluation.score import check, score_model
from openblip.evaluation.settings import Accuracy, Decision, Task
from openblip.evaluation.tasks.classification import evaluate_labels
from openblip.evaluation.tasks.questions import answers_of
from openblip.models.load import load
from openblip.models.model import Model
from openblip.nn.quant.int4 import Int4Linear
from openblip.nn.quant.swap import quantized_layers
from openblip.recipes import alone_in
from openblip.saving import write_text

PACKAGES = ("torch", "pillow", "pycocoevalcap", "simplemma")


@dataclass(frozen=True)
class Run:
    """An evaluation, and the facts about its run.

    Attributes:
        about: facts that belong with the metrics: model, number format, versions, date.
    """

    recipe: EvaluationRecipe
    found: Evaluation
    about: dict[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.recipe.output)

    @property
    def results(self) -> Path | None:
        """The file for an evaluation server, if there is one."""
        return results_of(self.recipe)


def results_of(recipe: EvaluationRecipe) -> Path | None:
    """Where the file for an evaluation server is to be; None if none is wanted."""
    if recipe.results is not None:
        return Path(recipe.results)
    hidden = {Task.QUESTIONS: recipe.questions.accuracy is Accuracy.HIDDEN, Task.CAPTIONS: recipe.captions.hidden}
    return Path(recipe.output) / NAMES[recipe.task] if hidden.get(recipe.task) else None


def evaluate(recipe: EvaluationRecipe, progress: Progress = silent) -> Run:
    """Run a recipe, or continue a run that was stopped.

    Raises:
        OpenBlipError: model, data and recipe do not fit, or the output folder holds another run's predictions.
    """
    samples = read_samples(recipe)
    check(samples, recipe)
    if results_of(recipe) is not None:
        results_ids(samples, recipe.task)
    output = Path(recipe.output)
    with alone_in(output):
        return _evaluate(recipe, samples, output, progress)


def _evaluate(recipe: EvaluationRecipe, samples: Sequence[Sample], output: Path, progress: Progress) -> Run:
    labels_only = recipe.task is Task.CLASSIFICATION and recipe.classification.by is Decision.GIVEN
    started = time.monotonic()
    if labels_only:
        model, earlier = None, 0
        found = evaluate_labels(None, samples, recipe, Journal(), progress)
    else:
        model = load(recipe.model, checkpoint=recipe.checkpoint, device=recipe.device, dtype=recipe.dtype)
        _claim(output, recipe, model, samples)
        journal = Journal(output / ("matches.jsonl" if recipe.task is Task.RETRIEVAL else "predictions.jsonl"))
        earlier = len(journal.done)
        started = time.monotonic()
        try:
            found = score_model(model, samples, recipe, progress, journal)
        finally:
            journal.close()
    seconds = time.monotonic() - started
    results = results_of(recipe)
    if results is not None:
        empty = write_results(results, samples, found)
        hidden = "" if found.metrics else f"Nothing is scored here: upload {results.name} to the evaluation server."
        notes = [hidden, empty, _left_out(recipe, samples)]
        found = replace(found, notes=(*found.notes, *filter(None, notes)))
    run = Run(recipe, found, _about(recipe, model, samples, None if earlier else seconds))
    _write_predictions(
        output / "predictions.jsonl", found, journaled=not labels_only and recipe.task is not Task.RETRIEVAL
    )
    write_text(output / "metrics.json", json.dumps(_summary(run), indent=1, ensure_ascii=False) + "\n")
    write_report(output / "report.html", run.recipe, found, run.about)
    return run


def _claim(output: Path, recipe: EvaluationRecipe, model: Model, samples: Sequence[Sample]) -> None:
    """Record what the predictions in the folder are made with; refuse to continue those of another run."""
    mine = {
        "model": recipe.model,
        "weights": _mark_of_model(recipe),
        "checkpoint": recipe.checkpoint,
        "number format": number_format(model),
        "task": recipe.task.value,
        "text": {"prompt": recipe.prompt, **recipe.text_options()},
        "rerank": recipe.retrieval.rerank if recipe.task is Task.RETRIEVAL else None,
        "clean texts": (recipe.retrieval.clean_texts or None) if recipe.task is Task.RETRIEVAL else None,
        "answers to choose from": _mark_of_answers(recipe),
        "classification": _plain(asdict(recipe.classification)) if recipe.task is Task.CLASSIFICATION else None,
        "data": _mark_of_samples(samples),
    }
    path = output / "made_by.json"
    if path.exists():
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, RecursionError, TypeError, ValueError):
            raise OpenBlipError(
                f"{path} is broken, which says what the predictions beside it were made with: delete {output} to begin "
                "anew, or give another output"
            ) from None
        different = [name for name, value in mine.items() if theirs.get(name) != value]
        if different:
            raise OpenBlipError(
                f"{output} holds predictions of another run (other {', '.join(different)}): "
                "give another output, or delete the folder"
            )
    else:
        write_text(path, json.dumps(mine, indent=1, ensure_ascii=False) + "\n")


def _mark_of_model(recipe: EvaluationRecipe) -> list[list[object]]:
    """Paths, sizes and times of change of the model's files: a model that was trained further is another model."""
    marks: list[list[object]] = [list(state) for state in origin_of(recipe.model) or []]
    if recipe.checkpoint is not None and Path(recipe.checkpoint).is_file():
        state = Path(recipe.checkpoint).stat()
        marks.append([recipe.checkpoint, state.st_size, state.st_mtime_ns])
    return marks


def _mark_of_answers(recipe: EvaluationRecipe) -> list[object] | None:
    answers = answers_of(recipe) if recipe.task is Task.QUESTIONS else None
    if answers is None:
        return None
    return [recipe.questions.candidates, len(answers), hashlib.sha256("\n".join(answers).encode()).hexdigest()[:16]]


def _mark_of_samples(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        content = [[image.name for image in sample.images], sample.question, sample.captions, sample.label]
        digest.update(json.dumps(content).encode())
    return f"{len(samples)} rows, {digest.hexdigest()[:16]}"


def number_format(model: Model) -> str:
    """The number format of a model: "float32", or "int8 and float32" if its large matrices are quantized."""
    name = str(model.placement.dtype).removeprefix("torch.")
    layers = quantized_layers(model.network).values()
    if not layers:
        return name
    return f"int4 and {name}" if any(isinstance(layer, Int4Linear) for layer in layers) else f"int8 and {name}"


def _about(
    recipe: EvaluationRecipe, model: Model | None, samples: Sequence[Sample], seconds: float | None
) -> dict[str, Any]:
    about: dict[str, Any] = {}
    if model is not None:
        device = str(model.placement.device)
        about = {
            "model": recipe.model,
            "checkpoint": recipe.checkpoint,
            "image size": model.parts.transform.image_size,
            "number format": number_format(model),
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        }
    about |= {
        "data": recipe.data.name,
        "split": recipe.data.split,
        "rows": len(samples),
        "seconds": None if seconds is None else round(seconds, 1),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "openblip": __version__,
        "python": platform.python_version(),
    }
    about |= {name: _version(name) for name in PACKAGES}
    return {name: value for name, value in about.items() if value is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _summary(run: Run) -> dict[str, Any]:
    return {
        "task": run.found.task.value,
        "metrics": run.found.metrics,
        "published": [asdict(figure) for figure in run.recipe.published],
        "notes": list(run.found.notes),
        "rows": len(run.found.rows),
        "excluded": [asdict(image) for image in run.found.excluded],
        "about": run.about,
        "recipe": _plain(asdict(run.recipe)),
    }


def _write_predictions(path: Path, found: Evaluation, journaled: bool) -> None:
    """Write all rows with their scores; rows in the journal keep their fields."""
    journal_rows = {}
    if journaled:
        for line in path.read_bytes().splitlines():  # splitting text would also split at U+2028
            fields = json.loads(line)
            journal_rows[fields["row"]] = fields
    if journal_rows:
        answered = [row for row, fields in sorted(journal_rows.items()) if "prediction" in fields]
        for number, row in zip(answered, found.rows, strict=True):
            journal_rows[number] |= _fields(row)
        lines = [fields for _, fields in sorted(journal_rows.items())]
    else:
        lines = [{"row": number, **_fields(row)} for number, row in enumerate(found.rows)]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _left_out(recipe: EvaluationRecipe, samples: Sequence[Sample]) -> str:
    if recipe.limit is None or len(samples) < recipe.limit:
        return ""
    return f"The file has the first {len(samples):,} rows alone (limit); servers take whole test sets."


def _fields(row: Any) -> dict[str, Any]:
    named = {name: getattr(row, name) for name in ("image", "image_id", "sample_id", "question", "prediction")}
    filled = {name: value for name, value in named.items() if value or name == "prediction"}
    return filled | {"references": list(row.references), "scores": dict(row.scores)}


def _plain(value: Any) -> Any:
    """Enum members as the words of recipes."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return getattr(value, "value", value)


def read_samples(recipe: EvaluationRecipe) -> list[Sample]:
    """The rows of the recipe's source, up to its limit; only held-out rows if the source has `held_out`.

    Raises:
        OptionError: there are no rows.
        OpenBlipError: an annotation file is missing or malformed.
    """
    source = recipe.data
    rows = read_source(source, Path(recipe.data_root))
    if source.held_out:
        rows = keep_held_out_part(rows, source.held_out)
    if not rows:
        split = f", split {source.split}" if source.split else ""
        raise OptionError(f"the data source {source.name}{split} has no rows: check its files and split")
    return rows[: recipe.limit]
