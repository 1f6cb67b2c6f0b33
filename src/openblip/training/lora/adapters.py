"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) in training: a frozen model, and two thin
matrices that learn beside each of some of its linear layers.

peft makes and runs them; here is said where they go. In files they have transformers' names (see
`openblip.checkpoints.lora.files`), so that what is trained here runs there, and the other way round.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openblip.checkpoints.lora.files import Adapter, LowRank, read_adapter, write_adapter
from openblip.checkpoints.lora.fit import check_layers
from openblip.checkpoints.lora.names import adapter_names
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.engine import first_few
from openblip.checkpoints.registry import folder_of
from openblip.checkpoints.tensors.assign import VISION
from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.nn.quant.int4 import Int4Linear
from openblip.nn.quant.int4_wide import Int4WideLinear
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.split_linear import open_layer
from openblip.training.lora.targets import Target, choose_targets, external_of, meant, short_names, targets_of

NAME = "default"
"""What peft calls an adapter that has no name."""
EXTERNAL = "external_adapters"
"""Where a network has the adapters of an external language model, which itself is no part of the network's tree."""
QUANTIZED = (Int8Linear, Int4Linear, Int4WideLinear)
LEARNING = ("lora_A", "lora_B", "lora_dropout", "lora_magnitude_vector")
"""What peft puts beside a layer."""


@dataclass
class LoraSection:
    """Which low-rank adapters learn.

    Attributes:
        rank: rows of one factor and columns of the other.
        alpha: what an adapter adds is multiplied by alpha / rank.
        dropout: of what goes into the adapters, in training.
        targets: where they go: "language_model", "qformer", "text" (BLIP's text encoder, CLIP's) and "vision" mean the
            attention of these parts; anything else is a name, an end of names or a pattern of linear layers (`q_proj`,
            `decoder.layers.0.*`), as they are called here or by transformers.
        rslora: divide by the root of the rank instead (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
        dora: learn the lengths of rows, too (Liu et al. 2024, https://arxiv.org/abs/2402.09353).
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: ["language_model"])
    rslora: bool = False
    dora: bool = False


@dataclass(frozen=True)
class LearningAdapters:
    """The adapters that were put into a model.

    Attributes:
        layers: transformers' names of the layers that have one.
        parameters: what learns, see `adapter_parameters`.
        total: weights of the whole model, adapters and an external language model included.
    """

    layers: tuple[str, ...]
    parameters: dict[str, nn.Parameter]
    total: int

    @property
    def trained(self) -> int:
        """Weights that learn."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def __str__(self) -> str:
        share = 100 * self.trained / self.total
        return f"{len(self.layers)} adapters: {self.trained:,} of {self.total:,} weights learn ({share:.2f} %)"


def add_lora(parts: ModelParts[Any, Any], section: LoraSection) -> LearningAdapters:
    """Put adapters into a model, which change nothing before they learn, and freeze all the rest; in place.

    All is in evaluation mode then; `adapter_modules` says what is to be in training mode, for the adapters' dropout.
    They learn in float32, whatever the model is in; over weights of 8 bits, too, and of 4 that are not packed (QLoRA,
    Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).

    Raises:
        OpenBlipError: peft is not installed.
        OptionError: a setting out of range, a target that means no linear layer, or a model that has adapters already.
    """
    _check(section)
    chosen = choose_targets(parts.network, section.targets)
    narrowest = min(chosen, key=lambda target: min(target.shape))
    if section.rank > min(narrowest.shape):
        raise OptionError(
            f"rank is {section.rank}, and {narrowest.path} has weights of {narrowest.shape[0]} x {narrowest.shape[1]}: "
            f"give a rank of at most {min(narrowest.shape)}, or other targets"
        )
    if section.dora and any(target.quantized for target in chosen):
        raise OptionError("DoRA measures the weights themselves: leave dora out, or load the model in floats")
    _inject(
        parts,
        chosen,
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        use_dora=section.dora,
    )
    return _learning(parts.network)


