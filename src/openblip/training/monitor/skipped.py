"""Images, and tars, that a run did without."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from openblip.data.image_files import BadImage
from openblip.saving import replacing

SKIPPED_FILE = "skipped.csv"


def write_skipped(folder: Path, bad: Sequence[BadImage]) -> None:
    """List them in the folder, after those that are listed there; nothing is written when there are none."""
    if not bad:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SKIPPED_FILE
    problems = _listed(path)
    for each in bad:
        # What is told in a sentence begins with the image, which has a column of its own here.
        problems.setdefault(str(each.image), each.problem.removeprefix(f"{each.image}: "))
    # A name of a file may be of bytes that are no text.
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "problem"])
        writer.writerows(problems.items())


def _listed(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row[0] != "image"}
