"""transformers' names for the layers of our network, for what freezes, adapts or saves layers by their names.

Names alone are translated: modules are ours and stay where they are. Projections that we have in one matrix have one
set of weights, and a module each under transformers' name for it, on which peft can put an adapter; so has a quantized
layer, which peft would not take for a linear one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.names.engine import Rows
from openblip.checkpoints.tensors.wrappers import peel
from openblip.nn.quant.swap import QuantizedLinear
from openblip.nn.split_linear import open_layer

DRAWN = ("k_proj", "v_proj", "q_proj")
"""The order of OPT's layers in transformers, which is not that of our rows."""
JOINED = "joined"
QUERIES = "query_tokens"
"""A tensor of BLIP-2's Q-Former that transformers has beside it, too."""
QUANTIZED = "_quantized"
OWN = "_own"
"""How names end of weights that transformers has in several layers, of those behind a name that is to be a linear
layer's, and of layers that it has nowhere: nobody means them."""
TABLES = (".tokens.weight", ".head.weight")
"""Ends of names of tables with a row for each word."""


@dataclass(frozen=True)
class Naming:
    """What the tensors of a family's network are called below a model, and in transformers' files.

    Attributes:
        parts: how names below the model begin, and how those of the network do.
        sources: a tensor of the network to what it is stacked from in files; nothing for what they have no place for.
        not_theirs: how names begin of tensors of the network that no file of theirs holds.
        roots: how names in files begin.
        second_names: of tensors in files, and the first name of the same tensor.
    """

    parts: Mapping[str, str]
    sources: Callable[[str], tuple[Rows, ...]]
    roots: tuple[str, ...]
    not_theirs: tuple[str, ...] = ()
    second_names: Mapping[str, str] = field(default_factory=dict)

    def layers_of(self, name: str) -> tuple[str, ...]:
        """Their names for a layer of the network, several where we have them in one."""
        return tuple(rows.name.removesuffix(".weight") for rows in self.sources(f"{name}.weight"))

    def network_name(self, name: str) -> str:
        """What the network calls a module or tensor that goes by this name below the model."""
        part = next((part for part in self.parts if name.startswith(part)), "")
        return self.parts.get(part, "") + name.removeprefix(part)


class TranslatedModule(nn.Module):
    """A module that tells its layers by transformers' names, and finds them by these."""

    _theirs: Mapping[str, str] = {}
    _ours: Mapping[str, str] = {}
    _naming: Naming
    _parents: frozenset[str] = frozenset()

    def translate(self, naming: Naming) -> None:
        """Look up all layers, once they are in place; those that are joined in one are opened."""
        self._naming = naming
        found: dict[str, str] = {}
        for name, module in list(super().named_modules()):
            theirs = naming.layers_of(naming.network_name(name))
            above, _, last = name.rpartition(".")
            if len(theirs) == 1 and not isinstance(module, QuantizedLinear):
                found[name] = theirs[0]
            elif theirs:
                pieces = [one.rpartition(".")[2] for one in theirs]
                # Adapters that are drawn one after the other get the numbers that they get there.
                order = DRAWN if set(DRAWN) == set(pieces) else pieces
                open_layer(super().get_submodule(above), last, pieces, order)
                found[name] = _above(theirs[0]) + JOINED if len(theirs) > 1 else theirs[0] + QUANTIZED
                found |= {f"{name}.{piece}": one for piece, one in zip(pieces, theirs, strict=True)}
        modules = dict(super().named_modules())
        # Right under a module that has the same name in both, nothing could be set under another name.
        renamed = {ours: name for ours, name in found.items() if ours != name and _above(name)[:-1] not in modules}
        self._parents = frozenset(_above(name)[:-1] for name in renamed.values())
        for name, module in modules.items():
            if isinstance(module, nn.Linear) and name not in renamed and found.get(name) != name:
                # T5's output head and what transformers lacks: no target of adapters for all linear layers.
                above, _, last = name.rpartition(".")
                open_layer(modules[above], last, ())
                renamed[name] = name + OWN
        self._theirs, self._ours = renamed, {name: ours for ours, name in renamed.items()}
        self.register_state_dict_post_hook(_tell)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_find)  # type: ignore[no-untyped-call]

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        front = f"{prefix}." if prefix else ""
        for name, module in super().named_modules(memo, prefix, remove_duplicate):
            yield front + renamed(name.removeprefix(front), self._theirs) if name != prefix else name, module

    def children(self) -> Iterator[nn.Module]:
        """Modules right below, each once."""
        yield from self._modules.values()  # type: ignore[misc]

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules right below, and all others that go by a name of transformers': those who walk down the tree to
        gather names of parameters, as its Trainer does for weight decay, find the names of `named_parameters`.
        """
        yield from super().named_children()
        yield from (
            (theirs, super(TranslatedModule, self).get_submodule(ours)) for ours, theirs in self._theirs.items()
        )

    def own_tensors(self) -> dict[str, Tensor]:
        """All tensors by the names that they have below here, queries as those of the Q-Former alone."""
        found: dict[str, Tensor] = {}
        for above, module in super().named_modules():
            front = f"{above}." if above else ""
            kept = {
                name: one for name, one in module._buffers.items() if name not in module._non_persistent_buffers_set
            }
            found |= {front + name: one for name, one in {**module._parameters, **kept}.items() if one is not None}
        found.pop(QUERIES, None)
        return found

    def network_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state under the names of `state_dict`, or under transformers', by our network's names.

        What it lacks is the model's own.
        """
        # Of a model that is wrapped, as torch.compile and DistributedDataParallel do.
        names = peel(Path("state_dict"), state, self._naming.roots)
        renamed = {name: state[stored] for name, stored in names.items()}
        _find(self, renamed, "")
        own = self.own_tensors()
        return {self._naming.network_name(name): renamed.get(name, tensor) for name, tensor in own.items()}

    def get_submodule(self, target: str) -> Any:
        """A module by its name; of names that only transformers has a module for, where their children are."""
        if target in self._parents:
            return _Parent(self, target)
        return super().get_submodule(renamed(target, self._ours))

    def set_layer(self, name: str, layer: nn.Module) -> None:
        """Put another module in the place of one."""
        above, _, last = renamed(name, self._ours).rpartition(".")
        setattr(super().get_submodule(above), last, layer)


