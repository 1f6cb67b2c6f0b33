"""Anyone's tables, folders and tars as sources of a recipe: what is read, and what is said about what is not."""

from __future__ import annotations

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from openblip.data.pairs import DataSource, load_pairs
from openblip.data.sample import PackedFile, Sample
from openblip.data.sources.open import find_missing, keep_held_out_part, keep_training_part, read_source
from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.images.decode import load_image
from tests.data.tiny_images import jpeg, put, write_tar


def read(root: Path, table: str, **settings: Any) -> list[Sample]:
    return read_source(DataSource("mine", table=table, **settings), root)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", 'image,caption\na.jpg,"A dog, running"\nb.jpg,A cat\n'),
        ("pairs.csv", '\ufeffFile Name;Text;image_path\nx;"A dog, running";a.jpg\ny;A cat;b.jpg\n'),
        ("pairs.tsv", "filename\tcaption\na.jpg\tA dog, running\nb.jpg\tA cat\n"),
        ("quoted.tsv", 'filename\tcaption\na.jpg\t"A dog, running"\nb.jpg\tA cat\n'),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| A dog, running\nb.jpg| 0| A cat\n"),
        ("captions.txt", 'image,caption\na.jpg,"A dog, running"\nb.jpg,A cat\n'),
        (
            "pairs.jsonl",
            '{"path": "a.jpg", "captions": ["A dog, running"]}\n\n{"path": "b.jpg", "captions": "A cat"}\n',
        ),
        ("pairs.json", '[{"file": "a.jpg", "text": "A dog, running"}, {"file": "b.jpg", "text": "A cat"}]'),
    ],
)
def test_columns_are_known_by_their_usual_names(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    rows = read(tmp_path, name)
    assert [row.image for row in rows] == [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    assert [row.captions for row in rows] == [("A dog, running",), ("A cat",)]


def test_lines_of_a_jsonl_need_not_be_alike(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "caption": "x"}, {"file": "a.jpg", "question": "What?", "answer": "y", "split": "val"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    told, asked = read(tmp_path, "a.jsonl")
    assert (told.captions, told.question, asked.question, asked.answers) == (("x",), "", "What?", ("y",))
    assert read(tmp_path, "a.jsonl", split="val") == [asked]
    (image,) = load_pairs(DataSource("mine", table="a.jsonl"), tmp_path)
    assert len(image.captions) == len(image.questions) == 1
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(OpenBlipError, match="has no column split: leave split: val out"):
        read(tmp_path, "a.jsonl", split="val")


def test_quotes_are_texts_own(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('image\tcaption\na.jpg\t"She" waves\nb.jpg\t"A ""sign"""\nc.jpg\t"\n')
    assert [row.captions for row in read(tmp_path, "a.tsv")] == [('"She" waves',), ('A "sign"',), ('"',)]
    (tmp_path / "a.csv").write_text('image,caption\na.jpg,"two\nlines, ""quoted"""\nb.jpg,"[laughs] what?"\n')
    assert [row.captions for row in read(tmp_path, "a.csv")] == [('two\nlines, "quoted"',), ("[laughs] what?",)]


def test_questions_answers_and_splits_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "question": "What?", "answers": ["Cat", "dog", "dog"], "question_id": 7, "split": "train"},
        {"image": "a.jpg", "question": "Why?", "answer": "so", "split": "train"},
        {"image": "b.jpg", "question": "Where?", "answer": None, "split": "test"},
    ]
    (tmp_path / "vqa.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    what, why = read(tmp_path, "vqa.jsonl", split="train", images="photos")
    assert what.image == tmp_path / "photos/a.jpg" and what.image is why.image
    assert what.answers == ("Cat", "dog", "dog") and what.sample_id == "7" and why.answers == ("so",)
    (tmp_path / "vqa.csv").write_text('image,question,answers\nphotos\\a.jpg,What?,"[""Cat"", ""dog"", ""dog""]"\n')
    (row,) = read(tmp_path, "vqa.csv")
    assert row.answers == what.answers and row.image == what.image
    (image,) = load_pairs(DataSource("mine", table="vqa.csv"), tmp_path)
    (asked,) = image.questions
    assert (asked.question, asked.answer, asked.answers) == ("what?", "dog", ("cat", "dog", "dog"))
    assert load_pairs(DataSource("mine", table="vqa.jsonl", split="test"), tmp_path)[0].questions == ()
    with pytest.raises(OpenBlipError, match="no rows of the split val"):
        read(tmp_path, "vqa.jsonl", split="val")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "a,b\n1,2\n", "a.csv has no column of images: name one image or image_path; it has a, b"),
        ("a.csv", "image,score\nx.jpg,2\n", "says nothing about its images.* it has image, score"),
        ("a.csv", "image,caption\na.jpg,one, two\n", "line 2, has more cells than the header"),
        ("a.csv", "image,caption\n,one\n", "line 2, names no image"),
        ("a.csv", "image,caption\nhttp://x.org/a.jpg,one\n", "line 2, has a web address"),
        ("a.csv", "image,caption\n", "has no rows"),
        (
            "a.csv",
            'image,caption\na.jpg,"open\n' + "b.jpg,x\n" * 30,
            "line 2, begins a row of 31 lines: close its quote",
        ),
        ("a.csv", b"image,caption\na.jpg,caf\xe9\n", "not UTF-8"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "b.j', "line 2, is not JSON"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"caption": "y"}\n', "line 2, has no column of images"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg"}\n', "line 2, says nothing about its im"),
        ("a.jsonl", "[1]\n", "entry 1, is no JSON object"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\n[1]\n', "line 2, is no JSON object"),
        ("a.json", "3", "line 1, is no JSON object"),
        ("a.json", '[{"image": "a.jpg"}, ', "not JSON, or cut short"),
        ("a.json", '{"image": "a.jpg"}', r"a.json says nothing about its images"),
        ("a.json", '{"images": [],\n "annotations": []}', "a.json has no images: check"),
        ("a.parquet", "PAR1 but not really", "no Parquet table, or damaged"),
        ("a.xlsx", "", "is no table"),
    ],
)
def test_a_wrong_table_gets_one_sentence(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OpenBlipError, match=words):
        read(tmp_path, name)


def test_tables_of_all_hands(tmp_path: Path) -> None:
    """As spreadsheets and editors of all systems write them: each says the same of two images."""
    expected = [("a b.png", "a ball, red"), ("ü 猫.png", "two")]
    quoted = 'image,caption\na b.png,"a ball, red"\nü 猫.png,two\n'
    for number, content in enumerate(
        (
            quoted.encode("utf-8-sig"),
            quoted.replace("\n", "\r\n").encode(),
            quoted.replace("\n", "\r").encode(),
            quoted.replace("\n", "\n\n").encode(),
            "image;caption\na b.png;a ball, red\nü 猫.png;two\n".encode(),
            "IMAGE\tCaption\na b.png\ta ball, red\nü 猫.png\ttwo\n".encode(),
            ' image , caption \n a b.png ,"a ball, red"\n ü 猫.png , two \n'.encode(),
            f'path,text\n{tmp_path}/a b.png,"a ball, red"\n{tmp_path}/sub/../ü 猫.png,two\n'.encode(),
        )
    ):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(content)
        found = load_pairs(DataSource(name="own", table=path.name, clean=False), tmp_path)
        assert sorted((pair.image.name, *pair.captions) for pair in found) == expected, content


def test_paths_in_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\nsub\\c.png,a\n~/d.png,b\n~e.png,c\n./f.png,d\n", encoding="utf-8")
    found = {pair.captions[0]: pair.image for pair in load_pairs(DataSource(name="own", table="t.csv"), tmp_path)}
    assert found == {
        "a": tmp_path / "sub/c.png",
        "b": Path.home() / "d.png",
        "c": tmp_path / "~e.png",
        "d": tmp_path / "f.png",
    }


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OpenBlipError, match=r"there is no table at .*pairs\.csv"):
        read(tmp_path, "pairs.csv")
    with pytest.raises(OpenBlipError, match=r"no file matches part-\*\.csv"):
        read(tmp_path, "part-*.csv")
    with pytest.raises(OptionError, match="needs one kind of data"):
        read_source(DataSource("mine", table="a.csv", captions="b.jsonl"), tmp_path)


