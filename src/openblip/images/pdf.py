"""Pages of a PDF, drawn by PDFium as they are printed: turned, cropped, with the fields of forms filled in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

from openblip.errors import ImageError, OpenBlipError
from openblip.images.decode import pixel_limit, room_for
from openblip.images.tiff_pages import page_name

if TYPE_CHECKING:
    from PIL import Image

POINTS_PER_INCH = 72
PDFIUM = RLock()
"""PDFium may be called by one thread at a time, whatever documents they have."""
DAMAGED = "is damaged and cannot be drawn; repair the PDF, or leave it out"
WRONG_PASSWORD, UNKNOWN_SECURITY = 4, 5


class PdfPages:
    """A PDF document. Threads may share it; close it in the end.

    Args:
        source: a path, or the document's bytes.
        name: of the document in errors.
        password: for a document that is encrypted.

    Raises:
        ImageError: it is damaged, encrypted with another password, or has no pages.
        OpenBlipError: pypdfium2 is not installed.
    """

    kind = "pdf"

    def __init__(self, source: str | bytes, name: str, password: str | None = None) -> None:
        try:
            import pypdfium2
        except ImportError:
            raise OpenBlipError(f'reading {name} needs pypdfium2: pip install "openblip[documents]"') from None
        self.name = name
        self._closed = False
        self._error = pypdfium2.PdfiumError
        self._source = source  # PDFium reads on in the bytes
        with PDFIUM:
            self._document = pypdfium2.PdfDocument(_opened(source, name, password))
            with suppress(self._error):  # a form that is broken is drawn without what was filled in
                self._document.init_forms()
            self._count = len(self._document)

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def page(self, index: int, dpi: float) -> Iterator[Image.Image]:
        """One page as RGB, at `dpi` pixels an inch. Raises ImageError when it cannot be drawn, or is too large."""
        name = page_name(self.name, index)
        with PDFIUM:
            self._check_open(name)
            try:
                size = _pixels(self._document.get_page_size(index), dpi, name)
            except self._error as error:
                raise ImageError(name, DAMAGED) from error
        with room_for(size, name):
            yield self._draw(index, dpi, name)

    def close(self) -> None:
        """Give up the document, whatever other threads are about to do with it."""
        with PDFIUM:
            self._closed = True
            self._document.close()

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise ImageError(name, "was closed; open it again")

    def _draw(self, index: int, dpi: float, name: str) -> Image.Image:
        with PDFIUM:
            self._check_open(name)
            page = bitmap = None
            try:
                page = self._document[index]
                bitmap = page.render(scale=dpi / POINTS_PER_INCH, limit_image_cache=True)
                return cast("Image.Image", bitmap.to_pil().convert("RGB"))
            except (self._error, ValueError) as error:
                raise ImageError(name, DAMAGED) from error
            finally:
                for part in (bitmap, page):
                    if part is not None:
                        part.close()


def _pixels(points: tuple[float, float], dpi: float, name: str) -> tuple[int, int]:
    """Width and height of a page of so many points. Raises ImageError if that is more than the limit."""
    inches = [max(side, 0.0) / POINTS_PER_INCH for side in points]
    width, height = (max(1, math.ceil(side * dpi)) for side in inches)
    limit = pixel_limit()
    if width * height > limit:
        most = math.floor(math.sqrt(limit / (inches[0] * inches[1])))
        fix = f"give at most --dpi {most}" if most >= 1 else "leave it out"
        raise ImageError(name, f"is {inches[0]:.0f} x {inches[1]:.0f} inches, {width} x {height} pixels: {fix}")
    return width, height


def _opened(source: str | bytes, name: str, password: str | None) -> Any:
    """PDFium's handle of a document with pages.

    Not by `PdfDocument(source)`, which tells the error of an earlier document for one without pages.
    """
    from pypdfium2 import raw

    key = password.encode() + b"\0" if password else None
    if isinstance(source, bytes):
        handle = raw.FPDF_LoadMemDocument64(source, len(source), key)
    else:
        path = source.encode() if os.name == "nt" else os.fsencode(source)
        handle = raw.FPDF_LoadDocument(path + b"\0", key)
    if not handle:
        raise ImageError(name, _why_not(raw.FPDF_GetLastError(), password))
    if raw.FPDF_GetPageCount(handle) < 1:
        raw.FPDF_CloseDocument(handle)
        raise ImageError(name, "has no pages; check that it is the right file")
    return handle


def _why_not(code: int, password: str | None) -> str:
    if code == WRONG_PASSWORD:
        if password:
            return "is encrypted, and this is not its password; check it"
        return "is encrypted; give its password (--password)"
    if code == UNKNOWN_SECURITY:
        return "is encrypted in a way that PDFium does not read; save it without protection"
    return "is a damaged PDF; copy or download it again, or open it and print it to a new PDF"
