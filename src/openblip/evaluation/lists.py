"""Lists that an evaluation chooses from: answers to questions, templates around labels, names of labels."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from openblip.data.sources.cells import encodable
from openblip.data.sources.json_rows import load_json, reading
from openblip.data.sources.paths import check_path
from openblip.data.zoo.entries import data_home
from openblip.errors import DownloadError, OpenBlipError
from openblip.fetch import fetch, is_offline
from openblip.images.sources import is_address

FETCHED = "fetched"
"""The folder below the root of all data sets where lists from the web are kept."""


ANSWERS, TEMPLATES, NAMES = "questions.answer_list", "classification.templates", "classification.names"
"""Keys of a recipe that name a list."""
HINTS = {
    ANSWERS: "check the path, or get the lists of coco_vqa, ok_vqa and aok_vqa with `openblip datasets download NAME`",
    TEMPLATES: "write one, with a template such as 'a drawing of a {label}' in each line",
    NAMES: "write one, with the name of a class in each line, in the order of the sorted labels",
}


def find_list(name: str, data_root: str, key: str) -> Path:
    """The file of a list: a path below the root of all data sets, or an http(s) address, which is fetched once.

    Args:
        key: of the recipe that names it.

    Raises:
        OpenBlipError: there is no such file.
        DownloadError: the address cannot be fetched.
    """
    if is_address(name):
        kept = Path(data_root) / FETCHED / f"{sha256(name.encode()).hexdigest()[:12]}.json"
        if is_offline() and not kept.is_file():
            raise DownloadError(f"{key} is {name}, and HF_HUB_OFFLINE forbids to fetch it: unset that, or give a file")
        return fetch(name, kept, name=name)
    check_path(name, key)
    for path in (Path(data_root) / name, data_home() / name):
        if path.is_file():
            return path
    raise OpenBlipError(f"{key}: there is no file {Path(data_root) / name}: {HINTS[key]}")


def read_list(path: Path, what: str) -> list[str]:
    """Texts of a .json file's list, or the lines of any other file; what is empty or repeats is left out.

    Args:
        what: the texts are called, as "answers".

    Raises:
        OpenBlipError: the file cannot be read, holds anything else, or no text at all.
    """
    if _is_json(path):
        content = load_json(path)
        if not isinstance(content, list):
            raise OpenBlipError(f"{path} holds no list: {what} are a JSON list of texts, or lines of a .txt file")
        found = _texts(content, path, what)
    else:
        with reading(path):
            found = path.read_text(encoding="utf-8-sig").splitlines()
    kept = list(dict.fromkeys(text for text in found if text.strip()))
    if not kept:
        raise OpenBlipError(f"{path} has no {what}: give at least one")
    return kept


def read_names(path: Path, labels: Sequence[str]) -> list[str]:
    """What each label is called.

    An object in a .json file says it label by label; a list there, or the lines of any other file, are in the order of
    the sorted labels, as the classes of ImageNet are counted.

    Args:
        labels: the labels that need a name, sorted.

    Raises:
        OpenBlipError: the file cannot be read, or lacks a name.
    """
    if not _is_json(path):
        with reading(path):
            names = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    else:
        content = load_json(path)
        if isinstance(content, dict):
            missing = [label for label in labels if label not in content]
            if missing:
                raise OpenBlipError(f"{path} has no name for {len(missing)} labels, the first being {missing[0]!r}")
            content = [content[label] for label in labels]
        if not isinstance(content, list):
            raise OpenBlipError(f"{path} holds no names: give a JSON object of labels and names, or a list")
        names = _texts(content, path, "names")
    if len(names) != len(labels):
        raise OpenBlipError(
            f"{path} has {len(names)} names for {len(labels)} labels: give one for each, in the order of the labels"
        )
    return names


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _texts(values: Sequence[object], path: Path, what: str) -> list[str]:
    for place, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise OpenBlipError(f"{path}, entry {place}, is no text: {what} are a JSON list of texts")
    return [encodable(str(value)) for value in values]
