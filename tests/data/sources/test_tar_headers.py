"""Tars made to harm: whatever their headers say, reading them costs little, raises nothing, writes nothing."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from openblip.data.sample import LARGEST_FILE, PackedFile
from openblip.data.sources.beside import LONGEST_TEXT
from openblip.data.sources.tar_headers import BrokenTarError, Member, read_members
from openblip.data.sources.tars import index_shard, read_tars, stream_rows
from openblip.errors import ImageError
from tests.data.tiny_images import jpeg, write_tar


def header(name: str, size: int, kind: bytes = b"0", content: bytes = b"") -> bytes:
    """A header that claims a size, and what stands behind it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = info.tobuf(tarfile.GNU_FORMAT)[:512]
    return block + content + b"\0" * (-len(content) % 512)


def row(name: str = "good") -> bytes:
    return header(f"{name}.jpg", len(jpeg()), content=jpeg()) + header(f"{name}.txt", 2, content=b"hi")


END = b"\0" * 1024


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (header("x", 2**62, b"L"), "is cut short"),
        (header("x", 2**62), "is cut short"),
        (header("x", 2**21, b"L", b"a" * 2**21), "is damaged at byte"),
        (header("x", 2**21, b"x", b"9" * 2**21), "is damaged at byte"),
        (header("x", 9, b"x", b"99 size=1"), "is damaged at byte"),
        (header("x", 9, b"x", b"-5 size=1"), "is damaged at byte"),
        (header("x", 13, b"x", b"13 size=-512\n"), "is cut short"),
        (header("x", 11, b"x", b"11 size=ab\n"), "is damaged at byte"),
        (header("x", 5000, b"x", b"5000 size=" + b"9" * 4989 + b"\n"), "is damaged at byte"),
    ],
)
def test_what_a_header_claims_is_not_believed(tmp_path: Path, harm: bytes, words: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(row() + row("doubtful") + harm + row("lost") + END)
    tracemalloc.start()
    shard = index_shard(path)
    told: list[str] = []
    streamed = list(stream_rows(path, lambda _, trouble: told.append(trouble)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [each.key for each in shard.rows] == [each.key for each in streamed] == ["good"]
    assert words in shard.trouble and words in told[0]
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    "harmless",
    [
        header("y" * 90, 4, b"L", b"long") * 3000,  # one that calls itself for each would run out of stack
        header("link.jpg", 0, b"2") + header("hard.jpg", 99, b"1") + header("folder/", 0, b"5"),
        header("device.jpg", 2**30, b"3") + header("pipe.jpg", 0, b"6"),
        header("global", 20, b"g", b"20 path=/etc/passwd\n"),
        header("unknown.jpg", 3, b"Z", b"abc") + header("holes.jpg", 3, b"S", b"abc"),
        header("pax", 30, b"x", b"22 GNU.sparse.major=1\n8 a=bcd\n") + header("sparse.jpg", 3, content=b"abc"),
    ],
    ids=["long-names", "links", "devices", "global", "unknown", "sparse"],
)
def test_what_is_no_file_is_passed_over(tmp_path: Path, harmless: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(row("one") + harmless + header("z.md", 0) + row("two") + END)
    shard = index_shard(path)
    assert [each.key for each in shard.rows] == ["one", "two"] and not shard.trouble


def test_names_lead_nowhere(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    names = ["../escape.jpg", "/etc/escape.jpg", "a/../../../escape.jpg", "..\\escape.jpg", "b\n\x1b[31m.jpg"]
    path = write_tar(inside / "a.tar", {name: jpeg(shade) for shade, name in enumerate(names)})
    shard = index_shard(path)
    found = [each.image for each in shard.rows if each.image]
    assert [image.read_bytes() for image in found] == [jpeg(shade) for shade in (0, 1, 2, 4)]
    assert all(str(image).isprintable() for image in found) and found[-1].name == r"b\n\x1b[31m.jpg"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar", "inside"]


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    nested = b"[" * 200_000
    members = {
        "0.jpg": jpeg(),
        "0.txt": b"x" * (LONGEST_TEXT + 1),
        "1.jpg": jpeg(),
        "1.json": nested,
        "2.jpg": jpeg(),
        "2.json": json.dumps({"caption": "fine"}).encode(),
    }
    skipped: list[str] = []
    (kept,) = read_tars([write_tar(tmp_path / "a.tar", members)], skipped)
    assert kept.captions == ("fine",) and len(skipped) == 2
    hole = tmp_path / "hole.tar"
    with hole.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(ImageError, match="no more than"):
        PackedFile(hole, 0, LARGEST_FILE + 1, "bomb.jpg").read_bytes()


def test_members_are_those_of_pythons_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=form, encoding="utf-8") as tar:
            for name in ("a.jpg", "ü/" + "n" * 99, "d" * 120 + "/e.jpg", "f.jpg"):
                info = tarfile.TarInfo(name)
                info.size = len(name) * 100
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        with tarfile.open(path) as tar:
            expected = [Member(member.name, member.offset_data, member.size) for member in tar]
        assert list(read_members(path)) == expected and len(expected) == 4
    path.write_bytes(b"")
    with pytest.raises(BrokenTarError, match="is no tar"):
        list(read_members(path))
