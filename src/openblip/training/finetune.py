"""Fine-tune a model on your own images and texts, without writing a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.read_options import ReadOptions
from openblip.data.pairs import DataSource, ImageText, are_claims, load_claims, load_pairs
from openblip.data.sources.annotations import is_held_out
from openblip.data.sources.own import OwnData
from openblip.data.sources.records import tell_skipped
from openblip.errors import OptionError
from openblip.training.lora.adapters import LoraSection
from openblip.training.recipe_keys import (
    Evaluation,
    Mixture,
    MomentumSection,
    OptimizerSection,
    Precision,
    Recipe,
)
from openblip.training.tasks.table import finetuning_of, objective_of

SMALLEST_HELD_OUT = 30
"""From this many images on, a tenth of them is held out."""
HELD_OUT = 10
FEWEST_HELD_OUT = 3
"""The fewest held-out images: CIDEr weighs words by the other images, so with one image it is always 0."""
STEPS = 600
"""Enough for a few hundred images; a small model needs minutes for them."""
IMAGES_PER_EVALUATION = 100


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of fine-tuning; None: chosen by the data and the model.

    Attributes:
        data: images with texts, with questions and answers, or with sentences and their labels.
        lora: adapters learn, of BLIP-2 on the language model and the Q-Former, instead of the model itself.
        rank: rank of the adapters.
    """

    model: str
    data: OwnData
    output: Path
    epochs: int | None = None
    batch_size: int | None = None
    rate: float | None = None
    lora: bool = False
    rank: int = 16
    seed: int = 42


def finetuning_recipe(options: FinetuneOptions) -> Recipe:
    """A recipe for a table; it holds out a tenth of the images if there are enough.

    Raises:
        OpenBlipError: the table is missing, empty or not understood, or the model has nothing to learn
            from it.
    """
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise OptionError(f"the learning rate is {options.rate:g}: it must be above 0, and finite")
    table, source = options.data.table, options.data.source()
    told: list[str] = []  # the run will say it
    rows = options.data.read(told)
    if not any(row.captions or row.question for row in rows):
        raise OptionError(f"{table} has images, but neither texts nor questions with answers")
    # Only the sizes of the model are needed.
    parts = load_parts(options.model, ReadOptions(left_out=("",)))
    claims = load_claims(source, Path(), told) if are_claims(rows) or parts.classes else []
    stage, way = finetuning_of(parts, options.model, claims)
    objective = objective_of(stage)
    if options.lora and claims and not parts.classes:
        raise OptionError(
            f"{options.model} has no head for classes yet, and adapters are saved without one: leave out --lora"
        )
    if not claims and any(row.label for row in rows):
        passed = f"{table} has labels, and {options.model} learns from {objective.needs} alone: they are passed over"
        tell_skipped([f"{passed} (a recipe with stage classify learns them)"], None)
    images = claims or load_pairs(source, Path(), told)
    with_questions = sum(bool(image.questions) for image in images)
    with_captions = sum(bool(image.captions) for image in images)
    if not claims and not with_questions and not with_captions:
        raise OptionError(f"{table} has images, but neither texts nor questions with answers")
    shown = [image for image in images if objective.usable(image)]
    if not shown:
        raise OptionError(f"{table} has no {objective.needs}, from which {options.model} learns: add a column")
    if len(images) >= SMALLEST_HELD_OUT:
        source.held_out = _share_held_out(shown)
    kept = sum(objective.usable(image) for image in objective.load(source, Path(), told))
    batch = options.batch_size or max(2, min(way.batch_size, kept // 4))
    if kept < batch:
        wanted = f"a smaller batch than {options.batch_size}" if options.batch_size and kept else f"at least {batch}"
        raise OptionError(f"{table} has {kept} images to learn from: give {wanted}")
    epochs = options.epochs or max(2, min(20, math.ceil(STEPS / (kept // batch))))
    steps = epochs * (kept // batch)
    rate = (way.adapter_rate if options.lora else way.rate) if options.rate is None else options.rate
    held_out = DataSource(**{**vars(source)}) if source.held_out else None
    momentum = MomentumSection()
    if objective.keeps_copies and objective.compares:
        # An image waits in the queue until it comes again, and no longer.
        momentum.queue_size = min(momentum.queue_size, kept // batch * batch)
    return Recipe(
        stage=stage,
        output=str(options.output),
        data=[source],
        data_root="",
        init=options.model,
        cache=str(options.output / "features"),
        epochs=epochs,
        batch_size=batch,
        seed=options.seed,
        precision=Precision.BF16 if torch.cuda.is_available() else Precision.FLOAT32,
        train_decoder=not options.lora and way.train_decoder(parts),
        train_vision=way.train_vision and not options.lora,
        # Every text is used equally often, however many texts an image has.
        mixture=Mixture(questions=with_questions / max(1, with_questions + with_captions)),
        optimizer=OptimizerSection(lr=rate, min_lr=rate / 10, warmup_steps=max(1, min(100, steps // 10))),
        momentum=momentum,
        save_every=max(20, steps // 10),
        log_every=max(1, min(20, steps // 20)),
        evaluation=Evaluation(
            data=held_out, limit=IMAGES_PER_EVALUATION, every=max(1, epochs // 5), patience=2 if held_out else 0
        ),
        lora=LoraSection(rank=options.rank, alpha=2 * options.rank, targets=list(way.targets))
        if options.lora
        else None,
    )


def _share_held_out(images: Sequence[ImageText]) -> int:
    """One image in how many is held out: 10, or fewer if names are such that a tenth is too few; 0: none."""
    enough = (
        n for n in range(HELD_OUT, 3, -1) if sum(is_held_out(pair.image, n) for pair in images) >= FEWEST_HELD_OUT
    )
    return next(enough, 0)
