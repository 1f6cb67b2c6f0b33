"""The folder OUT.openblip beside an output: what is done of it so far, and what command does it.

`job.json` says what decides the content of the output, `rows.jsonl` what is done (see `journal`). The folder is one
command's at a time, and a command whose settings differ from those of `job.json` is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from openblip.errors import OpenBlipError
from openblip.saving import held, put_names_on_disk, write_text

FOLDER = ".openblip"
JOB, FINISHED, ROWS = "job.json", "finished.json", "rows.jsonl"
OUTPUTS = "outputs.json"
"""The files that take the places of several outputs, by their content; there only while they do."""
FORMAT = 1
FILES = "the files of "
"""Begins the settings that are states of files; None where they were not on this machine yet."""


def folder_of(output: Path) -> Path:
    """Where what is done of an output is kept."""
    return output.with_name(output.name + FOLDER)


def held_for(folder: Path, output: Path) -> AbstractContextManager[None]:
    """See `openblip.saving.held`: the folder of an output is one command's."""
    return held(
        folder, lambda whose: f"another command is writing to {output}{whose}: wait for it, or give another --output"
    )


def identity_of(settings: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """What `job.json` holds.

    Args:
        settings: what decides the content of the output, by the names that the user has for it.
        rows: the number of all rows or images.
    """
    return json.loads(json.dumps({"format": FORMAT, "rows": rows, "settings": dict(settings)}))  # type: ignore[no-any-return]


def begin(folder: Path, identity: Mapping[str, Any]) -> None:
    """From now on the folder is of this job, of which nothing is done yet. Raises OSError if it cannot be written."""
    write_text(folder / JOB, json.dumps(identity, indent=1))
    put_names_on_disk(folder.parent)


def check_same(path: Path, output: Path, now: Mapping[str, Any], place: str | None = None) -> None:
    """Raises OpenBlipError, which names what differs, if the job that was begun is another one.

    Args:
        place: the folder of the job, if that is not on this machine alone.
    """
    then = read_identity(path)
    if then.get("format") != FORMAT:
        raise OpenBlipError(f"{path} is not of this version: delete the folder {path.parent} to begin anew")
    changed = changes(then["settings"], now["settings"])
    if then["rows"] != now["rows"]:
        changed.append(f"it had {then['rows']:,} rows, now {now['rows']:,}")
    if changed:
        raise OpenBlipError(
            f"{place or path.parent} holds the work of another command ({'; '.join(changed)}): give that command to go "
            f"on, delete this folder to begin anew, or give another --output than {output.name}"
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two commands, in the user's words."""
    found = []
    for name in dict.fromkeys([*now, *then]):
        before, after = then.get(name), now.get(name)
        if before == after or (name.startswith(FILES) and None in (before, after)):
            continue
        shown = name.startswith("-") and all(len(json.dumps(value)) < 80 for value in (before, after))
        was, is_now = ("left out" if value is None else str(value) for value in (before, after))
        found.append(f"{name} was {was}, now {is_now}" if shown else f"{name} changed")
    return found


def read_identity(path: Path) -> dict[str, Any]:
    """What a `job.json` or `finished.json` holds. Raises OpenBlipError if it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise OpenBlipError(f"{path} cannot be read ({error}): delete the folder {path.parent} to begin anew") from None


def clear(folder: Path, *more: str) -> None:
    """Remove what is kept; `more` names files beside the usual ones. What says that all was done goes last."""
    for name in (JOB, ROWS, *more, OUTPUTS, FINISHED):
        (folder / name).unlink(missing_ok=True)
