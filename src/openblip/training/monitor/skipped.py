"""List the images and tars that a run had to leave out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from openblip.data.image_files import BadImage
from openblip.saving import replacing

SKIPPED_FILE = "skipped.csv"


def write_skipped(folder: Path, bad: Sequence[BadImage]) -> int:
    """Add bad images to the list in the folder; returns how many are new. Nothing is written if there are none."""
    if not bad:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SKIPPED_FILE
    problems = _listed(path)
    before = len(problems)
    for each in bad:
        # A problem begins with the name of the image, which has its own column here.
        problems.setdefault(str(each.image), each.problem.removeprefix(f"{each.image}: "))
    # A file name may have bytes that are not UTF-8.
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "problem"])
        writer.writerows(problems.items())
    return len(problems) - before


def _listed(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row[0] != "image"}
