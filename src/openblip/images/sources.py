"""Where images come from: files, folders, patterns, web addresses, bytes and open files.

Everything here deals in encoded bytes and names; pixels begin in `openblip.images.decode`.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit

from openblip.errors import ImageError, OptionError, is_several, printable, yes_or_no
from openblip.files import NotAFileError, open_file

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    from openblip.web.policy import UrlPolicy
    from openblip.web.request import Answer

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | PIL.Image.Image | np.ndarray[Any, Any]"
"""A path, an http(s) address, an encoded file as bytes or as an open file, a PIL image, or an array."""

# HEIC is listed although Pillow needs a plugin for it: an error about a phone photo beats leaving it out in
# silence.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff", "avif"),
        *("heic", "heif", "jp2", "j2k", "ppm", "pgm", "pbm", "pnm", "tga", "ico", "qoi"),
    )
)

MAX_FILE_BYTES = 2 * 2**30
"""Of an encoded image on disk: more than the largest one within the limit of pixels takes uncompressed."""
LONGEST_ADDRESS = 16_384
OWN_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")

# Two letters at least before the colon: "C:\photos" is a path.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:[a-z]+/")


def is_address(text: str) -> bool:
    """Whether the text is a URL of any kind rather than a path."""
    return _ADDRESS.match(text) is not None


def image_list(images: object) -> Iterable[Any]:
    """Images to go through; a lone one is one, not its letters, lines or rows."""
    return [images] if is_one_image(images) else cast("Iterable[Any]", images)


def is_one_image(source: object) -> bool:
    """Whether this stands for one image, which need not be there, rather than for several things.

    Whatever cannot be gone through does, an image that a model has encoded, too.
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or not isinstance(source, Iterable):
        return True
    # Open files, arrays and PIL images, some of which can be gone through as well.
    return hasattr(source, "read") or hasattr(source, "convert") or getattr(source, "ndim", 4) < 4


def describe_source(source: object) -> str:
    """Names an image in one short, printable piece of text, for messages.

    Passwords and query strings of web addresses are left out: signed links carry secrets, and messages end up
    in logs.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return printable(_without_secrets(path) if is_address(path) else path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    shape = getattr(source, "shape", None)
    if shape is not None and hasattr(source, "dtype"):
        return printable(f"<{getattr(source, 'dtype', '')} array of shape {tuple(shape)}>")
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    if isinstance(name, (str, bytes, os.PathLike)):
        return printable(os.fsdecode(name))
    size = getattr(source, "size", None)
    if isinstance(size, tuple) and len(size) == 2 and hasattr(source, "mode"):
        return printable(f"<{getattr(source, 'mode', '')} image of {size[0]} x {size[1]} pixels>")
    return printable(f"<{type(source).__name__}>")


def _without_secrets(address: str) -> str:
    if address[:5].lower() == "data:":
        return address[:40] + "…"
    address = address[:LONGEST_ADDRESS]  # Python keeps the last addresses that it has split in memory
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.split("?")[0].rsplit("@")[-1]
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")


def open_encoded(source: object, name: str, allow_urls: UrlPolicy | bool | None = None) -> BinaryIO:
    """A seekable binary stream over an encoded image, for the caller to close.

    Open files that are given are read from their beginning and stay open.

    Args:
        allow_urls: which web addresses are fetched, as in `openblip.load_image`.

    Raises:
        ImageError: nothing can be read there, it is a web address and may not be, or `source` is of a type that
            holds no image.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, str) and is_address(source):
        from openblip.web.policy import url_policy

        policy = url_policy(allow_urls)
        if not policy.hosts:
            raise ImageError(name, "is a web address, and those are not allowed here; pass a file")
        return io.BytesIO(download(source, policy))
    if isinstance(source, (str, os.PathLike)):
        file = _open_file(source, name)
        if file.seekable():
            return file
        with file:  # pipes such as /dev/stdin cannot go back to the start, which every decoder wants to
            return io.BytesIO(_read_some(file, name))
    if hasattr(source, "read"):
        return io.BytesIO(_read_all(source, name))
    raise ImageError(
        name,
        f"an object of type {type(source).__name__} is no image; pass a path, an http(s) address, bytes, "
        "an open binary file, a PIL image or a numpy array",
    )


