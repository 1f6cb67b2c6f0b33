"""Which linear layers of a model an adapter can stand on, and which of them a recipe means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from openblip.checkpoints.lora.fit import CONV_1D
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE, first_few
from openblip.checkpoints.names.transformers import layers_of
from openblip.errors import OptionError
from openblip.nn.blip2 import Blip2Network
from openblip.nn.quant.swap import QuantizedLinear
from openblip.nn.split_linear import Opened

PRESETS = {
    "language_model": r"decoder\.layers\.\d+\.(qkv|out)|t5\..+_attention\.(qkv|query|kv|out)",
    "qformer": r"qformer\.layers\.\d+\.(self|cross)_attention\.(query|key|value|out)",
    "vision": r"vision\.blocks\.\d+\.attention\.(qkv|out)",
}
"""All projections of the attention of one part, by our names of layers; of an external language model all linear layers
but the output head, whatever they are called."""
BASE = ".base_layer"
"""What peft calls a layer that an adapter stands on."""


@dataclass(frozen=True)
class Target:
    """A linear layer, or one of several that are joined in one of ours.

    Attributes:
        layer: our name of the layer; in an external language model its own name.
        theirs: transformers' name.
        part: what it is called in a layer of several; None for a layer of its own.
        external: it is in an external language model, which is no part of the network's tree.
        shape: of its weights [out, in].
        quantized: it has no weights in floating point.
    """

    layer: str
    theirs: str
    shape: tuple[int, int]
    part: str | None = None
    external: bool = False
    quantized: bool = False

    @property
    def path(self) -> str:
        """Where it is found, once joined layers are open."""
        return self.layer if self.part is None else f"{self.layer}.{self.part}"

    def fits(self, pattern: str) -> bool:
        """Whether a name, an end of names or a pattern means this layer."""
        names = (self.layer, self.path, self.theirs)
        return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for name in names)

    def is_in(self, preset: str) -> bool:
        if self.external:
            return preset == "language_model"
        return re.fullmatch(PRESETS[preset], self.layer) is not None


def targets_of(network: Blip2Network) -> list[Target]:
    """Every linear layer that transformers has a name for, and those of an external language model."""
    return [*_own(network), *([] if network.external is None else _external(network.external.model))]


def _own(network: Blip2Network) -> Iterator[Target]:
    for found, module in network.named_modules():
        if not isinstance(module, nn.Linear | Opened | QuantizedLinear):
            continue
        name = found.removesuffix(BASE)
        names = layers_of(name)
        shape = (module.out_features // max(1, len(names)), module.in_features)
        quantized = isinstance(module, QuantizedLinear)
        for theirs in names:
            part = theirs.rpartition(".")[2] if len(names) > 1 else None
            yield Target(name, theirs, shape, part, quantized=quantized)


def _external(model: Any) -> Iterator[Target]:
    head = model.get_output_embeddings()
    for found, module in model.named_modules():
        name, turned = found.removesuffix(BASE), type(module).__name__ == CONV_1D
        if (isinstance(module, nn.Linear) or turned) and module is not head and ".lora_" not in name:
            rows, columns = module.weight.T.shape if turned else module.weight.shape
            yield Target(name, BLIP2_LANGUAGE + name, (rows, columns), external=True)


def meant(targets: Sequence[Target], name: str) -> list[Target]:
    """Those that one of a recipe's `targets` means; there may be none."""
    return [target for target in targets if (target.is_in(name) if name in PRESETS else target.fits(name))]


def choose_targets(targets: Sequence[Target], wanted: Sequence[str]) -> list[Target]:
    """Those that a recipe's `targets` mean; see `openblip.training.lora.adapters.LoraSection`.

    Raises:
        OptionError: one of them means none, or there are none.
    """
    chosen: dict[str, Target] = {}
    for name in wanted:
        preset = name in PRESETS
        found = meant(targets, name)
        if not found and preset:
            raise OptionError(f"targets names {name}, and this model has no linear layers in such a part")
        if not found:
            names = first_few(sorted({target.theirs.rpartition(".")[2] for target in targets}))
            raise OptionError(
                f"targets names {name!r}, and no linear layer is called so: "
                f"give {', '.join(PRESETS)}, or names such as {names}"
            )
        chosen |= {target.theirs: target for target in found}
    if not chosen:
        raise OptionError(f"targets is empty: give {', '.join(PRESETS)}, or names of layers")
    return list(chosen.values())


def short_names(chosen: Sequence[str], everywhere: Sequence[str]) -> list[str]:
    """The last parts of names where all layers called so are chosen, whole names where only some are."""
    others = {name.rpartition(".")[2] for name in set(everywhere) - set(chosen)}
    ends = {name: name.rpartition(".")[2] for name in chosen}
    return sorted({name if end in others else end for name, end in ends.items()})
