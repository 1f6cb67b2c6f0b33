"""What a run is told by, so that it goes on from no other run's checkpoint.

A key may change while a run is stopped if going on from its checkpoint gives what a run with the new value would have
given from its first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from openblip.checkpoints.origin import model_files
from openblip.checkpoints.registry import folder_of
from openblip.data.pairs import DataSource, ImageText
from openblip.errors import OpenBlipError
from openblip.training.recipe_keys import Recipe

FREE = (
    "output name storage data_root device parallel threads cache gradient_checkpointing log_every save_every monitor "
    "on_bad_image evaluation"
).split()
"""Keys that may change while a run is stopped: where it computes and what it shows, not what it learns."""
STARTING = ("init", "decoder", "fresh_qformer", "language_model")
"""Keys that name files that a run starts from. Where these are on this machine they are told by their content."""
HUB = ("init", "language_model")
"""Those of them that may name a repository of the hub."""
MODEL_FILES = frozenset({".safetensors", ".bin", ".pth", ".json", ".txt", ".model"})
"""What models are made of. A run's own checkpoints, which may lie beside them, are .pt."""
PATIENCE = "evaluation.patience"
CACHED, ROWS = "cached", "rows of the data"
SHOWN_CHARACTERS = 80
FILE = "file "
"""Begins the keys of files, after which come their names."""
BLOCK = 2**20


def identity_of(recipe: Recipe, images: Sequence[Sequence[ImageText]]) -> dict[str, str]:
    """The settings that decide what is learnt, digests of the files that it starts from, and one of what it sees.

    Raises:
        OpenBlipError: a file that the run starts from cannot be read.
    """
    files = starting_files(recipe)
    settings = {name: value for name, value in asdict(recipe).items() if name not in FREE and name not in files}
    identity = {name: json.dumps(value, default=lambda choice: choice.value) for name, value in settings.items()}
    digest = hashlib.sha256()
    for group in images:
        for pair in group:
            texts = (pair.captions, pair.statements, pair.questions, pair.made_questions)
            seen: tuple[object, ...] = (pair.image.name, texts)
            if pair.claim:
                seen += (pair.second and pair.second.name, pair.claim, pair.label)
            digest.update(repr(seen).encode("utf-8", "backslashreplace"))
        digest.update(b"|")
    # Whether features are cached changes what is seen of an image; where they are kept does not.
    identity |= {CACHED: str(recipe.cache is not None), ROWS: digest.hexdigest()}
    return identity | _evaluated(recipe) | digests_of(files)


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of two identities keeps the second from going on where the first was.

    A key of the recipe, of one of its sections, or of a source of data that one of them lacks has its default there:
    it came with a later version.
    """
    then, now = _without_defaults(then), _without_defaults(now)
    return [
        key
        for key in dict.fromkeys([*now, *then])
        if then.get(key) != now.get(key) and not (key == PATIENCE and _waits_longer(then.get(key), now.get(key)))
    ]


@dataclass(frozen=True)
class Change:
    """A key that differs between two runs, with its values as a recipe writes them."""

    key: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.key} was {self.then}, now {self.now}"


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """The values behind `differences`, each under its whole key (`optimizer.lr`); digests have none to show."""
    found: list[Change] = []
    for name in differences(then, now):
        if name.startswith(FILE) or name == ROWS:
            continue
        if name == CACHED:
            shown = {"True": "a folder", "False": "null"}
            found.append(Change("cache", *(shown.get(each.get(name, ""), "null") for each in (then, now))))
            continue
        usual = _defaults().get(name)
        before, after = (_value(each[name]) if name in each else _without(name, each) for each in (then, now))
        found += _leaves(name, before, after, usual)
    return found


def _without(name: str, identity: Mapping[str, str]) -> Any:
    """The value of a key that an identity lacks: its default, unless it is told by its files."""
    by_files = name in STARTING and any(key.startswith(FILE) and key.endswith(f" of {name}") for key in identity)
    return "a model on this machine" if by_files else _defaults().get(name)


def _leaves(key: str, then: object, now: object, usual: object) -> Iterator[Change]:
    if isinstance(then, dict) and isinstance(now, dict):
        defaults = usual if isinstance(usual, dict) else _source_defaults() if "table" in {*then, *now} else {}
        for name in dict.fromkeys([*now, *then]):
            default = defaults.get(name)
            yield from _leaves(f"{key}.{name}", then.get(name, default), now.get(name, default), default)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (before, after) in enumerate(zip(then, now, strict=True)):
            yield from _leaves(f"{key}.{number}", before, after, None)
    elif then != now:
        yield Change(key, _shown(then), _shown(now))


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def require_same_start(recipe: Recipe, identity: Mapping[str, str]) -> None:
    """Raises OpenBlipError when files that a run started from have changed since its identity was told."""
    then = {name: digest for name, digest in identity.items() if name.startswith(FILE)}
    changed = differences(then, digests_of(starting_files(recipe)))
    if changed:
        names = ", ".join(name.removeprefix(FILE) for name in changed)
        raise OpenBlipError(
            f"what the run started from has changed since: {names}. Put back what was there, and give the command "
            "again to have the trained model written"
        )


def starting_files(recipe: Recipe) -> dict[str, list[Path]]:
    """The files on this machine that a run starts from, under the keys that name them."""
    named = {key: getattr(recipe, key) for key in STARTING}
    if recipe.new is not None:
        named |= {"new.vision": recipe.new.vision, "new.bert": recipe.new.bert}
    if recipe.new_blip is not None:
        named |= {"new_blip.vision": recipe.new_blip.vision, "new_blip.bert": recipe.new_blip.bert}
    found = {
        key: sorted(_files_of(key, str(place), recipe.language_model_revision if key == "language_model" else None))
        for key, place in named.items()
        if place is not None
    }
    return {key: files for key, files in found.items() if files}


def digests_of(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """SHA-256 of files by name.

    Of all their bytes: times change with every copy, headers do not when a model is trained on. It takes less than
    reading the weights does, which a run does anyway (1.7 GB/s).

    Raises:
        OpenBlipError: one cannot be read.
    """
    found = {}
    for key, paths in files.items():
        for path in paths:
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while block := file.read(BLOCK):
                        digest.update(block)
            except OSError as error:
                raise OpenBlipError(f"{path} cannot be read ({error.strerror}): the run starts from it") from error
            found[f"{FILE}{path.name} of {key}"] = digest.hexdigest()
    return found


def _files_of(key: str, place: str, revision: str | None) -> list[Path]:
    path = Path(place).expanduser()
    if key == "init" and folder_of(place) is not None:
        return model_files(place, MODEL_FILES) or []
    if path.is_file():
        return [path]
    if key in HUB and not path.is_dir():
        return model_files(place, MODEL_FILES, revision) or []
    return model_files(str(path.absolute()), MODEL_FILES) or []  # a path, also where it is called as a model is


def _without_defaults(identity: Mapping[str, str]) -> dict[str, str]:
    """An identity without the settings that are what they are where a recipe does not say them."""
    found = dict(identity)
    for name, usual in _defaults().items():
        value = _value(identity.get(name))
        if isinstance(usual, dict) and isinstance(value, dict):
            found[name] = json.dumps(_sources_without_defaults(_without_usual(value, usual)), sort_keys=True)
        elif name in identity and value == usual:
            del found[name]
    if "data" in identity:
        found["data"] = json.dumps(_sources_without_defaults({"data": _value(identity["data"])}), sort_keys=True)
    return found


def _without_usual(value: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {key: setting for key, setting in value.items() if key not in usual or setting != usual[key]}


def _sources_without_defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section whose `data`, one source or several, say what is not their default."""
    found, data = dict(section), section.get("data")
    if isinstance(data, dict):
        found["data"] = _without_usual(data, _source_defaults())
    elif isinstance(data, list):
        found["data"] = [
            _without_usual(source, _source_defaults()) if isinstance(source, dict) else source for source in data
        ]
    return found