def test_parquet_names_images_or_holds_them(tmp_path: Path) -> None:
    paths = pa.table({"image_path": ["a.jpg", "b.jpg"], "caption": ["one", "two"]})
    pq.write_table(paths, tmp_path / "paths.parquet")
    assert [row.image for row in read(tmp_path, "paths.parquet")] == [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    image_paths = [jpeg(20 * number) for number in range(5)]
    structs = [{"bytes": image_path, "path": f"{number % 2}/same.jpg"} for number, image_path in enumerate(image_paths)]
    captions = [[f"photo {number}", "again"] for number in range(5)]
    pq.write_table(pa.table({"image": structs, "caption": captions}), tmp_path / "hub.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": image_paths, "caption": ["x"] * 5}), tmp_path / "bytes.parquet", row_group_size=3)
    bare = [{"bytes": image_path} for image_path in image_paths]
    pq.write_table(pa.table({"image": bare, "caption": ["x"] * 5}), tmp_path / "bare.parquet")
    for name in ("hub.parquet", "bytes.parquet", "bare.parquet"):
        rows = read(tmp_path, name)
        assert [rows[at].image.read_bytes() for at in (4, 0, 3, 1, 2)] == [image_paths[at] for at in (4, 0, 3, 1, 2)]
        assert len({row.image.name for row in rows}) == len({row.image for row in rows}) == 5
        assert load_image(rows[2].image.read_bytes()).size == (6, 4)
    assert read(tmp_path, "hub.parquet")[1].captions == ("photo 1", "again")
    assert len(read(tmp_path, "*.parquet")) == 17
    rows = read(tmp_path, "hub.parquet")
    (tmp_path / "hub.parquet").unlink()
    (tmp_path / "none.parquet").write_bytes(b"")
    with pytest.raises(OpenBlipError):
        rows[0].image.read_bytes()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OpenBlipError, match=r'pip install "openblip\[parquet\]"'):
        read(tmp_path, "a.parquet")


