"""Repositories of the Hugging Face hub: which of their files a model needs, fetching them, finding them again.

Files go into the hub's own cache, where every other program looks for them, too. The environment says where that is
and what is allowed: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import http
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.checkpoints.openblip.file_names import CONFIG_FILE, DECODER_FILE, FORMAT, MATCHING_FILE, word_files
from openblip.checkpoints.tensors.header import read_index
from openblip.errors import CheckpointError, DownloadError
from openblip.files import read_text
from openblip.saving import NO_ROOM

if TYPE_CHECKING:
    from openblip.fetch import Progress

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder's weights are called, whole or as the list of their pieces."""
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
"""What a folder's words may be called; of any one they can be read."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""What a repository has that holds an adapter of another one's model."""
SMALL_ENDINGS = (".json", ".txt", ".model", ".md")
NOT_FOUND = (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.NOT_FOUND)
"""The hub does not tell strangers that something is private."""
HASH = re.compile(r"([0-9a-f]{64})?")


_TOKEN: ContextVar[str | bool | None] = ContextVar("token", default=None)


@contextmanager
def using_token(token: str | bool | None) -> Iterator[None]:
    """Ask the hub with this token meanwhile; True and None mean this machine's own, False none."""
    before = _TOKEN.set(token)
    try:
        yield
    finally:
        _TOKEN.reset(before)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        size: bytes; 0 when the hub does not say.
        sha256: of large files; empty for small ones.
    """

    name: str
    size: int = 0
    sha256: str = ""


def hub_home() -> Path:
    """Where the programs of Hugging Face keep their things."""
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache")
    return Path(os.path.expandvars(home or Path(cache) / "huggingface")).expanduser()


def hub_cache() -> Path:
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(cache)).expanduser() if cache else hub_home() / "hub"


def matches(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a file fits any pattern of `include`, if there are any, and none of `exclude`."""
    wanted = not include or any(fnmatchcase(name, pattern) for pattern in include)
    return wanted and not any(fnmatchcase(name, pattern) for pattern in exclude)


