"""Pages of documents: PDFs as they are printed, TIFFs of any mixture, and what is wrong with damaged ones."""

from __future__ import annotations

import io
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.images.decode import load_image
from openblip.images.documents import checked_dpi, choose_pages, count_pages, open_document
from openblip.images.sources import ImageSource
from tests.pdf_files import pdf_of, stream_of

pytest.importorskip("pypdfium2")

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pages_of(source: ImageSource, dpi: float = 72, password: str | None = None) -> list[Image.Image | str]:
    """Each page, or what is wrong with it."""
    found: list[Image.Image | str] = []
    with open_document(source, password=password) as document:
        for index in range(len(document)):
            try:
                with document.page(index, dpi) as image:
                    found.append(image.copy())
            except ImageError as error:
                found.append(str(error))
    return found


def corners(image: Image.Image | str) -> list[object]:
    """Upper left, upper right, lower left, lower right."""
    assert isinstance(image, Image.Image)
    right, bottom = image.width - 3, image.height - 3
    return [image.getpixel(place) for place in ((2, 2), (right, 2), (2, bottom), (right, bottom))]


def test_pages_of_a_pdf_are_upright_cropped_and_filled_in(tmp_path: Path) -> None:
    field = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /F 4 /Rect [50 0 100 50] /AP << /N 5 0 R >> >>"
    shown = stream_of(b"0 0 1 rg 0 0 50 50 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 50 50]")
    entries = [
        b"",
        b"/Rotate 90",
        b"/CropBox [25 0 100 50]",
        b"/MediaBox [0 0 100 200]",
        b"/Annots [4 0 R]",
    ]
    path = tmp_path / "form.pdf"
    path.write_bytes(pdf_of(entries, catalog=b"/AcroForm << /Fields [4 0 R] >>", more=[field, shown]))
    plain, turned, cropped, tall, form = pages_of(path)
    assert corners(plain) == [RED, WHITE, RED, WHITE]
    assert corners(turned) == [RED, RED, WHITE, WHITE]
    assert isinstance(cropped, Image.Image) and cropped.size == (75, 50) and corners(cropped) == corners(plain)
    assert isinstance(tall, Image.Image) and tall.size == (100, 200) and corners(tall) == [WHITE, WHITE, RED, WHITE]
    assert corners(form) == [RED, WHITE, RED, (0, 0, 255)]


def test_resolution_and_sources(tmp_path: Path) -> None:
    """As many pixels an inch as asked for, from a path, bytes, an open file, and behind other bytes."""
    content = pdf_of([b"", b""])
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    for source in (path, str(path), content, io.BytesIO(content), b"\0" * 20 + content):
        found = pages_of(source, dpi=150)
        assert [image.size for image in found if isinstance(image, Image.Image)] == [(209, 209)] * 2


def test_encrypted_pdfs() -> None:
    content = pdf_of([b""], password="secret")
    with pytest.raises(ImageError, match="is encrypted; give its password"):
        pages_of(content)
    with pytest.raises(ImageError, match="this is not its password"):
        pages_of(content, password="guess")
    (page,) = pages_of(content, password="secret")
    assert corners(page) == [RED, WHITE, RED, WHITE]
    (page,) = pages_of(pdf_of([b""]), password="secret")
    assert corners(page) == [RED, WHITE, RED, WHITE]


def test_damaged_and_empty_pdfs(tmp_path: Path) -> None:
    content = pdf_of([b"", b""])
    for damaged in (content[:200], b"%PDF-1.7\n" + b"\0" * 1000, b"%PDF-"):
        with pytest.raises(ImageError, match="is a damaged PDF; copy or download it again"):
            pages_of(damaged)
    with pytest.raises(ImageError, match="has no pages"):
        pages_of(pdf_of([]))
    # Without its table PDFium finds the objects by itself.
    assert len(pages_of(content[: content.index(b"xref")] + b"trailer\n<< /Root 1 0 R >>\n")) == 2
    with pytest.raises(ImageError, match="there is no such file"):
        pages_of(tmp_path / "gone.pdf")


def test_a_page_that_is_too_large_is_refused_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = pdf_of([b"/MediaBox [0 0 14400 14400]", b"", b"/MediaBox [0 0 99999999 99999999]"])
    large, small, huger = pages_of(huge, dpi=150)
    assert large == f"<{len(huge)} bytes>, page 1: is 200 x 200 inches, 30000 x 30000 pixels: give at most --dpi 66"
    assert isinstance(small, Image.Image)
    assert isinstance(huger, str) and huger.endswith("leave it out")
    monkeypatch.setenv("OPENBLIP_MAX_PIXELS", "5000")
    assert "give at most --dpi 50" in str(pages_of(pdf_of([b""]))[0])


