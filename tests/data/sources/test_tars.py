"""Tars: what Python's own writer makes of rows comes back, whatever happens to the file on its way."""

from __future__ import annotations

import gc
import io
import json
import pickle
import random
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from openblip.data.sample import Sample
from openblip.data.sources.paths import expand_pattern
from openblip.data.sources.stream import Position, Share, TarStream, shuffled
from openblip.data.sources.tars import TarRow, index_shard, read_tars
from openblip.errors import OpenBlipError, OptionError
from openblip.images.decode import load_image
from tests.data.tiny_images import jpeg, write_tar

ANY_FOLDER = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def shard(path: Path, rows: int, first: int = 0) -> Path:
    """A tar of rows called 000000, 000001, ..., each with an image, a text and a JSON object."""
    members: dict[str, bytes] = {}
    for number in range(first, first + rows):
        members[f"{number:06}.jpg"] = jpeg(number)
        members[f"{number:06}.json"] = json.dumps({"url": "x", "key": f"{number}"}).encode()
        members[f"{number:06}.txt"] = f"photo {number}".encode()
    return write_tar(path, members)


def shards(folder: Path, *rows: int) -> list[Path]:
    starts = [sum(rows[:number]) for number in range(len(rows))]
    return [shard(folder / f"{number:05}.tar", count, starts[number]) for number, count in enumerate(rows)]


def keys(samples: list[Sample]) -> list[str]:
    return [sample.image_id for sample in samples]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_a_writer_packs_comes_back(tmp_path: Path, form: int) -> None:
    deep = "a folder/" + "long" * 20 + "/ünï"
    told = {"caption": "deep", "question": "What?", "answers": ["x", "y"], "label": "L"}
    files = {
        "a.jpg": jpeg(1),
        "a.txt": b"one\ntwo\n",
        f"{deep}.PNG": jpeg(2),
        f"{deep}.json": json.dumps(told).encode(),
        "b.cls": b"7\n",
        "b.jpeg": jpeg(3),
        "b.seg.jpg": jpeg(4),
        "alone.txt": b"without an image",
        "._a.jpg": b"macOS",
        "__MACOSX/.a.jpg": b"macOS",
    }
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("empty folder/"))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    skipped: list[str] = []
    first, second, third = read_tars([path], skipped)
    assert skipped == [
        f"{path} has files that are left out: images beside another one of their row (1, b.seg.jpg first), "
        "texts without an image of their name (1, alone.txt first)"
    ]
    assert (first.captions, first.image.read_bytes()) == (("one", "two"), jpeg(1))
    assert (second.captions, second.question, second.answers, second.label) == (("deep",), "What?", ("x", "y"), "L")
    assert second.image.read_bytes() == jpeg(2) and second.image.name == "ünï.PNG" and second.image_id == deep
    assert (third.label, third.image.read_bytes()) == ("7", jpeg(3))
    assert load_image(pickle.loads(pickle.dumps(third)).image.read_bytes()).size == (6, 4)


@ANY_FOLDER
@given(share=st.floats(0, 1))
def test_a_tar_cut_anywhere_gives_the_whole_rows_before_the_cut(tmp_path: Path, share: float) -> None:
    path = shard(tmp_path / "whole.tar", 6)
    whole = path.read_bytes()
    cut = tmp_path / "cut.tar"
    end = int(share * (len(whole) - 1))
    cut.write_bytes(whole[:end])
    found, expected = index_shard(cut), index_shard(path)
    assert found.rows == tuple(row for row in found.rows if row.image is not None)
    assert [row.key for row in found.rows] == [row.key for row in expected.rows][: len(found.rows)]
    for row in found.rows:
        sample = row.sample()
        assert sample.captions == (f"photo {int(row.key)}",)
        assert sample.image.read_bytes() == jpeg(int(row.key))
    # A cut within the zeros at the end loses nothing.
    assert found.trouble or len(found.rows) == 6
    assert "\n" not in found.trouble


@ANY_FOLDER
@given(place=st.integers(0, 20), noise=st.binary(min_size=1, max_size=600))
def test_a_damaged_tar_never_raises(tmp_path: Path, place: int, noise: bytes) -> None:
    path = shard(tmp_path / "damaged.tar", 4)
    content = bytearray(path.read_bytes())
    content[place * 512 : place * 512 + len(noise)] = noise
    path.write_bytes(bytes(content))
    skipped: list[str] = []
    samples = read_tars([path], skipped)
    assert len(samples) <= 4
    assert len(samples) == 4 or skipped or any(not sample.captions for sample in samples)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no tar, or broken"),
        (b"not a tar" * 200, "is no tar, or broken"),
        (None, r"cannot be read \(No such file"),
        ("gz", "is compressed.*unpack it with gunzip"),
    ],
)
def test_what_is_no_tar_is_said(tmp_path: Path, content: bytes | str | None, words: str) -> None:
    path = tmp_path / "a.tar"
    if content == "gz":
        write_tar(path, {"a.jpg": jpeg()}, "w:gz")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    (sentence,) = [index_shard(path).trouble]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(sentence)


