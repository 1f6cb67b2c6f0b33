"""Which linear layers of a model an adapter can stand on, and which of them a recipe means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from openblip.checkpoints.lora.fit import CONV_1D
from openblip.checkpoints.lora.names import PARTS, AdapterNames, adapter_names
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE, first_few
from openblip.errors import OptionError
from openblip.nn.quant.swap import QuantizedLinear
from openblip.nn.split_linear import Opened

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

    def is_in(self, part: str, names: AdapterNames) -> bool:
        """Whether it is of the attention of a part. Of an external language model all linear layers but the output
        head are, whatever they are called.
        """
        if self.external:
            return part == "language_model"
        return part in names.parts and re.fullmatch(names.parts[part], self.layer) is not None


def external_of(network: nn.Module) -> nn.Module | None:
    """The external language model of a network, which is no part of the network's tree; None without one."""
    external: Any = getattr(network, "external", None)
    return None if external is None else external.model


def targets_of(network: nn.Module) -> list[Target]:
    """Every linear layer that transformers has a name for, and those of an external language model.

    Raises OptionError for a network of a family that takes no adapters.
    """
    external = external_of(network)
    return [*_own(network, adapter_names(network)), *([] if external is None else _external(external))]


def _own(network: nn.Module, known: AdapterNames) -> Iterator[Target]:
    for found, module in network.named_modules():
        if not isinstance(module, nn.Linear | Opened | QuantizedLinear):
            continue
        name = found.removesuffix(BASE)
        names = known.layers_of(name)
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


def meant(targets: Sequence[Target], name: str, names: AdapterNames) -> list[Target]:
    """Those that one of a recipe's `targets` means; there may be none."""
    return [target for target in targets if (target.is_in(name, names) if name in PARTS else target.fits(name))]


def choose_targets(network: nn.Module, wanted: Sequence[str]) -> list[Target]:
    """Those that a recipe's `targets` mean; see `openblip.training.lora.adapters.LoraSection`.

    Raises:
        OptionError: one of them means none, or there are none.
    """
    targets, names = targets_of(network), adapter_names(network)
    own = ", ".join(part for part in names.parts if meant(targets, part, names))
    chosen: dict[str, Target] = {}
    for name in wanted:
        found = meant(targets, name, names)
        if not found and name in PARTS:
            raise OptionError(f"targets names {name}, and this model has no linear layers in such a part: give {own}")
        if not found:
            ends = first_few(sorted({target.theirs.rpartition(".")[2] for target in targets}))
            raise OptionError(
                f"targets names {name!r}, and no linear layer is called so: give {own}, or names such as {ends}"
            )
        chosen |= {target.theirs: target for target in found}
    if not chosen:
        raise OptionError(f"targets is empty: give {own}, or names of layers")
    return list(chosen.values())


def short_names(chosen: Sequence[str], everywhere: Sequence[str]) -> list[str]:
    """The last parts of names where all layers called so are chosen, whole names where only some are."""
    others = {name.rpartition(".")[2] for name in set(everywhere) - set(chosen)}
    ends = {name: name.rpartition(".")[2] for name in chosen}
    return sorted({name if end in others else end for name, end in ends.items()})
