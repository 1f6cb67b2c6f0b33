"""Annotation files as their authors publish them: each is known by its content, and its images are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openblip.data.pairs import DataSource, load_pairs
from openblip.data.sample import Sample
from openblip.data.sources.image_index import ImageIndex
from openblip.data.sources.open import find_missing, read_source
from openblip.errors import OpenBlipError
from tests.data.tiny_images import jpeg


def put_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg())
    return path


def read(root: Path, name: str, content: object = None, **settings: Any) -> tuple[list[Sample], list[str]]:
    if content is not None:
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    notes: list[str] = []
    return read_source(DataSource("own", table=name, **settings), root, notes), notes


COCO = {
    "info": {"description": "COCO 2014 Dataset", "year": 2014},
    "images": [
        {"license": 5, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640, "id": 391895},
        {"license": 4, "file_name": "COCO_val2014_000000000042.jpg", "height": 478, "width": 640, "id": 42},
    ],
    "licenses": [{"id": 1, "name": "Attribution-NonCommercial-ShareAlike License"}],
    "annotations": [
        {"image_id": 391895, "id": 770337, "caption": "A man with a red helmet on a small moped."},
        {"image_id": 42, "id": 641613, "caption": "Two shoes on a shelf."},
        {"image_id": 391895, "id": 771687, "caption": "Man riding a motor bike."},
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "val2014",
            "sentids": [770337],
            "filename": "COCO_val2014_000000391895.jpg",
            "imgid": 0,
            "split": split,
            "sentences": [{"tokens": ["a", "man"], "raw": "A man.", "imgid": 0, "sentid": 770337}],
            "cocoid": 391895,
        }
        for split in ("test", "restval", "train", "val")
    ],
    "dataset": "coco",
}
QUESTIONS = {
    "info": {"version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What is on the shelf?", "question_id": 42000},
        {"image_id": 42, "question": "How many?", "question_id": 42001},
        {"image_id": 391895, "question": "Is he fast?", "question_id": 391895000},
    ],
}
ANNOTATIONS = {
    "info": {"version": "2.0"},
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_type": "what is",
            "multiple_choice_answer": "shoes",
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(["shoes"] * 10)
            ],
            "image_id": 42,
            "answer_type": "other",
            "question_id": 42000,
        },
        {"question_type": "how many", "answers": [{"answer": "2"}], "image_id": 42, "question_id": 42001},
    ],
}


@pytest.mark.parametrize(
    "places",
    [
        ("COCO_val2014_000000391895.jpg", "COCO_val2014_000000000042.jpg"),
        ("val2014/COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000000042.jpg"),
        ("val2017/000000391895.jpg", "train2017/000000000042.jpg"),
        ("391895.png", "deep/er/000000000042.jpg"),
    ],
)
def test_coco_and_vqa_wherever_their_images_are(tmp_path: Path, places: tuple[str, str]) -> None:
    man, shoes = (put_image(tmp_path / "photos" / place) for place in places)
    rows, notes = read(tmp_path, "captions_val2014.json", COCO, images="photos")
    assert [(row.image, row.sample_id, row.captions) for row in rows] == [
        (man, "391895", ("A man with a red helmet on a small moped.", "Man riding a motor bike.")),
        (shoes, "42", ("Two shoes on a shelf.",)),
    ]
    (row,), _ = read(tmp_path, "dataset_coco.json", KARPATHY, images="photos", split="val")
    assert (row.image, row.image_id, row.captions) == (man, "391895", ("A man.",))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(ANNOTATIONS))
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    rows, notes = read(tmp_path, name, QUESTIONS, images="photos")
    assert [(row.image, row.question, row.sample_id, row.kind) for row in rows] == [
        (shoes, "What is on the shelf?", "42000", "what is"),
        (shoes, "How many?", "42001", "how many"),
        (man, "Is he fast?", "391895000", ""),
    ]
    assert [len(row.answers) for row in rows] == [10, 1, 0]
    assert "1 of 3 questions have no answers in" in notes[0]
    assert read(tmp_path, "v2_mscoco_val2014_annotations.json", images="photos")[0] == rows
    assert read(tmp_path, "v2_*_val2014_*.json", images="photos")[0] == rows  # each question once
    pairs = load_pairs(DataSource("own", table=name, images="photos"), tmp_path)
    assert [len(pair.questions) for pair in pairs] == [2 if pair.image == shoes else 0 for pair in pairs]


def test_vqa_under_other_names(tmp_path: Path) -> None:
    put_image(tmp_path / "000000000042.jpg")
    rows, notes = read(tmp_path, "q.json", QUESTIONS)
    assert not any(row.answers for row in rows) and not notes
    assert find_missing(rows).missing == 1
    (tmp_path / "a.json").write_text(json.dumps(ANNOTATIONS))
    assert [len(row.answers) for row in read(tmp_path, "q.json", annotations="a.json")[0]] == [10, 1, 0]
    with pytest.raises(OpenBlipError, match="has answers, but no questions: give the file of questions"):
        read(tmp_path, "a.json")
    other = {"annotations": [{"question_id": 7, "answers": [{"answer": "x"}]}]}
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(OpenBlipError, match="has no answer to any question in"):
        read(tmp_path, "q.json", annotations="b.json")
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,x\n")
    with pytest.raises(OpenBlipError, match="is no file of VQA's questions"):
        read(tmp_path, "t.csv", annotations="a.json")


def test_karpathys_split_is_chosen(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, "dataset_coco.json", KARPATHY, split="train")
    assert len(rows) == 2  # with restval
    for split in (None, "dev"):
        with pytest.raises(OpenBlipError, match=r"splits test \(1 images\), restval \(1 images\).*--split"):
            read(tmp_path, "dataset_coco.json", split=split)


def test_nocaps_and_test_sets_have_no_captions(tmp_path: Path) -> None:
    put_image(tmp_path / "images" / "val" / "0013ea2087020901.jpg")
    nocaps = {
        "licenses": [],
        "info": {"url": "nocaps.org"},
        "images": [{"id": 0, "open_images_id": "0013ea2087020901", "file_name": "0013ea2087020901.jpg"}],
    }
    (row,), _ = read(tmp_path, "nocaps_test_image_info.json", nocaps)
    assert row.image == tmp_path / "images/val/0013ea2087020901.jpg"
    assert (row.sample_id, row.captions) == ("0", ())


def test_llava_conversations(tmp_path: Path) -> None:
    put_image(tmp_path / "coco/train2017/000000033471.jpg")
    content = [
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
                {"from": "gpt", "value": "The bus in the image is white and red."},
                {"from": "human", "value": "What feature can be seen on the back?"},
                {"from": "gpt", "value": "An advertisement."},
            ],
        },
        {
            "id": "GCC_train_001738742",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "Give a short and clear explanation of the subsequent image.\n<image>"},
                {"from": "gpt", "value": "a sketch of an ostrich"},
            ],
        },
        {
            "id": "wKNDHi",
            "model": "",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x"}],
        },
        {
            "images": ["coco/train2017/000000033471.jpg"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the bus."}]},
                {"role": "assistant", "content": "red"},
            ],
        },
    ]
    rows, notes = read(tmp_path, "llava.json", content)
    assert [(row.sample_id, row.question, row.answers, row.captions) for row in rows] == [
        (
            "000000033471",
            "What are the colors of the bus in the image?",
            ("The bus in the image is white and red.",),
            (),
        ),
        ("000000033471-1", "What feature can be seen on the back?", ("An advertisement.",), ()),
        ("GCC_train_001738742", "", (), ("a sketch of an ostrich",)),
        ("", "Describe the bus.", ("red",), ()),
    ]
    assert "1 rows are left out, for they are conversations without an image" in notes[0]
    assert not find_missing(rows).missing
    with pytest.raises(OpenBlipError, match="entry 1, has a turn that is not understood"):
        read(tmp_path, "bad.json", [{"image": "a.jpg", "conversations": [{"from": "dog", "value": "wuff"}]}])
    with pytest.raises(OpenBlipError, match="entry 1, has dict for a conversation"):
        read(
            tmp_path,
            "bad.json",
            [{"image": "a.jpg", "conversations": {}}, {"image": "b.jpg", "conversations": {"a": 1}}],
        )


def test_lists_of_questions_and_results(tmp_path: Path) -> None:
    asked = {"question_id": 7, "image": "a.jpg", "text": "Is it?\nAnswer with one word.", "category": "default"}
    (row,), _ = read(tmp_path, "llava_bench.jsonl", asked)
    assert (row.question, row.captions, row.sample_id) == ("Is it?\nAnswer with one word.", (), "7")
    put_image(tmp_path / "images/COCO_val2014_000000000042.jpg")
    (row,), _ = read(tmp_path, "captions_val2014_fake_results.json", [{"image_id": 42, "caption": "shoes"}])
    assert (row.image, row.captions) == (tmp_path / "images/COCO_val2014_000000000042.jpg", ("shoes",))


def test_objects_with_images_as_keys(tmp_path: Path) -> None:
    one, two = put_image(tmp_path / "train/1/a b.png"), put_image(tmp_path / "train/2/c.webp")
    kohya = {
        "a b": {"caption": "a dog", "tags": "1dog, solo", "train_resolution": [512, 448]},
        "C:\\photos\\train\\2\\c.webp": {"tags": "cat, sitting"},
    }
    rows, _ = read(tmp_path, "meta_cap.json", kohya, images="train")
    assert [(row.image, row.captions) for row in rows] == [(one, ("a dog",)), (two, ("cat, sitting",))]
    names = {"1/a b.png": "a dog", "c": ["a cat", "one cat"], "gone.jpg": "nothing"}
    rows, _ = read(tmp_path, "captions.json", names, images="train")
    assert [row.captions for row in rows] == [("a dog",), ("a cat", "one cat"), ("nothing",)]
    assert [row.image for row in rows] == [one, two, tmp_path / "train/gone.jpg"]
    assert find_missing(rows).missing == 1
    (row,), _ = read(tmp_path, "answers.json", {"c": "yes"}, question="Is it a cat?")
    assert (row.image, row.question, row.answers, row.captions) == (two, "Is it a cat?", ("yes",), ())
    gqa = {"201307251": {"semantic": [], "question": "Is it red?", "imageId": "c", "answer": "no", "types": {}}}
    (row,), _ = read(tmp_path, "gqa.json", gqa)
    assert (row.image, row.sample_id, row.question, row.answers) == (two, "201307251", "Is it red?", ("no",))
    textvqa = {
        "dataset_type": "val",
        "data": [{"question": "What?", "image_id": "c", "answers": ["x"], "question_id": 1}],
    }
    (row,), _ = read(tmp_path, "TextVQA_0.5.1_val.json", textvqa)
    assert (row.image, row.sample_id, row.answers) == (two, "1", ("x",))


def test_our_own_outputs(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("image,caption,error\na.jpg,a dog,\nb.jpg,,there is no such file\nc.jpg,a cat,\n")
    rows, notes = read(tmp_path, "run.csv")
    assert [row.captions for row in rows] == [("a dog",), ("a cat",)]
    assert "1 rows are left out, for they say that the image could not be used" in notes[0]
    (tmp_path / "ask.csv").write_text("image,answer,error\na.jpg,red,\nb.jpg,,broken\n")
    with pytest.raises(OpenBlipError, match=r"has answers, but no questions: .*--question"):
        read(tmp_path, "ask.csv")
    (row,), notes = read(tmp_path, "ask.csv", question="What color is it?")
    assert (row.question, row.answers, len(notes)) == ("What color is it?", ("red",), 1)
    several = [
        {"image": "a.jpg", "what is this?": "dog", "is it red?": "no", "error": None},
        {"image": "b.jpg", "what is this?": None, "is it red?": None, "error": "broken"},
    ]
    (tmp_path / "several.jsonl").write_text("\n".join(map(json.dumps, several)))
    rows, notes = read(tmp_path, "several.jsonl")
    assert [(row.question, row.answers) for row in rows] == [("what is this?", ("dog",)), ("is it red?", ("no",))]
    (tmp_path / "captions.txt").write_text("a b: 1.jpg: a dog: brown\na.PNG: a cat\n")
    rows, _ = read(tmp_path, "captions.txt")
    assert [(row.image_id, row.captions) for row in rows] == [("a b: 1.jpg", ("a dog: brown",)), ("a.PNG", ("a cat",))]
    (tmp_path / "answers.txt").write_text("a.jpg: what is this? a dog\na.jpg: is it red? no\n")
    rows, _ = read(tmp_path, "answers.txt")
    assert [(row.question, row.answers) for row in rows] == [("what is this?", ("a dog",)), ("is it red?", ("no",))]
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog .\na.jpg#1\tOne dog .\n")
    rows, _ = read(tmp_path, "Flickr8k.token.txt")
    assert [row.captions for row in rows] == [("A dog .",), ("One dog .",)]
    (tmp_path / "captions.txt").write_text("a.jpg: a dog\nand so on\n")
    with pytest.raises(OpenBlipError, match="line 2, is no name of an image with a text behind it"):
        read(tmp_path, "captions.txt")


def test_parquet_of_our_own(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": ["a.jpg", "b.jpg"], "is it red?": ["no", None], "error": [None, "broken"]}
    pq.write_table(pa.table(columns), tmp_path / "run.parquet")
    rows, notes = read(tmp_path, "run.parquet")
    assert [(row.question, row.answers) for row in rows] == [("is it red?", ("no",))]
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"version": 1, "shapes": [[1, 2]]},
            r"is an object of version, shapes, which is no known form: known are COCO's",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "a.jpg"}],
                "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}],
            },
            "has annotations of id, image_id, bbox, but no captions: COCO's are in files named captions_",
        ),
        ({"images": [{"filename": "a.jpg"}], "annotations": []}, "has no id"),
        ({"questions": [{"question": "What?"}]}, "has no question_id"),
        ({"images": [3], "annotations": []}, "is no JSON object"),
        ({"a": {"caption": "x"}, "b": {"width": 3}}, "'b', says nothing about its images"),
        ({"data": [{"image_id": 3, "question": {"a": 1}}]}, "has an object of a for question"),
    ],
)
def test_other_documents_get_one_sentence(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(OpenBlipError, match=words):
        read(tmp_path, "a.json", content)


def test_images_that_may_be_meant(tmp_path: Path) -> None:
    train, val = put_image(tmp_path / "train/1.jpg"), put_image(tmp_path / "val/1.jpg")
    put_image(tmp_path / ".hidden/2.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    index = ImageIndex(tmp_path)
    assert index.find("train/1.jpg", "here") == train and index.find("/data/set/val/1.jpg", "here") == val
    assert index.find("2.jpg", "here") == tmp_path / "2.jpg"
    with pytest.raises(OpenBlipError, match=r"here names the image 1.jpg, and .* has 2 that may be meant"):
        index.find("1.jpg", "here")
    for wrong in ("", "http://x.org/a.jpg", "a\0b", "x" * 300):
        with pytest.raises(OpenBlipError, match=r"^here "):
            index.find(wrong, "here")


def test_tables_whose_images_are_elsewhere(tmp_path: Path) -> None:
    cat, dog = (put_image(tmp_path / "photos" / place) for place in ("a/cat.jpg", "b/000000000042.jpg"))
    names = ("/home/you/cat.jpg", "coco/train2014/COCO_train2014_000000000042.jpg")
    rows = [{"image": name, "caption": "one"} for name in names]
    found, _ = read(tmp_path, "rows.json", [*rows, {"image": "x/gone.jpg", "caption": "one"}])
    assert [row.image for row in found] == [cat, dog, tmp_path / "x/gone.jpg"]
    assert [row.image_id for row in found] == [*names, "x/gone.jpg"]
    # With one image at its path, the paths are right, and a name elsewhere is another image.
    here = {"image": "photos/a/cat.jpg", "caption": "one"}
    found, _ = read(tmp_path, "rows.json", [here, {"image": "photos/b/cat.jpg", "caption": "one"}])
    assert [row.image for row in found] == [cat, tmp_path / "photos/b/cat.jpg"]
    put_image(tmp_path / "photos/c/cat.jpg")
    with pytest.raises(OpenBlipError, match=r"cat.jpg, and .* has 2 that may be meant \(photos/a/cat.jpg, photos/c"):
        read(tmp_path, "rows.json", rows)
    pairs = [{"image": "left/cat.jpg", "second_image": "42.jpg", "caption": "two", "label": "True"}]
    assert read(tmp_path, "pairs.json", pairs, images="photos/a")[0][0].images == (cat, tmp_path / "photos/a/42.jpg")
