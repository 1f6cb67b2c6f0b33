"""Folders of images, with captions in files beside them, or with one subfolder per class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from openblip.data.sample import Sample
from openblip.data.sources.beside import TEXTS, sample_of, split_name, text_of
from openblip.data.sources.json_rows import reading
from openblip.data.sources.records import tell_skipped
from openblip.errors import ImageError, OpenBlipError
from openblip.images.sources import find_images


def read_folder(folder: Path, skipped: list[str] | None = None) -> list[Sample]:
    """A sample for each image in a folder and its subfolders, `img2` before `img10`.

    The texts of `dog.jpg` are in `dog.txt`, `dog.caption`, `dog.jpg.txt` or `dog.json`, in upper or lower case. If no
    image has such a file, the first subfolder's name is the class of an image.

    Args:
        skipped: gets a sentence for each image whose texts cannot be read, and one about texts without an image;
            by default they are logged.

    Raises:
        OpenBlipError: there is no such folder, no image in it, or nothing says anything about them.
    """
    if not folder.is_dir():
        raise OpenBlipError(f"there is no folder {folder}: check the path")
    try:
        paths = [Path(found) for found in find_images([folder], recursive=True)]
    except ImageError as error:
        raise OpenBlipError(str(error)) from error
    beside = _texts_beside({path.parent for path in paths})
    samples: list[Sample] = []
    left_out: list[str] = []
    for path in paths:
        texts = beside.pop(split_name(path.as_posix())[0], {})
        try:
            samples.append(_sample(path, path.relative_to(folder).as_posix(), texts))
        except OpenBlipError as error:
            left_out.append(f"{path} is left out: {error}")
    is_said = bool(left_out) or any(sample.captions or sample.question or sample.label for sample in samples)
    if not is_said:
        samples = _with_classes(folder, paths, samples)
    alone = [path for texts in beside.values() for path in texts.values()]
    if alone:
        left_out.append(f"{folder} has {len(alone)} texts without an image of their name ({alone[0]} first)")
    tell_skipped(left_out, skipped)
    return samples


def _texts_beside(folders: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Text files by the name that they share with their image, and by suffix."""
    found: dict[str, dict[str, Path]] = {}
    for folder in sorted(folders):
        with reading(folder / "*"):
            paths = sorted(folder.iterdir())
        for path in paths:
            key, ending = split_name(path.as_posix())
            if ending in TEXTS and not path.name.startswith(".") and path.is_file():
                found.setdefault(key, {}).setdefault(ending, path)
    return found


def _sample(image: Path, name: str, paths: Mapping[str, Path]) -> Sample:
    texts = {ending: text_of(path.name, path.stat().st_size, path.read_bytes) for ending, path in paths.items()}
    # A file's name may be of bytes that are no text; an id is written to files.
    return sample_of(image, name.encode("utf-8", "backslashreplace").decode(), texts)


def _with_classes(folder: Path, paths: Sequence[Path], samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the names of subfolders as labels."""
    labels = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    if not any(labels):
        raise OpenBlipError(
            f"nothing says anything about the images in {folder}: put a text file with captions beside each, "
            "or images of one class into one subfolder"
        )
    return [replace(sample, label=label) for sample, label in zip(samples, labels, strict=True)]
