"""A model's name to its files on this machine: found where they already lie, or downloaded there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from openblip.checkpoints.hub.repositories import Order, hub_home, matches
from openblip.checkpoints.hub.sources import LocalFile, Place, Repository, Source, find_all
from openblip.checkpoints.model_entry import LANGUAGE, PARTS
from openblip.checkpoints.registry import did_you_mean, find_model, nearest_names
from openblip.errors import DownloadError
from openblip.fetch import Progress, check_room, is_offline

REPOSITORY_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
LAVIS_ARCHITECTURE = re.compile(r"(blip2?(_[a-z0-9_]+)?|clip|clip_feature_extractor)/")


def find_files(
    name: str, *, revision: str | None = None, cache_dir: Path | None = None, local_dir: Path | None = None
) -> tuple[LocalFile, ...] | None:
    """All sources of a model as they lie on this machine; None when any is missing. No network is used.

    Args:
        name: a model's (see `registry`), or any repository of the hub. One that lies in a folder has no sources.
        revision: of the repository; by default the newest that was downloaded.
        cache_dir, local_dir: as for `download`.

    Raises:
        DownloadError: neither an official name nor a repository's.
    """
    return find_all(_places(name, revision, cache_dir, local_dir))


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
        name: a model's (see `registry`), or any repository of the hub.
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
    orders: list[tuple[Place, Order | None]] = []
    size = 0
    for place in places:
        if isinstance(place.source, Repository):
            order = _look_up(place, include, exclude)
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
        name: a model's (see `registry`), or any repository of the hub.

    Raises:
        DownloadError: no such model, or its files cannot be had.
    """
    parts = [source for source in _sources(name) if isinstance(source, Repository)]
    # Of LAVIS' models the language model's repository, or that of the Q-Former's words.
    first = next((source for source in parts if LANGUAGE in source.supplies or not source.supplies), parts[0])
    place = Place(Repository(first.name, (), 0))
    found = place.find()
    if found is not None:
        return found
    if is_offline():
        raise DownloadError(f"{first.name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset that")
    return place.fetch(None, progress)


def _look_up(place: Place, include: Sequence[str], exclude: Sequence[str]) -> Order:
    try:
        return place.look_up(include, exclude)
    except DownloadError as error:
        name = place.source.name
        if find_model(name) is None and nearest_names(name):
            raise DownloadError(f"{error}; {did_you_mean(name)}") from error
        raise


def _places(name: str, revision: str | None, cache_dir: Path | None, local_dir: Path | None) -> list[Place]:
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
        places.append(Place(source, revision, cache_dir, folder))
    return places


def _sources(name: str) -> tuple[Source, ...]:
    model = find_model(name)
    if model is not None:
        return model.files
    if LAVIS_ARCHITECTURE.match(name) or not REPOSITORY_NAME.fullmatch(name):
        raise DownloadError(f"{name} is neither an official model nor a repository's name: {did_you_mean(name)}")
    return (Repository(name, PARTS, 0),)
