"""Pages of many documents, drawn one after the other while the model computes; memory does not grow with them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from openblip.errors import ImageError, OptionError
from openblip.images.documents import AnyDocument, choose_pages, open_document, page_ranges
from openblip.images.prefetch import anything, read_ahead
from openblip.images.sources import ImageSource, describe_source, is_address, open_encoded
from openblip.images.transform import ImageTransform, fit

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 480, 75


class OpenDocument:
    """A document that is opened for the first of its pages that is read, and closed after the last.

    Attributes:
        name: of it in errors.
        label: of it in results: the whole path.
    """

    def __init__(self, source: ImageSource, password: str | None) -> None:
        self.source = source
        self.name = self.label = describe_source(source)
        if isinstance(source, str | os.PathLike) and not is_address(os.fsdecode(source)):
            self.label = os.fsdecode(source)
        self.password = password
        self._lock = Lock()
        self._stack = ExitStack()
        self._document: AnyDocument | None = None
        self._waiting = 0
        self._closed = False

    def fetch(self) -> None:
        """Download an address, once for all pages. Raises ImageError when that fails."""
        if isinstance(self.source, str) and is_address(self.source):
            with open_encoded(self.source, self.name) as stream:
                self.source = stream.read()

    def expect(self, pages: int) -> None:
        """So many pages will be read."""
        self._waiting += pages

    @contextmanager
    def page(self, index: int, dpi: float) -> Iterator[Image.Image]:
        """As `Document.page`. Raises ImageError, too, when the document cannot be opened."""
        try:
            with self._lock:
                if self._closed:
                    raise ImageError(self.name, "is not read any more")
                if self._document is None:
                    opened = open_document(self.source, name=self.name, password=self.password)
                    self._document = self._stack.enter_context(opened)
                document = self._document
            with document.page(index, dpi) as image:
                yield image
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._close()

    def close(self) -> None:
        """No page of it is read any more."""
        with self._lock:
            self._closed = True
            self._close()

    def _close(self) -> None:
        self._stack.close()
        self._document = None


@dataclass(frozen=True)
class PageToRead:
    """One page that is to be analyzed, or a document that cannot be opened.

    Attributes:
        index: counted from 0; None of a document that cannot be opened.
        pages: of the document.
        first, last: of the pages of this document that are analyzed, counted from 1.
    """

    document: OpenDocument
    index: int | None = None
    pages: int = 0
    first: int = 0
    last: int = 0
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class DrawnPage:
    """A page as the model takes it: uint8 [S,S,3]; its size in pixels before that, and a small JPEG of it."""

    pixels: np.ndarray[Any, Any]
    width: int
    height: int
    thumbnail: bytes | None


def plan_pages(
    sources: Iterable[ImageSource], chosen: str | None = None, password: str | None = None
) -> list[PageToRead]:
    """The pages of documents, each of which is opened for that.

    Args:
        chosen: pages of each document, see `choose_pages`.
        password: of those that are encrypted.

    Raises:
        OptionError: `chosen` is wrong.
    """
    if chosen is not None:
        page_ranges(chosen)  # a wrong text is an error before the first document
    plan: list[PageToRead] = []
    for source in sources:
        document = OpenDocument(source, password)
        name = document.name
        try:
            document.fetch()
            with open_document(document.source, name=name, password=password) as opened:
                pages = len(opened)
            numbers = choose_pages(chosen, pages)
        except ImageError as error:
            plan.append(PageToRead(document, error=error))
            continue
        except OptionError as error:
            plan.append(PageToRead(document, pages=pages, error=ImageError(name, str(error))))
            continue
        document.expect(len(numbers))
        plan += [PageToRead(document, index, pages, numbers[0] + 1, numbers[-1] + 1) for index in numbers]
    return plan


def drawn_pages(
    plan: Sequence[PageToRead], transform: ImageTransform, dpi: float, batch_size: int, thumbnails: bool
) -> Iterator[list[tuple[PageToRead, DrawnPage | ImageError]]]:
    """Pages in order, `batch_size` at a time, the next ones being drawn in threads meanwhile.

    Args:
        transform: of the model.
        thumbnails: whether small JPEGs are made.
    """

    def draw(page: PageToRead) -> DrawnPage:
        if page.index is None:
            assert page.error is not None
            raise page.error
        with page.document.page(page.index, dpi) as image:
            small = _thumbnail(image) if thumbnails else None
            return DrawnPage(fit(image, transform), image.width, image.height, small)

    try:
        yield from read_ahead(plan, draw, batch_size, anything)
    finally:
        for document in {id(page.document): page.document for page in plan}.values():
            document.close()


def _thumbnail(image: Image.Image) -> bytes:
    share = min(1.0, THUMBNAIL_SIDE / max(image.size))
    small = image.resize([max(1, round(side * share)) for side in image.size], reducing_gap=2.0)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=THUMBNAIL_QUALITY)
    return content.getvalue()
