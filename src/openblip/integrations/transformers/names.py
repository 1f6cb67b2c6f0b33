"""transformers' names for the layers of our network, for what freezes, adapts or saves layers by their names.

Names alone are translated: modules are ours and stay where they are. Projections that we have in one matrix have one
set of weights, and a module each under transformers' name for it, on which peft can put an adapter; so has a quantised
layer, which peft would not take for a linear one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from openblip.checkpoints.names.transformers import layers_of
from openblip.nn.quant.swap import QuantisedLinear
from openblip.nn.split_linear import open_layer

FIRST_LEVEL = {
    "vision_model.encoder.": "vision.",
    "vision_model.post_layernorm": "vision_norm",
    "vision_projection": "image_projection",
    "language_projection": "prompt_projection",
}
"""What parts of our network are called here where they have other names there."""
JOINED = "joined"
QUANTISED = "_quantised"
OWN = "_own"
"""How names end of weights that transformers has in several layers, of those behind a name that is to be a linear
layer's, and of layers that it has nowhere: nobody means them."""


class TranslatedModule(nn.Module):
    """A module that tells its layers by transformers' names, and finds them by these."""

    _theirs: Mapping[str, str] = {}
    _ours: Mapping[str, str] = {}
    _parents: frozenset[str] = frozenset()

    def translate(self, language: str) -> None:
        """Look up all layers, once they are in place; those that are joined in one are opened.

        Args:
            language: what our network calls the language model.
        """
        parts = {**FIRST_LEVEL, "language_model.": f"{language}."}
        found: dict[str, str] = {}
        for name, module in list(super().named_modules()):
            part = next((part for part in parts if name.startswith(part)), "")
            theirs = layers_of(parts.get(part, "") + name.removeprefix(part))
            above, _, last = name.rpartition(".")
            if len(theirs) == 1 and not isinstance(module, QuantisedLinear):
                found[name] = theirs[0]
            elif theirs:
                pieces = [one.rpartition(".")[2] for one in theirs]
                open_layer(super().get_submodule(above), last, pieces)
                found[name] = _above(theirs[0]) + JOINED if len(theirs) > 1 else theirs[0] + QUANTISED
                found |= {f"{name}.{piece}": one for piece, one in zip(pieces, theirs, strict=True)}
        modules = dict(super().named_modules())
        # Right under a module that has the same name in both, nothing could be set under another name.
        told = {ours: name for ours, name in found.items() if ours != name and _above(name)[:-1] not in modules}
        self._parents = frozenset(_above(name)[:-1] for name in told.values())
        for name, module in modules.items():
            if isinstance(module, nn.Linear) and name not in told and found.get(name) != name:
                # T5's output head and what transformers lacks: no target of adapters for all linear layers.
                above, _, last = name.rpartition(".")
                open_layer(modules[above], last, ())
                told[name] = name + OWN
        self._theirs, self._ours = told, {name: ours for ours, name in told.items()}
        self.register_state_dict_post_hook(_tell)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_find)  # type: ignore[no-untyped-call]

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        front = f"{prefix}." if prefix else ""
        for name, module in super().named_modules(memo, prefix, remove_duplicate):
            yield front + renamed(name.removeprefix(front), self._theirs) if name != prefix else name, module

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
    _rename_all(state, prefix, module._theirs)


def _find(module: TranslatedModule, state: dict[str, Any], prefix: str, *others: Any) -> None:
    _rename_all(state, prefix, module._ours)


def _rename_all(state: dict[str, Any], prefix: str, table: Mapping[str, str]) -> None:
    items = list(state.items())
    state.clear()
    for name, tensor in items:
        local = name.removeprefix(prefix)
        state[prefix + renamed(local, table) if name.startswith(prefix) else name] = tensor