def test_rubbish_in_the_middle_ends_a_tar_with_a_sentence(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 4)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = next(member.offset for member in tar if member.name == "000002.jpg")
    content[offset : offset + 512] = b"\xff" * 512
    path.write_bytes(bytes(content))
    found = index_shard(path)
    assert f"is damaged at byte {offset} of {len(content)}: 1 rows of it are used" in found.trouble
    path.write_bytes(bytes(content[:offset]))
    assert "has no end mark, more may have been to come: 2 rows" in index_shard(path).trouble


def test_names_go_up_to_the_ending_not_to_the_first_dot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        "IMG.2020.01.jpg": jpeg(1),
        "IMG.2020.01.txt": b"one",
        "IMG.2020.02.JPG": jpeg(2),
        "IMG.2020.02.json": b'{"caption": "two"}',
        "v1.0/a.png": jpeg(3),
        "v1.0/a.png.txt": b"three",
        "v1.0/b.jpg": jpeg(4),
        "v1.0/b.caption": b"four",
        "v1.0/b.depth.png": jpeg(5),
        "v1.0/b.meta.json": b"{}",
        "v1.0/c.jpg": jpeg(6),
        "v1.0/c.webp": jpeg(7),
        "v1.0/c.TXT": b"five",
    }
    path = write_tar(tmp_path / "a.tar", members)
    skipped: list[str] = []
    rows = read_tars([path], skipped)
    assert [row.image_id for row in rows] == ["IMG.2020.01", "IMG.2020.02", "v1.0/a", "v1.0/b", "v1.0/c"]
    assert [row.captions for row in rows] == [("one",), ("two",), ("three",), ("four",), ("five",)]
    assert [row.image.read_bytes() for row in rows] == [jpeg(shade) for shade in (1, 2, 3, 4, 6)]
    assert skipped == [
        f"{path} has files that are left out: images beside another one of their row (2, b.depth.png first), "
        "texts without an image of their name (1, b.meta.json first)"
    ]
    stream = TarStream([path])
    assert list(stream) == rows and stream.skipped == skipped
    list(TarStream([path]).rows(lambda path, trouble: pytest.fail(trouble)))
    assert caplog.messages == skipped


@ANY_FOLDER
@given(st.lists(st.lists(st.sampled_from(["a", "b", "2", "x.y"]), min_size=1, max_size=3), max_size=6), st.data())
def test_no_image_vanishes_untold(tmp_path: Path, stems: list[list[str]], data: st.DataObject) -> None:
    """Each image of a tar is a row's, or counted among those that are left out; streams see the same."""
    endings = st.lists(st.sampled_from(["jpg", "PNG", "txt", "json", "cls", "jpg.txt"]), min_size=1, unique=True)
    names = sorted({f"{'.'.join(stem)}.{ending}" for stem in stems for ending in data.draw(endings)})
    path = write_tar(
        tmp_path / "a.tar", {name: jpeg() if name.lower()[-3:] in ("jpg", "png") else b"[]" for name in names}
    )
    skipped: list[str] = []
    rows = read_tars([path], skipped)
    images = [name for name in names if name.lower()[-3:] in ("jpg", "png")]
    found = [int(number) for number in re.findall(r"of their row \((\d+),", " ".join(skipped))]
    assert len(rows) + sum(found) == len(images)
    stream = TarStream([path])
    assert sorted(keys(list(stream))) == sorted(keys(rows))


def test_a_row_with_broken_json_is_left_out(tmp_path: Path) -> None:
    members = {"0.jpg": jpeg(), "0.json": b'{"caption": "half', "1.jpg": jpeg(), "1.json": b'{"caption": "whole"}'}
    skipped: list[str] = []
    (row,) = read_tars([write_tar(tmp_path / "a.tar", members)], skipped)
    assert row.captions == ("whole",) and "row 0 is left out: its JSON cannot be read" in skipped[0]


