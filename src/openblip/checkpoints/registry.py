"""The models that can be loaded by name, of every family. Importing this loads no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias

from openblip.checkpoints.blip2_models import MINI, MODELS
from openblip.checkpoints.blip_models import FAMILY as BLIP
from openblip.checkpoints.blip_models import MODELS as BLIP_MODELS
from openblip.checkpoints.clip_models import FAMILY as CLIP
from openblip.checkpoints.clip_models import MODELS as CLIP_MODELS
from openblip.checkpoints.json_files import read_json
from openblip.checkpoints.model_entry import ModelEntry
from openblip.errors import CheckpointError, OptionError, yes_or_no

FolderKind: TypeAlias = Literal["openblip", "transformers", "open_clip"]
CONFIG_FILE, OPEN_CLIP_FILE = "config.json", "open_clip_config.json"
"""What a folder says of its model: one of transformers or of OpenBLIP, and one of open_clip."""

TRANSFORMERS_FAMILIES = {"blip-2": MINI.family, "blip": BLIP, "clip": CLIP}
"""What the config.json of a folder of transformers calls a type of models, and the family that they belong to."""

_MODELS: dict[str, tuple[ModelEntry, ...]] = {MINI.family: MODELS, BLIP: BLIP_MODELS, CLIP: CLIP_MODELS}
"""By family, see `families.add_family`."""


def add_models(family: str, models: tuple[ModelEntry, ...]) -> None:
    """Let the models of a new family be found by name.

    Raises:
        OptionError: a model is of another family, or has a name that is taken.
    """
    taken = {name for model in all_models() for name in model.names}
    for model in models:
        if model.family != family:
            raise OptionError(f"the model {model.name} is of the family {model.family!r}, not {family!r}: correct it")
        for name in model.names:
            if name in taken:
                raise OptionError(f"there is a model {name!r} already: give another name")
            taken.add(name)
    _MODELS[family] = models


def all_models() -> tuple[ModelEntry, ...]:
    return tuple(model for models in _MODELS.values() for model in models)


def list_models(
    pattern: str = "*", *, family: str | None = None, ability: str | None = None, cached: bool | None = None
) -> list[ModelEntry]:
    """The models that `load` knows by name.

    Args:
        pattern: of names and aliases, as "*opt*"; without "*", "?" and "[", a part of them is enough. Upper and lower
            case are one.
        family: only models that are built alike, as "blip2".
        ability: only models that can do this, as "caption".
        cached: True for those whose files are all on this machine, False for the others.

    Raises:
        OptionError: there is no such family or ability.
    """
    if not isinstance(pattern, str):
        raise OptionError(f"the pattern is {pattern!r}: give a part of a name as text")
    wanted = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    models = all_models()
    if cached is not None:
        cached = yes_or_no("cached", cached)
    if family is not None:
        _check("family of models", family, _MODELS)
    if ability is not None:
        _check("ability of a model", ability, dict.fromkeys(each for model in models for each in model.abilities))
    return [
        model
        for model in models
        if any(fnmatchcase(name.lower(), wanted) for name in model.names)
        and family in (None, model.family)
        and (ability is None or ability in model.abilities)
        and (cached is None or model.cached == cached)
    ]


def find_model(name: str) -> ModelEntry | None:
    """The model of this name or alias, of any family."""
    return next((model for model in all_models() if name in model.names), None)


def folder_of(name: str | Path) -> Path | None:
    """Where a model of this name lies that is not downloaded; None for any other name, and for every path."""
    model = find_model(name) if isinstance(name, str) else None
    return None if model is None else model.folder


def did_you_mean(name: str) -> str:
    """The names most like this one, or where to find them all, as the end of a sentence."""
    names = nearest_names(name)
    return f"did you mean {' or '.join(names)}?" if names else "`openblip models` lists them all"


def nearest_names(name: str) -> list[str]:
    """Up to three names of models that are much like this one, the likest first."""
    whole = {each.lower(): each for model in all_models() for each in model.names}
    # What stands behind the slash is what people remember.
    ends = {each.rpartition("/")[2]: each for each in reversed(whole)}
    typed = name.lower()
    near = get_close_matches(typed, whole, n=3, cutoff=0.75)
    near += [ends[end] for end in get_close_matches(typed.rpartition("/")[2], ends, n=3, cutoff=0.75)]
    return [whole[each] for each in dict.fromkeys(near)][:3]


def folder_kind(folder: Path) -> FolderKind:
    """Who wrote a model folder, by its config.json; `transformers_family` says which family it is of.

    A folder that has config.json and open_clip's is read as one of transformers.

    Raises:
        CheckpointError: it has none, or one of another model.
    """
    if not (folder / CONFIG_FILE).exists() and (folder / OPEN_CLIP_FILE).is_file():
        return "open_clip"
    content = read_json(folder / CONFIG_FILE)
    if content.get("format") == "openblip":
        return "openblip"
    kind = content.get("model_type")
    if isinstance(kind, str) and kind in TRANSFORMERS_FAMILIES:
        return "transformers"
    what = "another program's model" if kind is None else f"a model of type {kind!r}"
    types = " or ".join(TRANSFORMERS_FAMILIES)
    raise CheckpointError(f"{folder} holds {what}: give a folder of OpenBLIP, or of type {types} of transformers")


def transformers_family(folder: Path) -> str:
    """The family of a model in a folder that transformers wrote; see `folder_kind`."""
    return TRANSFORMERS_FAMILIES[read_json(folder / CONFIG_FILE)["model_type"]]


def _check(what: str, value: str, choices: Iterable[str]) -> None:
    names = list(choices)
    if isinstance(value, str) and value in names:
        return
    near = get_close_matches(str(value).lower(), names, n=1, cutoff=0.5)
    raise OptionError(f"{value!r} is no {what}: " + (f"did you mean {near[0]}?" if near else f"{', '.join(names)} are"))
