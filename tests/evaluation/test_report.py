"""The page: whole in itself, safe with hostile texts, and shown by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openblip.data.sources.open import DataSource
from openblip.evaluation.charts import Chart, Series
from openblip.evaluation.outcome import Evaluation, Excluded, Row
from openblip.evaluation.recipe import EvaluationRecipe, Published
from openblip.evaluation.report import bars, chosen_rows, measured, render_report
from openblip.evaluation.settings import Task

EVIL = '"><script>document.title="owned"</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \u202e'
ABOUT = {"openblip": "0.1.0", "model": "tiny", "data": "images"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_recipe(task: Task = Task.CAPTIONS, **fields: object) -> EvaluationRecipe:
    source = DataSource("images", captions="a.jsonl")
    return EvaluationRecipe(task=task, data=source, output="out", **fields)  # type: ignore[arg-type]


@pytest.fixture
def found(image_paths: list[Path], tmp_path: Path) -> Evaluation:
    """Thirty captions, some hostile, about images of which one is gone."""
    rows = [
        Row(
            image=f"{EVIL}{number}" if number % 3 == 0 else f"photo {number}",
            prediction=EVIL if number % 4 == 0 else f"a dog {number}",
            references=(EVIL, "two dogs"),
            score=number / 10,
            scores={"cider": number / 10},
            image_file=tmp_path / "gone.png" if number == 29 else image_paths[number % 5],
        )
        for number in range(30)
    ]
    return Evaluation(Task.CAPTIONS, {"bleu_4": 0.25, "cider": 1.45}, rows, "cider", [Excluded(EVIL, EVIL)], (EVIL,))


class Page(HTMLParser):
    """Elements, addresses and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_safe(found: Evaluation) -> None:
    text = render_report(make_recipe(title=EVIL), found, ABOUT | {"data": EVIL})
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert "link" not in names
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(value is not None and value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "{{ 7 * 7 }}" in page.words, "texts are shown, never run as part of the template"
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {value[1:] for value in addresses if value is not None and value.startswith("#")} <= ids


def test_who_cannot_see_the_images_is_told(found: Evaluation) -> None:
    page = Page(render_report(make_recipe(), found, ABOUT))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * 8 - 1, "eight of the best, middle and worst, one of them gone"
    assert all(attributes.get("alt") for attributes in images)
    assert "no image" in page.words
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert ("html", {"lang": "en"}) in page.tags
    scrolling = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert scrolling
    assert all(attributes["tabindex"] == "0" and "role" in attributes for attributes in scrolling)


def test_published_figures_stand_beside_ours(found: Evaluation) -> None:
    recipe = make_recipe(published=[Published("cider", 1.458, "the paper"), Published("cider", 1.461, "LAVIS")])
    lines = measured(found, recipe)
    assert [(line.name, line.value, line.published, line.difference) for line in lines] == [
        ("BLEU-4", "25.0", "", ""),
        ("CIDEr", "145.0", "145.8", "-0.8"),
        ("", "", "146.1", "-1.1"),
    ]
    words = Page(render_report(recipe, found, ABOUT)).words
    assert "Published" in words
    assert "the paper" in words
    assert "Published" not in Page(render_report(make_recipe(), found, ABOUT)).words


def test_best_middle_and_worst(found: Evaluation) -> None:
    sheets = dict(chosen_rows(found.rows, 4))
    scores = {name: [round(10 * row.score) for row in rows] for name, rows in sheets.items()}
    assert scores == {"Best": [29, 28, 27, 26], "Middle": [16, 15, 14, 13], "Worst": [0, 1, 2, 3]}
    for count in range(1, 12):
        few = chosen_rows(found.rows[:count], 8)
        shown = [id(row) for _, rows in few for row in rows]
        assert len(shown) == len(set(shown))
        assert shown
    assert chosen_rows(found.rows, 0) == []


def test_charts_have_round_ticks() -> None:
    for largest, written in (
        (0.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (22.0, [0, 5, 10, 15, 20, 25]),
        (26.67, [0, 10, 20, 30]),
        (100.0, [0, 20, 40, 60, 80, 100]),
        (1001.0, [0, 500, 1000, 1500]),
    ):
        chart = Chart("Lengths", "%", "words", ("1", "2"), (Series("model", (largest, largest / 2)),))
        assert chart.ticks == pytest.approx(written)
        high, half = bars(chart)
        assert 0 <= high.height <= 150
        assert (half.height, high.y + high.height) == pytest.approx((high.height / 2, 170), abs=0.01)


def test_every_task_has_a_page(found: Evaluation) -> None:
    questions = replace(
        found,
        task=Task.QUESTIONS,
        metrics={"accuracy": 0.4, "exact": 0.5, "accuracy (color)": 0.3, "accuracy (<b>)": 0.5},
        rows=[replace(row, question=EVIL, score=0.3, references=("no",) * 3 + ("yes",) * 7) for row in found.rows],
    )
    text = render_report(make_recipe(Task.QUESTIONS), questions, ABOUT)
    assert "Accuracy by kind" in text
    assert "yes (7 people)" in text
    rows = [
        replace(row, question="a dog" if number % 2 else "", score=1 / (1 + number % 12))
        for number, row in enumerate(found.rows)
    ]
    retrieval = replace(found, task=Task.RETRIEVAL, metrics={"text_to_image_at_1": 0.5, "mean": 0.4}, rows=rows)
    text = render_report(make_recipe(Task.RETRIEVAL), retrieval, ABOUT)
    assert "Where the right one was found" in text
    assert "Text to image, R@1" in text
    classes = replace(
        found, task=Task.CLASSIFICATION, metrics={"accuracy": 1.0}, rows=[replace(found.rows[0], score=1.0)]
    )
    assert "Charts" not in Page(render_report(make_recipe(Task.CLASSIFICATION), classes, ABOUT)).words
    zero = replace(found, rows=[replace(row, score=0.0) for row in found.rows[:1]])
    assert "CIDEr of each image" in render_report(make_recipe(), zero, ABOUT)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_it(found: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report(make_recipe(title=EVIL), found, ABOUT), encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    page = Page(done.stdout)
    assert done.returncode == 0
    assert "script" not in [tag for tag, _ in page.tags]
    assert "owned" not in re.findall(r"<title>(.*?)</title>", done.stdout)[0].split()
    assert sum(tag == "img" for tag, _ in page.tags) == 23
    assert sum(tag == "rect" for tag, _ in page.tags) > 20
    assert "CIDEr" in page.words