class _Parent:
    """What is under a name that transformers has a module for and we have not."""

    def __init__(self, model: TranslatedModule, name: str) -> None:
        vars(self).update(_model=model, _name=name)

    def __getattr__(self, name: str) -> nn.Module:
        found: nn.Module = vars(self)["_model"].get_submodule(f"{vars(self)['_name']}.{name}")
        return found

    def __setattr__(self, name: str, layer: nn.Module) -> None:
        vars(self)["_model"].set_layer(f"{vars(self)['_name']}.{name}", layer)


def renamed(name: str, table: Mapping[str, str]) -> str:
    """The name with its longest beginning that the table knows exchanged."""
    end = len(name)
    while end > 0:
        if name[:end] in table:
            return table[name[:end]] + name[end:]
        end = name.rfind(".", 0, end)
    return name


def _above(name: str) -> str:
    """What is in front of the last part of a name, its dot included."""
    return name[: name.rfind(".") + 1]


def _tell(module: TranslatedModule, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    # One tensor under two names is nothing that safetensors writes.
    state.pop(f"{prefix}qformer.queries", None)
    _rename_all(state, prefix, module._theirs)


def _find(module: TranslatedModule, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Names of `state_dict` or of transformers', which files have, become those of our modules.

    What transformers has in several tensors and we in one may be there in part.
    """
    _rename_all(state, prefix, module._ours)
    own, naming = module.own_tensors(), module._naming
    used = set()
    for name, tensor in own.items():
        network = naming.network_name(name)
        if prefix + name in state or network.startswith(naming.not_theirs):
            continue
        rows = naming.sources(network)
        # One of ours may be a part of one of theirs, or made of several.
        keys = [
            next((prefix + key for key in _names_of(row.name, module) if prefix + key in state), "") for row in rows
        ]
        if not any(keys):
            continue
        pieces = [
            row.of(state[key]) if key else piece.detach()
            for key, row, piece in zip(keys, rows, tensor.chunk(len(rows)) if tensor.ndim else [tensor], strict=True)
        ]
        used.update(keys)
        whole = pieces[0] if len(pieces) == 1 else torch.cat([piece.to(pieces[0]) for piece in pieces])
        if whole.ndim == 2 and whole.shape[0] > tensor.shape[0] and name.endswith(TABLES):
            whole = whole[: tensor.shape[0]]  # a row for an image's place, which `save_pretrained` adds
        state[prefix + name] = whole
    for key in used - {prefix + name for name in own}:
        state.pop(key, None)
    for second in naming.second_names:
        state.pop(prefix + renamed(second, module._ours), None)
    if f"{prefix}qformer.queries" in state:
        state[prefix + QUERIES] = state[f"{prefix}qformer.queries"]


def _names_of(theirs: str, module: TranslatedModule) -> list[str]:
    """Where a tensor of theirs may be in a state whose names were looked up; word tables have several names."""
    seconds = [second for second, first in module._naming.second_names.items() if first == theirs]
    return [renamed(name, module._ours) for name in (theirs, *seconds)]


def _rename_all(state: dict[str, Any], prefix: str, table: Mapping[str, str]) -> None:
    items = list(state.items())
    state.clear()
    for name, tensor in items:
        local = name.removeprefix(prefix)
        state[prefix + renamed(local, table) if name.startswith(prefix) else name] = tensor
