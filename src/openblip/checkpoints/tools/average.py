"""Several models of one origin as one: the weighted mean of their weights.

Models that were fine-tuned from the same start lie in one basin, and their mean is often better than any of them (model
soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.file_names import WEIGHTS_FILE
from openblip.checkpoints.openblip.folder import STORAGES, save_native
from openblip.checkpoints.openblip.new_folder import new_folder
from openblip.checkpoints.read_options import ReadOptions
from openblip.errors import CheckpointError, OptionError


def average_models(shares: Mapping[str, float], folder: Path, *, storage: str = "float32") -> Path:
    """Write the mean of models, weighted by their shares; returns the file of weights.

    Everything that is no floating-point weight comes from the first. One model and the mean are in memory at a time.

    Args:
        shares: what `openblip.load` takes, with its share; they add up to 1.
        folder: must be empty or not exist yet; its name becomes the model's.
        storage: number format, see `save_native`.

    Raises:
        OptionError: fewer than two models, shares that do not add up to 1, a folder in use, or an unknown storage.
        CheckpointError: a model cannot be read, or has other weights than the first.
        DownloadError: files cannot be had.
    """
    if storage not in STORAGES:
        raise OptionError(f"storage {storage!r} is not one of {', '.join(STORAGES)}")
    if len(shares) < 2:
        raise OptionError("one model is its own mean: give at least two")
    total = math.fsum(shares.values())
    if not math.isclose(total, 1, abs_tol=1e-3):
        raise OptionError(f"the shares add up to {total:g}: make it 1")
    with new_folder(folder) as place:
        save_native(replace(_mean_of(shares, total), name=folder.resolve().name), place, storage)
    return folder / WEIGHTS_FILE


def _mean_of(shares: Mapping[str, float], total: float) -> ModelParts:
    first, *others = shares
    parts = load_parts(first, ReadOptions(bits=0))
    mean: dict[str, Tensor] = parts.network.state_dict()
    with torch.no_grad():
        for tensor in mean.values():
            if tensor.is_floating_point():
                tensor.mul_(shares[first] / total)
        for name in others:
            added = load_parts(name, ReadOptions(bits=0)).network.state_dict()
            wrong = [key for key in mean if key not in added or added[key].shape != mean[key].shape]
            if wrong or len(added) != len(mean):
                what = wrong[0] if wrong else next(key for key in added if key not in mean)
                raise CheckpointError(f"{name} and {first} are different models, {what} for one: their mean is neither")
            for key, tensor in mean.items():
                if tensor.is_floating_point():
                    tensor.add_(added[key], alpha=shares[name] / total)
    return parts
