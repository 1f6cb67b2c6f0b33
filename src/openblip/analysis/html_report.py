"""The report of an analysis as one self-contained page: no scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from openblip.errors import printable

STYLE = Path(__file__).with_name("report.css")
LONGEST_NAME = 4_096
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever a text should hold, a browser fetches and runs nothing."""


def write_html(heading: dict[str, Any], records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The pieces of the page: a card for each page of a document, with its picture and a table of answers."""
    title = escape(heading["title"])
    yield (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{title}</h1>\n<p>Questions: {escape(heading['set'])} · model: {escape(heading['model'])} · "
        f"OpenBLIP {escape(heading['version'])}</p>\n"
    )
    if heading["warning"]:
        yield f'<p class="warning" role="note"><strong>Warning.</strong> {escape(heading["warning"])}</p>\n'
    yield "</header>\n<main>\n"
    open_file: tuple[str, int] | None = None
    for record in records:
        at = record["page"] or 0
        if open_file is None or open_file[0] != record["file"] or at <= open_file[1]:
            yield ("</section>\n" if open_file else "") + f"<section>\n<h2>{_name(record['file'])}</h2>\n"
        open_file = record["file"], at
        yield _card(record)
    yield ("</section>\n" if open_file else "") + "</main>\n</body>\n</html>\n"


def _card(record: dict[str, Any]) -> str:
    page = ""
    if record["page"] is not None and record["pages"] > 1:
        page = f"<h3>Page {record['page']} <small>of {record['pages']}</small></h3>\n"
    if "error" in record:
        return (
            f'<article class="failed">\n<div>{page}<p class="error">{escape(record["error"])}</p></div>\n</article>\n'
        )
    picture = ""
    if "thumbnail" in record:
        alt = f"Page {record['page']} of {record['file']}" if page else record["file"]
        picture = (
            f'<img alt="{escape(alt)}" width="{record["width"]}" height="{record["height"]}" loading="lazy" '
            f'src="data:image/jpeg;base64,{record["thumbnail"]}">\n'
        )
    caption = f'<p class="caption">{escape(record["caption"])}</p>\n' if record.get("caption") else ""
    rows = "".join(map(_answer, record["answers"]))
    rows += "".join(_words(name, words) for name, words in record.get("found", {}).items())
    table = f"<table>\n{rows}</table>\n" if rows else ""
    return f"<article>\n{picture}<div>\n{page}{caption}{table}</div>\n</article>\n"


def _answer(answer: dict[str, Any]) -> str:
    share = answer.get("probability")
    text = escape(answer["answer"]) or '<span class="none">no answer</span>'
    if share is not None:
        text += f' <span class="share">{share:.0%}</span>'
    return f'<tr><th scope="row">{escape(answer["question"])}</th><td>{text}</td></tr>\n'


def _words(name: str, words: list[str]) -> str:
    found = " ".join(f'<span class="word">{escape(word)}</span>' for word in words)
    return f'<tr><th scope="row">{escape(name)}</th><td>{found or NONE}</td></tr>\n'


NONE = '<span class="none">none</span>'


def _name(file: str) -> str:
    """A path that may break behind its slashes, so that it fits a phone."""
    return escape(printable(file, LONGEST_NAME)).replace("/", "/<wbr>")
