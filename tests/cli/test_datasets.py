"""`openblip datasets`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.data.zoo import data_sets as zoo
from openblip.data.zoo.data_sets import ZOO, dataset_names, find_entry
from openblip.data.zoo.entries import AnnotationFile
from tests.checkpoints.web import Page, serve
from tests.data.tiny_images import put

from .conftest import Run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    return tmp_path


def test_the_table_tells_every_data_set(run: Run, home: Path) -> None:
    table, records = run("datasets"), run("datasets", "--json").records
    assert (table.code, table.err) == (0, "")
    assert [record["name"] for record in records] == dataset_names()
    for entry, record in zip(ZOO, records, strict=True):
        (line,) = [line for line in table.lines if line.split()[0] == entry.name]
        assert " no " in line and entry.licence in table.out
        assert (record["splits"], record["here"], record["has_media"]) == (list(entry.splits), [], False)
        assert all(record[name] for name in ("size", "licence", "page", "how", "citation", "kind"))
    assert max(len(line) for line in table.lines) <= 120


def test_the_page_of_one(run: Run, home: Path) -> None:
    for entry in ZOO:
        page = run("datasets", entry.name)
        assert page.code == 0
        for shown in (
            entry.title,
            entry.citation,
            entry.licence,
            entry.page,
            entry.media_source,
            str(home / entry.media),
        ):
            assert shown in page.out
        for layout in entry.layouts:
            for files in layout.splits.values():
                assert all(str(home / file.path) in page.out and file.url in page.out for file in files)
        assert ("openblip datasets download" in page.out) == bool(entry.public_files)


def test_rows_and_missing_images_are_counted(run: Run, home: Path) -> None:
    rows = [{"image": f"{name}.jpg", "caption": [name]} for name in "abb"]
    path = home / "coco/annotations/coco_karpathy_val.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    put(home / "coco/images/a.jpg")
    page = run("datasets", "coco_caption", "--check")
    missing = home / "coco/images/b.jpg"
    assert page.lines[-1] == f"val: 3 rows, 2 images, of which 1 are missing, {missing} first"
    (record,) = run("datasets", "coco_caption", "--check", "--json").records
    assert record["counted"] == {"val": {"rows": 3, "files": 2, "missing": 1}}
    (record,) = run("datasets", "coco_caption", "--root", home / "elsewhere", "--json").records
    assert (record["here"], record["layout"]) == ([], None)


def test_download(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as web:
        web.pages["/vg.json"] = Page(b'[{"image": "VG_100K/1.jpg", "caption": "a bike"}]')
        entry = find_entry("vg_caption")
        file = AnnotationFile("vg/annotations/vg_caption.json", f"{web.url}/vg.json")
        local = replace(entry, layouts=(replace(entry.layouts[0], splits={"train": (file,)}),))
        monkeypatch.setattr(zoo, "ZOO", (local,))
        done = run("datasets", "download", "vg_caption", "--to", home / "there")
        assert done.lines == [str(home / "there" / file.path), f"images: {entry.media_source}"]
        assert run("datasets", "download", "vg_caption", "--to", home / "there", "--json").records == [
            {"path": str(home / "there" / file.path)}
        ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("download", "imagenet"), "`openblip datasets imagenet` says how to get it"),
        (("download",), "give nothing, the name of a data set, or download and a name"),
        (("coco", "caption"), "give nothing, the name of a data set, or download and a name"),
        (("coco_captoin",), "did you mean coco_caption"),
        (("coco_caption", "--check"), "has no annotations in"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run: Run, words: tuple[str, ...], told: str) -> None:
    refused = run("datasets", *words)
    assert refused.code == 2 and told in refused.err and len(refused.err.splitlines()) == 1
