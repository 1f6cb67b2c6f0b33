"""Any image a user can name -> checked RGB image.

`load_image` turns every failure of a file or a decoder into one `ImageError`. It leaves Pillow's global settings alone
and may be called from many threads.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.images.memory import MemoryBudget
from openblip.images.rgb import to_rgb
from openblip.images.sources import ImageSource, describe_source, find_images, open_encoded

if TYPE_CHECKING:
    from PIL import Image

    from openblip.web.policy import UrlPolicy

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "ImageSource",
    "describe_source",
    "find_images",
    "load_image",
    "loaded",
]

DEFAULT_MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses by default: about 13,400 x 13,400, half a gigabyte as RGB."""

BYTES_PER_PIXEL = 12
"""What an image within the limit of pixels may take while it is decoded."""
SMALL_BYTES = 2**30
"""What any image may take, however low the limit of pixels is."""
GREEDY = {"WEBP": 18, "JPEG2000": 25, "AVIF": 14}
"""Bytes a pixel that decoders take, as measured, where it is more than Pillow's own pixels and ours (at most 10)."""
USUAL = 10


_BUDGET = MemoryBudget(BYTES_PER_PIXEL * DEFAULT_MAX_PIXELS)
_SILENT = threading.Event()
_ORIENTATION_TAG = 0x0112

# Decoding these starts a foreign program (Ghostscript) or a system renderer on content nobody has checked.
_REFUSED_FORMATS = ("EPS", "WMF", "EMF")

