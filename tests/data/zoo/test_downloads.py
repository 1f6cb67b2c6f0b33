"""Annotation files from a web server to where LAVIS keeps them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.data.zoo import data_sets as zoo
from openblip.data.zoo import downloads
from openblip.data.zoo.data_sets import find_entry, load_dataset
from openblip.data.zoo.downloads import download_annotations, list_status, status_of
from openblip.data.zoo.entries import AnnotationFile
from openblip.errors import DownloadError, OptionError
from tests.checkpoints.web import Page, Web, serve
from tests.data.tiny_images import put

ROWS = [{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["Shoes."]}]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server with COCO's three files, which the zoo points to instead of the true one."""
    with serve() as running:
        entry = find_entry("coco_caption")
        lavis = entry.layouts[0]
        splits = {}
        for split, (file,) in lavis.splits.items():
            body = json.dumps([*ROWS, {"split": split, **ROWS[0]}] * 50).encode()
            running.pages[f"/{file.name}"] = Page(body)
            md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
            splits[split] = (AnnotationFile(file.path, f"{running.url}/{file.name}", md5),)
        local = replace(entry, layouts=(replace(lavis, splits=splits), *entry.layouts[1:]))
        monkeypatch.setattr(zoo, "ZOO", tuple(local if known is entry else known for known in zoo.ZOO))
        monkeypatch.setattr(downloads, "ZOO", zoo.ZOO)
        yield running


def test_files_come_where_lavis_keeps_them_and_once(web: Web, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    paths = download_annotations("coco_caption", tmp_path, lambda *args: told.append(args))
    names = [f"coco_karpathy_{split}.json" for split in ("train", "val", "test")]
    assert paths == [tmp_path / "coco/annotations" / name for name in names]
    assert {name for name, done, total in told if done == total} == set(names)
    assert load_dataset("coco_caption", root=tmp_path)["val"][0].captions == ("Shoes.",)
    gets = len([asked for asked in web.asked if asked[0] == "GET"])
    assert download_annotations("coco_caption", tmp_path) == paths
    assert len([asked for asked in web.asked if asked[0] == "GET"]) == gets == 3


def test_an_interrupted_download_goes_on(web: Web, tmp_path: Path) -> None:
    body = web.pages["/coco_karpathy_val.json"].body
    part = tmp_path / "coco/annotations/coco_karpathy_val.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(body[:1000])
    part.with_name(part.name + ".version").write_text('"v1"')
    download_annotations("coco_caption", tmp_path)
    assert web.gets("/coco_karpathy_val.json") == ["bytes=1000-"]
    assert (tmp_path / "coco/annotations/coco_karpathy_val.json").read_bytes() == body


def test_a_full_disk_is_told_before_anything_is_fetched(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(DownloadError, match=r"has room for 0.0 MB, coco_caption takes"):
        download_annotations("coco_caption", tmp_path)
    assert {method for method, _, _ in web.asked} == {"HEAD"}


def test_what_is_not_the_published_file_is_refused(web: Web, tmp_path: Path) -> None:
    page = web.pages["/coco_karpathy_train.json"]
    page.lies = [page.body[::-1], page.body[::-1]]
    with pytest.raises(DownloadError, match=r"arrived damaged twice .its MD5 differs"):
        download_annotations("coco_caption", tmp_path)
    assert not (tmp_path / "coco/annotations/coco_karpathy_train.json").exists()
    old = tmp_path / "coco/annotations/coco_karpathy_train.json"
    old.write_text("[]")
    with pytest.raises(DownloadError, match="not the published file, its MD5 differs: delete it"):
        download_annotations("coco_caption", tmp_path)
    assert old.read_text() == "[]"


def test_a_web_page_is_no_annotation_file(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.pages["/page.json"] = Page(b"\n<!DOCTYPE html><html>log in</html>")
    entry = find_entry("coco_caption")
    file = AnnotationFile("coco/annotations/page.json", f"{web.url}/page.json")
    odd = replace(entry, layouts=(replace(entry.layouts[0], splits={"train": (file,)}),))
    monkeypatch.setattr(zoo, "ZOO", (odd,))
    with pytest.raises(DownloadError, match="gave a web page instead of a file"):
        download_annotations("coco_caption", tmp_path)
    assert not (tmp_path / file.path).exists()


def test_what_nobody_can_download_is_said(tmp_path: Path) -> None:
    for name in ("imagenet", "laion2B_multi", "conceptual_caption_3m"):
        with pytest.raises(DownloadError, match=f"`openblip datasets {name}` says how to get it"):
            download_annotations(name, tmp_path)
    with pytest.raises(OptionError, match="no data set"):
        download_annotations("nothing", tmp_path)


def test_a_forbidden_network_is_not_used(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids to fetch them"):
        download_annotations("coco_caption", tmp_path)
    assert web.asked == []


def test_status_tells_what_is_here(web: Web, tmp_path: Path) -> None:
    assert {status.here for status in list_status(tmp_path)} == {"no"}
    download_annotations("coco_caption", tmp_path)
    (tmp_path / "coco/annotations/coco_karpathy_test.json").unlink()
    put(tmp_path / "coco/images/val2014/COCO_val2014_000000000042.jpg")
    status = status_of(find_entry("coco_caption"), tmp_path)
    assert (status.layout, status.splits, status.has_media) == ("LAVIS", ("train", "val"), True)
    assert status.here == "train, val; images"
    put(tmp_path / "imagenet/val/n01440764/a.JPEG")
    assert status_of(find_entry("imagenet"), tmp_path).splits == ("val",)
