"""A model's name to its files on this machine: found where they already lie, or downloaded there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openblip.checkpoints.hub.repositories import (
    Order,
    fetch_order,
    find_repository,
    hub_home,
    is_complete,
    look_up,
    matches,
)
from openblip.checkpoints.zoo import (
    BUNDLED,
    LANGUAGE,
    PARTS,
    Repository,
    Source,
    WebFile,
    did_you_mean,
    find_model,
    nearest_names,
)
from openblip.errors import DownloadError
from openblip.fetch import Progress, check_room, fetch, is_offline, part_of

REPOSITORY_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
LAVIS_ARCHITECTURE = re.compile(r"(blip2|blip2_[a-z0-9_]+)/")


@dataclass(frozen=True)
class LocalFile:
    """Where one of a model's sources lies: a file of LAVIS', or the folder of a repository."""

    source: Source
    path: Path


def find_files(
    name: str, *, revision: str | None = None, cache_dir: Path | None = None, local_dir: Path | None = None
) -> tuple[LocalFile, ...] | None:
    """All sources of a model as they lie on this machine; None when any is missing. No network is used.

    Args:
        name: an official name (see `zoo`) or any repository of the hub. A bundled model has no sources.
        revision: of the repository; by default the newest that was downloaded.
        cache_dir, local_dir: as for `download`.

    Raises:
        DownloadError: neither an official name nor a repository's.
    """
    places = _places(name, revision, cache_dir, local_dir)
    found = [LocalFile(place.source, path) for place in places if (path := place.find()) is not None]
    return tuple(found) if len(found) == len(places) else None


def download(
    name: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LocalFile, ...]:
    """Fetch what is missing of a model; one that is there already is not asked for again.

    Interrupted downloads go on where they stopped. Room on the disk is checked first, length and hash afterwards.

    Args:
        name: an official name (see `zoo`) or any repository of the hub.
        include: patterns of file names; of a repository they replace the choice of what a model needs.
        exclude: patterns of what is left out.
        revision: branch, tag or commit of the repository.
        cache_dir: instead of the hub's cache, and of `$HF_HOME/openblip` for LAVIS' files.
        local_dir: puts plain files into this folder instead.
        progress: see `fetch`.

    Raises:
        DownloadError: no such model, no network, not allowed, no room, damaged files, or no file fits the patterns.
    """
    places = _places(name, revision, cache_dir, local_dir)
    if not include and not exclude:
        found = find_files(name, revision=revision, cache_dir=cache_dir, local_dir=local_dir)
        if found is not None:
            return found
    if is_offline():
        raise DownloadError(f"{name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset that")
    # First what there is to fetch, for all: nobody should learn of a full disk after an hour.
    orders: list[tuple[_Place, Order | None]] = []
    size = 0
    for place in places:
        if isinstance(place.source, Repository):
            order = place.look_up(include, exclude)
            if order.files:
                orders.append((place, order))
                size += order.size
        elif matches(place.source.name, include, exclude):
            orders.append((place, None))
            size += place.missing_bytes()
    if not orders and (include or exclude):
        raise DownloadError(f"no file of {name} fits these patterns: leave them out for all that it needs")
    if not orders:
        raise DownloadError(f"{name} holds no files of a model: check the name")
    check_room(local_dir or cache_dir or hub_home(), size, name)
    return tuple(LocalFile(place.source, place.fetch(order, progress)) for place, order in orders)


def download_words(name: str, progress: Progress | None = None) -> Path:
    """The folder with a model's vocabulary; what is missing of it is fetched, without any weights.

    Args:
        name: an official name (see `zoo`) or any repository of the hub.

    Raises:
        DownloadError: no such model, or its files cannot be had.
    """
    parts = [source for source in _sources(name) if isinstance(source, Repository)]
    # Of LAVIS' models the language model's repository, or that of the Q-Former's words.
    first = next((source for source in parts if LANGUAGE in source.supplies or not source.supplies), parts[0])
    place = _Place(Repository(first.name, (), 0), None, None, None)
    found = place.find()
    if found is not None:
        return found
    if is_offline():
        raise DownloadError(f"{first.name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset that")
    return place.fetch(None, progress)


@dataclass(frozen=True)
class _Place:
    """A source and where it belongs on this machine.

    Attributes:
        local_dir: the folder for this very source; None for the cache.
    """

    source: Source
    revision: str | None
    cache_dir: Path | None
    local_dir: Path | None

    @property
    def has_weights(self) -> bool:
        return bool(self.source.supplies)

    @property
    def web_folder(self) -> Path:
        return self.local_dir or (self.cache_dir or hub_home() / "openblip") / "lavis"

    def find(self) -> Path | None:
        name = self.source.name
        if isinstance(self.source, Repository):
            if self.local_dir is None:
                return find_repository(name, self.has_weights, self.revision, self.cache_dir)
            return self.local_dir if is_complete(self.local_dir, self.has_weights) else None
        folders = [self.web_folder]
        if self.cache_dir is None and self.local_dir is None:
            folders.append(_torch_folder())
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def missing_bytes(self) -> int:
        """About how much of a web file is still to come."""
        part = part_of(self.web_folder / self.source.name)
        if self.find() is not None:
            return 0
        return max(0, self.source.size - (part.stat().st_size if part.is_file() else 0))

    def look_up(self, include: Sequence[str], exclude: Sequence[str]) -> Order:
        name = self.source.name
        try:
            return look_up(
                name,
                weights=self.has_weights,
                include=include,
                exclude=exclude,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_dir=self.local_dir,
            )
        except DownloadError as error:
            if find_model(name) is None and nearest_names(name):
                raise DownloadError(f"{error}; {did_you_mean(name)}") from error
            raise

    def fetch(self, order: Order | None, progress: Progress | None) -> Path:
        if isinstance(self.source, WebFile):
            return self.find() or fetch(self.source.url, self.web_folder / self.source.name, progress=progress)
        return fetch_order(order or self.look_up((), ()), progress)


def _places(name: str, revision: str | None, cache_dir: Path | None, local_dir: Path | None) -> list[_Place]:
    """Raises DownloadError for an unknown name, or a revision of what has none."""
    sources = _sources(name)
    alone = len(sources) == 1
    if revision is not None and not alone:
        raise DownloadError(f"{name} has no revisions, only repositories of the hub have: leave it out")
    places = []
    for source in sources:
        folder = local_dir
        if local_dir is not None and isinstance(source, Repository) and not alone:
            folder = local_dir / source.name.rpartition("/")[2]
        places.append(_Place(source, revision, cache_dir, folder))
    return places


def _sources(name: str) -> tuple[Source, ...]:
    model = find_model(name)
    if name == BUNDLED:
        return ()
    if model is not None:
        return model.sources
    if LAVIS_ARCHITECTURE.match(name) or not REPOSITORY_NAME.fullmatch(name):
        raise DownloadError(f"{name} is neither an official model nor a repository's name: {did_you_mean(name)}")
    return (Repository(name, PARTS, 0),)


def _torch_folder() -> Path:
    """Where LAVIS itself has put its files, if it was ever used here."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub" / "checkpoints"
