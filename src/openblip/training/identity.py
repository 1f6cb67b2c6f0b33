"""What a run is told by, so that it goes on from no other run's checkpoint.

A key may change while a run is stopped if going on from its checkpoint gives what a run with the new value would have
given from its first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from openblip.checkpoints.origin import model_files
from openblip.checkpoints.zoo import BUNDLED
from openblip.data.pairs import ImageText
from openblip.errors import OpenBlipError
from openblip.training.recipe import Recipe

FREE = (
    "output name storage data_root device parallel threads cache gradient_checkpointing log_every save_every watching "
    "bad_pictures evaluation"
).split()
"""Keys that may change while a run is stopped: where it computes and what it shows, not what it learns."""
STARTING = ("init", "decoder", "fresh_qformer", "language_model")
"""Keys that name files that a run starts from. Where these are on this machine they are told by their content."""
MODEL_FILES = frozenset({".safetensors", ".bin", ".pth", ".json", ".txt", ".model"})
"""What models are made of. A run's own checkpoints, which may lie beside them, are .pt."""
PATIENCE = "evaluation.patience"
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
    told = {name: json.dumps(value, default=lambda choice: choice.value) for name, value in settings.items()}
    digest = hashlib.sha256()
    for group in images:
        for image in group:
            said = (image.captions, image.statements, image.questions, image.made_questions)
            digest.update(repr((image.image.name, said)).encode("utf-8", "backslashreplace"))
        digest.update(b"|")
    # Whether features are cached changes what is seen of a picture; where they are kept does not.
    told |= {"cached": str(recipe.cache is not None), "rows of the data": digest.hexdigest()}
    return told | _evaluated(recipe) | digests_of(files)


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of two identities keeps the second from going on where the first was."""
    return [
        key
        for key in dict.fromkeys([*now, *then])
        if then.get(key) != now.get(key) and not (key == PATIENCE and _waits_longer(then.get(key), now.get(key)))
    ]


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
    found = {key: sorted(_files_of(str(place))) for key, place in named.items() if place is not None}
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


def _files_of(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if place != BUNDLED and path.is_file():
        return [path]
    return model_files(place, MODEL_FILES) or []


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
