"""Where images come from: files, folders, patterns, web addresses, bytes and open files.

Everything here deals in encoded bytes and names; pixels begin in `openblip.images.decode`.
"""

from __future__ import annotations

import glob
import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeAlias
from urllib.parse import SplitResult, quote, urlsplit

from openblip.errors import ImageError

if TYPE_CHECKING:
    import http.client

    import numpy as np
    import PIL.Image

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

MAX_DOWNLOAD_BYTES = 100 * 2**20
SILENCE_SECONDS = 20.0
DOWNLOAD_SECONDS = 120.0

# Two letters at least before the colon: "C:\photos" is a path.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:[a-z]+/")
_SHOWN_CHARACTERS = 200


def is_address(text: str) -> bool:
    """Whether the text is a URL of any kind rather than a path."""
    return _ADDRESS.match(text) is not None


def describe_source(source: object) -> str:
    """Names an image in one short, printable piece of text, for messages.

    Passwords and query strings of web addresses are left out: signed links carry secrets, and messages end up
    in logs.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return _shown(_without_secrets(path) if is_address(path) else path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    shape = getattr(source, "shape", None)
    if shape is not None and hasattr(source, "dtype"):
        return _shown(f"<{getattr(source, 'dtype', '')} array of shape {tuple(shape)}>")
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    if isinstance(name, (str, bytes, os.PathLike)):
        return _shown(os.fsdecode(name))
    size = getattr(source, "size", None)
    if isinstance(size, tuple) and len(size) == 2 and hasattr(source, "mode"):
        return _shown(f"<{getattr(source, 'mode', '')} image of {size[0]} x {size[1]} pixels>")
    return _shown(f"<{type(source).__name__}>")


def _shown(text: str) -> str:
    # Newlines and undecodable file names would break a one-line message, or the terminal that prints it.
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: _SHOWN_CHARACTERS + 1]
    )
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 1] + "…"


def _without_secrets(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.split("?")[0].rsplit("@")[-1]
    if parts.scheme == "data":
        return address[:40] + "…"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")


@contextmanager
def open_encoded(source: object, name: str) -> Iterator[BinaryIO]:
    """Gives a seekable binary stream over an encoded image; what was opened here is closed at the end.

    Open files of the caller are read from their beginning and stay open.

    Raises:
        ImageError: nothing can be read there, or `source` is of a type that holds no image.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, str) and is_address(source):
        yield io.BytesIO(download(source))
    elif isinstance(source, (str, os.PathLike)):
        with _open_file(source, name) as file:
            # Pipes such as /dev/stdin cannot go back to the start, which every decoder wants to.
            yield file if file.seekable() else io.BytesIO(file.read())
    elif hasattr(source, "read"):
        yield io.BytesIO(_read_all(source, name))
    else:
        raise ImageError(
            name,
            f"an object of type {type(source).__name__} is no image; pass a path, an http(s) address, bytes, "
            "an open binary file, a PIL image or a numpy array",
        )


def _open_file(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        where = "" if os.path.isabs(path) else f" (relative to {os.getcwd()})"
        raise ImageError(name, f"there is no such file; check the path{where}") from error
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
    data = file.read()
    if isinstance(data, str):
        raise ImageError(name, 'the file is open in text mode; open it with mode "rb"')
    return bytes(data)


def download(
    address: str,
    *,
    silence_s: float = SILENCE_SECONDS,
    total_s: float = DOWNLOAD_SECONDS,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
) -> bytes:
    """Fetches the body behind an http or https address, following redirects within those two schemes only.

    Proxies named by the environment (http_proxy, https_proxy, no_proxy) are used. Any host is fetched,
    private ones too: a server that passes on its visitors' addresses must choose first which hosts it allows.

    Args:
        silence_s: seconds the server may take to connect or between two pieces of the answer.
        total_s: seconds for the whole body.
        max_bytes: largest body taken.

    Raises:
        ImageError: another scheme, no answer, an error status, a body too large, too slow or cut short.
    """
    import http.client
    import urllib.error
    import urllib.request

    name = describe_source(address)
    request = urllib.request.Request(_checked_address(address, name), headers={"User-Agent": "openblip"})
    # Built by hand: urllib's default opener also opens file:, ftp: and data:, where a redirect could lead.
    opener = urllib.request.OpenerDirector()
    proxies = {key: url for key, url in urllib.request.getproxies().items() if key in ("http", "https")}
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        deadline = time.monotonic() + total_s
        with opener.open(request, timeout=silence_s) as response:
            return _read_body(response, name, deadline=deadline, total_s=total_s, max_bytes=max_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            problem = "redirects in a circle or to something that is not http or https; check the address"
        else:
            problem = f"the server answered {error.code} {_shown(error.reason)}; check the address"
        raise ImageError(name, problem) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            problem = f"the server was silent for {silence_s:g} s; try again later"
        else:
            problem = f"cannot be downloaded ({_shown(str(reason))}); check the address and the network"
        raise ImageError(name, problem) from error


def _checked_address(address: str, name: str) -> str:
    """The address with spaces and accents escaped, as browsers do."""
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
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    return parts._replace(path=path, query=query, fragment="").geturl()


def _read_body(
    response: http.client.HTTPResponse, name: str, *, deadline: float, total_s: float, max_bytes: int
) -> bytes:
    too_large = f"is larger than {max_bytes} bytes; download it yourself and pass its path"
    if (response.length or 0) > max_bytes:
        raise ImageError(name, too_large)
    body = bytearray()
    # read1 returns after one packet, so that a server dripping bytes meets the deadline.
    while piece := response.read1(65536):
        body += piece
        if len(body) > max_bytes:
            raise ImageError(name, too_large)
        if time.monotonic() > deadline:
            raise ImageError(name, f"took longer than {total_s:g} s; download it yourself and pass its path")
    if response.length:
        raise ImageError(name, f"the connection ended {response.length} bytes early; try again")
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
    found: dict[str, str] = {}
    for entry in inputs:
        text = os.fspath(entry)
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
    return sorted(matches, key=_natural_order)


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
    return sorted(found, key=_natural_order)


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _natural_order(path: str) -> list[tuple[list[str | int], str]]:
    def order(part: str) -> tuple[list[str | int], str]:
        pieces = re.split(r"([0-9]+)", part.casefold())
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], part

    return [order(part) for part in path.split(os.sep)]
