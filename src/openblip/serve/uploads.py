"""What clients send as images: files of a form, data: URLs, web addresses; checked, fetched and decoded in threads."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qsl

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from openblip.errors import ImageError, printable
from openblip.images.decode import identified
from openblip.images.sources import describe_source, download
from openblip.serve.errors import Refusal, over_limit
from openblip.serve.limits import FORMATS, Limits
from openblip.web.policy import UrlPolicy
from openblip.web.request import TooLargeError

if TYPE_CHECKING:
    from openblip.images.encoded_image import CachedEncoder, ReadImage

FORM = "multipart/form-data"
PLAIN_FORM = "application/x-www-form-urlencoded"
MOST = 1_000
"""Parts of a form that are read, before they are counted against the limits."""
SAME = {"MPO": "JPEG"}
"""Formats that are another one with something behind it: photos of some phones, with a second picture."""
WRITTEN = bytes.maketrans(b"-_", b"+/")
ESCAPES = ((b"%2B", b"+"), (b"%2b", b"+"), (b"%2F", b"/"), (b"%2f", b"/"), (b"%3D", b"="), (b"%3d", b"="))
DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*?;base64,", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Upload:
    """An image file that a client sent, as bytes.

    Attributes:
        name: that the client gave it, for messages.
    """

    name: str
    data: bytes


@dataclass(frozen=True, eq=False)
class Remote:
    """An image that a client named by its web address, to be fetched.

    Attributes:
        param: the field of the request that named it.
    """

    url: str
    param: str


Source: TypeAlias = "Upload | Remote"


@dataclass(frozen=True, eq=False)
class Form:
    """A form, and what stands in the address: each field's values in order."""

    files: list[Upload]
    fields: dict[str, list[str]]


class _InMemory(MultiPartParser):
    # The body is in memory, and within its limit: nothing of it goes to a disk, which may be full or read-only.
    spool_max_size = 2**40
    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self.is_whole:  # the part that was cut off would be left out without a word
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("its end is missing")
        return form


async def read_form(request: Request, limits: Limits) -> Form:
    """The files and fields of a multipart form, and the fields of the address.

    Raises:
        Refusal: it is no form, or beyond a limit.
    """
    kind = request.headers.get("content-type", "")
    plain = kind.partition(";")[0].strip().lower()
    if plain == FORM:
        parsed = await _parse(request, limits)
    elif plain == PLAIN_FORM:
        text = (await request.body()).decode("utf-8", "replace")
        parsed = FormData([(name, value) for name, value in parse_qsl(text, keep_blank_values=True)])
    else:
        raise Refusal(
            415,
            f"send a form ({FORM}), such as `curl -F file=@photo.jpg` does, not {kind[:100] or 'nothing'}",
            "no_form",
        )
    form = Form([], {})
    try:
        for name, value in [*request.query_params.multi_items(), *parsed.multi_items()]:
            if isinstance(value, UploadFile):
                form.files.append(Upload(printable(value.filename or "file", 100, 30), await value.read()))
            else:
                form.fields.setdefault(name, []).append(value)
    finally:
        await parsed.close()
    if len(form.files) > limits.files:
        raise over_limit(413, f"the form has {len(form.files)} files", "files", limits.files, "file")
    most = limits.fields + 3 * limits.texts
    if sum(map(len, form.fields.values())) > most or len(form.fields) > limits.fields:
        raise over_limit(413, "the form has too many fields", "fields", limits.fields)
    return form


async def _parse(request: Request, limits: Limits) -> FormData:
    async def body() -> AsyncGenerator[bytes, None]:
        yield await request.body()

    longest = 4 * limits.text_chars + 64  # bytes
    try:
        # We and not the parser say that there are too many files or fields.
        parser = _InMemory(request.headers, body(), max_files=MOST, max_fields=MOST, max_part_size=longest)
        return await parser.parse()
    except MultiPartException as error:
        if "maximum size" in error.message:
            raise over_limit(413, "a field of the form is too long", "text_chars", limits.text_chars) from None
        raise Refusal(422, f"the form cannot be read ({error.message}): send it again", "bad_form") from None
    except (KeyError, UnicodeError, ValueError) as error:
        raise Refusal(422, f"the form cannot be read ({type(error).__name__}): send it again", "bad_form") from None


