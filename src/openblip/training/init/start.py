"""The model that a recipe starts from, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.assign import VISION
from openblip.data.pairs import ImageText
from openblip.errors import OptionError
from openblip.training.init.reinit import resize
from openblip.training.lora.adapters import adapter_parameters, add_lora, reaches_vision
from openblip.training.lora.targets import targets_of
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.table import learner_of, new_model


def start_model(recipe: Recipe, images: Sequence[Sequence[ImageText]], encoder: bool = True) -> ModelParts[Any, Any]:
    """The model that a recipe starts from, always the same. Errors call it by the name that the user gave.

    Args:
        encoder: without it the weights of a stored model's image encoder are not read, and it is on the meta device;
            unless adapters go there, or the model is put together anew.

    Raises OpenBlipError when parts of the model do not fit.
    """
    name = recipe.name or Path(recipe.output).name
    parts: ModelParts[Any, Any]
    flat = [image for group in images for image in group]
    if recipe.init is None:
        parts = new_model(recipe, flat, name)
    else:
        parts = load_parts(str(recipe.init), ReadOptions(left_out=() if encoder else (VISION,)))
        learner_of(recipe.stage, parts.family, str(recipe.init))
        if not encoder and recipe.lora is not None and reaches_vision(parts.network, recipe.lora):
            parts = load_parts(str(recipe.init))
        parts = replace(parts, name=str(recipe.init))
    if recipe.prompt is not None:
        parts = replace(parts, prompts=replace(parts.prompts, caption=recipe.prompt))
    if recipe.image_size is not None:
        parts = resize(parts, recipe.image_size)
    own = None if recipe.lora is None or recipe.init is None else _linear_layers(parts)
    torch.manual_seed(recipe.seed)
    given = parts.network
    parts = learner_of(recipe.stage, parts.family, parts.name).prepare(parts, recipe, flat)
    if recipe.lora is not None:
        if parts.classes and parts.network is not given:
            raise OptionError(
                f"stage {recipe.stage.value} gives {recipe.init} a new head for the classes of the data, and adapters "
                "are saved without it: train without lora first, and give what comes of it as init"
            )
        adapted = add_lora(parts, recipe.lora).layers
        if own is not None:
            _require_layers(recipe, own, adapted, _linear_layers(parts))
    return replace(parts, name=name)


def _linear_layers(parts: ModelParts[Any, Any]) -> dict[str, tuple[int, int]]:
    """Shapes of the layers that adapters can go to, by transformers' names."""
    return {target.theirs: target.shape for target in targets_of(parts.network)}


def _require_layers(
    recipe: Recipe, own: Mapping[str, tuple[int, int]], adapted: Sequence[str], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Raises OptionError when the model that a run starts from lacks layers that have adapters in what was made of it:
    adapters are saved alone, and could never be put on it again.
    """
    for name in adapted:
        if own.get(name) != shapes[name]:
            raise OptionError(
                f"stage {recipe.stage.value} makes another model of {recipe.init}, and adapters for {name} would not "
                "fit the one that is given: train without lora first, and give what comes of it as init"
            )


def with_weights(parts: ModelParts[Any, Any], learnt: Mapping[str, Tensor]) -> ModelParts[Any, Any]:
    """The model a run starts from, with what it learnt."""
    network = parts.network
    own = dict(network.named_parameters()) | adapter_parameters(network)
    with torch.no_grad():
        for name, value in learnt.items():
            own[name].copy_(value)
    return replace(parts, network=network.eval())