def test_threads_share_documents() -> None:
    """PDFium is not thread-safe: without its lock, this crashes or mixes pages up."""
    content = pdf_of([b"", b"/Rotate 90"] * 10)
    wrong: list[object] = []
    with open_document(content) as one, open_document(content) as other:

        def draw(number: int) -> None:
            for index in range(len(one)):
                with (one if number % 2 else other).page(index, 100) as image:
                    if corners(image) != [[RED, WHITE, RED, WHITE], [RED, RED, WHITE, WHITE]][index % 2]:
                        wrong.append((number, index))

        threads = [threading.Thread(target=draw, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def mixed_pages() -> list[Image.Image]:
    deep = (np.arange(80 * 100).reshape(80, 100) * 8).astype("uint16")
    return [
        Image.new("1", (300, 200), 1),
        Image.new("L", (100, 400), 128),
        Image.new("CMYK", (50, 60), (255, 0, 0, 0)),
        Image.fromarray(deep),
        Image.new("RGB", (640, 480), "blue"),
        Image.new("RGBA", (10, 10), (255, 0, 0, 0)),
    ]


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_pages_of_a_tiff(options: dict[str, object], tmp_path: Path) -> None:
    """Of different sizes and modes; each is as `load_image` reads it from a file of its own."""
    first, *others = mixed_pages()
    path = tmp_path / "pages.tif"
    first.save(path, save_all=True, append_images=others, **options)
    expected = []
    for number, image in enumerate([first, *others]):
        image.save(tmp_path / f"{number}.tif")
        expected.append(load_image(tmp_path / f"{number}.tif"))
    for source in (path, path.read_bytes()):
        found = pages_of(source)
        assert [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True)] == [
            True
        ] * 6
    assert count_pages(str(path)) == 6
    with open_document(path) as document:  # in any order, and again
        for index in (5, 0, 3, 0):
            with document.page(index, 72) as image:
                assert image.tobytes() == expected[index].tobytes()


def test_reduced_copies_and_masks_are_no_pages(tmp_path: Path) -> None:
    images = [Image.new("L", (size, size), size) for size in (100, 50, 90, 80)]
    path = tmp_path / "pyramid.tif"
    for image, kind in zip(images, (0, 1, 2, 4), strict=True):
        image.encoderinfo = {"tiffinfo": {254: kind}}  # Pillow writes it for each page
    images[0].save(path, save_all=True, append_images=images[1:])
    with Image.open(path) as opened:
        assert [frame.tag_v2.get(254) for frame in ImageSequence.Iterator(opened)] == [0, 1, 2, 4]  # type: ignore[attr-defined]
    assert [image.size[0] for image in pages_of(path) if isinstance(image, Image.Image)] == [100, 90]


def test_a_tiff_that_is_cut_short_keeps_the_pages_before_it(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    images = [Image.effect_noise((100, 100), 50) for _ in range(5)]
    images[0].save(path, save_all=True, append_images=images[1:])
    path.write_bytes(path.read_bytes()[:25_000])
    found = pages_of(path)
    assert [isinstance(page, Image.Image) for page in found] == [True, True, False, False][: len(found)]
    assert all(f"page {number}: is" in str(found[number - 1]) for number in range(3, len(found) + 1))


def test_a_tiff_whose_directories_go_round_ends(tmp_path: Path) -> None:
    first, *others = mixed_pages()[:3]
    path = tmp_path / "ring.tif"
    first.save(path, save_all=True, append_images=others)
    content = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<I", content, 4)
    for _ in range(2):
        last = place + 2 + 12 * struct.unpack_from("<H", content, place)[0]
        (place,) = struct.unpack_from("<I", content, last)
    end = place + 2 + 12 * struct.unpack_from("<H", content, place)[0]
    struct.pack_into("<I", content, end, struct.unpack_from("<I", content, 4)[0])
    assert len(pages_of(bytes(content))) == 3


def test_any_other_image_is_one_page(image_paths: list[Path]) -> None:
    expected = load_image(image_paths[0])
    for source in (image_paths[0], image_paths[0].read_bytes(), expected):
        (page,) = pages_of(source)
        assert isinstance(page, Image.Image) and page.tobytes() == expected.tobytes()
    assert count_pages(str(image_paths[0])) == count_pages("gone.tif") == 1
    (problem,) = pages_of(b"no image at all")
    assert "is not an image in a known format" in str(problem)


def test_dicom_and_pdf_are_named_where_images_belong() -> None:
    with pytest.raises(ImageError, match="is a DICOM file; export it as PNG or TIFF"):
        load_image(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + b"\0" * 100)
    with pytest.raises(ImageError, match="is not an image but a PDF document; `openblip analyze` reads its pages"):
        load_image(pdf_of([b""]))


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        (None, [1, 2, 3, 4, 5]),
        ("1-3", [1, 2, 3]),
        ("3,1", [1, 3]),
        (" 2 - 3 , 5", [2, 3, 5]),
        ("4-", [4, 5]),
        ("-2", [1, 2]),
        ("1-99999999999", [1, 2, 3, 4, 5]),
        ("1,9", [1]),
    ],
)
def test_pages_are_chosen(text: str | None, pages: list[int]) -> None:
    assert [page + 1 for page in choose_pages(text, 5)] == pages


@pytest.mark.parametrize("text", ["", "0", "3-1", "a", "1,,2", "-", "1-2-3", "1.5", "0-2", "-0", "６-"])
def test_wrong_pages_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--pages is"):
        choose_pages(text, 5)


def test_no_such_pages() -> None:
    with pytest.raises(OptionError, match="--pages is '6-', but there are 5 pages"):
        choose_pages("6-", 5)
    with pytest.raises(OptionError, match="but there is 1 page"):
        choose_pages("2", 1)


@pytest.mark.parametrize("dpi", [0, -1, 2401, float("nan"), "150", True, None])
def test_wrong_resolutions_are_refused(dpi: object) -> None:
    with pytest.raises(OptionError, match="dpi is"):
        checked_dpi(dpi)


def test_without_pypdfium2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    with pytest.raises(OpenBlipError, match=r'pip install "openblip\[documents\]"'):
        pages_of(pdf_of([b""]))
