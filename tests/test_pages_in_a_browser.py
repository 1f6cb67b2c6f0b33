"""The pages that commands write, in Chromium: every picture is shown, nothing is fetched, nothing goes wrong."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from openblip.analysis.html_report import write_html
from openblip.jobs.video.description import Description, VideoQuestions
from openblip.jobs.video.page import page
from openblip.jobs.video.segment import Segment
from openblip.jobs.video.thumbnails import Thumbnails
from openblip.search.contact_sheet import write_sheet
from openblip.search.found import Found

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ODD = 'a <script>document.title = "broken"</script> & "dog" \u00e9 ' + "long" * 60
FRAME = """<!doctype html><meta charset="utf-8"><title>waiting</title><body>
<iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
const page = document.getElementById("page");
page.onload = () => {{
  const inner = page.contentDocument, root = inner.documentElement;
  const pictures = [...inner.images];
  pictures.forEach(one => one.loading = "eager");
  Promise.allSettled(pictures.map(one => one.decode())).then(() => {{
    document.body.textContent = JSON.stringify({{
      title: inner.title, images: pictures.length, shown: pictures.filter(one => one.naturalWidth > 1).length,
      cut: pictures.filter(one => {{
        const [own, around] = [one, one.parentElement].map(element => element.getBoundingClientRect());
        return own.bottom > around.bottom + 1 || own.top < around.top - 1 || own.right > around.right + 1;
      }}).length,
      wide: root.scrollWidth, visible: root.clientWidth,
      fetched: page.contentWindow.performance.getEntriesByType("resource").map(one => one.name)
        .filter(name => !name.startsWith("data:")),
    }});
  }});
}};
</script>"""


def picture(folder: Path, name: str = "a.jpg", size: tuple[int, int] = (400, 300)) -> Path:
    Image.linear_gradient("L").resize(size).convert("RGB").save(folder / name)
    return folder / name


def video_page(folder: Path) -> str:
    with Thumbnails() as thumbnails:
        found = Description("a & b.mp4", 7.0, "mini", VideoQuestions(), notes=[ODD])
        for second, size in enumerate([(400, 300), (300, 400), (64, 64)]):
            with Image.open(picture(folder, size=size)) as image:
                kept = thumbnails.keep(image)
            found.segments.append(Segment(second, second + 1, second, ODD, {ODD: "yes"}, {"x": ["red"]}, kept))
        return "".join(page(found, thumbnails))


def analysis_page(folder: Path) -> str:
    jpeg = base64.b64encode(picture(folder).read_bytes()).decode()
    heading = {"title": "Analysis", "set": "document", "model": "mini", "version": "1", "warning": ODD}
    record = {"file": f"/{ODD}/a.pdf", "page": 1, "pages": 2, "caption": ODD, "found": {"colors": ["red"], "x": []}}
    record |= {"thumbnail": jpeg, "width": 400, "height": 300}
    answers = [{"question": ODD, "answer": ODD}, {"question": "b", "answer": "", "probability": 0.5}]
    failed = {"file": "b.pdf", "page": None, "pages": None, "error": ODD}
    return "".join(write_html(heading, [record | {"answers": answers}, failed]))


def contact_sheet(folder: Path) -> str:
    paths = [
        picture(folder, "a.jpg"),
        picture(folder, "line\nbreak.jpg"),
        picture(folder, f"{'long' * 50}.jpg", (90, 300)),
    ]
    write_sheet(folder / "sheet.html", ODD, [[Found(str(path), 0.5, 0.4, 0.5) for path in paths]])
    return (folder / "sheet.html").read_text(encoding="utf-8")


class Text(HTMLParser):
    found = ""

    def handle_data(self, data: str) -> None:
        self.found += data if data.startswith("{") else ""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("make", [video_page, analysis_page, contact_sheet])
def test_a_page_shows_its_pictures_and_fetches_nothing(make: Callable[[Path], str], width: int, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    content = make(tmp_path)
    escaped = content.replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width, page=escaped), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command += ["--enable-logging=stderr", "--window-size=1300,1000", "--virtual-time-budget=20000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    parser = Text()
    parser.feed(done.stdout)
    seen = json.loads(parser.found)
    assert seen["images"] == seen["shown"] == len(re.findall("<img", content)) > 0
    assert seen["title"] != "broken" and seen["fetched"] == [] and seen["cut"] == 0
    assert seen["wide"] <= seen["visible"], "a reader has to move the page sideways"
    assert "CONSOLE" not in done.stderr