@cache
def _defaults() -> dict[str, Any]:
    """Of a recipe's keys, as they are told."""
    return _defaults_of(Recipe)


@cache
def _source_defaults() -> dict[str, Any]:
    return _defaults_of(DataSource)


def _defaults_of(section: type[Recipe] | type[DataSource]) -> dict[str, Any]:
    found = {}
    for key in fields(section):
        if key.default is not MISSING:
            found[key.name] = key.default.value if isinstance(key.default, Enum) else key.default
        elif key.default_factory is not MISSING:
            found[key.name] = asdict(key.default_factory())
    return found


def _value(stored: object) -> Any:
    try:
        return json.loads(stored) if isinstance(stored, str) else stored
    except ValueError:  # no setting: a digest, or a file that somebody else made
        return stored


def _evaluated(recipe: Recipe) -> dict[str, str]:
    """What decides which weights are the best so far; how many samples are shown does not."""
    if recipe.evaluation.data is None:
        return {}
    kept = {name: value for name, value in asdict(recipe.evaluation).items() if name not in ("samples", "patience")}
    return {"evaluation": json.dumps(kept), PATIENCE: str(recipe.evaluation.patience)}


def _waits_longer(then: str | None, now: str | None) -> bool:
    """A run that waits longer would have come here, too; one that waits less might have stopped before."""
    if then is None or now is None or not (then.isdigit() and now.isdigit()):
        return False
    return int(now) == 0 or 0 < int(then) < int(now)
