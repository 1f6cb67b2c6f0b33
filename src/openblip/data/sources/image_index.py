"""Find the images that annotation files name, wherever they are below a folder.

Files name images in many ways: by a path from somebody else's machine (`C:\\train\\a.png`), by a path below a folder
that is laid out differently (`coco/train2017/000000033471.jpg`), without a suffix (kohya's keys), by a number (VQA).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from openblip.data.sources.json_rows import reading
from openblip.data.sources.paths import check_path
from openblip.errors import OpenBlipError
from openblip.images.sources import IMAGE_SUFFIXES, is_address

_NUMBERED = re.compile(r"(?:\w*_)?(\d{12})|(\d+)", re.ASCII)
"""Stems of COCO's images of 2014 and 2017 and of VQA's abstract scenes, and plain numbers."""
_LONGEST_NUMBER = 18
_DRIVE = re.compile(r"[A-Za-z]:/")


class ImageIndex:
    """The images in a folder and its subfolders; the folder is listed once, when the first one is looked for.

    Attributes:
        folder: the folder; a name that is not found is a path below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Path] = {}
        self._listed: tuple[dict[str, list[str]], dict[str, list[str]], dict[int, list[str]]] | None = None

    def find(self, name: str, place: str) -> Path:
        """The image of this name; equal names give one object.

        It is the path itself, below the folder or absolute; otherwise the file below the folder with the same file
        name, of several the one with most of the path; without an image's suffix, the one with this stem; for COCO's
        names and plain numbers, the one with this number.

        Args:
            place: where the name is from, for error messages.

        Raises:
            OpenBlipError: it is no path, or several files fit equally well.
        """
        if name not in self._found:
            self._found[name] = self._look_for(name.strip(), place)
        return self._found[name]

    def _look_for(self, name: str, place: str) -> Path:
        if not name:
            raise OpenBlipError(f"{place} names no image: fill it in or leave the entry out")
        if is_address(name):
            raise OpenBlipError(f"{place} has a web address for an image: download it and name the file")
        check_path(name, place)
        direct = self.folder / Path(name).expanduser() if name.startswith("~/") else self.folder / name
        if direct.is_file():
            return direct
        wanted = PurePosixPath(_DRIVE.sub("/", name.replace("\\", "/")))
        fitting = self._fitting(wanted)
        best = max((_common_tail(wanted.parts, path) for path in fitting), default=0)
        fitting = [path for path in fitting if _common_tail(wanted.parts, path) == best]
        if len(fitting) > 1:
            raise OpenBlipError(
                f"{place} names the image {name}, and {self.folder} has {len(fitting)} that may be meant "
                f"({fitting[0]}, {fitting[1]}): give the folder of the right ones"
            )
        return self.folder / (fitting[0] if fitting else str(wanted).lstrip("/"))

    def _fitting(self, wanted: PurePosixPath) -> list[str]:
        if self._listed is None:
            self._listed = _listed(self.folder)
        names, stems, numbers = self._listed
        fitting = names.get(wanted.name, [])
        is_named = wanted.suffix.lower() in IMAGE_SUFFIXES
        if not fitting and not is_named:
            fitting = stems.get(wanted.name, [])
        if not fitting and (number := _number(wanted.stem if is_named else wanted.name)) is not None:
            fitting = numbers.get(number, [])
        return fitting


def _listed(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[int, list[str]]]:
    """Paths below the folder by file name, by stem and by number."""
    names: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    numbers: dict[int, list[str]] = {}
    for path in _images_below(folder):
        name = path.rpartition("/")[2]
        stem = name.rpartition(".")[0]
        names.setdefault(name, []).append(path)
        stems.setdefault(stem, []).append(path)
        if (number := _number(stem)) is not None:
            numbers.setdefault(number, []).append(path)
    return names, stems, numbers


def _images_below(folder: Path) -> Iterator[str]:
    """Paths below the folder in order; hidden files and folders are left out, and links in a circle followed once."""
    left = [""]
    seen = set()
    while left:
        below = left.pop()
        with reading(folder / "*"):
            try:
                entries = sorted(os.scandir(folder / below), key=lambda entry: entry.name)
            except (NotADirectoryError, FileNotFoundError, PermissionError):
                continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in seen:
                    seen.add(real)
                    folders.append(path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield path
        left += reversed(folders)


def _number(stem: str) -> int | None:
    found = _NUMBERED.fullmatch(stem)
    digits = found and (found[1] or found[2])
    return int(digits) if digits and len(digits) <= _LONGEST_NUMBER else None


def _common_tail(wanted: Sequence[str], path: str) -> int:
    """How many names two paths share, counted from the end, the file name not compared."""
    count = 0
    for one, other in zip(reversed(wanted[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count
