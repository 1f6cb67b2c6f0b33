"""Where an adapter's layers are among our tensors, and its merging into them one tensor at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.hub.download import REPOSITORY_NAME, download
from openblip.checkpoints.hub.progress import download_progress
from openblip.checkpoints.lora.files import Adapter, LowRank, read_adapter
from openblip.checkpoints.lora.names import adapter_names
from openblip.checkpoints.lora.notes import is_adapter
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE, Rows, first_few
from openblip.errors import CheckpointError, OptionError, given_path

WEIGHT = ".weight"
TABLES = (".tokens.weight", ".words.weight", ".positions.weight", ".positions", ".table.weight")
"""Ends of names of matrices that are no linear layers."""
CONV_1D = "Conv1D"
"""transformers' linear layer of GPT-2's kin, whose weights are [in, out]."""


class AdapterFit:
    """An adapter's changes by the names of our tensors.

    Attributes:
        changed: those tensors.
    """

    def __init__(self, adapter: Adapter, network: nn.Module, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """
        Args:
            wanted: names and shapes of the network's tensors, as they are in floating point.

        Raises:
            CheckpointError: a layer that the network lacks, or a shape that differs; the first misfits are named.
            OptionError: there are no adapters for networks of its family.
        """
        places = adapter_names(network).places(wanted)
        shapes = {theirs: _shape(place, wanted) for theirs, place in places.items()}
        layers = {
            theirs.removesuffix(WEIGHT): shape
            for theirs, shape in shapes.items()
            if theirs.endswith(WEIGHT) and len(shape) == 2 and not places[theirs].name.endswith(TABLES)
        }
        check_layers(adapter, layers)
        _refuse(
            adapter,
            [
                f"{name} is {list(tensor.shape)} in the adapter and "
                f"{list(shapes[name]) if name in shapes else 'not'} in the model"
                for name, tensor in adapter.replaced.items()
                if shapes.get(name) != tuple(tensor.shape)
            ],
        )
        changes: dict[str, LowRank | Tensor] = {f"{name}{WEIGHT}": change for name, change in adapter.layers.items()}
        self._changes: dict[str, list[tuple[Rows, LowRank | Tensor]]] = defaultdict(list)
        for theirs, change in (changes | dict(adapter.replaced)).items():
            self._changes[places[theirs].name].append((places[theirs], change))
        self.changed = frozenset(self._changes)

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """One of our tensors with the adapter in it, a new one in float32; others are passed on as they are."""
        if name not in self.changed:
            return tensor
        whole = tensor.to(torch.float32, copy=True)
        for place, change in self._changes[name]:
            rows = place.of(whole)
            rows.copy_(change.merged(rows) if isinstance(change, LowRank) else change)
        return whole


def _shape(place: Rows, wanted: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    shape = wanted[place.name]
    return (shape[0] // place.count, *shape[1:]) if shape else shape


def check_layers(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError, naming the first few, when layers of the adapter are missing or of another shape.

    Args:
        shapes: of the weights of all linear layers [out, in], by transformers' names.
    """
    misfits = [f"it has no linear layer {name}" for name in adapter.layers if name not in shapes]
    misfits += [
        f"{name} is {list(one.shape)} in the adapter and {list(shapes[name])} in the model"
        for name, one in adapter.layers.items()
        if name in shapes and one.shape != shapes[name]
    ]
    _refuse(adapter, misfits)


def _refuse(adapter: Adapter, misfits: list[str]) -> None:
    if misfits:
        trained_on = "" if adapter.base is None else f", which was trained on {adapter.base},"
        raise CheckpointError(f"the adapter {adapter.place}{trained_on} does not fit this model: {first_few(misfits)}")


@torch.no_grad()
def merge_external(adapter: Adapter, model: Any) -> Adapter:
    """Merge what changes an external language model into its weights, in place; returns what is left.

    Args:
        model: of transformers.

    Raises:
        CheckpointError: a layer that it lacks, or a shape that differs.
    """
    inside = {name: one for name, one in adapter.layers.items() if name.startswith(BLIP2_LANGUAGE)}
    weights = {
        BLIP2_LANGUAGE + name: module.weight.T if type(module).__name__ == CONV_1D else module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == CONV_1D
    }
    check_layers(replace(adapter, layers=inside), {name: tuple(weight.shape) for name, weight in weights.items()})
    for name, one in inside.items():
        weights[name].copy_(one.merged(weights[name]))
    return replace(adapter, layers={name: one for name, one in adapter.layers.items() if name not in inside})


def find_adapter(place: str | Path) -> Adapter:
    """Read an adapter from a folder, or from a repository of the hub, which is downloaded if it is not there.

    Raises:
        CheckpointError: neither, or its files are broken.
        OptionError: an empty name, or no name.
        DownloadError: its files cannot be had.
    """
    if not isinstance(place, str | Path) or not str(place).strip():
        raise OptionError(f"the adapter is {place!r}: give a folder, or the name of a repository on the hub")
    folder = given_path("the adapter", place)
    if not folder.is_dir():
        if not REPOSITORY_NAME.fullmatch(str(place)):
            raise CheckpointError(f"the adapter {place} is not there: give a folder that holds adapter_config.json")
        with download_progress() as progress:
            folder = download(str(place), progress=progress)[0].path
    return read_adapter(folder)


def base_of(adapter: Adapter) -> str | Path:
    """The model that an adapter was trained on, as `openblip.load` takes it; a relative path may start at the adapter.

    Raises:
        CheckpointError: its file does not say, or says an adapter.
    """
    hint = "give the model's name or folder, with this as its adapter"
    if adapter.base is None:
        raise CheckpointError(f"{adapter.place} holds an adapter that does not say of which model: {hint}")
    beside = adapter.place / adapter.base
    base: str | Path = beside if beside.is_dir() else adapter.base
    if is_adapter(Path(base).expanduser()):
        raise CheckpointError(f"{adapter.place} holds an adapter of another adapter, {base}: merge that one first")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise CheckpointError(f"{adapter.place} holds an adapter of {base}, which is not there: {hint}")
    return base
