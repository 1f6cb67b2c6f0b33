"""Folders of pictures: captions in text files beside them, or the names of classes as subfolders."""

from __future__ import annotations

from pathlib import Path

from openblip.data.sample import Sample
from openblip.errors import ImageError, OpenBlipError
from openblip.images.sources import find_images


def read_folder(folder: Path) -> list[Sample]:
    """A sample for each picture in a folder and its subfolders, `img2` before `img10`.

    `dog.jpg` has the lines of `dog.txt` as captions. Where no picture has such a file, those in subfolders have
    the first subfolder's name as their class.

    Raises:
        OpenBlipError: there is no such folder, no picture in it, or nothing says anything about them.
    """
    if not folder.is_dir():
        raise OpenBlipError(f"there is no folder {folder}: check the path")
    try:
        paths = [Path(found) for found in find_images([folder], recursive=True)]
    except ImageError as error:
        raise OpenBlipError(str(error)) from error
    captions = {path: _captions_beside(path) for path in paths}
    if any(captions.values()):
        return [Sample((path,), _name(path, folder), captions=captions[path]) for path in paths]
    labels = {path: path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
    if not labels:
        raise OpenBlipError(
            f"nothing says anything about the pictures in {folder}: put a text file with captions beside each, "
            "or pictures of one class into one subfolder"
        )
    return [Sample((path,), _name(path, folder), label=labels.get(path, "")) for path in paths]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _captions_beside(picture: Path) -> tuple[str, ...]:
    try:
        text = picture.with_suffix(".txt").read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ()
    return caption_lines(text)


def caption_lines(text: str) -> tuple[str, ...]:
    """A caption a line; empty lines are none."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
