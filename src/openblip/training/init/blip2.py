"""Replace parts of a BLIP-2 before training, as its recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from openblip.checkpoints.loading import with_language_model
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import load_native
from openblip.errors import CheckpointError, OptionError
from openblip.training.init.reinit import reinit_qformer
from openblip.training.recipe_keys import Recipe, Stage


def prepare(parts: ModelParts, recipe: Recipe) -> ModelParts:
    """Return the model with the Q-Former, language model or decoder that the recipe names instead of its own.

    Raises OpenBlipError when parts do not fit each other, or cannot be trained as the recipe says.
    """
    if recipe.fresh_qformer is not None:
        parts = reinit_qformer(parts, Path(recipe.fresh_qformer), recipe.seed)
        torch.manual_seed(recipe.seed)
    if recipe.language_model is not None:
        parts = with_language_model(parts, recipe.language_model, recipe.language_model_revision)
    unusual = recipe.stage is Stage.LANGUAGE or recipe.decoder is not None or recipe.self_critical
    if parts.network.config.language is not None and parts.network.config.language.encodes_prompts and unusual:
        raise OptionError(
            f"{recipe.init} has a T5, which cannot be trained with stage language, self_critical or another decoder: "
            "remove these from the recipe"
        )
    if parts.external is not None and (unusual or recipe.train_decoder):
        raise OptionError(
            f"{parts.external.place} is an external language model, which is not trained: remove stage language, "
            "train_decoder, self_critical and decoder from the recipe"
        )
    if recipe.decoder is not None:
        other = load_native(Path(recipe.decoder))
        if other.network.config.language != parts.network.config.language:
            raise CheckpointError(
                f"the language models of {recipe.decoder} and {recipe.init} differ in size: give one of the same"
            )
        parts.network.own_language_model.load_state_dict(other.network.own_language_model.state_dict())
        parts.network.start_prompt_projection()
        parts = replace(parts, tokenizer=other.tokenizer)
    return parts