def test_folders_with_captions_classes_or_a_table(tmp_path: Path) -> None:
    for name in ("captioned/img2.jpg", "captioned/img10.jpg", "classes/cat/a.jpg", "classes/dog/a.jpg", "bare/a.jpg"):
        put(tmp_path / name)
    (tmp_path / "captioned/img2.txt").write_text("A dog.\n\nThe dog\n")
    rows = read(tmp_path, "captioned")
    assert [(row.image.name, row.captions) for row in rows] == [("img2.jpg", ("A dog.", "The dog")), ("img10.jpg", ())]
    assert [(row.image_id, row.label) for row in read(tmp_path, "classes")] == [
        ("cat/a.jpg", "cat"),
        ("dog/a.jpg", "dog"),
    ]
    assert [row.image_id for row in read(tmp_path, ".", split="classes")] == ["cat/a.jpg", "dog/a.jpg"]
    with pytest.raises(OpenBlipError, match="nothing says anything about the images"):
        read(tmp_path, "bare")
    with pytest.raises(OptionError, match="has no folder val"):
        read(tmp_path, "classes", split="val")
    (tmp_path / "bare/metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "bare"}')
    assert read(tmp_path, "bare")[0].captions == ("bare",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenBlipError, match="no image in this folder"):
        read(tmp_path, "empty")


@pytest.mark.parametrize(
    "name",
    ["IMG.1.txt", "IMG.1.caption", "IMG.1.TXT", "IMG.1.jpg.txt", "IMG.1.JPG.Caption", "IMG.1.json", "IMG.1.jpg.JSON"],
)
def test_texts_beside_images_are_never_taken_for_classes(tmp_path: Path, name: str) -> None:
    put(tmp_path / "photos/cat/IMG.1.jpg")
    put(tmp_path / "photos/dog/IMG.2.jpg")
    content = '["A dog.", "The dog"]' if name.lower().endswith("json") else "A dog.\nThe dog\n"
    (tmp_path / "photos/cat" / name).write_text(content)
    (tmp_path / "photos/cat/notes.txt").write_text("of the trip")
    skipped: list[str] = []
    rows = read_source(DataSource("mine", table="photos"), tmp_path, skipped)
    assert [(row.image_id, row.captions, row.label) for row in rows] == [
        ("cat/IMG.1.jpg", ("A dog.", "The dog"), ""),
        ("dog/IMG.2.jpg", (), ""),
    ]
    assert skipped == [
        f"{tmp_path}/photos has 1 texts without an image of their name ({tmp_path}/photos/cat/notes.txt first)"
    ]


def test_an_image_whose_texts_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        put(tmp_path / f"photos/x/{name}.jpg")
    (tmp_path / "photos/x/a.json").write_text('{"caption": "half')
    (tmp_path / "photos/x/b.txt").write_text("x" * 2**21)
    (tmp_path / "photos/x/c.json").write_text('{"caption": {"boxes": [1]}}')
    (tmp_path / "photos/x/d.json").write_text('{"flags": {}, "shapes": []}')  # of a program that draws boxes
    skipped: list[str] = []
    (row,) = read_source(DataSource("mine", table="photos"), tmp_path, skipped)
    assert row.image_id == "x/d.jpg" and [sentence.split(" is left out: ")[1][:12] for sentence in skipped] == [
        "its JSON can",
        "b.txt has 20",
        "its JSON has",
    ]
    for name in ("a.json", "b.txt", "c.json"):
        (tmp_path / "photos/x" / name).unlink()
    assert [row.label for row in read(tmp_path, "photos")] == ["x"] * 4


def test_parquet_reads_the_columns_it_knows(tmp_path: Path) -> None:
    """Others may hold whatever Python has not; texts may be bytes, as old writers keep them; images alone are not."""
    far = pa.array([2**62] * 2, pa.int64()).cast(pa.timestamp("us", "Mars/Olympus"))
    columns = {
        "image": ["a.jpg", "b.jpg"],
        "caption": [b"a dog", "ü".encode()],
        "taken": far,
        "mask": [b"\xff", b"\xfe"],
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    assert [row.captions for row in read(tmp_path, path.name)] == [("a dog",), ("ü",)]
    for name, column, words in (
        ("question_id", far, "has values in its column question_id that Python has not"),
        ("caption", pa.array([b"\xff"] * 2), "row 1, has 1 bytes that are not UTF-8 for caption"),
        ("image", pa.array([["a.jpg"]] * 2), "row 1, has list for an image"),
    ):
        pq.write_table(pa.table({**columns, name: column}), path)
        with pytest.raises(OpenBlipError, match=rf"t.parquet.*{words}"):
            read(tmp_path, path.name)
    twice = pa.Table.from_arrays([pa.array(["a.jpg"]), pa.array(["x"]), pa.array(["y"])], ["image", "text", "text"])
    pq.write_table(twice, path)
    with pytest.raises(OpenBlipError, match=r"t.parquet has several columns 'text'"):
        read(tmp_path, path.name)


def test_broken_tars_are_listed_and_the_rest_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        f"{number}.{ending}": content for number in range(3) for ending, content in (("jpg", jpeg()), ("txt", b"hi"))
    }
    for shard in range(3):
        write_tar(tmp_path / f"{shard:03}.tar", members)
    whole = (tmp_path / "001.tar").read_bytes()
    (tmp_path / "001.tar").write_bytes(whole[:1200])
    (tmp_path / "002.tar").write_bytes(b"not a tar at all" * 100)
    skipped: list[str] = []
    rows = read_source(DataSource("mine", table="{000..003}.tar"), tmp_path, skipped)
    assert len(rows) == 3 and all(isinstance(row.image, PackedFile) for row in rows)
    assert [Path(sentence.split(" ")[0]).name for sentence in skipped] == ["001.tar", "002.tar", "003.tar"]
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, "00?.tar")) == 3
    assert len(caplog.records) == 2
    (tmp_path / "000.tar").unlink()
    with pytest.raises(OpenBlipError, match=r"has no rows: .*001\.tar is cut short: 0 rows of it are used"):
        read(tmp_path, ".")