def test_patterns(tmp_path: Path) -> None:
    paths = shards(tmp_path / "part-0", 1, 1, 1)
    assert expand_pattern("part-{0..0}/{00000..00002}.tar", tmp_path) == paths
    assert expand_pattern(str(tmp_path / "part-*/*.tar"), Path("elsewhere")) == paths
    assert expand_pattern("part-0/{00001..00003}.tar", tmp_path)[-1].name == "00003.tar"
    with pytest.raises(OpenBlipError, match="no file matches"):
        expand_pattern("none-*.tar", tmp_path)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 4), (5, 1), (8, 2)])
def test_readers_give_each_row_once(tmp_path: Path, world: int, workers: int, seed: int | None) -> None:
    paths = shards(tmp_path, 3, 1, 7, 2, 4)
    found = [
        keys(list(TarStream(paths, Share(rank, world, worker, workers), seed)))
        for rank in range(world)
        for worker in range(workers)
    ]
    assert sorted(key for part in found for key in part) == [f"{number:06}" for number in range(17)]


@pytest.mark.parametrize("share", [Share(), Share(1, 2), Share(0, 2, 2, 3)], ids=["all", "tars", "rows"])
def test_a_stream_goes_on_where_it_stopped(tmp_path: Path, share: Share) -> None:
    paths = shards(tmp_path, 3, 5, 2, 4)
    paths[1].write_bytes(paths[1].read_bytes()[: 512 * 12])
    whole = TarStream(paths, share, seed=3)
    first, second = keys(list(whole)), keys(list(whole))
    assert first and second and whole.position == Position(epoch=2)
    for stop in range(len(first) + 1):
        begun = TarStream(paths, share, seed=3)
        rows = iter(begun)
        given = keys([next(rows) for _ in range(stop)])
        resumed = TarStream(paths, share, seed=3, position=pickle.loads(pickle.dumps(begun.position)))
        assert given + keys(list(resumed)) == first
        assert keys(list(resumed)) == second


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    paths = shards(tmp_path, 6, 6, 6)
    assert keys(list(TarStream(paths))) == [f"{number:06}" for number in range(18)]
    stream = TarStream(paths, seed=1)
    orders = [keys(list(stream)), keys(list(stream)), keys(list(TarStream(paths, seed=2)))]
    assert len({tuple(order) for order in orders}) == 3


@ANY_FOLDER
@given(count=st.integers(0, 60), size=st.integers(1, 70), seed=st.integers(0, 9))
def test_no_more_rows_are_kept_than_there_is_room_for(count: int, size: int, seed: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(count):
            taken += 1
            yield number

    given: list[int] = []
    for item in shuffled(items(), size, random.Random(seed)):
        given.append(item)
        assert taken - len(given) <= size
    assert sorted(given) == list(range(count))
    assert size == 1 or count < 20 or given != sorted(given)


def test_a_stream_keeps_the_headers_of_its_buffer_alone(tmp_path: Path) -> None:
    paths = shards(tmp_path, 300, 300)
    stream = TarStream(paths, seed=1, shuffle=50)
    most = 0
    for number, _ in enumerate(stream):
        if number % 60 == 0:
            most = max(most, sum(type(each) is TarRow for each in gc.get_objects()))
    assert number == 599 and 40 < most <= 53


def test_broken_tars_and_rows_are_listed_once(tmp_path: Path) -> None:
    paths = [*shards(tmp_path, 2, 2), tmp_path / "gone.tar"]
    paths[0].write_bytes(paths[0].read_bytes()[:700])
    write_tar(paths[1], {"0.jpg": jpeg(), "0.json": b"{", "1.jpg": jpeg(), "1.txt": b"fine"})
    stream = TarStream(paths)
    assert [row.captions for row in stream] == [("fine",)]
    assert [Path(sentence.split(" ")[0].rstrip(":")).name for sentence in stream.skipped] == [
        "00000.tar",
        "00001.tar",
        "gone.tar",
    ]


class Streamed(IterableDataset[str]):
    """A stream as a DataLoader takes it: every worker finds its own share."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (sample.image_id for sample in TarStream(self.paths, Share.here(), seed=1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_loader_find_their_shares(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = shards(tmp_path, 3, 2, 4, 1)
    found: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        found += list(DataLoader(Streamed(paths), batch_size=None, num_workers=workers))
    assert sorted(found) == [f"{number:06}" for number in range(10)]


def test_impossible_shares_and_empty_streams_are_refused() -> None:
    with pytest.raises(OptionError, match="no worker 0 of 1 in process 2 of 2"):
        Share(2, 2)
    with pytest.raises(OptionError, match="at least one tar"):
        TarStream([])
