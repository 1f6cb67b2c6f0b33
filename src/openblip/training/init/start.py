"""The initial model of a training run."""

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
    """The initial model of a recipe, the same each time. Error messages use the name that the user gave it.

    Args:
        encoder: False leaves the image encoder of a stored model on the meta device, its weights unread, except where
            adapters are added to it, or where a new model is built.

    Raises OpenBlipError when parts of the model do not fit each other.
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
                f"stage {recipe.stage.value} gives {recipe.init} a new head for the classes of the data, which would "
                "not be saved with adapters: train without lora first, and use the result as init"
            )
        adapted = add_lora(parts, recipe.lora).layers
        if own is not None:
            _require_layers(recipe, own, adapted, _linear_layers(parts))
    return replace(parts, name=name)


def _linear_layers(parts: ModelParts[Any, Any]) -> dict[str, tuple[int, int]]:
    """Shapes of the layers that can have adapters, by their names in transformers."""
    return {target.theirs: target.shape for target in targets_of(parts.network)}


def _require_layers(
    recipe: Recipe, own: Mapping[str, tuple[int, int]], adapted: Sequence[str], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Raises OptionError when adapted layers are not part of `recipe.init` itself: adapters are saved alone, and could
    not be loaded with it.
    """
    for name in adapted:
        if own.get(name) != shapes[name]:
            raise OptionError(
                f"stage {recipe.stage.value} changes {recipe.init}, and adapters of {name} would not fit the original: "
                "train without lora first, and use the result as init"
            )


def with_weights(parts: ModelParts[Any, Any], learnt: Mapping[str, Tensor]) -> ModelParts[Any, Any]:
    """Copy trained weights into the initial model, and return it."""
    network = parts.network
    own = dict(network.named_parameters()) | adapter_parameters(network)
    with torch.no_grad():
        for name, value in learnt.items():
            own[name].copy_(value)
    return replace(parts, network=network.eval())