def _open_file(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        # What this program was started with may be a pipe that somebody writes to: `cat photo.jpg | ...`
        if os.fsdecode(path).startswith(OWN_STREAMS) and stat.S_ISFIFO(os.stat(path).st_mode):
            return open(path, "rb")
        file = open_file(path)
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            file.close()
            raise ImageError(name, f"is larger than {MAX_FILE_BYTES} bytes; make it smaller")
        return file
    except FileNotFoundError as error:
        where = "" if os.path.isabs(path) else f" (relative to {os.getcwd()})"
        raise ImageError(name, f"there is no such file; check the path{where}") from error
    except NotAFileError as error:
        raise ImageError(name, f"is {error.kind}, not an image file; pass an ordinary file") from error
    except (OSError, ValueError) as error:
        # Windows answers "permission denied" for a folder.
        if isinstance(error, OSError) and os.path.isdir(path):
            raise ImageError(name, "is a folder, not an image; pass the files in it one by one") from error
        if isinstance(error, PermissionError):
            raise ImageError(name, "may not be read by this user; change the file's permissions") from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(name, f"cannot be opened ({reason}); check the path") from error


def _read_all(file: Any, name: str) -> bytes:
    with suppress(AttributeError, OSError):  # a pipe or a socket: what is left of it is the image
        file.seek(0)
    return _read_some(file, name)


def _read_some(file: Any, name: str) -> bytes:
    """What is left of an open file, which may have no end."""
    data = file.read(MAX_FILE_BYTES + 1)
    if isinstance(data, str):
        raise ImageError(name, 'the file is open in text mode; open it with mode "rb"')
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(name, f"holds more than {MAX_FILE_BYTES} bytes; pass a smaller image")
    return bytes(data)


def download(address: str, policy: UrlPolicy, *, clock: Callable[[], float] = time.monotonic) -> bytes:
    """Fetches the body behind an http or https address, following redirects within those two schemes only.

    Args:
        policy: which servers are asked, and how much may come.
        clock: tells the seconds that it takes.

    Raises:
        ImageError: another scheme, a server that is not asked, no answer, an error status, a body too large, too slow,
            cut short or compressed.
    """
    import http.client

    from openblip.web import request

    name = describe_source(address)
    url = _checked_address(address, name)
    limits = request.Limits(
        silence_s=policy.silence_s,
        head_s=policy.total_s,
        total_s=policy.total_s,
        max_bytes=policy.max_bytes + policy.max_bytes // 4 + request.MAX_HEAD_BYTES,
        allow_private=policy.allow_private,
        hosts=policy.hosts,
        use_proxies=policy.use_proxies,
        resolve=policy.resolve,
        clock=clock,
    )
    try:
        with request.open_url(url, limits) as response:
            if 300 <= response.status < 400:
                raise ImageError(name, f"the server answered {response.status} without an address; check the address")
            if response.status >= 400:
                reason = f"{response.status} {printable(response.reason)}"
                raise ImageError(name, f"the server answered {reason}; check the address")
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                # Unpacked, a few bytes could become any number of them.
                packed = f"the server sent it compressed ({printable(encoding)}), which was not asked for"
                raise ImageError(name, f"{packed}; download it yourself and pass its path")
            return _read_body(response, name, policy.max_bytes)
    except request.TooLargeError as error:
        raise ImageError(name, f"{error}; download it yourself and pass its path") from error
    except request.TooSlowError as error:
        raise ImageError(name, f"{error}; download it yourself and pass its path") from error
    except request.AddressError as error:
        raise ImageError(name, f"{error}; check the address") from error
    except TimeoutError as error:
        raise ImageError(name, f"the server was silent for {policy.silence_s:g} s; try again later") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem = f"cannot be downloaded ({printable(str(error))}); check the address and the network"
        raise ImageError(name, problem) from error


def _checked_address(address: str, name: str) -> str:
    """The address with spaces and accents escaped, as browsers do."""
    from openblip.web.request import escaped

    if len(address) > LONGEST_ADDRESS:
        raise ImageError(name, f"is longer than {LONGEST_ADDRESS} characters; download it yourself and pass its path")
    try:
        parts: SplitResult = urlsplit(address.strip())
    except ValueError as error:
        raise ImageError(name, f"is not a valid address ({error}); check it") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise ImageError(name, "only http and https addresses are fetched; for a local file pass its path")
    if "@" in parts.netloc:
        raise ImageError(name, "holds a user name, which is not sent; download it yourself and pass its path")
    if not parts.hostname:
        raise ImageError(name, "names no server; check the address")
    return escaped(parts.geturl())


def _read_body(response: Answer, name: str, max_bytes: int) -> bytes:
    from openblip.web.request import TooLargeError

    too_large = f"is larger than {max_bytes} bytes"
    if (response.left or 0) > max_bytes:
        raise TooLargeError(too_large)
    body = bytearray()
    while piece := response.read(65536):
        body += piece
        if len(body) > max_bytes:
            raise TooLargeError(too_large)
    if response.left:
        raise ImageError(name, f"the connection ended {response.left} bytes early; try again")
    return bytes(body)


def find_images(inputs: Sequence[str | Path], *, recursive: bool = False) -> list[str]:
    """Expands folders and patterns into image files.

    Args:
        inputs: files (kept whatever their suffix), folders (their files with an image suffix, hidden ones
            left out, `img2` before `img10`), patterns such as `photos/*.jpg` for shells that do not expand
            them (`**` reaches into subfolders), and http(s) addresses (kept).
        recursive: whether folders give the images of their subfolders too.

    Returns:
        Paths and addresses in the order of `inputs`, each once; every one is an `ImageSource`.

    Raises:
        ImageError: an input that gives no image.
    """
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]  # a lone string would otherwise be taken letter by letter
    if not is_several(inputs):
        raise OptionError(f"the inputs are {inputs!r}: give paths and addresses as texts")
    recursive = yes_or_no("recursive", recursive)
    found: dict[str, str] = {}
    for entry in inputs:
        text = os.fspath(entry) if isinstance(entry, os.PathLike) else entry
        if not isinstance(text, str):
            raise OptionError(f"{entry!r} is among the inputs: give paths and addresses as texts")
        if is_address(text):
            _checked_address(text, describe_source(text))
            found.setdefault(text, text)
            continue
        for path in _expand(text, recursive):
            found.setdefault(os.path.normcase(os.path.abspath(path)), path)
    return list(found.values())


