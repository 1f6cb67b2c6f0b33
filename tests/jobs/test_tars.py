"""Tars in: a row for each image, texts beside it as columns, and what is passed over is counted."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from openblip.errors import OpenBlipError
from openblip.jobs.inputs import find_rows
from openblip.jobs.rows import Table


def make_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def open_table(path: Path | str, *exclude: str) -> Table:
    table, _ = find_rows(str(path), Path("spool"), exclude=exclude)
    return table


def contents(table: Table, start: int = 0) -> list[bytes]:
    images = [table.image_of(row) for row in table.rows(start, packed=True)]
    return [b"" if isinstance(image, str) else image.read_bytes() for image in images]


def test_each_image_is_a_row_and_its_texts_are_columns(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "a.tar",
        {
            "photo.final.jpg": b"final",
            "photo.final.txt": b"007\n",
            "photo.draft.jpg": b"draft",
            "b/1.PNG": b"one",
            "b/1.json": b'{"caption": "a dog"}',
            "b/1.cls": b"3",
            "b/1.seg.png": b"mask",
            "b/1.txt": b"NA",
            "b/2.webp": b"two",
        },
    )
    table = open_table(path)
    scan = table.scan()
    assert (scan.rows, list(scan.columns), scan.notes) == (5, ["image", "txt", "json", "cls"], ())
    rows = list(table.rows(packed=True))
    assert [table.name_of(row) for row in rows] == [
        f"{path}/{name}" for name in ("photo.final.jpg", "photo.draft.jpg", "b/1.PNG", "b/1.seg.png", "b/2.webp")
    ]
    assert rows[0].values["txt"] == "007\n" and "txt" not in rows[1].values and rows[2].values["txt"] == "NA"
    assert (rows[2].values["json"], rows[2].values["cls"]) == ('{"caption": "a dog"}', "3")
    for start in range(6):
        assert contents(table, start) == [b"final", b"draft", b"one", b"mask", b"two"][start:]
    assert contents(open_table(path, "*.seg.png", "photo.*")) == [b"one", b"two"]
    assert open_table(path, "b").scan().rows == 2
    assert open_table(path, "b").scan().digest != scan.digest


def test_several_tars_and_what_is_passed_over(tmp_path: Path) -> None:
    make_tar(tmp_path / "00.tar", {"1.jpg": b"1", "1.mp4": b"film", "._1.jpg": b"mac", "lost.txt": b"x", "2.jpg": b"2"})
    make_tar(tmp_path / "01.tar", {"3.jpg": b"3", "3.json": b" " * (2**20 + 1)})
    whole = make_tar(tmp_path / "02.tar", {"4.jpg": bytes(600), "5.jpg": bytes(600), "6.jpg": bytes(600)}).read_bytes()
    (tmp_path / "02.tar").write_bytes(whole[:4000])
    for pattern in (tmp_path / "*.tar", tmp_path / "{00..02}.tar"):
        scan = open_table(pattern).scan()
        assert (scan.rows, list(scan.columns)) == (5, ["image"])
        assert scan.notes == (
            f"passed over: 2 files that are neither images nor texts of one, {tmp_path}/00.tar/1.mp4 first",
            f"passed over: 1 texts without an image of their name, {tmp_path}/00.tar/lost.txt first",
            f"passed over: 1 texts of more than 1,048,576 bytes, {tmp_path}/01.tar/3.json first",
            f"{tmp_path}/02.tar is cut short: 2 images of it are used",
        )
        assert contents(open_table(pattern)) == [b"1", b"2", b"3", bytes(600), bytes(600)]
    with pytest.raises(OpenBlipError, match="no file matches"):
        open_table(tmp_path / "no*.tar")


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(OpenBlipError, match="is no tar, or broken"):
        open_table(tmp_path / "a.tar").scan()
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(OpenBlipError, match="unpack it with gunzip first"):
        open_table(tmp_path / "a.tar.gz")
    with pytest.raises(OpenBlipError, match="there is no file"):
        open_table(tmp_path / "gone.tar")