def source_of(url: str, param: str) -> Source:
    """The image of a data: URL, or one that is to be fetched.

    Raises:
        Refusal: it is no such URL.
    """
    url = url.lstrip()
    head = DATA_URL.match(url[:200])
    if head is None:
        if url[:8].lower().startswith(("http://", "https://")):
            return Remote(url, param)
        raise Refusal(
            422,
            "the image is no data: URL of base64 (data:image/jpeg;base64,...): send the image itself",
            "no_data_url",
            param=param,
        )
    try:
        # Some clients break lines, escape what has a meaning in addresses or write something else for it, and leave out
        # what fills the last group.
        text = url[head.end() :].encode("ascii").translate(WRITTEN, b" \t\r\n")
        for escaped, meant in ESCAPES:
            text = text.replace(escaped, meant)
        text = text.rstrip(b"=")
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            422, "the base64 of the image's data: URL is damaged: encode it again", "bad_base64", param=param
        ) from None
    return Upload("the image", data)


def fetch(remote: Remote, policy: UrlPolicy, limits: Limits) -> Upload:
    """The file behind a web address. In a thread that may wait.

    Raises:
        Refusal: the server fetches nothing from there, or it did not come within the limits.
    """
    name = describe_source(remote.url)
    if not policy.hosts:
        raise Refusal(
            422,
            f"{name}: this server fetches no images from the web: send the image itself; whoever runs the server "
            f"allows servers with --allow-url HOST",
            "urls_not_allowed",
            param=remote.param,
        )
    try:
        return Upload(name, download(remote.url, policy))
    except ImageError as error:
        # What else can be done about it is for those who have the file on their disk.
        what = f"{name}: {error.problem.partition(';')[0]}"
        if isinstance(error.__cause__, TooLargeError):
            raise over_limit(413, what, "picture_mb", limits.picture_mb, remote.param) from error
        if isinstance(error.__cause__, TimeoutError):
            raise over_limit(422, what, "fetch_seconds", limits.fetch_seconds, remote.param) from error
        raise Refusal(422, f"{what}: send the image itself", "not_fetched", param=remote.param) from error


def read_upload(encoder: CachedEncoder, upload: Upload, limits: Limits) -> ReadImage:
    """An image decoded, once and to its end, and brought to the model's square. In any thread.

    Raises:
        Refusal: the file is too large, of no format that is taken, or has too many pixels.
        ImageError: it is damaged.
    """
    known = check_upload(upload, limits)
    try:
        return encoder.read(upload.data, upload.name)
    except ImageError as error:
        if not known:
            raise _unknown(upload.name, error.problem) from error
        raise


def check_upload(upload: Upload, limits: Limits) -> bool:
    """Whether the beginning of a file is that of an image.

    Raises:
        Refusal: the file is too large, of no format that is taken, or has too many pixels.
        ImageError: it is damaged, as far as that is seen before it is decoded.
    """
    from PIL import Image

    name, data = upload.name, upload.data
    if len(data) > limits.file_bytes:
        raise over_limit(413, f"{name} has {len(data) / 1e6:.1f} MB", "picture_mb", limits.picture_mb, "image")
    if not data:
        raise ImageError(name, "is empty (0 bytes); send it again")
    Image.init()
    try:
        opened = identified(io.BytesIO(data))
    except Exception as error:  # whatever a plugin's parser runs into
        raise ImageError(name, "is damaged, or no image; save it again as PNG or JPEG") from error
    if opened is not None:
        form = SAME.get(opened.format or "", opened.format)
        width, height = opened.size
        opened.close()
        if form not in FORMATS:
            raise _unknown(name, f"is of the format {form}")
        if width * height > limits.pixels:
            raise over_limit(413, f"{name} has {width} x {height} pixels", "megapixels", limits.megapixels, "image")
    return opened is not None


def _unknown(name: str, problem: str) -> Refusal:
    message = f"{name} {problem}: this server takes {', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
    return Refusal(415, message, "formats", param="image")