def _expand(text: str, recursive: bool) -> list[str]:
    # What exists is meant literally: "photo[1].jpg" is a common name for a second download.
    if os.path.isdir(text):
        return _images_in_folder(text, recursive)
    if os.path.lexists(text):
        return [text]
    name = describe_source(text)
    if not has_marks(text):
        raise ImageError(name, "there is no such file or folder; check the path")
    matches = [path for path in match_pattern(text) if _has_image_suffix(path)]
    matches = [path for path in matches if os.path.isfile(path)]
    if not matches:
        raise ImageError(name, "the pattern matches no image file; check the folder and the suffix")
    return sorted(matches, key=natural_order)


def has_marks(text: str) -> bool:
    """Whether the text may be a pattern."""
    return any(mark in text for mark in "*?[")


def match_pattern(pattern: str, folder: str = "") -> list[str]:
    """Paths by a pattern, each once: `*`, `?` and `[...]` within names, `**` for folders in folders.

    A name that is there as it is written is no pattern: "trip [2019]/*.jpg" means the folder of that name.

    Args:
        folder: what a relative pattern is relative to.
    """
    names: list[str] = []
    rest = pattern
    while (parts := os.path.split(rest))[0] != rest:
        rest = parts[0]
        names += filter(None, [parts[1]])
    found = [os.path.join(folder, rest)]
    for name in reversed(names):
        found = list(dict.fromkeys(path for start in found for path in _match_name(start, name)))
    return found


def _match_name(folder: str, name: str) -> Iterator[str]:
    path = os.path.join(folder, name)
    if os.path.lexists(path):
        yield path
    elif has_marks(name):
        yield from glob.iglob(os.path.join(glob.escape(folder), name), recursive=True)


def _images_in_folder(folder: str, recursive: bool) -> list[str]:
    def refuse(error: OSError) -> None:
        where = describe_source(error.filename or folder)
        raise ImageError(where, f"cannot be read ({error.strerror}); check its permissions") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        # Hidden files are not photos: macOS leaves "._photo.jpg" beside every photo on a foreign disk.
        visible = [file for file in files if not file.startswith(".")]
        found += [os.path.join(parent, file) for file in visible if _has_image_suffix(file)]
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
    if not found:
        hint = "" if recursive else ", or ask for its subfolders too (recursive)"
        raise ImageError(describe_source(folder), f"there is no image in this folder; pass another one{hint}")
    return sorted(found, key=natural_order)


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def natural_order(path: str) -> list[tuple[list[str | int], str]]:
    """A key that sorts `img2` before `img10`."""

    def order(part: str) -> tuple[list[str | int], str]:
        pieces = re.split(r"([0-9]+)", part.casefold())
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], part

    return [order(part) for part in path.split(os.sep)]
