"""How good a model is while it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openblip.data.pairs import ImageText
from openblip.data.sample import Sample
from openblip.data.sources.open import keep_held_out_part, read_source
from openblip.devices import Placement
from openblip.errors import OptionError
from openblip.evaluation.outcome import Evaluation
from openblip.evaluation.score import check, score_model
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
from openblip.models.load import model_of
from openblip.saving import naming
from openblip.training.init.start import start_model, with_weights
from openblip.training.metrics import ACCURACY_OF_KIND, ANSWERS, METRICS
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.table import objective_of

SAMPLES_FILE = "samples.jsonl"


class Evaluator:
    """Scores the weights of a run on the recipe's evaluation data, and shows what they say of the first of them."""

    def __init__(self, recipe: Recipe, images: Sequence[Sequence[ImageText]], device: torch.device) -> None:
        """Raises OptionError when there is nothing to evaluate, or no such metric of it."""
        self.recipe, self.images, self.device = recipe, images, device
        self.section = recipe.evaluation
        self.usual = objective_of(recipe.stage).metrics
        self.samples = self._read()
        self.settings = self._settings()
        check(self.samples, self.settings)
        metrics = self._metrics()
        if self.section.metric not in (None, *metrics):
            raise OptionError(f"evaluation.metric is {self.section.metric!r}: it is none of {', '.join(metrics)}")

    def __call__(self, learnt: Mapping[str, Tensor], say: Callable[[str], None]) -> float:
        model = model_of(
            with_weights(start_model(self.recipe, self.images), learnt), Placement(self.device, torch.float32)
        )
        found = score_model(model, self.samples, self.settings)
        score = self._score(found)
        say("  ".join(f"{name} {value:.4f}" for name, value in found.metrics.items() if "(" not in name))
        for row in found.rows[: self.section.samples]:
            question = f"{row.question} " if row.question else ""
            say(f"  {row.image}: {question}{row.prediction}   [{row.references[0]}]")
        self._keep(found)
        return score

    def _read(self) -> list[Sample]:
        source = self.section.data
        assert source is not None
        rows = read_source(source, Path(self.recipe.data_root))
        if source.held_out:
            rows = keep_held_out_part(rows, source.held_out)
        # A table may have rows that this stage does not learn from.
        if Task.QUESTIONS not in self.usual and Task.CAPTIONS in self.usual:
            rows = [row for row in rows if row.captions]
        elif Task.CAPTIONS not in self.usual and Task.QUESTIONS in self.usual:
            rows = [row for row in rows if row.question and row.answers]
        if not rows:
            raise OptionError(f"evaluation.data has no rows in {source.name}: check its files, split and held_out")
        return rows[: self.section.limit]

    def _settings(self) -> Settings:
        about_questions = all(row.question for row in self.samples)
        chosen = Task.QUESTIONS if about_questions else Task.CAPTIONS
        task = chosen if chosen in self.usual else next(iter(self.usual))
        people = min(len(row.answers) for row in self.samples) if about_questions else 0
        return Settings(
            task,
            {"num_beams": self.section.num_beams},
            # Java's scores are for the end: starting it costs more than a small evaluation.
            CaptionSettings(Wish.NEVER, Wish.NEVER, Wish.NEVER),
            QuestionSettings(Accuracy.VQA if people > 1 else Accuracy.EXACT),
            RetrievalSettings(rerank=16),
            ClassificationSettings(by=Decision.JUDGE),
        )

    def _score(self, found: Evaluation) -> float:
        return found.metrics[self.section.metric or self.usual[self.settings.task]]

    def _metrics(self) -> list[str]:
        """What the samples will be given."""
        if self.settings.task is not Task.QUESTIONS:
            return list(METRICS[self.settings.task])
        shares = ANSWERS if self.settings.questions.accuracy is Accuracy.VQA else ANSWERS[:1]
        return [*shares, *(ACCURACY_OF_KIND.format(kind) for kind in sorted({row.kind for row in self.samples} - {""}))]

    def _keep(self, found: Evaluation) -> None:
        path = Path(self.recipe.output) / SAMPLES_FILE
        with naming(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            for row in found.rows[: self.section.samples]:
                record = {"image": row.image, "question": row.question, "prediction": row.prediction}
                file.write(json.dumps({**record, "references": list(row.references)}, ensure_ascii=False) + "\n")
