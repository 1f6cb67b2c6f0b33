"""Files in object storage: S3 and what speaks its language, Google's, and through fsspec Azure's and the hub's.

Credentials and endpoints are those of the environment, as each provider's own programs read them. None is taken from
an address, nor written anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from openblip.errors import ImageError, OpenBlipError, OptionError, printable
from openblip.images.sources import MAX_FILE_BYTES, describe_source, has_marks, natural_order
from openblip.jobs.folder import FINISHED, JOB
from openblip.saving import write_text

PACKAGES = dict.fromkeys(("s3", "gs", "hf"), "openblip[storage]") | dict.fromkeys(("az", "abfs"), "adlfs")
"""What to install, by the scheme of addresses."""
S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
LONGEST_REASON = 200
PIECE = 2**20
Result = TypeVar("Result")
_SECRETS = re.compile(r"\?\S+|//[^/\s@]*@")


def is_stored(text: str) -> bool:
    """Whether a text is an address in object storage, such as s3://bucket/photos."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme in PACKAGES


def join(folder: str, text: str) -> str:
    """The address of a path below a folder; paths may be of any system. Raises OpenBlipError if it leads out of it."""
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or re.match(r"[A-Za-z]:", text):
        raise OpenBlipError(f"{text} is no path below {folder}: write paths relative to one folder, see --data-root")
    return "/".join([folder.rstrip("/"), *parts])


def read_image(address: str) -> bytes:
    """An image's file. Raises ImageError if it cannot be read, or is too large."""
    try:
        with _asking(address) as (system, path), system.open_input_stream(path, compression=None) as file:
            content = bytes(file.read(MAX_FILE_BYTES + 1))
    except OpenBlipError as error:
        raise ImageError(describe_source(address), str(error).removeprefix(f"{address} ")) from error
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(address, f"is larger than {MAX_FILE_BYTES} bytes; make it smaller")
    return content


def exists(address: str) -> bool:
    """Whether there is a file. Raises OpenBlipError if that cannot be found out."""
    with _asking(address) as (system, path):
        return bool(system.get_file_info(path).is_file)


def find(address: str) -> list[str]:
    """The files that match a pattern, or those below a folder, `img2` before `img10`; hidden ones are left out.

    Raises:
        OpenBlipError: they cannot be listed.
    """
    scheme = address.partition("://")[0]
    pattern = address.partition("://")[2].rstrip("/")
    fixed = re.split(r"[^/]*[*?\[]", pattern)[0].rstrip("/") if has_marks(pattern) else pattern
    with _asking(f"{scheme}://{fixed}") as (system, path):
        from pyarrow.fs import FileSelector

        found = system.get_file_info(FileSelector(path, recursive=True))
    names = [one.path.removeprefix(fixed).lstrip("/") for one in found if one.is_file]
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if fixed != pattern:
        shown = [name for name in shown if matches(name, pattern.removeprefix(fixed).lstrip("/"))]
    return [f"{scheme}://{fixed}/{name}" for name in sorted(shown, key=natural_order)]


def matches(path: str, pattern: str) -> bool:
    """Whether a path is of a pattern: `*`, `?` and `[...]` match within names, `**` folders in folders."""
    first, *rest = pattern.split("/", 1)
    name, *below = path.split("/", 1)
    if first == "**":
        if not rest or matches(path, rest[0]):
            return True
        return bool(below) and matches(below[0], pattern)
    if not fnmatchcase(name, first) or bool(rest) != bool(below):
        return False
    return not rest or matches(below[0], rest[0])


def upload(file: Path, address: str) -> None:
    """Put a file there, whole or not at all. Raises OpenBlipError if it cannot be written."""

    def copy() -> None:
        with file.open("rb") as source, system.open_output_stream(path, compression=None) as target:
            while piece := source.read(PIECE):
                target.write(piece)

    with _asking(address, "written") as (system, path):
        _unbroken(copy)


if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())


class StoredFile(_Path):
    """A file in object storage, as a path: programs that open it get a copy, which is made then; it shows its address.

    The copy lies in the system's folder of temporary files, which the processes of a machine share. Instances are
    pickled: on another machine, a copy is made there.

    Attributes:
        address: where it is; version: what tells it from a later file of this address; "" if its name never changes
            its content.

    Raises:
        OpenBlipError: as it is opened, when it cannot be read, or has changed.
    """

    address: str
    version: str

    def __new__(cls, address: str, version: str) -> StoredFile:
        made = super().__new__(cls, _copy_of(address, version))
        made.address, made.version = address, version
        return made

    if sys.version_info >= (3, 12):

        def __init__(self, address: str, version: str) -> None:
            super().__init__(_copy_of(address, version))

        def with_segments(self, *segments: str | os.PathLike[str]) -> Any:
            """Other paths that are made of it are those of ordinary files."""
            return Path(*segments)

    @classmethod
    def now_at(cls, address: str) -> StoredFile:
        """The file that is at an address now. Raises OpenBlipError if there is none."""
        return cls(address, _version(address))

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredFile, (self.address, self.version)

    def __str__(self) -> str:
        return self.address

    def __fspath__(self) -> str:
        copy = _copy_of(self.address, self.version)
        if not copy.is_file():
            _fetch(self.address, self.version, copy)
        return str(copy)

    @property
    def parent(self) -> Any:
        return _copy_of(self.address, self.version).parent

    def absolute(self) -> StoredFile:
        return self

    def forget(self) -> None:
        """Let go of the copy on this machine."""
        copy = _copy_of(self.address, self.version)
        with suppress(OSError):
            copy.unlink()
            copy.parent.rmdir()


def _copy_of(address: str, version: str) -> Path:
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    key = hashlib.sha256(f"{address}\0{version}".encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"openblip-storage-{owner}", key, PurePosixPath(address).name)


