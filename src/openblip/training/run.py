"""From a recipe to a trained model folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress

from openblip.checkpoints.loading import load_parts, with_language_model
from openblip.checkpoints.native import load_native
from openblip.checkpoints.parts import ModelParts
from openblip.data.features import FeatureCache, ViewPlan, cache_features, fingerprint
from openblip.data.pairs import DataSource, ImageText, gather
from openblip.errors import CheckpointError, OptionError
from openblip.nn.efficientnet import EfficientNet
from openblip.training.assemble import assemble
from openblip.training.batches import BatchPlan
from openblip.training.recipe import Precision, Recipe, Stage
from openblip.training.tasks import LanguageTask, Stage1Task, Stage2Task, Task
from openblip.training.trainer import Trainer


def train(recipe: Recipe) -> Path:
    """Run a recipe, or go on with one that was stopped; returns the model folder.

    Raises:
        OpenBlipError: data, parts or the checkpoint in the output folder do not fit the recipe.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    images = [gather(source, Path(recipe.data_root)) for source in recipe.data]
    parts = _start_model(recipe, images)
    usable = [[image for image in group if _has_text(image, recipe.stage)] for group in images]
    task = _make_task(recipe, parts, [image for group in usable for image in group])
    caches: list[FeatureCache] = []
    if task.needs_features:
        encode = encoder_for(parts, recipe.precision)
        caches = [
            open_features(parts, source, [Path(str(image.image)) for image in group], Path(recipe.cache), encode)
            for source, group in zip(recipe.data, images, strict=True)
        ]
    plan = BatchPlan(recipe.data, usable, recipe.batch_size, recipe.seed)
    Trainer(recipe, parts, task, plan, caches).run()
    return Path(recipe.output)


def encoder_for(parts: ModelParts, precision: Precision) -> Callable[[torch.Tensor], torch.Tensor]:
    """The frozen image encoder as a function of pixels, prepared for many images."""
    encoder = copy.deepcopy(parts.network.vision)
    if isinstance(encoder, EfficientNet):
        encoder.fold()
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    encoder.to(dtype)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stub

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = encoder(pixels.to(dtype=dtype, memory_format=torch.channels_last))
        return patches.float()

    return encode


def open_features(
    parts: ModelParts,
    source: DataSource,
    images: list[Path],
    root: Path,
    encode: Callable[[torch.Tensor], torch.Tensor],
) -> FeatureCache:
    """The source's cached features, computed first where they are missing."""
    plan = ViewPlan(source.views, source.min_area)
    mark = fingerprint(parts.network.vision, parts.transform, plan)
    with Progress() as progress:
        bar = progress.add_task(f"features of {source.name}", total=len(images))
        return cache_features(
            images,
            root / f"{source.name}-{mark}",
            encode,
            parts.transform,
            plan,
            progress=lambda done, _: progress.update(bar, completed=done),
        )


def _start_model(recipe: Recipe, images: list[list[ImageText]]) -> ModelParts:
    name = recipe.name or Path(recipe.output).name
    if recipe.new is not None:
        parts = assemble(recipe.new, [image for group in images for image in group], name, recipe.seed)
    else:
        parts = replace(load_parts(str(recipe.init)), name=name)
    torch.manual_seed(recipe.seed)
    if recipe.language_model is not None:
        parts = with_language_model(parts, recipe.language_model, recipe.language_model_revision)
    unusual = recipe.stage is Stage.LANGUAGE or recipe.decoder is not None or recipe.self_critical
    if parts.network.config.t5 is not None and unusual:
        raise OptionError(
            f"{recipe.init} has a T5, for which there is neither stage language nor self_critical nor another decoder: "
            "leave them out of the recipe"
        )
    if parts.borrowed is not None and (unusual or recipe.train_decoder):
        raise OptionError(
            f"{parts.borrowed.place} is borrowed and stays as it is, there is neither stage language nor "
            "train_decoder, self_critical nor another decoder: leave them out of the recipe"
        )
    if recipe.decoder is not None:
        other = load_native(Path(recipe.decoder))
        if other.network.config.language_model != parts.network.config.language_model:
            raise CheckpointError(f"the language model of {recipe.decoder} has other sizes than that of {recipe.init}")
        parts.network.decoder.load_state_dict(other.network.decoder.state_dict())
        parts.network.start_prompt_projection()
        parts = replace(parts, tokenizer=other.tokenizer)
    return parts


def _make_task(recipe: Recipe, parts: ModelParts, images: list[ImageText]) -> Task:
    if recipe.stage is Stage.LANGUAGE:
        return LanguageTask(parts, recipe.mixture, recipe.texts_per_image)
    if recipe.stage is Stage.STAGE1:
        return Stage1Task(parts, recipe)
    return Stage2Task(parts, recipe, images)


def _has_text(image: ImageText, stage: Stage) -> bool:
    """Whether an image says anything this stage can use."""
    if stage is Stage.STAGE1:
        return bool(image.descriptions)
    return bool(image.descriptions or image.questions)
