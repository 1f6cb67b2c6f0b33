"""The segments of a video as one HTML page that loads nothing: a picture, the times and the words of each."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator

from openblip.images.video_decode import clock_time
from openblip.jobs.video.description import Description
from openblip.jobs.video.segment import Segment
from openblip.jobs.video.thumbnails import Thumbnails

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --page: #f6f7f9; --card: #fff; --line: #d8dde3;
  --mark: #e4edfb; --mark-text: #1d4e94; --warn: #fff4d6; --warn-text: #6b4e00; }
@media (prefers-color-scheme: dark) { :root { --text: #e8ebef; --soft: #9aa5b1; --page: #14171b; --card: #1e2227;
  --line: #343a42; --mark: #23364f; --mark-text: #a9cbf7; --warn: #3b3113; --warn-text: #f0d48a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 24px 20px 48px; background: var(--page); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 4px; font-size: 1.5rem; line-height: 1.25; }
header p { margin: 4px 0; color: var(--soft); }
header p.note { padding: 8px 12px; border-radius: 8px; background: var(--warn); color: var(--warn-text); }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 16px; margin: 20px 0 0;
  padding: 0; list-style: none; }
li { overflow: hidden; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
li img { display: block; width: 100%; height: auto; aspect-ratio: var(--shape); object-fit: contain; background: #000; }
li div { padding: 10px 14px 14px; }
time { color: var(--soft); font-size: .875rem; font-variant-numeric: tabular-nums; }
li p { margin: 2px 0 0; font-size: 1.0625rem; }
dl { margin: 8px 0 0; font-size: .9375rem; }
dt { color: var(--soft); }
dd { margin: 0 0 6px; }
ul { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 0; padding: 0; list-style: none; }
ul li { border: 0; border-radius: 999px; padding: 1px 10px; background: var(--mark); color: var(--mark-text);
  font-size: .875rem; }
@media (max-width: 560px) { body { padding: 16px 12px 32px; } ol { grid-template-columns: 1fr; gap: 12px; } }
"""


def page(found: Description, thumbnails: Thumbnails) -> Iterator[str]:
    """The parts of the page.

    Args:
        thumbnails: that have the images of the segments.
    """
    digits = found.questions.digits
    name = html.escape(found.video)
    yield "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
    yield "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
    # Names and words of others stand in the page: whatever they say, nothing is run or loaded.
    yield "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
    yield f"style-src 'unsafe-inline'\">\n<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    yield f"<header>\n<h1>{name}</h1>\n<p>{html.escape(_summary(found))}</p>\n"
    for note in [*found.notes, *([] if found.fault is None else [found.fault])]:
        yield f"<p class='note'>{html.escape(note)}</p>\n"
    yield "</header>\n<ol>\n"
    for segment in found.segments:
        yield from _card(segment, thumbnails, digits)
    yield "</ol>\n</body>\n</html>\n"


def _summary(found: Description) -> str:
    length = found.end if found.duration is None else found.duration
    images = "1 image" if found.images == 1 else f"{found.images:,} images"
    every = found.questions.every
    what = "one of each scene" if every is None else f"one every {every:g} s, the same view once"
    return f"{clock_time(length)} long. {images} ({what}), described by the model {found.model}."


def _card(segment: Segment, thumbnails: Thumbnails, digits: int) -> Iterator[str]:
    yield "<li>"
    kept = segment.thumbnail
    if kept is not None:
        content = base64.b64encode(thumbnails.read(kept)).decode("ascii")
        # Portraits in a row of landscapes get bars at their sides rather than a card as high as three.
        shape = f"{kept.width} / {min(kept.height, kept.width)}"
        yield f"<img src='data:image/jpeg;base64,{content}' alt='' loading='lazy' style='--shape: {shape}'>"
    yield f"<div><time>{clock_time(segment.start, digits)} \u2013 {clock_time(segment.end, digits)}</time>"
    if segment.caption is not None:
        yield f"<p>{html.escape(segment.caption)}</p>"
    if segment.answers:
        yield "<dl>"
        for question, answer in segment.answers.items():
            yield f"<dt>{html.escape(question)}</dt><dd>{html.escape(answer)}</dd>"
        yield "</dl>"
    words = [word for of_list in segment.found.values() for word in of_list]
    if words:
        yield "<ul>" + "".join(f"<li>{html.escape(word)}</li>" for word in dict.fromkeys(words)) + "</ul>"
    yield "</div></li>\n"
