"""The optimizer of a run: which weights decay, how fast each learns, and when."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from openblip.nn.vit import VisionTransformer
from openblip.training.recipe_keys import OptimizerSection, Schedule

VISION_BLOCK = re.compile(r"vision\.blocks\.(\d+)\.")
VISION = "vision."
VISION_END = ("vision.head.", "vision.final_norm.")
"""Parts behind the last block, with the learning rate of the last block."""
RATE_SHARE = "rate_share"


def learning_rate(step: int, total: int, section: OptimizerSection, epoch: int = 0, epochs: int = 1) -> float:
    """Linear warm-up, then cosine decay to the last of `total` steps; or one of LAVIS' schedules by epochs.

    Args:
        step: of the whole run, from 0 on, in which `epoch` of `epochs` is running.
    """
    if section.schedule is not Schedule.COSINE:
        return _rate_of_epoch(step, section, epoch, epochs)
    if step < section.warmup_steps:
        return section.warmup_lr + (section.lr - section.warmup_lr) * step / section.warmup_steps
    done = (step - section.warmup_steps) / max(1, total - section.warmup_steps)
    return section.min_lr + (section.lr - section.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def _rate_of_epoch(step: int, section: OptimizerSection, epoch: int, epochs: int) -> float:
    """As LAVIS' schedules of these names (`lavis.common.optims`): the first epoch warms up and then stays at the full
    rate, a warm-up that is longer than it is cut off, and the rate of a later epoch depends on its number alone.
    """
    if not epoch:
        warm = min(1.0, step / section.warmup_steps) if section.warmup_steps else 1.0
        return section.warmup_lr + (section.lr - section.warmup_lr) * warm
    if section.schedule is Schedule.EPOCH_STEP:
        return max(section.min_lr, section.lr * section.decay_rate**epoch)
    return section.min_lr + (section.lr - section.min_lr) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], section: OptimizerSection, vectors: Collection[str] = ()
) -> torch.optim.AdamW:
    """AdamW over named parameters: matrices and tables decay, biases and gains do not.

    Args:
        vectors: names of others that do not, see `single_vectors`.
    """
    depth = 1 + max((int(found[1]) for name in parameters if (found := VISION_BLOCK.match(name))), default=-1)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in parameters.items():
        share = rate_share(name, depth, section)
        groups.setdefault((share, parameter.ndim >= 2 and name not in vectors), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": chosen, "weight_decay": section.weight_decay if decays else 0.0, RATE_SHARE: share}
            for (share, decays), chosen in groups.items()
        ],
        lr=section.lr,
        betas=(section.beta1, section.beta2),
    )


def single_vectors(network: nn.Module) -> frozenset[str]:
    """Names of parameters that have one dimension in the code that they are from, and more here.

    CLIP's class token is [width] there and does not decay; other ViTs have [1, 1, width], which LAVIS lets decay.
    """
    return frozenset(
        f"{place}.class_token" if place else "class_token"
        for place, module in network.named_modules()
        if isinstance(module, VisionTransformer) and module.config.pre_norm  # CLIP's alone
    )


def rate_share(name: str, depth: int, section: OptimizerSection) -> float:
    """The factor for a parameter's learning rate: lower blocks of the image encoder have less (BEiT, Bao et al. 2022).

    The encoder's `depth` blocks come after its embeddings; everything above it learns at the full rate.
    """
    if not name.startswith(VISION):
        return 1.0
    block = VISION_BLOCK.match(name)
    height = depth if name.startswith(VISION_END) else int(block[1]) + 1 if block else 0
    return float(section.vision_rate * section.vision_layer_decay ** (depth + 1 - height))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_SHARE]
