"""JSON of data sets: a list of rows, or one row per line. The content decides, not the name of the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openblip.errors import OpenBlipError
from openblip.files import check_file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises OpenBlipError, which names the file, if it is missing, not a regular file, unreadable or not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise OpenBlipError(f"{path} is a folder or a device, not a file: check the path")
        if path.exists():
            check_file(path)
        yield
    except FileNotFoundError:
        raise OpenBlipError(f"there is no file {path}: check the path") from None
    except OSError as error:
        raise OpenBlipError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
    except UnicodeDecodeError as error:
        raise OpenBlipError(f"{path} is not UTF-8 ({error}): save it again as that") from error
    except ValueError as error:
        raise OpenBlipError(f"{str(path)!r} is no path ({error}): check it") from error


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises OpenBlipError, which begins with `place`, if it is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise OpenBlipError(f"{place} is JSON that is nested too deeply: this is not the file it should be") from None
    except ValueError as error:
        raise OpenBlipError(f"{place} is not JSON, or cut short ({error}): get it again") from error


def split_object(text: str, place: str) -> dict[str, str]:
    """The fields of a JSON object, each with the text of its value as it is written: `1.00` stays `1.00`.

    Raises:
        OpenBlipError: as `parse_json`, or it is no object.
    """
    if not isinstance(parse_json(text, place), dict):
        raise OpenBlipError(f"{place} is no JSON object: write {{...}} a line")
    decoder = json.JSONDecoder()
    fields: dict[str, str] = {}
    at = _past_space(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = decoder.raw_decode(text, _past_space(text, at))
        start = _past_space(text, _past_space(text, at) + 1)  # behind the colon
        _, at = decoder.raw_decode(text, start)
        fields[name] = text[start:at]
        at = _past_space(text, at)
        at += text[at] == ","
    return fields


def _past_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises OpenBlipError if the file is missing or not JSON."""
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    return parse_json(text, str(path))


def read_values(path: Path, errors: str = "strict") -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place for error messages; a row may be any JSON value.

    Args:
        errors: how to handle bytes that are not UTF-8, as for `open`.

    Raises:
        OpenBlipError: the file cannot be read or is not JSON.
    """
    with reading(path), path.open(encoding="utf-8-sig", errors=errors) as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if first.lstrip().startswith("["):
            listed = parse_json(file.read(), str(path))
            for number, value in enumerate(listed, start=1):
                yield f"{path}, entry {number},", value
            return
        alone = _whole(path, errors) if first and not _is_json(first) else None
        if alone is not None:
            yield str(path), alone
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number},"
                yield place, parse_json(line, place)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(path: Path, errors: str) -> Any:
    """The object that fills the whole file; None if the file holds anything else."""
    text = path.read_text(encoding="utf-8-sig", errors=errors)
    return json.loads(text) if _is_json(text) else None
