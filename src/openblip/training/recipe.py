"""The recipe of a training run: a YAML file, of which every key is checked.

Recipes are read with OmegaConf, so overrides may have dots (`optimizer.lr=1e-4`), and a value may refer to another one
(`${seed}`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from openblip.data.pairs import DataSource, load_pairs
from openblip.errors import OptionError
from openblip.recipes import read_recipe
from openblip.training.metrics import is_possible, metrics_of
from openblip.training.recipe_keys import (
    Evaluation,
    Mixture,
    MomentumSection,
    MonitorSection,
    NewBlip,
    NewModel,
    OptimizerSection,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    Stage,
    Storage,
)
from openblip.training.tasks.table import objective_of, unknown_options

__all__ = [
    "DataSource",
    "Evaluation",
    "Mixture",
    "MomentumSection",
    "MonitorSection",
    "NewBlip",
    "NewModel",
    "OptimizerSection",
    "Parallel",
    "Precision",
    "Recipe",
    "Stage",
    "Storage",
    "caches_features",
    "load_recipe",
    "problems_of",
]
"""The keys of a recipe are re-exported: who reads recipes needs both."""

MOST_REPEATS = 100_000
"""Of an image in an epoch, whose order is drawn as a whole."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides.

    Raises:
        OpenBlipError: omegaconf is not installed, the file is missing, or a key or value is wrong.
    """
    recipe = read_recipe(Recipe, path, overrides, "training", "train")
    for problem in problems_of(recipe):
        raise OptionError(f"{path}: {problem}")
    return recipe


def problems_of(recipe: Recipe) -> Iterator[str]:
    """Sentences about contradictions and values out of range."""
    if sum(start is not None for start in (recipe.init, recipe.new, recipe.new_blip)) != 1:
        yield "give either init (a model folder) or new or new_blip (a model to put together)"
    if recipe.lora is not None and recipe.init is None:
        yield "with lora adapters alone learn, and are saved without the model: give it as init, not its parts as new"
    yield from _out_of_range(recipe)
    yield from unknown_options(recipe)
    objective = objective_of(recipe.stage)
    if recipe.self_critical == 1:
        yield "self_critical is 1: an image's captions are compared, draw at least 2"
    if recipe.qformer_precision is Precision.FP16:
        yield "qformer_precision is fp16, in which the Q-Former overflows: use float32 or bf16"
    if recipe.vision_blocks and not recipe.train_vision:
        yield "vision_blocks says how much of the image encoder learns, and none does: give train_vision=true"
    if recipe.drop_path is not None and not recipe.train_vision:
        yield "drop_path is for an image encoder that learns: give train_vision=true, or leave it out"
    if recipe.lora is not None and (recipe.train_vision or recipe.train_decoder):
        yield "with lora adapters alone learn: leave out train_vision and train_decoder, and name them in lora.targets"
    if recipe.lora is not None:
        for name in objective.unused_parts:
            if name in recipe.lora.targets:
                yield f"lora.targets names {name}, which {recipe.stage.value} does not use: name others"
    if objective.compares and recipe.batch_size == 1:
        yield f"batch_size is 1: {recipe.stage.value} compares the images of a batch, give at least 2"
    usual = MomentumSection()
    if objective.keeps_copies and not objective.compares:
        for name in ("queue_size", "negative_all_rank"):
            if getattr(recipe.momentum, name) != getattr(usual, name):
                yield f"momentum.{name} is for stages that compare images: leave it out of stage {recipe.stage.value}"
    elif objective.keeps_copies and 0 < recipe.momentum.queue_size < recipe.batch_size:
        yield (
            f"momentum.queue_size is {recipe.momentum.queue_size}, which has no room for a batch of "
            f"{recipe.batch_size}: give a larger one, or 0 for none"
        )
    metric = recipe.evaluation.metric
    if metric is not None and not is_possible(metric, objective.metrics):
        yield f"evaluation.metric is {metric!r}: it is none of {', '.join(metrics_of(objective.metrics))}"
    if recipe.evaluation.patience and recipe.evaluation.data is None:
        yield "evaluation.patience waits for evaluations, and there are none: give evaluation.data"
    if not recipe.data:
        yield "data lists no source"
    if not recipe.output.strip():
        yield "output is empty: name a folder for the trained model"
    yield from _about_streams(recipe)


def caches_features(recipe: Recipe) -> bool:
    """Whether the output of the frozen part of the image encoder is cached, unless adapters go there."""
    frozen = not recipe.train_vision or recipe.vision_blocks > 0
    objective = objective_of(recipe.stage)
    return recipe.cache is not None and frozen and objective.sees and objective.caches


def _about_streams(recipe: Recipe) -> Iterator[str]:
    """Sentences about settings that exclude streamed sources."""
    streamed = [source for source in recipe.data if source.stream]
    if recipe.evaluation.data is not None and recipe.evaluation.data.stream:
        yield "evaluation.data is read as a whole: leave stream out of it"
    if not streamed:
        if recipe.steps_per_epoch:
            yield "steps_per_epoch is for data that are streamed: others have as many as their images make"
        return
    for source in streamed:
        if source.table is None or source.captions or source.questions or source.dataset:
            yield f"{source.name} is streamed, which is for tars: name them as its table"
        if source.split is not None:
            yield f"{source.name} is streamed, and tars have no splits: leave split out"
        if not source.rows and len(recipe.data) > 1:
            yield f"rows of {source.name} is missing: sources are mixed by how many rows they have"
        if not source.rows and not recipe.steps_per_epoch:
            yield (
                f"nobody knows how long an epoch of {source.name} is, which is streamed: give steps_per_epoch, "
                "or rows of the source"
            )
    if objective_of(recipe.stage).load is not load_pairs:
        yield f"stage {recipe.stage.value} reads all sentences before the first step: leave stream out"
    if not objective_of(recipe.stage).sees or recipe.new is not None or recipe.self_critical:
        yield "stage language, new and self_critical need all texts before the first step: leave stream out"
    if caches_features(recipe):
        yield "features on disk are computed before the first step, and a stream's images come later: give cache=null"


def _out_of_range(recipe: Recipe) -> Iterator[str]:
    """Sentences about numbers out of range; NaN is always out of range."""
    optimizer, mixture, evaluation = recipe.optimizer, recipe.mixture, recipe.evaluation
    if not -(2**63) <= recipe.seed < 2**63:
        yield f"seed is {recipe.seed}: it must fit 64 bits"
    least = {
        1: ["epochs", "batch_size", "accumulate", "texts_per_image", "log_every", "save_every"],
        0: ["threads", "keep_matching", "self_critical", "steps_per_epoch", "vision_blocks"],
    }
    whole = [(name, getattr(recipe, name), low) for low, names in least.items() for name in names]
    whole += [] if recipe.text_tokens is None else [("text_tokens", recipe.text_tokens, 1)]
    whole += [(f"evaluation.{name}", getattr(evaluation, name), 1) for name in ("every", "limit", "num_beams")]
    whole += [(f"evaluation.{name}", getattr(evaluation, name), 0) for name in ("samples", "patience")]
    whole += [("momentum.queue_size", recipe.momentum.queue_size, 0)]
    names = ("min_lr", "warmup_lr", "warmup_steps", "weight_decay", "clip_norm")
    whole += [(f"optimizer.{name}", getattr(optimizer, name), 0) for name in names]
    for source in recipe.data:
        whole += [
            (f"{name} of {source.name}", getattr(source, name), 1) for name in ("views", "repeat", "shuffle", "readers")
        ]
        whole += [(f"rows of {source.name}", source.rows, 0)]
        if source.repeat > MOST_REPEATS:
            yield f"repeat of {source.name} is {source.repeat}: it must be at most {MOST_REPEATS:,}"
        if source.held_out < 0 or source.held_out == 1:
            yield f"held_out of {source.name} is {source.held_out}: one image in so many is left out, 0 leaves all in"
    for name, value, low in whole:
        if not low <= value < math.inf:
            yield f"{name} is {value}: it must be at least {low}"
    if not 0 < optimizer.lr < math.inf:
        yield f"optimizer.lr is {optimizer.lr}: it must be above 0, and finite"
    if not 0 < optimizer.decay_rate <= 1:
        yield f"optimizer.decay_rate is {optimizer.decay_rate}: it must be above 0, and at most 1"
    if optimizer.decay_rate != 1 and optimizer.schedule is not Schedule.EPOCH_STEP:
        yield "optimizer.decay_rate is for optimizer.schedule=linear_warmup_step_lr: leave it out"
    shares = [("patch_share", recipe.patch_share), ("itm_share", recipe.itm_share)]
    shares += [("optimizer.vision_layer_decay", optimizer.vision_layer_decay)]
    shares += [("optimizer.vision_rate", optimizer.vision_rate)]
    shares += [(f"min_area of {source.name}", source.min_area) for source in recipe.data]
    for name, share in shares:
        if not 0 < share <= 1:
            yield f"{name} is {share}: it must be above 0 and at most 1"
    if not 0 <= recipe.momentum.alpha <= 1:
        yield f"momentum.alpha is {recipe.momentum.alpha}: it must be from 0 to 1"
    rates = [("momentum.decay", recipe.momentum.decay)]
    rates += [("ema", recipe.ema), ("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)]
    if recipe.dropout is not None:
        rates += [("dropout", recipe.dropout)]
    if recipe.drop_path is not None:
        rates += [("drop_path", recipe.drop_path)]
    rates += [(f"word_dropout of {source.name}", source.word_dropout) for source in recipe.data]
    for name, rate in rates:
        if not 0 <= rate < 1:
            yield f"{name} is {rate}: it must be at least 0 and below 1"
    for name in ("questions", "made_questions", "statements"):
        if not 0 <= getattr(mixture, name) <= 1:
            yield f"mixture.{name} is {getattr(mixture, name)}: it must be from 0 to 1"