def test_gather_keeps_images_of_one_name_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\nx/1.jpg,one\ny/1.jpg,two\nx/1.jpg,three\n")
    images = load_pairs(DataSource("mine", table="a.csv"), tmp_path)
    assert [image.captions for image in images] == [("one", "three"), ("two",)]


def test_gather_refuses_what_is_no_description(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "caption": "a man sleeps", "label": "neutral"}')
    with pytest.raises(OptionError, match="sentences that are to be judged"):
        load_pairs(DataSource("mine", table="a.jsonl"), tmp_path)
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "caption": "a man sleeps", "label": "man"}')
    assert load_pairs(DataSource("mine", table="a.jsonl"), tmp_path)[0].captions == ("a man sleeps",)


def test_a_known_data_set_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, recipe_root = tmp_path / "home", tmp_path / "data"
    monkeypatch.setenv("OPENBLIP_DATA", str(home))
    rows = [{"image": f"VG_100K/{number}.jpg", "caption": f"{number}."} for number in (1, 1, 2)]
    for folder in (home / "vg/annotations", recipe_root / "mine"):
        folder.mkdir(parents=True)
        (folder / "vg_caption.json").write_text(json.dumps(rows))
        rows = rows[1:]
    source = DataSource("vg", dataset="vg_caption")
    assert [pair.image for pair in load_pairs(source, recipe_root)] == [
        home / f"vg/images/VG_100K/{i}.jpg" for i in (1, 2)
    ]
    assert load_pairs(source, recipe_root)[0].captions == ("1", "1")
    own = DataSource("vg", dataset="vg_caption", images="photos", annotations="mine")
    assert [row.image for row in read_source(own, recipe_root)] == [
        recipe_root / f"photos/VG_100K/{number}.jpg" for number in (1, 2)
    ]
    with pytest.raises(OptionError, match="vg_caption has the splits train: name one of them, not val"):
        read_source(DataSource("vg", dataset="vg_caption", split="val"), recipe_root)


