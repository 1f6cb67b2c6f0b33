"""What transformers calls the layers that adapters stand on, and the parts that users name: one row a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from openblip.checkpoints.names import blip, clip, transformers
from openblip.checkpoints.names.engine import Layout, Rows
from openblip.checkpoints.tensors.wrappers import BLIP2_ROOTS
from openblip.errors import OptionError
from openblip.nn.blip import BlipConfig
from openblip.nn.blip2 import Blip2Config
from openblip.nn.clip import ClipConfig


@dataclass(frozen=True)
class AdapterNames:
    """Names of a family's layers.

    Attributes:
        layout: transformers' names of tensors.
        parts: what users call a part of the model, and a pattern of our names of its attention's linear layers.
        is_theirs: whether transformers has a place for a tensor of ours.
    """

    layout: Layout
    parts: Mapping[str, str]
    is_theirs: Callable[[str], bool] = field(default=lambda name: True)

    def layers_of(self, name: str) -> tuple[str, ...]:
        """Their names for our layer, several where we have them in one; none for what they have no place for."""
        return tuple(rows.name.removesuffix(".weight") for rows in self.layout.sources(f"{name}.weight"))

    def places(self, names: Mapping[str, Any]) -> dict[str, Rows]:
        """See `Layout.places`."""
        return self.layout.places(name for name in names if self.is_theirs(name))


VISION = r"vision\.blocks\.\d+\.attention\.(qkv|out)"
BERT = r"\.layers\.\d+\.(self|cross)_attention\.((first|second)\.)?(query|key|value|out)"
ROWS: Mapping[type[Any], AdapterNames] = {
    Blip2Config: AdapterNames(
        transformers.LAYOUT,
        {
            "language_model": r"decoder\.layers\.\d+\.(qkv|out)|t5\..+_attention\.(qkv|query|kv|out)",
            "qformer": r"qformer\.layers\.\d+\.(self|cross)_attention\.(query|key|value|out)",
            "vision": VISION,
        },
        transformers.is_theirs,
    ),
    BlipConfig: AdapterNames(
        Layout("transformers' BLIP", blip.TRANSFORMERS_PARTS),
        {"language_model": "decoder" + BERT, "text": "encoder" + BERT, "vision": VISION},
    ),
    ClipConfig: AdapterNames(clip.TRANSFORMERS, {"text": r"text\.blocks\.\d+\.attention\.(qkv|out)", "vision": VISION}),
}
"""By the config of a family's networks."""
PARTS = tuple(dict.fromkeys(part for row in ROWS.values() for part in row.parts))
ADAPTER_ROOTS = tuple(dict.fromkeys((*BLIP2_ROOTS, *blip.ROOTS, *clip.TRANSFORMERS_ROOTS)))
"""How names of layers begin in all families."""


def adapter_names(network: nn.Module) -> AdapterNames:
    """The row of a network. Raises OptionError for a family whose models take no adapters."""
    row = ROWS.get(type(network.config))
    if row is None:
        raise OptionError("there are no adapters for models of this family: train the model itself")
    return row