def choose_files(
    files: Sequence[RemoteFile], weights: bool = True, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[RemoteFile]:
    """What a model needs of a repository: its settings and vocabularies, and its weights in one format.

    Args:
        weights: False for the tokenizer alone.
        include: patterns that replace this choice.
        exclude: patterns of what is left out in any case.
    """
    if not include:
        whole, pieces = PICKLED if not any(file.name in SAFETENSORS for file in files) else SAFETENSORS
        stem, ending = os.path.splitext(whole)

        def needed(name: str) -> bool:
            if "/" in name:
                return False  # other formats, for other programs
            if name.endswith(".index.json"):
                return weights and name == pieces
            if name.endswith(SMALL_ENDINGS) or name.startswith("LICENSE"):
                return True
            return weights and ((name.startswith(stem) and name.endswith(ending)) or name in ADAPTER)

        files = [file for file in files if needed(file.name)]
    return [file for file in files if matches(file.name, include, exclude)]


def find_repository(
    name: str, weights: bool = True, revision: str | None = None, cache_dir: Path | None = None
) -> Path | None:
    """The folder of a repository in the cache, when all that a model needs is there."""
    folder = (cache_dir or hub_cache()) / _folder_name(name)
    revision = revision or "main"
    try:
        commit = read_text(folder / "refs" / revision).strip()
    except OSError:
        commit = revision
    snapshot = folder / "snapshots" / commit
    return snapshot if is_complete(snapshot, weights) else None


def is_complete(folder: Path, weights: bool = True) -> bool:
    """Whether a folder has what a model needs, words and every piece of its weights included.

    Other programs fetch the words later than the weights, or never.
    """
    if weights and not (folder / "config.json").is_file():
        return all((folder / name).is_file() for name in ADAPTER)
    if not _has_words(folder):
        return False
    if not weights:
        return True
    for whole, pieces in (SAFETENSORS, PICKLED):
        if (folder / whole).is_file():
            return True
        if (folder / pieces).is_file():
            return all((folder / piece).is_file() for piece in pieces_of(folder / pieces))
    return False


def _has_words(folder: Path) -> bool:
    """Whether a folder has a vocabulary that it can be read by; one of ours has all that its config speaks of."""
    try:
        config = json.loads(read_text(folder / CONFIG_FILE))
    except (OSError, ValueError):
        config = None
    if isinstance(config, dict) and config.get("format") == FORMAT:
        return all((folder / name).is_file() for name in word_files(config))
    return any((folder / name).is_file() for name in VOCABULARIES)


def pieces_of(index: Path) -> list[str]:
    """The files that an index of weights lists; one that is no file when the index is broken."""
    try:
        return sorted(set(read_index(index).values()))
    except CheckpointError:
        return [""]


@dataclass(frozen=True)
class Order:
    """What is to be fetched of a repository, and where to.

    Attributes:
        files: all that are wanted, those last that tell `is_complete` that the others are there, too; `missing` of
            them are not there yet.
        size: bytes that are still to come.
    """

    name: str
    revision: str | None
    cache_dir: Path
    local_dir: Path | None
    files: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    size: int

    def place(self, file: RemoteFile) -> Path:
        """Where a large file belongs: in the cache under its hash."""
        return self.local_dir / file.name if self.local_dir else self.blob(file)

    def blob(self, file: RemoteFile) -> Path:
        return self.cache_dir / _folder_name(self.name) / "blobs" / file.sha256


def look_up(
    name: str,
    *,
    weights: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_dir: Path | None = None,
) -> Order:
    """Ask the hub what a repository has, and choose.

    Args:
        local_dir: a folder to put the files into, instead of the cache.

    Raises:
        DownloadError: no network, no such repository or revision, not allowed.
    """
    with _explaining(name, revision), _quiet():
        from huggingface_hub import HfApi

        api = HfApi(endpoint=_endpoint(), token=_TOKEN.get(), library_name="openblip")
        info = api.model_info(name, revision=revision, files_metadata=True)
        listed = [
            _checked(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "")
            for file in info.siblings or []
        ]
    files = sorted(choose_files(listed, weights, include, exclude), key=_rank)
    cache = cache_dir or hub_cache()
    # A model that is here already starts without what talks to servers: 10 ms.
    from openblip.fetch import part_of

    folder = local_dir or cache / _folder_name(name) / "snapshots" / str(info.sha)
    missing = tuple(file for file in files if not (folder / file.name).is_file())
    order = Order(name, revision, cache, local_dir, tuple(files), missing, 0)
    parts = [part_of(order.place(file)) for file in missing if file.sha256]
    size = sum(file.size for file in missing) - sum(part.stat().st_size for part in parts if part.is_file())
    return replace(order, size=max(0, size))


def fetch_order(order: Order, progress: Progress | None = None) -> Path:
    """Download what is missing, and give the folder that all is in.

    Large files are fetched here, into the places where the hub's client looks for them: it begins anew after every
    interruption.

    Args:
        progress: see `fetch`; of large files.

    Raises:
        DownloadError: no network, no room, a damaged file.
    """
    from openblip.fetch import check_room

    check_room(order.local_dir or order.cache_dir, order.size, order.name)
    folder = Path()
    for file in order.files:
        path = _fetch_large(order, file, progress) if file.sha256 and file in order.missing else None
        if path is None or order.local_dir is None:
            path = _fetch_by_client(order, file)
        folder = path.parents[file.name.count("/")]
    return folder


def _fetch_large(order: Order, file: RemoteFile, progress: Progress | None) -> Path | None:
    """None when a copy of it lies in the cache, from where the client takes it."""
    if order.local_dir is not None and order.blob(file).is_file():
        return None
    from openblip.fetch import fetch

    with _explaining(order.name, order.revision):
        from huggingface_hub import get_token, hf_hub_url

        url = hf_hub_url(order.name, file.name, revision=order.revision, endpoint=_endpoint())
        chosen = _TOKEN.get()
        token = chosen if isinstance(chosen, str) else None if chosen is False else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return fetch(
        url, order.place(file), sha256=file.sha256, headers=headers, name=Path(file.name).name, progress=progress
    )


def _fetch_by_client(order: Order, file: RemoteFile) -> Path:
    with _explaining(order.name, order.revision, order.place(file)), _quiet():
        from huggingface_hub import hf_hub_download

        path = Path(
            hf_hub_download(
                order.name,
                file.name,
                # The branch rather than its commit: the cache then notes which commit the branch is.
                revision=order.revision,
                cache_dir=order.cache_dir,
                local_dir=order.local_dir,
                endpoint=_endpoint(),
                token=_TOKEN.get(),
                library_name="openblip",
            )
        )
    if file in order.missing and file.size and path.stat().st_size != file.size:
        # Deleted, so that the next download gets it anew.
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DownloadError(f"{file.name} of {order.name} arrived damaged: run it again")
    return path


def _checked(name: str, size: int, sha256: str) -> RemoteFile:
    """A file as the hub lists it. Raises ValueError for one that would lie outside of its folder."""
    parts = name.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") or ":" in part for part in parts) or not HASH.fullmatch(sha256):
        raise ValueError(f"{name!r} is no file of a repository")
    return RemoteFile(name, size, sha256)


def _rank(file: RemoteFile) -> tuple[bool, bool]:
    return file.name.endswith((".safetensors", ".bin")), file.name in (*VOCABULARIES, MATCHING_FILE, DECODER_FILE)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _folder_name(name: str) -> str:
    return f"models--{name.replace('/', '--')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no warnings of the hub's client: what goes wrong is told once, in our words."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log = logging.getLogger("huggingface_hub")
    level, shown = log.level, not are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            enable_progress_bars()


@contextmanager
def _explaining(name: str, revision: str | None, place: Path | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what the hub's client raises depends on its version and on the network library in it
        raise _explain(error, name, revision, place) from error


def _explain(error: Exception, name: str, revision: str | None, place: Path | None) -> DownloadError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it tells only that there is no copy, either
    response = getattr(error, "response", None)
    # Servers that only mirror the hub answer with the number alone.
    status = getattr(response, "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        problem = f"{name} has no revision {revision}: leave it out for the newest"
    elif isinstance(error, GatedRepoError) or status == http.HTTPStatus.FORBIDDEN:
        problem = f"{name} is given to registered people only: ask for access on its page, then set HF_TOKEN"
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        problem = f"a file that {name} lists is not there: its repository is being changed, try again later"
    elif isinstance(error, RepositoryNotFoundError | HFValidationError) or status in NOT_FOUND:
        problem = f"{name} is not on the Hugging Face hub, or private: check the name, or set HF_TOKEN"
    elif isinstance(error, OSError) and error.errno in NO_ROOM:
        problem = f"{error.filename or place or hub_cache()} cannot be written ({error.strerror}): free some room, and "
        problem += f"what has come of {name} will not come again"
    elif isinstance(error, OSError) and error.filename is not None:
        problem = f"{error.filename} cannot be written ({error.strerror}): give another folder, or set HF_HOME"
    elif status is not None and response is not None:
        from openblip.fetch import wait_asked

        wait = wait_asked(response.headers.get("Retry-After"))
        when = f"in {wait:.0f} seconds" if wait else "later"
        problem = f"the Hugging Face hub refuses {name} (it answered {status}): try again {when}"
    elif "Consistency check failed" in str(error):
        problem = f"a file of {name} arrived damaged: run it again"
    elif isinstance(error, ValueError | TypeError | AttributeError | KeyError):
        problem = f"what answers for {name} is not the Hugging Face hub: check HF_ENDPOINT, and the proxy between"
    else:
        problem = f"the Hugging Face hub cannot be reached for {name} ({_first_line(error)}): check the network"
    return DownloadError(problem)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
