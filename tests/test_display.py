"""Results in a notebook: IPython's own formatter, nbformat's rules, and texts that mean harm."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.errors import ImageError
from openblip.models.model import Model
from openblip.results import (
    Answered,
    Captioned,
    Classified,
    ClassifiedImage,
    GeneratedText,
    Judged,
    Judgement,
    Match,
    Matched,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x1b[31m"


class Page(HTMLParser):
    """What a browser makes of HTML.

    Attributes:
        tags: of the elements.
        text: that people see.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    @property
    def pictures(self) -> list[Image.Image]:
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                start, _, data = (attributes["src"] or "").partition(",")
                assert start == "data:image/jpeg;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def shown(result: Any) -> Page:
    """A result as a notebook keeps it: what IPython formats, valid for nbformat."""
    formatters = pytest.importorskip("IPython.core.formatters")
    nbformat = pytest.importorskip("nbformat")
    data, metadata = formatters.DisplayFormatter().format(result)
    assert set(data) == {"text/plain", "text/html"}
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    cell = nbformat.v4.new_code_cell("result", outputs=[output], execution_count=1)
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))
    return Page(data["text/html"])


def test_results_of_a_model_are_shown_with_their_pictures(tiny_model: Model, image_paths: list[Path]) -> None:
    path = image_paths[0]
    (captioned,) = tiny_model.caption_many([path])
    (answered,) = tiny_model.ask_many([(path, ["what is it?", "is it a dog?"])])
    (matched,) = tiny_model.match_many([path], ["the dog", "the ball"])
    for result, texts in [
        (captioned, [captioned.text]),
        (answered, ["what is it?", "is it a dog?", *(one.text for one in answered.answers)]),
        (matched, ["the dog", "the ball", *(f"{one.itm:.3f}" for one in matched.matches)]),
    ]:
        page = shown(result)
        (picture,) = page.pictures
        assert picture.size == Image.open(path).size, "small pictures are not made larger"
        # Random weights say what is no text, which is shown as escapes.
        assert path.name in page.text and all(text.strip()[:3] in page.text for text in texts if text.isascii())


def test_large_photos_are_made_small(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1000), (200, 0, 0)).save(tmp_path / "a.png")
    source = str(tmp_path / "a.png")
    page = shown(Judged((source, source), ("both are red",), (Judgement("both are red", "True", {"True": 0.9}),)))
    assert [picture.size for picture in page.pictures] == [(240, 80)] * 2
    assert "both are red" in page.text and "0.900" in page.text


@pytest.mark.parametrize(
    "result",
    [
        Captioned(EVIL, (GeneratedText(EVIL, -1.0), GeneratedText("b", -2.0))),
        Captioned(EVIL, error=ImageError(EVIL, EVIL)),
        Answered(EVIL, (EVIL,), (GeneratedText(EVIL, -1.0),)),
        Matched(EVIL, (Match(EVIL, None, 0.5),)),
        ClassifiedImage(EVIL, (Classified(EVIL, 0.5),)),
        Judged((EVIL, "b.jpg"), (EVIL,), (Judgement(EVIL, EVIL, {EVIL: 1.0}),)),
    ],
)
def test_texts_of_outside_only_show_themselves(result: Any) -> None:
    page = shown(result)
    assert {tag for tag, _ in page.tags} <= {"div", "small", "table", "tr", "th", "td", "p", "b"}
    assert {name for _, attributes in page.tags for name in attributes} <= {"style"}
    assert "<script>alert(1)</script>\"'><img" in page.text and "&amp;" in page.text
    assert "\x1b" not in page.text


@pytest.mark.parametrize("source", ["http://127.0.0.1:1/a.png", "<5 bytes>", "gone.png", "", "/", __file__, "a\0b"])
def test_what_is_no_picture_of_this_machine_is_not_shown(source: str) -> None:
    page = shown(Captioned(source, (GeneratedText("a dog", -1.0),)))
    assert page.pictures == [] and "a dog" in page.text


def test_many_rows_are_cut() -> None:
    page = shown(Matched("a.jpg", tuple(Match(f"text {number}", 0.5, 0.5) for number in range(5000))))
    assert "and 4,900 more" in page.text and len(re.findall(r"text \d+", page.text)) == 100


def test_plain_results_load_nothing_for_it() -> None:
    program = "import openblip, sys; repr(openblip.Captioned('a')); assert 'openblip.display' not in sys.modules"
    subprocess.run([sys.executable, "-c", program + "; assert 'PIL' not in sys.modules"], check=True)