def test_missing_images_are_counted_once(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,one\nb.jpg,two\nb.jpg,three\nc.jpg,four\n")
    found = find_missing(read(tmp_path, "a.csv"), shown=1)
    assert (found.checked, found.missing, found.first) == (3, 2, (tmp_path / "b.jpg",))


def test_held_out_rows_and_the_others_are_all_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n" + "".join(f"{number}.jpg,x\n" for number in range(60)))
    rows = read(tmp_path, "a.csv")
    training, held_out = keep_training_part(rows, 4), keep_held_out_part(rows, 4)
    assert 5 < len(held_out) < 25 and {*training, *held_out} == {*rows} and len(training) + len(held_out) == 60
    assert keep_training_part(rows, 0) == rows


def test_old_recipes_and_new_fields_are_one_schema() -> None:
    old = OmegaConf.structured(DataSource(name="coco", captions="captions.jsonl", questions="vqa.jsonl", held_out=10))
    new = OmegaConf.merge(OmegaConf.structured(DataSource), {"name": "mine", "table": "a.csv", "images": "photos"})
    assert (old.captions, old.held_out, old.table) == ("captions.jsonl", 10, None)
    assert (new.table, new.images, new.views) == ("a.csv", "photos", 2)


def test_an_image_whose_archive_is_gone_is_an_image_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.txt": b"one"})
    (row,) = read(tmp_path, "a.tar")
    assert row.image.read_bytes() == jpeg() and row.captions == ("one",)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match=r"a.tar/1.jpg: the archive ends"):
        row.image.read_bytes()
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        row.image.read_bytes()
