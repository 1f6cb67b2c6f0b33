"""Fine-tuning on one's own pairs: a recipe for people who have none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.read_options import ReadOptions
from openblip.data.pairs import DataSource, ImageText, load_pairs
from openblip.data.sources.annotations import is_held_out
from openblip.errors import OptionError
from openblip.training.init.start import require_trainable
from openblip.training.lora.adapters import LoraSection
from openblip.training.recipe import Evaluation, Mixture, OptimizerSection, Precision, Recipe, Stage

SMALL_LANGUAGE_MODEL = 100_000_000
"""Weights up to which a language model learns along: it has little of its own to lose."""
SMALLEST_HELD_OUT = 30
"""Images from which a part of them is worth holding out."""
HELD_OUT = 10
FEWEST_HELD_OUT = 3
"""CIDEr knows common words from rare ones by the other images: of a single one it is 0 whatever is said."""
STEPS = 600
"""About as many are enough for a few hundred images, and end in minutes for a small model."""
RATE, ADAPTER_RATE = 1e-4, 2e-4
IMAGES_PER_EVALUATION = 100


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of a fine-tuning; None leaves a value to the data and the model.

    Attributes:
        table: CSV, TSV, JSONL, Parquet, tar or folder: images with texts, or with questions and answers.
        images: the folder that its paths start from, where it is not the table's own.
        lora: adapters learn instead of the Q-Former: on the language model and the Q-Former.
        rank: of the adapters.
    """

    model: str
    table: Path
    output: Path
    images: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    rate: float | None = None
    lora: bool = False
    rank: int = 16
    seed: int = 42


def finetuning_recipe(options: FinetuneOptions) -> Recipe:
    """A stage-2 recipe for one's own pairs, of which it holds a tenth of the images out where there are enough.

    Raises:
        OpenBlipError: the table is missing, empty or not understood, or the model has no language model.
    """
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise OptionError(f"the learning rate is {options.rate:g}: it must be above 0, and finite")
    source = DataSource(
        name="own",
        table=str(options.table.absolute()),
        images=None if options.images is None else str(options.images.absolute()),
        clean=False,
    )
    images = load_pairs(source, Path())
    with_questions = sum(bool(image.questions) for image in images)
    with_captions = sum(bool(image.captions) for image in images)
    if not with_questions and not with_captions:
        raise OptionError(f"{options.table} has images, but neither texts nor questions with answers")
    if len(images) >= SMALLEST_HELD_OUT:
        source.held_out = _share_held_out(images)
    kept = sum(bool(image.captions or image.questions) for image in load_pairs(source, Path()))
    batch = options.batch_size or max(2, min(16, kept // 4))
    if kept < batch:
        wanted = f"a smaller batch than {options.batch_size}" if options.batch_size and kept else f"at least {batch}"
        raise OptionError(f"{options.table} has {kept} images to learn from: give {wanted}")
    epochs = options.epochs or max(2, min(20, math.ceil(STEPS / (kept // batch))))
    steps = epochs * (kept // batch)
    rate = (ADAPTER_RATE if options.lora else RATE) if options.rate is None else options.rate
    held_out = DataSource(**{**vars(source)}) if source.held_out else None
    return Recipe(
        stage=Stage.STAGE2,
        output=str(options.output),
        data=[source],
        data_root="",
        init=options.model,
        cache=str(options.output / "features"),
        epochs=epochs,
        batch_size=batch,
        seed=options.seed,
        precision=Precision.BF16 if torch.cuda.is_available() else Precision.FLOAT32,
        train_decoder=not options.lora and _has_small_language_model(options.model),
        # Each text of an image is learnt from as often, however they are divided.
        mixture=Mixture(questions=with_questions / (with_questions + with_captions)),
        optimizer=OptimizerSection(lr=rate, min_lr=rate / 10, warmup_steps=max(1, min(100, steps // 10))),
        save_every=max(20, steps // 10),
        log_every=max(1, min(20, steps // 20)),
        evaluation=Evaluation(
            data=held_out, limit=IMAGES_PER_EVALUATION, every=max(1, epochs // 5), patience=2 if held_out else 0
        ),
        lora=LoraSection(rank=options.rank, alpha=2 * options.rank, targets=["language_model", "qformer"])
        if options.lora
        else None,
    )


def _share_held_out(images: Sequence[ImageText]) -> int:
    """10 for a tenth of the images, or less where names fall so that the tenth would be too few; 0 for none."""
    shown = [pair.image for pair in images if pair.captions or pair.questions]
    enough = (n for n in range(HELD_OUT, 3, -1) if sum(is_held_out(image, n) for image in shown) >= FEWEST_HELD_OUT)
    return next(enough, 0)


def _has_small_language_model(name: str) -> bool:
    # Sizes are all that is asked for.
    parts = load_parts(name, ReadOptions(left_out=("",)))
    require_trainable(parts, name)
    network = parts.network
    if network.config.own_language is None:
        if network.external is None:
            raise OptionError(
                f"{name} has no language model: it matches and embeds, but can neither caption nor answer"
            )
        return False
    return sum(parameter.numel() for parameter in network.own_language_model.parameters()) <= SMALL_LANGUAGE_MODEL