def load_adapter(parts: ModelParts[Any, Any], place: Path | Adapter) -> LearningAdapters:
    """Put adapters that were saved into a model, to go on training or to run them unmerged; all the rest is frozen.

    `openblip.load(..., adapter=...)` merges them instead.

    Args:
        place: a folder in peft's layout, or what was read of one.

    Raises:
        OpenBlipError: peft is not installed.
        CheckpointError: the files are broken, or the adapter does not fit the model.
        OptionError: the model has adapters already.
    """
    adapter = place if isinstance(place, Adapter) else read_adapter(place)
    if adapter.replaced:
        raise CheckpointError(
            f"{adapter.place} holds whole layers, too ({first_few(list(adapter.replaced))}): "
            "merge it with openblip.load(..., adapter=...) instead"
        )
    targets = {target.theirs: target for target in targets_of(parts.network)}
    check_layers(adapter, {name: target.shape for name, target in targets.items()})
    first = next(iter(adapter.layers.values()))
    paths = {name: targets[name].path for name in adapter.layers}
    if first.magnitude is not None and any(targets[name].quantized for name in adapter.layers):
        raise OptionError("DoRA measures the weights themselves: load the model in floats")
    _inject(
        parts,
        [targets[name] for name in adapter.layers],
        r=first.rank,
        lora_alpha=first.alpha,
        rank_pattern={re.escape(paths[name]): one.rank for name, one in adapter.layers.items()},
        alpha_pattern={re.escape(paths[name]): one.alpha for name, one in adapter.layers.items()},
        lora_dropout=adapter.dropout,
        use_rslora=first.rslora,
        use_dora=first.magnitude is not None,
    )
    with torch.no_grad():
        for name, layer in _adapted(parts.network):
            one = adapter.layers[name]
            layer.lora_A[NAME].weight.copy_(one.a)
            layer.lora_B[NAME].weight.copy_(one.b)
            if one.magnitude is not None:
                layer.lora_magnitude_vector[NAME].weight.copy_(one.magnitude)
    return _learning(parts.network)


def save_adapter(parts: ModelParts[Any, Any], folder: Path, base: str | None = None) -> Path:
    """Write a model's adapters in peft's layout, with transformers' names; returns the file of weights.

    `peft.PeftModel.from_pretrained` puts them on transformers' model; `openblip.load(folder)` loads the base with them.

    Args:
        base: the model that they are for, as `openblip.load` takes it; of a folder the absolute path is noted. None
            does not say.

    Raises:
        OptionError: the model has no adapters.
    """
    layers: dict[str, LowRank] = {}
    dropout = 0.0
    for name, layer in _adapted(parts.network):
        rank, alpha = layer.r[NAME], layer.lora_alpha[NAME]
        layers[name] = LowRank(
            _stored(layer.lora_A[NAME].weight),
            _stored(layer.lora_B[NAME].weight),
            alpha,
            not math.isclose(layer.scaling[NAME], alpha / rank),
            _stored(layer.lora_magnitude_vector[NAME].weight) if layer.use_dora[NAME] else None,
        )
        dropout = getattr(layer.lora_dropout[NAME], "p", 0.0)
    if not layers:
        raise OptionError(f"the model {parts.name} has no adapters to save: put some in with add_lora")
    if base is not None and folder_of(base) is None and Path(str(base)).expanduser().is_dir():
        base = str(Path(str(base)).expanduser().resolve())
    everywhere = [target.theirs for target in targets_of(parts.network)]
    adapter = Adapter(folder, base, layers, dropout=dropout)
    return write_adapter(adapter, folder, short_names(list(layers), everywhere))


def has_adapters(network: nn.Module) -> bool:
    return next(_adapted(network), None) is not None