_CUT_SHORT = "is cut short; copy or download it again"
_KNOWN_CONTENT = (
    (b"%pdf", "a PDF document; `openblip analyze` reads its pages, or export them as PNG or JPEG"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull`"),
    (b"<svg", "an SVG drawing; export it as PNG"),
    (b"<?xml", "an XML file (perhaps an SVG drawing); export it as PNG"),
    (b"<", "a web page; check the address it was downloaded from"),
)
_DICOM_MARK = slice(128, 132)
_HEAD_BYTES = 132
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def load_image(
    source: ImageSource, *, max_pixels: int | None = None, allow_urls: UrlPolicy | bool | None = None
) -> Image.Image:
    """Reads one image completely and returns it as a new 8-bit RGB image.

    Orientation marks of cameras are applied, animations give their first frame (an opened PIL animation: the
    frame it stands on), transparency is laid over white, deeper greys are scaled to 8 bits, and CMYK is
    converted with Pillow's formula, as in the models' training. Metadata are dropped.

    Args:
        source: path, http(s) address, encoded bytes, binary file (read from its beginning, left open), PIL
            image, or array [H,W], [H,W,1], [H,W,3] or [H,W,4] of uint8, or of floats between 0 and 1.
        max_pixels: largest width x height accepted, checked before any pixel is decoded; by default the
            environment variable OPENBLIP_MAX_PIXELS, else `DEFAULT_MAX_PIXELS`. Pillow's own limit
            (`PIL.Image.MAX_IMAGE_PIXELS`) does not count. Images whose decoding takes more than 12 bytes for each
            pixel of this limit are refused, too.
        allow_urls: whether web addresses are fetched: True, False, or a `UrlPolicy`, which names the servers. By
            default as the environment variable OPENBLIP_ALLOW_URLS says: 0 for none, or names of hosts with commas
            between them; unset, all are. A server that passes on its visitors' texts should say False, or name
            hosts. Addresses in private networks are refused unless OPENBLIP_ALLOW_PRIVATE_ADDRESSES is 1, or the
            policy allows them.

    Raises:
        ImageError: the image cannot be read; the message names it and says what to do.
        OptionError: `max_pixels` or OPENBLIP_MAX_PIXELS is not a positive whole number, or `allow_urls` not True,
            False, None or a policy.
    """
    if allow_urls is not None:
        from openblip.web.policy import url_policy

        allow_urls = url_policy(allow_urls)
    with loaded(source, describe_source(source), max_pixels, allow_urls) as image:
        return image


@contextmanager
def loaded(
    source: ImageSource, name: str, max_pixels: int | None = None, allow_urls: UrlPolicy | bool | None = None
) -> Iterator[Image.Image]:
    """`load_image` for a while: many threads at it wait for one another rather than for memory.

    Args:
        name: of the image in errors.
    """
    with _BUDGET.lease() as take:
        yield _load(source, name, pixel_limit(max_pixels), allow_urls, take)


@contextmanager
def room_for(size: tuple[int, int], name: str) -> Iterator[None]:
    """Memory for pixels that another library draws, within the same limits: other threads wait meanwhile.

    Args:
        size: width and height in pixels.
        name: of the image in errors.

    Raises:
        ImageError: more pixels than OPENBLIP_MAX_PIXELS allows, or none.
    """
    _check_size(size, name, pixel_limit())
    with _BUDGET.lease() as take:
        take(size[0] * size[1] * BYTES_PER_PIXEL)
        yield


def silence_decoders() -> None:
    """Keep Pillow and the libraries under it from writing lines of their own; what matters is in our errors.

    For programs of ours: it holds for the whole process.
    """
    import logging
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\b")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    _SILENT.set()


@cache
def _silence_libtiff() -> None:
    """libtiff writes to standard error by itself, unless somebody takes its handlers away."""
    import ctypes

    from PIL import _imaging

    try:
        library = ctypes.CDLL(_imaging.__file__)
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
    except (AttributeError, OSError):
        pass  # built into Pillow, and not to be reached


def _load(
    source: ImageSource, name: str, limit: int, allow_urls: UrlPolicy | bool | None, take: Callable[[int], None]
) -> Image.Image:
    from PIL import Image

    # Whoever holds an array has imported numpy; looking here keeps its import out of everyone else's start.
    numpy = sys.modules.get("numpy")
    try:
        if isinstance(source, Image.Image):
            _check_size(source.size, name, limit)
            take(_bytes_needed(source))
            rgb = _finish(source, name)
            return rgb.copy() if rgb.im is source.im else rgb
        if numpy is not None and isinstance(source, numpy.ndarray):
            made = _from_array(source, name)
            _check_size(made.size, name, limit)
            return _finish(made, name)
        with open_encoded(source, name, allow_urls) as stream:
            return _decode(stream, name, limit, take)
    except OpenBlipError:
        raise
    except Exception as error:
        # Pillow's plugins raise whatever their parsing ran into: struct.error, SyntaxError, zlib.error, ...
        raise ImageError(name, explain(error)) from error


def _bytes_needed(image: Image.Image) -> int:
    """Of an encoded image until it is RGB."""
    return image.width * image.height * GREEDY.get(image.format or "", USUAL)


def pixel_limit(max_pixels: int | None = None) -> int:
    """The largest width x height, see `load_image`. Raises OptionError when it is no positive whole number."""
    value: object = max_pixels
    label = "max_pixels"
    if value is None:
        label = "OPENBLIP_MAX_PIXELS"
        value = os.environ.get(label) or DEFAULT_MAX_PIXELS
    try:
        limit = int(str(value))
    except ValueError:
        limit = 0
    if limit < 1:
        raise OptionError(f"{label} must be a positive whole number of pixels, not {value!r}.")
    return limit


def _decode(stream: BinaryIO, name: str, limit: int, take: Callable[[int], None]) -> Image.Image:
    from PIL import Image

    head = stream.read(_HEAD_BYTES)
    if not head:
        raise ImageError(name, "is empty (0 bytes); copy or download it again")
    # Registers every format once. Left to Image.open, two threads that meet their first WebP at the same
    # moment can be told that it is no image.
    Image.init()
    image = identified(stream)
    if image is None:
        raise ImageError(name, _not_an_image(head))
    if image.format in _REFUSED_FORMATS:
        raise ImageError(name, f"{image.format} drawings are not read; export it as PNG or JPEG")
    if not _has_end_mark(stream, image.format):
        raise ImageError(name, _CUT_SHORT)
    _check_size(image.size, name, limit)
    needed = _bytes_needed(image)
    most = max(BYTES_PER_PIXEL * limit, SMALL_BYTES)
    if needed > most:
        raise ImageError(
            name,
            f"takes {needed / 1e9:.1f} GB of memory to decode, more than the limit of {most / 1e9:.1f}; "
            "make it smaller, or if you trust it raise max_pixels (OPENBLIP_MAX_PIXELS)",
        )
    take(needed)
    return _finish(image, name, own=True)


def identified(stream: BinaryIO) -> Image.Image | None:
    """What `PIL.Image.open` makes of a file: the first format that takes it, its pixels not read yet.

    Call `PIL.Image.init` before. Done by hand because `open` measures by a limit of its own, which other programs'
    threads share, and warns below it.
    """
    from PIL import Image

    stream.seek(0)
    start = stream.read(16)
    for name in Image.ID:
        factory, accepts = Image.OPEN[name.upper()]
        accepted = accepts is None or accepts(start)
        if not accepted or isinstance(accepted, str):  # a text says which plugin is missing
            continue
        stream.seek(0)
        try:
            image = cast("Image.Image", factory(stream, ""))
            if image.format == "TIFF" and _SILENT.is_set():
                _silence_libtiff()
            return image
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # of another format that begins alike
    return None


def _has_end_mark(stream: BinaryIO, image_format: str | None) -> bool:
    """Whether the mark that ends the pixels of a JPEG or JPEG 2000 file is there.

    The decoders fill in grey, without an error, what a JPEG padded with zeros (an interrupted copy) or a JPEG
    2000 cut between two tiles lacks. Inside coded pixels neither mark can occur. In doubt the file counts as
    complete.
    """
    if image_format not in ("JPEG", "MPO", "JPEG2000"):
        return True
    position = stream.tell()
    stream.seek(-2, os.SEEK_END)
    if stream.read() == b"\xff\xd9":
        # Also where a thumbnail's mark comes last: such a file has no coded pixels, and the decoder says so.
        stream.seek(position)
        return True
    data = _mapped(stream)
    stream.seek(position)
    if image_format == "JPEG2000":
        first_tile = data.find(b"\xff\x90")
        return first_tile >= 0 and data.find(b"\xff\xd9", first_tile) >= 0
    # Step over the segments: a thumbnail among the metadata has an end mark of its own.
    scan = 2
    while data[scan : scan + 1] == b"\xff" and data[scan + 1 : scan + 2] != b"\xda":
        scan += 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return data[scan : scan + 2] != b"\xff\xda" or data.find(b"\xff\xd9", scan) >= 0


def _mapped(stream: BinaryIO) -> bytes | mmap.mmap:
    """All bytes of a file; one on disk is mapped, not read into memory."""
    if isinstance(stream, io.BytesIO):
        return stream.getvalue()
    return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _not_an_image(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, meaning in _KNOWN_CONTENT:
        if text.startswith(start):
            return f"is not an image but {meaning}"
    if head[_DICOM_MARK] == b"DICM":
        return "is a DICOM file; export it as PNG or TIFF, with the window that shows what matters"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "is a HEIC photo, which Pillow needs a plugin for; convert it to JPEG or register pillow-heif"
    return "is not an image in a known format, or its beginning is damaged; pass a JPEG, PNG or similar file"


def explain(error: Exception) -> str:
    from PIL import Image

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "holds a part of more pixels than Pillow opens; make it smaller"
    if isinstance(error, MemoryError):
        return "needs more memory than there is; make it smaller"
    text = " ".join(str(error).split())[:200]
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return _CUT_SHORT
    detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"is damaged or of an unsupported kind ({detail}); save it again as PNG or JPEG in an image editor"


def _finish(image: Image.Image, name: str, own: bool = False) -> Image.Image:
    """May share its pixels with `image`, which is closed when it is our `own`."""
    image.load()
    transposition = _transposition(image)
    # Most photos are RGB: a copy of one, only to drop its metadata, would take as long as reading its file.
    rgb = image._new(image.im) if image.mode == "RGB" and not image.has_transparency_data else to_rgb(image, name)
    if own:
        image.close()  # gives up its pixels before a turned image needs as many
    upright = rgb if transposition is None else rgb.transpose(transposition)
    upright.info = {}
    return upright


def _check_size(size: tuple[int, int], name: str, limit: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width} x {height}); pass another image")
    if width * height > limit:
        raise ImageError(
            name,
            f"has {width} x {height} pixels, more than the limit of {limit}; make it smaller, "
            "or if you trust it raise max_pixels (OPENBLIP_MAX_PIXELS)",
        )


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """What the camera's orientation mark asks for; unreadable metadata count as none."""
    from PIL import Image

    transpositions = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        return transpositions.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return None  # the parser meets arbitrary bytes; the image itself is good


def _from_array(array: Any, name: str) -> Image.Image:
    import numpy as np
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; move the channels last with array.transpose(1, 2, 0)" if channels_first else ""
        raise ImageError(name, f"an image array is height x width, or height x width x 1, 3 or 4{hint}")
    if np.issubdtype(array.dtype, np.floating):
        # Written so that NaN fails too.
        if array.size and not (array.min() >= 0 and array.max() <= 1):
            raise ImageError(name, "float pixels must be numbers from 0 to 1; divide by 255 or pass uint8")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(name, "pixels must be uint8, or floats between 0 and 1; convert the array first")
    if array.size == 0:
        raise ImageError(name, "has no pixels; pass another image")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))
