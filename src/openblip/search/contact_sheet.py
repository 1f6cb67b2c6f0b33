"""A page of thumbnails, in one file: it holds the thumbnails, and links to the photos."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from openblip.errors import ImageError, OptionError
from openblip.images.decode import load_image
from openblip.images.sources import describe_source
from openblip.saving import write_text
from openblip.search.found import Found

SIDE = 320
"""Pixels of a thumbnail's longer side, shown at half of it at most: sharp on fine screens."""
QUALITY = 80

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }}
p {{ margin: .2rem 0 1.2rem; opacity: .7; }}
ul {{ list-style: none; padding: 0; margin: 0 0 2rem; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }}
li {{ min-width: 0; }}
a {{ color: inherit; text-decoration: none; display: block; }}
a:hover .name, a:focus .name {{ text-decoration: underline; }}
.photo {{ aspect-ratio: 1; border-radius: 6px; background: color-mix(in srgb, currentColor 8%, transparent);
  display: grid; place-items: center; overflow: hidden; position: relative; }}
img {{ position: absolute; width: 100%; height: 100%; object-fit: scale-down; }}
small {{ padding: .5rem; overflow-wrap: anywhere; }}
.name {{ display: block; margin-top: .35rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.score {{ font-variant-numeric: tabular-nums; opacity: .7; font-size: .85rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
{groups}
</body>
</html>
"""
ITEM = """<li><a href="{address}" title="{path}"><span class="photo">{picture}</span>
<span class="name">{name}</span></a><span class="score">{score}</span></li>"""


def write_sheet(path: Path, title: str, groups: Sequence[Sequence[Found]]) -> None:
    """Write the page.

    Args:
        groups: a search's results are one.

    Raises:
        OptionError: `path` is a folder, or lies in none.
        OSError: it cannot be written.
    """
    path = path.expanduser().absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError(f"{path} cannot be written: give --html the name of a file in an existing folder")
    photos = sum(map(len, groups))
    several = f" in {len(groups):,} groups" if len(groups) > 1 else ""
    content = PAGE.format(
        title=_shown(title),
        subtitle=f"{photos:,} photo{'' if photos == 1 else 's'}{several}",
        groups="\n".join(f"<ul>\n{''.join(map(_item, group))}\n</ul>" for group in groups),
    )
    write_text(path, content)


def _item(found: Found) -> str:
    path = Path(found.path)
    parts = [f"itm {found.itm:.3f}"] if found.itm is not None else []
    return ITEM.format(
        address=html.escape(path.as_uri()),
        path=_shown(found.path),
        picture=_picture(found.path),
        name=_shown(path.name),
        score=" · ".join([*parts, f"itc {found.itc:.3f}"]),
    )


def _picture(path: str) -> str:
    try:
        image = load_image(path)
    except ImageError as error:
        return f"<small>{_shown(error.problem)}</small>"
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="" width="{image.width}" height="{image.height}">'


def _shown(text: str) -> str:
    """Text of outside, which does nothing in a page but show itself."""
    return html.escape(describe_source(text))