def adapter_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What learns of a model's adapters, by the network's names; those of an external language model, too."""
    return {name: parameter for name, parameter in network.named_parameters() if ".lora_" in name}


def adapter_modules(network: nn.Module) -> list[nn.Module]:
    """What has to be in training mode for adapters to learn, their dropout included; nothing of the frozen model."""
    return [getattr(layer, name) for _, layer in _adapted(network) for name in LEARNING]


def adapts_vision(network: nn.Module) -> bool:
    """Whether the image encoder has adapters, so that what it sees cannot be computed beforehand."""
    return any(name.startswith("vision_model.") for name, _ in _adapted(network))


def reaches_vision(network: nn.Module, section: LoraSection) -> bool:
    """Whether adapters would go into the image encoder, which need not have memory for its weights."""
    layers = [target for target in targets_of(network) if target.path.startswith(VISION) and not target.external]
    return any(meant(layers, name, adapter_names(network)) for name in section.targets)


def _check(section: LoraSection) -> None:
    if section.rank < 1:
        raise OptionError(f"rank is {section.rank}: it must be at least 1")
    if section.alpha <= 0:
        raise OptionError(f"alpha is {section.alpha}: it must be above 0")
    if not 0 <= section.dropout < 1:
        raise OptionError(f"dropout is {section.dropout}: it must be at least 0 and below 1")


def _inject(parts: ModelParts[Any, Any], chosen: Sequence[Target], **settings: Any) -> None:
    """Let peft wrap the chosen layers. Settings are those of its LoraConfig."""
    network = parts.network
    if has_adapters(network):
        raise OptionError(f"the model {parts.name} has adapters already: load it anew to give it others")
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import Linear as LoraLinear
    except ImportError:
        raise OpenBlipError('adapters are trained with peft: pip install "openblip[train]"') from None
    for target in chosen:
        above, _, own = target.layer.rpartition(".")
        if target.part is not None and not _is_open(network.get_submodule(target.layer)):
            siblings = [other.part for other in targets_of(network) if other.layer == target.layer and other.part]
            open_layer(network.get_submodule(above), own, siblings)
    for root in _trees(network):
        root.requires_grad_(False).eval()
        paths = [target.path for target in chosen if target.external == (root is not network)]
        if not paths:
            continue
        config = LoraConfig(target_modules=paths, **settings)
        # Quantized layers are linear ones that peft has never heard of.
        config._register_custom_module(dict.fromkeys(QUANTIZED, LoraLinear))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, root)
        root.eval()
        if root is not network:
            network.add_module(EXTERNAL, _adapters_alone(root, paths))
    for parameter in adapter_parameters(network).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def _is_open(layer: nn.Module) -> bool:
    return next(layer.children(), None) is not None


def _trees(network: nn.Module) -> list[nn.Module]:
    """The network, and an external language model beside it."""
    external = external_of(network)
    return [network] if external is None else [network, external]


def _adapters_alone(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Modules of the same names as those of a model, in which there is nothing but its adapters."""
    tree = nn.Module()
    for path in paths:
        place, layer = tree, model.get_submodule(path)
        for name in path.split("."):
            if not hasattr(place, name):
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        for name in LEARNING:
            place.add_module(name, layer.get_submodule(name))
    return tree


def _adapted(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """transformers' names of the layers that have adapters, with peft's layers."""
    wrapped = [
        {path: module for path, module in root.named_modules() if hasattr(module, "base_layer")}
        for root in _trees(network)
    ]
    for target in targets_of(network) if any(wrapped) else ():
        layer = wrapped[target.external].get(target.path)
        if layer is not None:
            yield target.theirs, layer


def _learning(network: nn.Module) -> LearningAdapters:
    every = {parameter for root in _trees(network) for parameter in root.parameters()}
    names = tuple(name for name, _ in _adapted(network))
    return LearningAdapters(names, adapter_parameters(network), sum(parameter.numel() for parameter in every))


def _stored(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.detach().float().cpu()
