"""Reports: what others wrote stays text in each format, and JSON is whole whatever pages there are."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from openblip.analysis.html_report import POLICY
from openblip.analysis.question_sets import QuestionSet, built_in_sets
from openblip.analysis.reports import FORMATS, format_of, heading_of, write_report
from openblip.errors import OptionError

EVIL = "<script>alert(1)</script> | *bold* `code` [a](b) \\ & \"quoted\" 'x' ]]> --> <!--"


def page(file: str, number: int | None, pages: int, **more: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"file": file, "page": number, "pages": pages}
    return record | (more if "error" in more else {"width": 10, "height": 20, "answers": []} | more)


RECORDS = [
    page(
        EVIL,
        1,
        2,
        caption=EVIL,
        answers=[
            {"question": EVIL, "answer": EVIL, "score": -1.0},
            {"question": "Is it?", "answer": "yes", "probability": 0.789},
            {"question": "What?", "answer": ""},
        ],
        found={"colors": ["red", EVIL], "shapes": []},
        thumbnail="AAAA",
    ),
    page(EVIL, 2, 2, error=EVIL),
    page("b/c.pdf", None, 0, error="is damaged"),
    page("b/c.pdf", None, 0, error="is damaged, too"),
    page("d.jpg", 1, 1),
    page("d.jpg", 1, 1),
]
HEADING = heading_of(QuestionSet(EVIL, caption=True, title=EVIL, warning=EVIL), EVIL)


def report(form: str, records: list[dict[str, Any]]) -> str:
    return "".join(write_report(form, HEADING, records, 60))


@pytest.mark.parametrize("count", range(len(RECORDS) + 1))
def test_json_is_whole(count: int) -> None:
    whole = json.loads(report("json", RECORDS[:count]))
    assert whole["warning"] == whole["title"] == whole["model"] == EVIL
    pages = [
        {"file": document["file"], "pages": document["pages"]} | one
        for document in whole["documents"]
        for one in (document["analyzed"] or [{"page": None, "error": document["error"]}])
    ]
    assert pages == [{key: value for key, value in one.items() if key != "thumbnail"} for one in RECORDS[:count]]
    assert len(whole["documents"]) == [0, 1, 1, 2, 3, 4, 5][count]


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_and_loads_nothing() -> None:
    content = report("html", RECORDS)
    found = Page(content)
    assert found.open == [] and "script" not in found.tags
    assert found.links == ["data:image/jpeg;base64,AAAA"]
    assert html.escape(POLICY, quote=False) in content and "http" not in re.sub("http-equiv", "", content)
    assert (
        found.text.count(EVIL) == 11
    )  # title, heading, set, model, warning, file, caption, question and answer, word, error
    assert "79%" in found.text and "no answer" in found.text and found.tags.count("section") == 5


def test_markdown_keeps_what_others_wrote_text() -> None:
    """Unescaped, each cell, heading and quote is what was written; no cell ends early."""
    content = report("markdown", RECORDS)
    rows = [line for line in content.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3 for row in rows)
    assert re.sub(r"\\([^\w\s])", r"\1", content).count(EVIL) == 10
    assert not re.search(r"(?<!\\)[<*`]", content.replace("> **Warning:**", "").replace("**Error:**", ""))
    assert "| Is it? | yes (79%) |" in content and "### Page 1 of 2" in content


def test_text_fits_its_width_and_warns_first() -> None:
    content = report("text", RECORDS)
    assert content.startswith("WARNING: ")
    assert max(len(line) for line in content.splitlines() if EVIL not in line) <= 60
    assert re.search(r"\n  shapes +-\n", content)


def test_medical_warnings_are_in_every_format() -> None:
    heading = heading_of(built_in_sets()["ct"], "mini")
    for form in FORMATS:
        text = "".join(write_report(form, heading, [], 50))
        assert "not trained on medical images" in " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "given", "form"),
    [
        ("a.json", None, "json"),
        ("a.MD", None, "markdown"),
        ("a.markdown", None, "markdown"),
        ("a.htm", None, "html"),
        ("a.txt", None, "text"),
        ("a.json", "html", "html"),
        ("a", "md", "markdown"),
    ],
)
def test_formats(name: str, given: str | None, form: str) -> None:
    assert format_of(Path(name), given) == form


def test_formats_that_are_none() -> None:
    with pytest.raises(OptionError, match=r"the format is 'jsn': did you mean json\?"):
        format_of(Path(), "jsn")
    with pytest.raises(OptionError, match="give one of text, json, markdown, html"):
        format_of(Path(), "pdf")
    with pytest.raises(OptionError, match=r"end its name with \.json, \.md"):
        format_of(Path("report.pdf"))
