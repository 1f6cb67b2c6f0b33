"""The entries of the data-set zoo, and how to find a data set on disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import overload

from openblip.data.sample import Sample
from openblip.data.zoo.layouts import Reader
from openblip.errors import OpenBlipError, OptionError

HOME_VARIABLE = "OPENBLIP_DATA"


def data_home() -> Path:
    """The default folder of all data sets: `$OPENBLIP_DATA`, or LAVIS' cache, so that its copies are found."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.cache/lavis").expanduser()


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file.

    Attributes:
        path: its path in LAVIS, below the root of all data sets.
        url: its public address; empty if it needs a form, an archive or a script.
        md5: in hexadecimal; empty if none is published.
    """

    path: str
    url: str = ""
    md5: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Layout:
    """One format of the annotations of a data set.

    Attributes:
        title: who publishes it.
        splits: the files of each split, all of which are needed.
        read: the reader, which makes samples from the files of a split.
    """

    title: str
    splits: Mapping[str, tuple[AnnotationFile, ...]]
    read: Reader


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the zoo.

    Attributes:
        kind: the kind of its rows: captions, questions, pairs to judge or classes, of images or videos.
        media: the folder of images or videos, below the root of all data sets.
        size: its size according to its authors.
        licence: the licences of annotations and images.
        media_source: how to get the images or videos.
        needs_form: whether you have to apply for the images or videos.
        note: what is special about it.
        layouts: its layouts, most likely first.
        extras: other files that LAVIS downloads with it; rows do not need them.
    """

    name: str
    title: str
    kind: str
    media: str
    size: str
    licence: str
    page: str
    media_source: str
    citation: str
    needs_form: bool = False
    note: str = ""
    layouts: tuple[Layout, ...] = ()
    extras: tuple[AnnotationFile, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.layouts[0].splits)

    @property
    def is_video(self) -> bool:
        return "video" in self.kind

    @property
    def public_files(self) -> tuple[AnnotationFile, ...]:
        """The annotation files with a public address, each once."""
        files = (file for layout in self.layouts for files in layout.splits.values() for file in files)
        return tuple(dict.fromkeys(file for file in (*files, *self.extras) if file.url))


class Dataset(Sequence[Sample]):
    """The rows of one split. The annotations are read with the first row; images are not read.

    Attributes:
        files: the annotation files.
        media: the folder of images or videos.
    """

    def __init__(self, name: str, split: str, layout: Layout, files: Sequence[Path], media: Path) -> None:
        self.name = name
        self.split = split
        self.layout = layout
        self.files = tuple(files)
        self.media = media
        self._rows: list[Sample] | None = None

    @property
    def rows(self) -> list[Sample]:
        """All rows.

        Raises:
            OpenBlipError: an annotation file is missing or has another layout.
        """
        if self._rows is None:
            missing = [str(path) for path in self.files if not path.is_file()]
            if missing:
                raise OpenBlipError(
                    f"{self.name} has no {' and no '.join(missing)}: get the split {self.split} with "
                    f"`openblip datasets download {self.name}`"
                )
            try:
                self._rows = self.layout.read(self.files, self.media, self.split)
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                OSError,
                RuntimeError,
                TypeError,
                ValueError,
                csv.Error,
            ) as error:
                raise OpenBlipError(
                    f"{', '.join(map(str, self.files))} cannot be read as annotations of {self.name} "
                    f"({self.layout.title}; {type(error).__name__}: {error}): this is not the file it should be"
                ) from error
        return self._rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"<{self.name}, split {self.split}, {self.layout.title}'s annotations, images in {self.media}>"


@dataclass(frozen=True)
class Place:
    """Where to look for a data set.

    Attributes:
        root: the root of all data sets.
        media, annotations: folders that replace the default ones below the root. `media` may be a pattern of tars.
    """

    root: Path
    media: Path | None = None
    annotations: Path | None = None

    def file(self, file: AnnotationFile) -> Path:
        if self.annotations is None:
            return self.root / file.path
        if self.annotations.is_file() and self.annotations.name == file.name:
            return self.annotations
        nested = self.annotations / file.path
        return nested if nested.is_file() else self.annotations / file.name

    def media_of(self, entry: DatasetEntry) -> Path:
        return self.media if self.media is not None else self.root / entry.media


def find_layout(entry: DatasetEntry, place: Place) -> Layout | None:
    """The first layout that has a split on this machine.

    Splits of different layouts are never mixed: some of Karpathy's training images are in COCO's validation set.
    """

    def is_there(layout: Layout) -> bool:
        if not any(layout.splits.values()):
            return _has_media(place.media_of(entry))
        return any(all(place.file(file).is_file() for file in files) for files in layout.splits.values())

    return next((layout for layout in entry.layouts if is_there(layout)), None)


def open_dataset(entry: DatasetEntry, place: Place) -> dict[str, Dataset]:
    """The splits of a data set that are on this machine.

    Raises:
        OpenBlipError: it has no annotation files on this machine; the message names the folder.
    """
    layout = find_layout(entry, place)
    media = place.media_of(entry)
    if layout is None:
        first = entry.layouts[0]
        files = [place.file(file) for files in first.splits.values() for file in files]
        if not files:
            raise OpenBlipError(
                f"{entry.name} is not at {media}: give its folder; `openblip datasets {entry.name}` says more"
            )
        raise OpenBlipError(
            f"{entry.name} has no annotations in {files[0].parent} ({files[0].name} and others): get them with "
            f"`openblip datasets download {entry.name}`, or say where they are"
        )
    return {
        split: Dataset(entry.name, split, layout, [place.file(file) for file in files], media)
        for split, files in layout.splits.items()
        if files or split_has_media(media, split, len(layout.splits))
    }


def split_has_media(media: Path, split: str, splits: int) -> bool:
    """Whether a split without annotation files has images: in its own folder, if there are several splits."""
    return splits == 1 or (media / split).is_dir()


def _has_media(media: Path) -> bool:
    return media.exists() or any(mark in media.name for mark in "*?[{")


def unknown_name(name: str, near: Callable[[str], Sequence[str]]) -> OptionError:
    """The error for a name that is not in the zoo."""
    names = near(name)
    hint = f"did you mean {' or '.join(names)}?" if names else "`openblip datasets` lists them all"
    return OptionError(f"there is no data set {name!r}: {hint}")
