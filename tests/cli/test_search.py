"""`openblip index` and `openblip search` over real photos: what they print, for people, pipes and programs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from openblip.models.model import Model
from tests.cli.conftest import Run

pytest.importorskip("lancedb")


def test_from_photos_to_paths(
    run: Run,
    tiny_model: Model,
    tiny_model_folder: Path,
    mixed_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    db = tmp_path / "db"
    monkeypatch.chdir(tmp_path)
    bad = mixed_folder / "b.jpg"
    ran = run("index", "photos", "--db", db, "--model", tiny_model_folder)
    assert ran.code == 1 and ran.out == f"{db}: 3 photos (3 new, 1 not readable)\n"
    assert f"error: {bad}: is not an image" in ran.err or f"error: {bad}" in ran.err
    bad.unlink()
    assert run("index", "photos", "--db", db).out == f"{db}: 3 photos (nothing new)\n"
    shown = run("index", "--db", db)
    assert shown.lines[0] == "photos   3" and str(tiny_model_folder) in shown.lines[1]
    assert [line.split()[-1] for line in shown.lines[3:]] == [str(mixed_folder), str(mixed_folder / "more")]

    wanted = tiny_model.rank_images("a dog", [mixed_folder / name for name in ("a.png", "c.png", "more/d.png")])
    found = run("search", "a dog", "--db", db)
    assert found.lines[0] == "  itm     itc  photo"
    assert [line.split()[-1] for line in found.lines[1:]] == [
        str(Path(one.source).relative_to(tmp_path)) for one in wanted
    ]
    records = run("search", "a dog", "--db", db, "--json", "--top", "2").records
    assert [(record["path"], record["itm"]) for record in records] == [(one.source, one.itm) for one in wanted[:2]]
    paths = run("search", "a dog", "--db", db, "--paths", "--rerank", "0", "--min-score", "-1").lines
    assert sorted(paths) == sorted(one.source for one in wanted)
    like = run("search", "--image", mixed_folder / "c.png", "--db", db, "--paths", "--top", "1")
    assert like.lines == [str(mixed_folder / "c.png")]
    null = run("search", "a dog", "--db", db, "--print0")
    assert null.out == "".join(f"{one.source}\0" for one in wanted)

    (mixed_folder / "more" / "d.png").unlink()
    assert run("index", "--db", db, "--prune").out == f"{db}: 2 photos, 1 dropped\n"


def test_a_sheet_shows_names_and_does_nothing_else(
    run: Run, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ["<img src=x onerror=alert(1)>.png", "100% & 'more' \".png", "#1?.png"]
    for name in names:
        (photos / name).write_bytes(image_paths[0].read_bytes())
    Image.new("RGB", (900, 30), "blue").save(photos / "wide.png")
    assert run("index", photos, "--db", tmp_path / "db", "--model", tiny_model_folder).code == 0
    sheet = tmp_path / "sheet.html"
    ran = run("search", "</title><script>", "--db", tmp_path / "db", "--html", sheet, "--not", "<b>")
    assert ran.out.startswith(f"{sheet}: ")
    page = sheet.read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and "<b>" not in page
    ran = run("search", "--duplicates", "--min-score", "1", "--db", tmp_path / "db", "--html", sheet)
    page = sheet.read_text(encoding="utf-8")
    assert ran.out == f"{sheet}: 3 photos\n" and page.count("data:image/jpeg") == 3
    links = re.findall(r'href="(.*?)"', page)
    assert sorted(links) == sorted((photos / name).as_uri().replace("'", "&#x27;") for name in names)
    found = run("search", "--duplicates", "--min-score", "1", "--db", tmp_path / "db", "--json").records
    assert [len(record["duplicates"]) for record in found] == [3]


def test_wrong_usage(run: Run, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path) -> None:
    db = tmp_path / "db"
    for words, told in (
        (["search", "a dog", "--db", db], "there is no index in"),
        (["index", "--db", db], "there is no index in"),
        (["index", tmp_path, "--db", db], "there is no image in this folder"),
        (["index", tmp_path / "none.jpg", "--db", db], "there is no such file or folder"),
        (["search", "--db", db], "say what to look for"),
        (["search", "a", "--duplicates", "--db", db], "say what to look for"),
        (["search", "a", "--paths", "--json", "--db", db], "exclude each other"),
        (["search", "a", "--db", image_paths[0]], "is a file, not the folder of an index"),
        (["search", "a", "--db", image_paths[0].parent], "is no index, it holds"),
    ):
        ran = run(*words)
        assert ran.code == 2 and told in ran.err, words
    assert not db.exists()
    run("index", image_paths[0], "--db", db, "--model", tiny_model_folder)
    assert "was made with the model" in run("search", "a", "--db", db, "--model", "mini").err
