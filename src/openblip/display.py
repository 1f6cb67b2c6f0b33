"""Results as notebooks show them: a small picture beside what was found out about it.

Nothing here is imported before a notebook asks for it, and nothing is fetched from the web.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence

from openblip.errors import ImageError, OptionError, printable
from openblip.images.decode import load_image
from openblip.images.sources import is_address

SIDE = 240
"""Pixels of a picture's longer side, shown at two thirds of it: sharp on fine screens."""
QUALITY = 80
MOST_ROWS = 100
MOST_CHARACTERS = 2_000
"""Of one text."""
CELL = "text-align:left;padding:.1em .8em .1em 0;vertical-align:top;overflow-wrap:anywhere"


def card(sources: Sequence[str], error: ImageError | None, rows: Sequence[Sequence[str]], head: Iterable[str]) -> str:
    """HTML of one result.

    Args:
        sources: of its images, as results name them; files of this machine are shown.
        error: of an image, shown instead of the rows.
        rows: texts, as they came from anywhere.
        head: of the columns; none for a table without a head.
    """
    pictures = "".join(map(_picture, sources)) if error is None else ""
    names = " · ".join(map(_shown, sources))
    body = f"<p><b>{_shown(error.problem)}</b></p>" if error is not None else _table(rows, head)
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start;margin:.3em 0">'
        f'{pictures}<div style="min-width:0"><small style="opacity:.7;overflow-wrap:anywhere">{names}</small>'
        f"{body}</div></div>"
    )


def _table(rows: Sequence[Sequence[str]], head: Iterable[str]) -> str:
    titles = "".join(f'<th style="{CELL}">{_shown(title)}</th>' for title in head)
    lines = [f'<td style="{CELL}">' + f'</td><td style="{CELL}">'.join(map(_shown, row)) + "</td>" for row in rows]
    left_out = len(lines) - MOST_ROWS
    more = f"<small>and {left_out:,} more</small>" if left_out > 0 else ""
    body = "".join(f"<tr>{line}</tr>" for line in ([titles] if titles else []) + lines[:MOST_ROWS])
    return f'<table style="margin:.3em 0;border-collapse:collapse">{body}</table>{more}'


def _picture(source: str) -> str:
    if is_address(source) or not os.path.isfile(source):
        return ""
    try:
        image = load_image(source, allow_urls=False)
    except (ImageError, OptionError):
        return ""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = (max(1, side * 2 // 3) for side in image.size)
    return f'<img src="data:image/jpeg;base64,{data}" alt="" width="{width}" height="{height}">'


def _shown(text: str) -> str:
    """Text of outside, which does nothing in a page but show itself."""
    return html.escape(printable(text, MOST_CHARACTERS, kept="\n"))
