"""Files of one page or many -> RGB images of the pages, one at a time: PDFs, TIFFs, and any other image as one page."""

from __future__ import annotations

import glob
import io
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from openblip.errors import ImageError, OptionError
from openblip.images.decode import loaded
from openblip.images.pdf import PdfPages
from openblip.images.sources import (
    IMAGE_SUFFIXES,
    ImageSource,
    describe_source,
    has_marks,
    is_address,
    match_pattern,
    natural_order,
    open_encoded,
)
from openblip.images.tiff_pages import TiffPages, find_frames

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_DPI = 150.0
LEAST_DPI, MOST_DPI = 1, 2400
PDF_MARK, MARK_WITHIN = b"%PDF-", 1024
"""What a PDF begins with; readers look for it among so many first bytes."""
DOCUMENT_SUFFIXES = IMAGE_SUFFIXES | {".pdf"}

_PART = re.compile(r"(\d*)\s*-\s*(\d*)|(\d+)", re.ASCII)


class OneImage:
    """An image as a document of one page."""

    kind = "image"

    def __init__(self, source: ImageSource, name: str) -> None:
        self.name = name
        self._source = source

    def __len__(self) -> int:
        return 1

    @contextmanager
    def page(self, index: int, dpi: float) -> Iterator[Image.Image]:
        with loaded(self._source, self.name) as image:
            yield image


AnyDocument: TypeAlias = PdfPages | TiffPages | OneImage
"""Pages, counted from 0, that can be read in any order, also from several threads.

`name` is of the file in errors, `kind` "pdf", "tiff" or "image", and `page(index, dpi)` a context manager of one page
as RGB; pages that are images have a resolution of their own. It raises ImageError when the page cannot be read.
"""


@contextmanager
def open_document(
    source: ImageSource, *, name: str | None = None, password: str | None = None
) -> Iterator[AnyDocument]:
    """A document, for as long as its pages are read.

    Args:
        source: whatever `load_image` takes, or a PDF as a path, address, bytes or open file.
        name: of the file in errors; by default what `describe_source` says.
        password: of an encrypted PDF.

    Raises:
        ImageError: it cannot be opened, or is a PDF that is damaged, encrypted or has no pages. Whether an image can
            be read shows when its page is.
        OpenBlipError: it is a PDF, and pypdfium2 is not installed.
    """
    name = describe_source(source) if name is None else name
    if not isinstance(source, str | bytes | os.PathLike) and not hasattr(source, "read"):
        yield OneImage(source, name)  # an image or an array in memory
        return
    with open_encoded(source, name) as stream:
        head = stream.read(MARK_WITHIN)
        frames = find_frames(stream)
        stream.seek(0)
        if len(frames) > 1:
            yield TiffPages(stream, frames, name)
        elif head.startswith(PDF_MARK) or (PDF_MARK in head and not _is_image(stream)):
            pages = PdfPages(_for_pdfium(source, stream), name, password)
            try:
                yield pages
            finally:
                pages.close()
        else:
            # A stream that was read already: an address is fetched once.
            yield OneImage(source if _is_path(source) else _rest_of(stream), name)


def find_documents(inputs: Iterable[str]) -> list[str]:
    """Paths and addresses of documents: folders and patterns stand for the PDFs and images in them.

    Args:
        inputs: files (kept whatever their suffix), folders (without their subfolders), patterns, addresses (kept).

    Raises:
        ImageError: there is no such file, or no document in a folder.
    """
    found: dict[str, str] = {}
    for text in inputs:
        if is_address(text):
            found.setdefault(text, text)
            continue
        paths = [text]
        if os.path.isdir(text) or (has_marks(text) and not os.path.lexists(text)):
            pattern = os.path.join(glob.escape(text), "*") if os.path.isdir(text) else text
            paths = [path for path in match_pattern(pattern) if _is_document(path)]
            if not paths:
                raise ImageError(describe_source(text), "there is no PDF and no image; check the folder and the suffix")
        elif not os.path.lexists(text):
            raise ImageError(describe_source(text), "there is no such file or folder; check the path")
        for path in sorted(paths, key=natural_order):
            found.setdefault(os.path.normcase(os.path.abspath(path)), path)
    return list(found.values())


def _is_document(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in DOCUMENT_SUFFIXES and os.path.isfile(path)


def count_pages(path: str) -> int:
    """Pages of a file: those of a TIFF; 1 for whatever else there is, or is not. Nothing is decoded."""
    with suppress(ImageError), open_encoded(path, path) as stream:
        return max(1, len(find_frames(stream)))
    return 1


def choose_pages(chosen: str | None, count: int, called: str = "--pages") -> list[int]:
    """Pages by a text such as `1-3,7,10-`, counted from 0, each once and in the document's order.

    Args:
        chosen: None means all.
        count: pages of the document; a range may reach beyond its end.
        called: what an error calls the text.

    Raises:
        OptionError: it is no such text, or names no page of the document.
    """
    if chosen is None:
        return list(range(count))
    pages = sorted(
        {page for first, last in page_ranges(chosen, called) for page in range(first, int(min(last, count)) + 1)}
    )
    if not pages:
        raise OptionError(f"{called} is {chosen!r}, but there {'is 1 page' if count == 1 else f'are {count:,} pages'}")
    return [page - 1 for page in sorted(pages)]


def page_ranges(chosen: str, called: str = "--pages") -> list[tuple[int, float]]:
    """First and last page of each part of a text such as `1-3,7,10-`, counted from 1; the last may be infinite.

    Raises:
        OptionError: it is no such text.
    """
    ranges: list[tuple[int, float]] = []
    for part in chosen.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None or not any(found.groups()):
            raise OptionError(f"{called} is {chosen!r}: write pages as in 1-3,7 or 10-")
        first = int(found[3] or found[1] or 1)
        last = int(found[3] or found[2]) if found[3] or found[2] else math.inf
        if first < 1 or last < first:
            raise OptionError(f"{called} is {chosen!r}: pages are counted from 1, and a range goes upwards")
        ranges.append((first, last))
    return ranges


def checked_dpi(dpi: object) -> float:
    """Raises OptionError for what is no usable resolution."""
    if isinstance(dpi, bool) or not isinstance(dpi, int | float) or not LEAST_DPI <= dpi <= MOST_DPI:
        raise OptionError(f"dpi is {dpi!r}: it must be a number from {LEAST_DPI} to {MOST_DPI}")
    return float(dpi)


def _is_image(stream: BinaryIO) -> bool:
    from PIL import Image

    from openblip.images.decode import identified

    Image.init()
    try:
        return identified(stream) is not None
    except Exception:
        return True  # whoever reads it says what is wrong with it
    finally:
        stream.seek(0)


def _is_path(source: ImageSource) -> bool:
    return isinstance(source, os.PathLike) or (isinstance(source, str) and not is_address(source))


def _for_pdfium(source: ImageSource, stream: BinaryIO) -> str | bytes:
    """What PDFium opens by itself: a large document is not read into memory."""
    if _is_path(source) and not isinstance(stream, io.BytesIO):
        return os.fspath(source)  # type: ignore[arg-type]
    return _rest_of(stream)


def _rest_of(stream: BinaryIO) -> bytes:
    return stream.getvalue() if isinstance(stream, io.BytesIO) else stream.read()