def _version(address: str) -> str:
    with _asking(address) as (system, path):
        found = system.get_file_info(path)
        if not found.is_file:
            raise OpenBlipError(f"there is no file {address}: check the address")
        return f"{found.size} {found.mtime_ns}"


def _fetch(address: str, version: str, copy: Path) -> None:
    root = copy.parent.parent
    root.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and (root.is_symlink() or root.stat().st_uid != os.getuid()):
        raise OpenBlipError(f"{root} is another user's: remove it, or set TMPDIR to a folder of yours")
    if version and _version(address) != version:
        raise OpenBlipError(f"{address} changed meanwhile: give the command again")
    copy.parent.mkdir(exist_ok=True)
    draft = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}.draft")
    try:
        with (
            _asking(address) as (system, path),
            system.open_input_stream(path, compression=None) as source,
            draft.open("wb") as target,
        ):
            while piece := source.read(PIECE):
                target.write(piece)
        draft.replace(copy)
    finally:
        draft.unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """Small files below an address: see `storage.Store`. Raises OpenBlipError where it fails."""

    folder: str

    def read(self, name: str) -> bytes | None:
        with _asking(self._at(name)) as (system, path):
            try:
                with system.open_input_stream(path, compression=None) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        def put() -> None:
            with system.open_output_stream(path, compression=None) as file:
                file.write(content)

        with _asking(self._at(name), "written") as (system, path):
            _unbroken(put)

    def names(self) -> list[str]:
        with _asking(self.folder) as (system, path):
            from pyarrow.fs import FileSelector

            found = system.get_file_info(FileSelector(path, allow_not_found=True))
            return [one.base_name for one in found if one.is_file]

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with _asking(self._at(name), "removed") as (system, path), suppress(FileNotFoundError):
                system.delete_file(path)

    def clear(self) -> None:
        with _asking(self.folder, "removed") as (system, path), suppress(FileNotFoundError):
            system.delete_dir(path)

    def _at(self, name: str) -> str:
        return f"{self.folder}/{name}"


@dataclass(frozen=True)
class StoredOutput:
    """An output in object storage. What is done of it by many machines lies there, too, at `ADDRESS.openblip`."""

    address: str

    @property
    def store(self) -> ObjectStore:
        """What says whose the work is, and the list of its images."""
        return ObjectStore(f"{self.address}.openblip")

    @property
    def chunks(self) -> ObjectStore:
        return ObjectStore(f"{self.address}.openblip/chunks")

    def exists(self) -> bool:
        return exists(self.address)

    def is_begun(self) -> bool:
        """Whether some machine has begun, and none has ended it."""
        return self.store.read(JOB) is not None

    def take_over(self, folder: Path) -> None:
        """Let this machine know whose the work is that others have begun."""
        if not (folder / JOB).exists() and not (folder / FINISHED).exists() and (content := self.store.read(JOB)):
            write_text(folder / JOB, content.decode())

    def publish(self, write: Callable[[Path], None], folder: Path) -> None:
        """Upload what `write` writes to a draft in a folder. Raises OpenBlipError or OSError if it cannot be done."""
        draft = folder / f"output{PurePosixPath(self.address).suffix}"
        try:
            write(draft)
            upload(draft, self.address)
        finally:
            draft.unlink(missing_ok=True)


def pattern_of(texts: Sequence[str]) -> list[str]:
    """The addresses that counted names and patterns give, in order. Raises OpenBlipError if there are none."""
    found = [name for text in texts for name in (find(text) if has_marks(text) else [text])]
    if not found:
        raise OpenBlipError(f"no file matches {texts[0]}: check the pattern")
    return found


@contextmanager
def _asking(address: str, done: str = "read") -> Iterator[tuple[Any, str]]:
    """The `pyarrow.fs.FileSystem` of an address, and the path in it. Raises OpenBlipError, which says what is wrong."""
    scheme, _, path = address.partition("://")
    bucket = path.partition("/")[0]
    if "@" in bucket:
        raise OptionError("an address holds a user name or a key: put credentials into the environment instead")
    if not bucket:
        raise OptionError(f"{address} names no bucket: check the address")
    try:
        yield _system(scheme, bucket), path.rstrip("/")
    except OpenBlipError:
        raise
    except FileNotFoundError as error:
        raise OpenBlipError(f"{address} is not there: check the address") from error
    except ImportError:
        raise OptionError(f'{scheme}:// addresses need one more package: pip install "{PACKAGES[scheme]}"') from None
    except Exception as error:  # each library has its own kinds of errors
        reason = printable(_SECRETS.sub("…", f"{error}".strip() or type(error).__name__), LONGEST_REASON)
        raise OpenBlipError(
            f"{address} cannot be {done} ({reason}): check the address, and the credentials of the environment"
        ) from error


@lru_cache(maxsize=16)
def _system(scheme: str, bucket: str) -> Any:
    """Arrow's own file systems, or those of fsspec. What they know of servers and keys is the environment's."""
    from pyarrow import fs

    if scheme == "s3":
        endpoint = next(filter(None, map(os.environ.get, S3_ENDPOINTS)), None)
        if endpoint is not None:
            parts = urlsplit(endpoint if "//" in endpoint else f"https://{endpoint}")
            return fs.S3FileSystem(endpoint_override=parts.netloc + parts.path.rstrip("/"), scheme=parts.scheme)
        if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            return fs.S3FileSystem()
        return fs.S3FileSystem(region=fs.resolve_s3_region(bucket))
    if scheme == "gs":
        return fs.GcsFileSystem()
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme, use_listings_cache=False)))


def _unbroken(do: Callable[[], Result]) -> Result:
    """Do something in a thread, where Ctrl-C cannot end it halfway: what is half written would be taken for whole."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(do).result()
