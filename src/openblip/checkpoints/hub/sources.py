"""What models are read from: files of LAVIS' server, repositories of the hub; and where each lies on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.checkpoints.hub.repositories import Order, fetch_order, find_repository, hub_home, is_complete, look_up

if TYPE_CHECKING:
    from openblip.fetch import Progress

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"


@dataclass(frozen=True)
class WebFile:
    """A file of weights on a web server, LAVIS' mostly.

    Attributes:
        supplies: which parts of a model are taken from it.
        size: bytes, to about one percent; the server knows exactly.
        base: what its address begins with; None for the place of BLIP-2's.
        sha256: in hexadecimal, where it is known.
    """

    name: str
    supplies: tuple[str, ...]
    size: int
    base: str | None = None
    sha256: str = ""

    @property
    def url(self) -> str:
        return (LAVIS_URL if self.base is None else self.base) + self.name


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face hub.

    Attributes:
        name: owner and name.
        supplies: which parts of a model are taken from it; none when only its tokenizer is.
        size: bytes of what is fetched, to about one percent; 0 when not known.
    """

    name: str
    supplies: tuple[str, ...]
    size: int


Source = WebFile | Repository


@dataclass(frozen=True)
class LocalFile:
    """Where one of a model's sources lies: a file of LAVIS', or the folder of a repository."""

    source: Source
    path: Path


@dataclass(frozen=True)
class Place:
    """A source and where it belongs on this machine.

    Attributes:
        revision: of a repository: branch, tag or commit; None for the newest.
        cache_dir: instead of the hub's cache, and of `$HF_HOME/openblip` for LAVIS' files.
        local_dir: the folder for this very source; None for the cache.
    """

    source: Source
    revision: str | None = None
    cache_dir: Path | None = None
    local_dir: Path | None = None

    @property
    def has_weights(self) -> bool:
        return bool(self.source.supplies)

    @property
    def web_folder(self) -> Path:
        return self.local_dir or (self.cache_dir or hub_home() / "openblip") / "lavis"

    def find(self) -> Path | None:
        """The file or folder, when all of it is there. No network is used."""
        name = self.source.name
        if isinstance(self.source, Repository):
            if self.local_dir is None:
                return find_repository(name, self.has_weights, self.revision, self.cache_dir)
            return self.local_dir if is_complete(self.local_dir, self.has_weights) else None
        folders = [self.web_folder]
        if self.cache_dir is None and self.local_dir is None:
            folders += [_torch_folder(), Path("~/.cache/clip").expanduser()]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def missing_bytes(self) -> int:
        """About how much of a web file is still to come."""
        from openblip.fetch import part_of

        part = part_of(self.web_folder / self.source.name)
        if self.find() is not None:
            return 0
        return max(0, self.source.size - (part.stat().st_size if part.is_file() else 0))

    def look_up(self, include: Sequence[str], exclude: Sequence[str]) -> Order:
        """Ask the hub what there is to fetch of a repository; see `repositories.look_up`."""
        return look_up(
            self.source.name,
            weights=self.has_weights,
            include=include,
            exclude=exclude,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_dir=self.local_dir,
        )

    def fetch(self, order: Order | None, progress: Progress | None) -> Path:
        if isinstance(self.source, WebFile):
            from openblip.fetch import fetch

            target = self.web_folder / self.source.name
            return self.find() or fetch(self.source.url, target, sha256=self.source.sha256, progress=progress)
        return fetch_order(order or self.look_up((), ()), progress)


def find_all(places: Sequence[Place]) -> tuple[LocalFile, ...] | None:
    """All sources as they lie on this machine; None when any is missing. No network is used."""
    found = [LocalFile(place.source, path) for place in places if (path := place.find()) is not None]
    return tuple(found) if len(found) == len(places) else None


def _torch_folder() -> Path:
    """Where LAVIS itself has put its files, if it was ever used here; CLIP's lie where OpenAI's code puts them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub" / "checkpoints"
