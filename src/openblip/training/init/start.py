"""The model that a recipe starts from, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.loading import load_parts, with_language_model
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import load_native
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.assign import VISION
from openblip.data.pairs import ImageText
from openblip.errors import CheckpointError, OptionError
from openblip.training.init.reinit import reinit_qformer, resize
from openblip.training.init.small_blip2 import build_small_blip2
from openblip.training.lora.adapters import adapter_parameters, add_lora, reaches_vision
from openblip.training.recipe import Recipe, Stage

TRAINED = ("blip2",)
"""Families that there are recipes for."""


def require_trainable(parts: ModelParts, name: str) -> None:
    """Raises OptionError for a model of a family that cannot be trained here."""
    if parts.family not in TRAINED:
        raise OptionError(
            f"{name} is of the family {parts.family}, which cannot be trained yet: give a model of {', '.join(TRAINED)}"
        )


def start_model(recipe: Recipe, images: Sequence[Sequence[ImageText]], encoder: bool = True) -> ModelParts:
    """The model that a recipe starts from, always the same.

    Args:
        encoder: without it the weights of a stored model's image encoder are not read, and it is on the meta device;
            unless adapters go there, or the model is put together anew.

    Raises OpenBlipError when parts of the model do not fit.
    """
    name = recipe.name or Path(recipe.output).name
    if recipe.new is not None:
        parts = build_small_blip2(recipe.new, [image for group in images for image in group], name, recipe.seed)
    else:
        parts = load_parts(str(recipe.init), ReadOptions(left_out=() if encoder else (VISION,)))
        require_trainable(parts, str(recipe.init))
        if not encoder and recipe.lora is not None and reaches_vision(parts.network, recipe.lora):
            parts = load_parts(str(recipe.init))
        parts = replace(parts, name=name)
    if recipe.prompt is not None:
        parts = replace(parts, prompts=replace(parts.prompts, caption=recipe.prompt))
    if recipe.image_size is not None:
        parts = resize(parts, recipe.image_size)
    if recipe.fresh_qformer is not None:
        parts = reinit_qformer(parts, Path(recipe.fresh_qformer), recipe.seed)
    torch.manual_seed(recipe.seed)
    if recipe.language_model is not None:
        parts = with_language_model(parts, recipe.language_model, recipe.language_model_revision)
    unusual = recipe.stage is Stage.LANGUAGE or recipe.decoder is not None or recipe.self_critical
    if parts.network.config.language is not None and parts.network.config.language.encodes_prompts and unusual:
        raise OptionError(
            f"{recipe.init} has a T5, for which there is neither stage language nor self_critical nor another decoder: "
            "leave them out of the recipe"
        )
    if parts.external is not None and (unusual or recipe.train_decoder):
        raise OptionError(
            f"{parts.external.place} is external and stays as it is, there is neither stage language nor "
            "train_decoder, self_critical nor another decoder: leave them out of the recipe"
        )
    if recipe.decoder is not None:
        other = load_native(Path(recipe.decoder))
        if other.network.config.language != parts.network.config.language:
            raise CheckpointError(f"the language model of {recipe.decoder} has other sizes than that of {recipe.init}")
        parts.network.own_language_model.load_state_dict(other.network.own_language_model.state_dict())
        parts.network.start_prompt_projection()
        parts = replace(parts, tokenizer=other.tokenizer)
    if recipe.lora is not None:
        add_lora(parts, recipe.lora)
    return parts


def with_weights(parts: ModelParts, learnt: Mapping[str, Tensor]) -> ModelParts:
    """The model a run starts from, with what it learnt."""
    network = parts.network
    own = dict(network.named_parameters()) | adapter_parameters(network)
    with torch.no_grad():
        for name, value in learnt.items():
            own[name].copy_(value)
    return replace(parts, network=network.eval())
