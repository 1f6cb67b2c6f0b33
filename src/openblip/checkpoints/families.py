"""Families of models, as files know them: the sizes of a network, and how the network is built of them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from openblip.checkpoints.blip2_models import MODELS
from openblip.checkpoints.blip_models import MODELS as BLIP_MODELS
from openblip.checkpoints.clip_models import MODELS as CLIP_MODELS
from openblip.checkpoints.json_files import build
from openblip.checkpoints.model_entry import ModelEntry
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.registry import add_models
from openblip.errors import CheckpointError, OptionError
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.efficientnet import EfficientNetConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import VitConfig
from openblip.text import ClipText, MatchingText

SIZES = "sizes"
VISION_KINDS: dict[str, type[VitConfig | EfficientNetConfig]] = {
    config.kind: config for config in (VitConfig, EfficientNetConfig)
}
OWN_LANGUAGES = {language.config.prefix: language.config for language in LANGUAGES.values()}
"""In config.json and in names of tensors."""


def write_sizes(config: Any) -> dict[str, Any]:
    """A section of config.json that says what a network consists of."""
    return {SIZES: _with_kinds(config)}


@dataclass(frozen=True)
class Family:
    """Models that are built alike.

    Attributes:
        name: in config.json, and of every model's `family`.
        config: a frozen dataclass of numbers, texts and dataclasses of them; where a field may be of several
            dataclasses, each has a `kind`. Its `language`, if it has one, is the language model's.
        network: a config to the network, whose `config` it is. It is called on the meta device.
        write: a config to sections of config.json.
        read: config.json and its path to the config.
        models: those that `load` knows by name.
        text: what makes ids of a text that is compared with images: built of a `Tokenizer` and the most tokens, with
            the tokens that the tokenizer starts with and pads with as `start_token` and `pad_token`.
        start_token, pad_token: what begins a text of the language model, and fills short rows.
    """

    name: str
    config: type[Any]
    network: Callable[..., nn.Module]
    write: Callable[[Any], dict[str, Any]] = write_sizes
    read: Callable[[Mapping[str, Any], Path], Any] | None = None
    models: tuple[ModelEntry, ...] = ()
    text: type[Any] = MatchingText
    start_token: str = "</s>"
    pad_token: str = "<pad>"

    def read_config(self, content: Mapping[str, Any], path: Path) -> Any:
        """The sizes that config.json says.

        Raises:
            CheckpointError: naming `path` and what is wrong in it.
        """
        if self.read is not None:
            return self.read(content, path)
        return _build_nested(self.config, content.get(SIZES), path)


def _write_blip2(config: Blip2Config) -> dict[str, Any]:
    own = config.own_language
    return {
        "vision": _with_kinds(config.vision),
        "qformer": asdict(config.qformer),
        **dict.fromkeys(OWN_LANGUAGES),
        **({} if own is None else {own.prefix: asdict(own)}),
        "shared_width": config.shared_width,
        "vision_norm_eps": config.vision_norm_eps,
    }


def _read_blip2(content: Mapping[str, Any], path: Path) -> Blip2Config:
    """The sizes, without an external language model."""
    if not isinstance(content["vision"], dict):
        raise TypeError("vision has no settings of an image encoder: get it again")
    vision = dict(content["vision"])
    kind = vision.pop("kind")
    if not isinstance(kind, str) or kind not in VISION_KINDS:
        kinds = ", ".join(VISION_KINDS)
        raise CheckpointError(f"{path}: the image encoder {kind!r} is unknown, known are {kinds}")
    own = {prefix: content[prefix] for prefix in OWN_LANGUAGES if content.get(prefix) is not None}
    if len(own) > 1:
        raise ValueError(f"a BLIP-2 has one language model, not {', '.join(own)} at once")
    settings = {
        "vision": build(VISION_KINDS[kind], vision, path),
        "qformer": build(QFormerConfig, content["qformer"], path),
        "language": None,
        "shared_width": content["shared_width"],
        "vision_norm_eps": content["vision_norm_eps"],
    }
    for prefix, sizes in own.items():
        settings["language"] = build(OWN_LANGUAGES[prefix], sizes, path)
    return build(Blip2Config, settings, path)


BLIP2 = Family("blip2", Blip2Config, Blip2Network, _write_blip2, _read_blip2, MODELS)


@cache
def _blip() -> Family:
    from openblip.nn.blip import BlipConfig, BlipNetwork

    return Family("blip", BlipConfig, BlipNetwork, models=BLIP_MODELS, start_token="[DEC]", pad_token="[PAD]")


@cache
def _clip() -> Family:
    from openblip.nn.clip import ClipConfig, ClipNetwork

    return Family("clip", ClipConfig, ClipNetwork, models=CLIP_MODELS, text=ClipText)


# Networks of families that nobody loads are not imported: that would take a tenth of the time to load `mini`.
_FAMILIES: dict[str, Callable[[], Family]] = {"blip2": lambda: BLIP2, "blip": _blip, "clip": _clip}


def add_family(family: Family) -> None:
    """Raises OptionError when there is a family of this name, or a model of one of its models' names."""
    if family.name in _FAMILIES:
        raise OptionError(f"there is a family {family.name!r} already: give another name")
    add_models(family.name, family.models)
    _FAMILIES[family.name] = lambda: family


def find_family(name: object, path: Path) -> Family:
    """The family that the config.json at `path` names. Raises CheckpointError when there is none."""
    if not isinstance(name, str) or name not in _FAMILIES:
        raise CheckpointError(f"{path} is of the family {name!r}: this OpenBLIP knows {', '.join(_FAMILIES)}")
    return _FAMILIES[name]()


def language_of(config: Any) -> Any:
    """The language model's config in that of any network; None for one without."""
    return getattr(config, "language", None)


def class_count(config: Any) -> int | None:
    """Classes that the head of any network chooses among; None for one without."""
    count: int | None = getattr(config, "num_classes", None)
    return count


def patch_size_of(config: Any) -> int:
    """The sides of any network's images are multiples of it; 1 for one that has no patches."""
    return int(getattr(getattr(config, "vision", None), "patch_size", 1))


def _with_kinds(config: Any) -> Any:
    """A dataclass as JSON, the dataclasses in it with their `kind` where they have one."""
    if not is_dataclass(config):
        return config
    values = {field.name: _with_kinds(getattr(config, field.name)) for field in fields(config)}
    return {"kind": config.kind, **values} if hasattr(config, "kind") else values


def _build_nested(kind: type[Any], values: Any, path: Path) -> Any:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path} has {values!r} where settings of {kind.__name__} belong: get it again")
    hints = get_type_hints(kind)
    built = {name: _build_one(hints.get(name), value, path) for name, value in values.items() if name != "kind"}
    return build(kind, built, path)


def _build_one(hint: Any, value: Any, path: Path) -> Any:
    several = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    classes = [one for one in several if isinstance(one, type) and is_dataclass(one)]
    if not classes or value is None:
        return value
    named = {getattr(one, "kind", None): one for one in classes}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in named and len(classes) > 1:
        raise CheckpointError(f"{path}: {kind!r} is not one of {', '.join(map(str, named))}")
    return _build_nested(named.get(kind, classes[0]), value, path)
