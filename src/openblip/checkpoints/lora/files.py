"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) in files, as peft writes them.

Their layers go by the names that transformers has for them, whoever trained them. peft itself is not needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from openblip.checkpoints.json_files import read_json, to_json
from openblip.checkpoints.lora.names import ADAPTER_ROOTS
from openblip.checkpoints.lora.notes import CONFIG_FILE, PICKLED_FILE, PREFIX, WEIGHTS_FILE
from openblip.checkpoints.lora.patterns import LayerPatterns
from openblip.checkpoints.names.engine import first_few
from openblip.checkpoints.tensors.files import PickledFile, SafetensorsFile
from openblip.checkpoints.tensors.wrappers import Peeled
from openblip.checkpoints.tensors.writing import write_together
from openblip.errors import CheckpointError

FACTOR = re.compile(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
"""A layer, which factor of it, and in states of a model in training the adapter's own name."""
REFUSED = {
    "lora_bias": "has biases of its own",
    "use_qalora": "was trained with QA-LoRA",
    "use_bdlora": "was trained with BD-LoRA",
    "alora_invocation_tokens": "is switched on by tokens (aLoRA)",
    "arrow_config": "is a mixture (Arrow)",
    "kasa_config": "was trained with KaSA",
    "monteclora_config": "was trained with MonteCLoRA",
    "layer_replication": "repeats layers of the model",
    "trainable_token_indices": "changes the vectors of some words",
    "target_parameters": "changes parameters outside of linear layers",
}
"""Settings of peft under which an adapter is more than two factors a layer."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin that leave the model's own weights alone."""


@dataclass(frozen=True)
class LowRank:
    """What is added to the weights of one linear layer [out, in].

    Attributes:
        a, b: the factors [rank, in] and [out, rank], float32.
        rslora: divide by the root of the rank (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
        magnitude: [out], lengths of the rows that come out (DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353).
    """

    a: Tensor
    b: Tensor
    alpha: float
    rslora: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the layer's weights."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def merged(self, weight: Tensor) -> Tensor:
        """The layer's weights with the adapter in them, float32 [out, in]."""
        own = weight.float()
        whole = own + (self.b @ self.a).to(own.device) * self.scale
        if self.magnitude is None:
            return whole
        measured: Tensor = whole * (self.magnitude.to(own.device) / whole.norm(dim=1))[:, None]
        return measured


@dataclass(frozen=True)
class Adapter:
    """A set of such changes.

    Attributes:
        place: the file or folder that errors name.
        base: the model it was trained on, as its file says: a name or a folder.
        layers: by transformers' name of the layer.
        replaced: tensors that were trained as a whole beside them (peft's modules_to_save), by transformers' name.
        dropout: of the layers' inputs, in training.
    """

    place: Path
    base: str | None
    layers: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    dropout: float = 0.0

    @property
    def name(self) -> str:
        """What it is called: its folder, or its repository in the hub's cache, whose folders are called by commits."""
        folder = self.place.resolve()
        return folder.parents[1].name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name


def read_adapter(folder: Path) -> Adapter:
    """Read a folder that peft or `write_adapter` wrote.

    Of a pickled file nothing but tensors is read.

    Raises:
        CheckpointError: a file is missing or broken, tensors do not go together, or the adapter is of another kind.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    _refuse_kinds(config, path)
    pickled = (folder / PICKLED_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file()
    stored = PickledFile(folder / PICKLED_FILE) if pickled else SafetensorsFile(folder / WEIGHTS_FILE)
    file = Peeled(stored, ADAPTER_ROOTS)
    factors: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    unknown = []
    kept = config.get("modules_to_save") or []
    own_names = set()
    for name in file.shapes:
        bare = name.removeprefix(PREFIX)
        found = FACTOR.fullmatch(bare)
        if found is not None:
            own_names.add(found[3])
            factors.setdefault(found[1], {})[found[2]] = file.read(name)
        elif any(f".{module}." in f".{bare}" for module in kept):
            replaced[bare] = file.read(name)
        else:
            unknown.append(name)
    if len(own_names) > 1:
        several = ", ".join(sorted(name or "one without a name" for name in own_names))
        raise CheckpointError(f"{file.path} holds several adapters, {several}: save one with save_pretrained of peft")
    if unknown:
        raise CheckpointError(f"{file.path} holds more than adapters of linear layers: {first_few(unknown)}")
    try:
        ranks, alphas = (LayerPatterns(name, config.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
        layers = {module: _low_rank(module, pair, config, ranks, alphas) for module, pair in factors.items()}
        dropout = _number("lora_dropout", config.get("lora_dropout") or 0.0)
        for name in ("use_rslora", "use_dora"):
            if not isinstance(config.get(name), bool | None):
                raise ValueError(f"{CONFIG_FILE} says that {name} is {config[name]!r}, not true or false")
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if not layers:
        raise CheckpointError(f"{file.path} holds no adapter: get the file again")
    base = config.get("base_model_name_or_path")
    return Adapter(folder, base if isinstance(base, str) and base else None, layers, replaced, dropout)


def write_adapter(adapter: Adapter, folder: Path, targets: list[str] | None = None) -> Path:
    """Write a folder that `peft.PeftModel.from_pretrained` puts on transformers' model; returns the file of weights.

    Args:
        targets: short names that mean the adapter's layers and no others; by default their whole names.
    """
    first = next(iter(adapter.layers.values()))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": _whole(first.alpha),
        "lora_dropout": adapter.dropout,
        "use_rslora": first.rslora,
        "use_dora": first.magnitude is not None,
        "bias": "none",
        "target_modules": sorted(targets or adapter.layers),
        "modules_to_save": None,
        "rank_pattern": {name: one.rank for name, one in adapter.layers.items() if one.rank != first.rank},
        "alpha_pattern": {name: _whole(one.alpha) for name, one in adapter.layers.items() if one.alpha != first.alpha},
    }
    tensors = {}
    for name, one in adapter.layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = one.a, one.b
        if one.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = one.magnitude
    write_together(folder, {CONFIG_FILE: to_json(config)}, {WEIGHTS_FILE: tensors})
    return folder / WEIGHTS_FILE


def _refuse_kinds(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path} is of peft_type {kind!r}: only LORA, and DoRA with it, can be read")
    for setting, problem in REFUSED.items():
        if config.get(setting):
            raise CheckpointError(f"{path}: the adapter {problem} ({setting}): only plain ones and DoRA can be read")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: the model's biases were trained, too: only bias='none' can be read")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r}, which changes the model under the adapter: "
            "save it from peft with path_initial_model_for_weight_conversion, as a plain one"
        )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{CONFIG_FILE} says that {name} is {value!r}, not a number")
    return float(value)


def _low_rank(
    module: str, factors: Mapping[str, Tensor], config: Mapping[str, Any], ranks: LayerPatterns, alphas: LayerPatterns
) -> LowRank:
    """Raises ValueError when the tensors do not go together."""
    a, b, magnitude = (factors.get(kind) for kind in ("A", "B", "magnitude_vector"))
    if a is None or b is None:
        raise ValueError(f"{module} has lora_{'B' if a is None else 'A'} without lora_{'A' if a is None else 'B'}")
    rank = ranks.value(module, config.get("r", 8))
    alpha = _number("lora_alpha", alphas.value(module, config.get("lora_alpha", 8)))
    _number("r", rank)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ValueError(
            f"{module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}: they are [rank, in] and [out, rank]"
        )
    if a.shape[0] != rank:
        raise ValueError(f"{module} has rank {a.shape[0]}, and {CONFIG_FILE} says {rank}")
    if (magnitude is not None) != bool(config.get("use_dora")) or (
        magnitude is not None and magnitude.shape != b.shape[:1]
    ):
        raise ValueError(f"{module} has lengths of rows (DoRA) that do not fit lora_B or use_dora in {CONFIG_FILE}")
    tensors = [tensor.float() for tensor in (a, b, magnitude) if tensor is not None]
    if not math.isfinite(alpha) or not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError(f"a number of {module} is infinite or none: the training has failed")
    return LowRank(
        tensors[0], tensors[1], alpha, bool(config.get("use_rslora")), tensors[2] if magnitude is not None else None
    )


def _whole(number: float) -> float | int:
    """peft counts in whole numbers where it can."""
    return int(number) if float(number).is_integer() else number
