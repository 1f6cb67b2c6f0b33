"""Reports of analyses: JSON, Markdown, HTML and text, written page by page."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from openblip import __version__
from openblip.analysis.html_report import write_html
from openblip.analysis.question_sets import QuestionSet
from openblip.errors import OptionError, printable

Record: TypeAlias = "dict[str, Any]"
"""A page, see `openblip.analysis.results.AnalyzedPage.to_dict`."""
Heading: TypeAlias = "dict[str, Any]"
"""What a report says once: the set, its title and warning, and the model."""
FORMATS = ("text", "json", "markdown", "html")
ENDINGS = {"json": "json", "md": "markdown", "markdown": "markdown", "html": "html", "htm": "html", "txt": "text"}
"""Formats by the suffixes of files."""
LONGEST_NAME = 4_096
LONGEST_LABEL, SHORTEST_WIDTH = 44, 40
"""Characters of a question beside its answer, and of the narrowest line."""
MARKS = re.compile(r"([\\`*_\[\]<>#|~$&])")


def format_of(path: Path, given: str | None = None) -> str:
    """The format of a report, as it is given or by the file's name. Raises OptionError when there is no such format."""
    if given is None:
        suffix = path.suffix.lower().removeprefix(".")
        if suffix not in ENDINGS:
            raise OptionError(f"{path} could be of any format: end its name with .{', .'.join(ENDINGS)}")
        return ENDINGS[suffix]
    name = ENDINGS.get(given.lower(), given.lower())
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(FORMATS)}"
        raise OptionError(f"the format is {given!r}: {hint}")
    return name


def heading_of(asked: QuestionSet, model: str) -> Heading:
    """What a report says of all pages."""
    return {
        "set": asked.name,
        "title": asked.title or asked.name,
        "warning": asked.warning,
        "model": model,
        "version": __version__,
    }


def write_report(form: str, heading: Heading, records: Iterable[Record], width: int = 100) -> Iterator[str]:
    """The pieces of a report; no more than one page of it is in memory.

    Args:
        form: one of `FORMATS`.
        records: pages, those of a document one behind the other.
        width: of lines of text, in characters.
    """
    if form == "text":
        return write_text(heading, records, width)
    writers: dict[str, Callable[[Heading, Iterable[Record]], Iterator[str]]] = {
        "json": write_json,
        "markdown": write_markdown,
        "html": write_html,
    }
    return writers[form](heading, records)


def is_first(record: Record, before: Record | None) -> bool:
    """Whether a page begins another document than the page before."""
    if before is None or record["file"] != before["file"] or None in (record["page"], before["page"]):
        return True
    return bool(record["page"] <= before["page"])


def write_json(heading: Heading, records: Iterable[Record]) -> Iterator[str]:
    """One object: the heading, and `documents`, each with its `analyzed` pages or an `error`."""
    yield json.dumps(heading, ensure_ascii=False, indent=1).removesuffix("\n}") + ',\n "documents": ['
    before = None
    for record in records:
        first, own = is_first(record, before), {key: value for key, value in record.items() if key != "thumbnail"}
        if first and before is not None:
            yield "" if before["page"] is None else "\n  ]}"
        file = json.dumps(own.pop("file"), ensure_ascii=False)
        pages = own.pop("pages")
        if record["page"] is None:
            error = json.dumps(record["error"], ensure_ascii=False)
            yield f'{"," if before else ""}\n  {{"file": {file}, "pages": {pages}, "error": {error}, "analyzed": []}}'
        else:
            if first:
                yield f'{"," if before else ""}\n  {{"file": {file}, "pages": {pages}, "analyzed": ['
            yield ("" if first else ",") + "\n   " + json.dumps(own, ensure_ascii=False)
        before = record
    yield ("\n  ]}" if before is not None and before["page"] is not None else "") + "\n ]\n}\n"


def write_markdown(heading: Heading, records: Iterable[Record]) -> Iterator[str]:
    """Headings and tables; what others wrote is escaped."""
    yield f"# {_escaped(heading['title'])}\n\n"
    if heading["warning"]:
        yield f"> **Warning:** {_escaped(heading['warning'])}\n\n"
    about = f"Questions: {heading['set']}. Model: {heading['model']}. OpenBLIP {heading['version']}."
    yield f"{_escaped(about)}\n"
    before = None
    for record in records:
        if is_first(record, before):
            yield f"\n## {_escaped(shown_file(record))}\n"
        before = record
        if record["page"] is not None and record["pages"] > 1:
            yield f"\n### Page {record['page']} of {record['pages']}\n"
        if "error" in record:
            yield f"\n**Error:** {_escaped(record['error'])}\n"
            continue
        if record.get("caption"):
            yield f"\n{_escaped(record['caption'])}\n"
        rows = rows_of(record)
        if rows:
            yield "\n| Question | Answer |\n|---|---|\n"
            yield "".join(f"| {_escaped(name)} | {_escaped(text)} |\n" for name, text in rows)


def write_text(heading: Heading, records: Iterable[Record], width: int) -> Iterator[str]:
    """For a terminal: answers beside their questions where these are short."""
    width = max(SHORTEST_WIDTH, width)
    if heading["warning"]:
        yield textwrap.fill(f"WARNING: {heading['warning']}", width) + "\n\n"
    for record in records:
        page = f", page {record['page']} of {record['pages']}" if record["page"] and record["pages"] > 1 else ""
        yield f"{shown_file(record)}{page}\n"
        if "error" in record:
            yield (
                textwrap.fill(f"error: {record['error']}", width, initial_indent="  ", subsequent_indent="  ") + "\n\n"
            )
            continue
        rows = [*([("caption", record["caption"])] if record.get("caption") else []), *rows_of(record)]
        label = min(max((len(name) for name, _ in rows), default=0), min(LONGEST_LABEL, width // 2))
        for name, text in rows:
            if len(name) > label:
                yield _filled(name, width)
                name = ""
            indent = f"  {name:{label}}  "
            yield _filled(text, width, indent)
        yield "\n"


def _filled(text: str, width: int, indent: str = "  ") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=" " * len(indent)) + "\n"


def shown_file(record: Record) -> str:
    """The name of a page's file without characters that do not show themselves."""
    return printable(record["file"], LONGEST_NAME)


def rows_of(record: Record) -> list[tuple[str, str]]:
    """Questions and lists of words, each with the answer as people read it."""
    answers = [(one["question"], shown_answer(one)) for one in record["answers"]]
    return answers + [(name, ", ".join(words) or "-") for name, words in record.get("found", {}).items()]


def shown_answer(answer: Record) -> str:
    """An answer, with its share among the choices if it was chosen."""
    share = answer.get("probability")
    text = " ".join(answer["answer"].split()) or "-"
    return text if share is None else f"{text} ({share:.0%})"


def _escaped(text: str) -> str:
    """Text that means nothing to Markdown, in one line."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))
