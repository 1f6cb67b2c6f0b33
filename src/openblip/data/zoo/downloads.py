"""Which annotation files of the zoo are on this machine, and downloading the public ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openblip.data.zoo.data_sets import ZOO, find_entry
from openblip.data.zoo.entries import AnnotationFile, DatasetEntry, Place, data_home, find_layout, split_has_media
from openblip.errors import DownloadError
from openblip.fetch import Progress, check_room, digest, fetch, is_offline, remote_size


@dataclass(frozen=True)
class Status:
    """What is on this machine of a data set.

    Attributes:
        layout: the layout of its annotations; None if there are none.
        splits: the splits whose annotations are here.
        media: the folder of images or videos; has_media: whether it exists and is not empty.
    """

    entry: DatasetEntry
    layout: str | None
    splits: tuple[str, ...]
    media: Path
    has_media: bool

    @property
    def here(self) -> str:
        """What is here, in a few words."""
        what = "videos" if self.entry.is_video else "images"
        parts = ([", ".join(self.splits)] if self.splits else []) + ([what] if self.has_media else [])
        return "; ".join(parts) or "no"

    @property
    def ways(self) -> str:
        """How to get it, in a few words."""
        if not self.entry.public_files:
            return "request it" if self.entry.needs_form else "see its page"
        return "download; request the images" if self.entry.needs_form else "download"


def status_of(entry: DatasetEntry, root: Path | None = None) -> Status:
    """Looks for the files, but opens none."""
    place = Place(root or data_home())
    layout, media = find_layout(entry, place), place.media_of(entry)
    splits: tuple[str, ...] = ()
    if layout is not None:
        splits = tuple(
            split
            for split, files in layout.splits.items()
            if all(place.file(file).is_file() for file in files)
            and (files or split_has_media(media, split, len(layout.splits)))
        )
    has_media = media.is_dir() and any(media.iterdir())
    return Status(entry, layout.title if layout is not None else None, splits, media, has_media)


def list_status(root: Path | None = None) -> list[Status]:
    """Every data set of the zoo."""
    return [status_of(entry, root) for entry in ZOO]


def download_annotations(name: str, to: Path | None = None, progress: Progress | None = None) -> list[Path]:
    """Download the missing public annotation files of a data set, and return the paths of all of them.

    Interrupted downloads continue where they stopped. The free space on the disk is checked first, if the server tells
    the size; length and hash are checked afterwards, if they are known.

    Args:
        to: the root of all data sets, by default `data_home()`.
        progress: see `openblip.fetch.fetch`.

    Raises:
        OptionError: there is no such data set.
        DownloadError: it has no public files, or they cannot be downloaded.
    """
    entry = find_entry(name)
    if not entry.public_files:
        raise DownloadError(
            f"{entry.name} has no file that anyone can download: `openblip datasets {entry.name}` says how to get it"
        )
    place = Place(to or data_home())
    missing = [file for file in entry.public_files if not place.file(file).is_file()]
    if missing and is_offline():
        raise DownloadError(
            f"annotations of {entry.name} are not on this machine, and HF_HUB_OFFLINE forbids to fetch them: unset that"
        )
    sizes = [remote_size(file.url) for file in missing]
    check_room(place.root, sum(size or 0 for size in sizes), entry.name)
    return [_get(file, place.file(file), progress) for file in entry.public_files]


def _get(file: AnnotationFile, path: Path, progress: Progress | None) -> Path:
    if path.is_file():
        if file.md5 and digest(path, "md5") != file.md5:
            raise DownloadError(f"{path} is not the published file, its MD5 differs: delete it and download again")
        return path
    fetch(file.url, path, md5=file.md5, progress=progress)
    if path.suffix == ".json" and _starts_as_web_page(path):
        path.unlink()
        raise DownloadError(
            f"{file.url} gave a web page instead of a file: check the network, or log in where it asks to"
        )
    return path


def _starts_as_web_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"<")
