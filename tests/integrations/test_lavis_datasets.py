"""LAVIS' data sets: the rows that its own classes make of the same annotation files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from openblip.data.zoo.data_sets import dataset_names, find_entry
from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.images.transform import ImageTransform
from openblip.integrations.lavis import dataset_zoo, load_dataset
from openblip.integrations.lavis.processors import Blip2ImageTrainProcessor, BlipCaptionProcessor
from tests.data.annotation_cases import CASES, COCO, TEN, Case, write
from tests.data.tiny_images import jpeg, put, write_tar

KEYS = {
    ("coco_caption", "train"): "image text_input image_id instance_id",
    ("coco_caption", "test"): "image image_id instance_id",
    ("coco_caption", "val"): "image image_id instance_id",
    ("nocaps", "val"): "image image_id instance_id",
    ("nocaps", "test"): "image image_id instance_id",
    ("coco_retrieval", "test"): "image index",
    ("flickr30k", "train"): "image text_input image_id instance_id",
    ("flickr30k", "val"): "image index",
    ("coco_vqa", "train"): "image text_input answers weights",
    ("vg_vqa", "train"): "image text_input answers weights",
    ("coco_vqa", "val"): "image text_input question_id instance_id",
    ("coco_vqa", "test"): "image text_input question_id instance_id",
    ("ok_vqa", "test"): "image text_input question_id instance_id",
    ("aok_vqa", "val"): "image text_input question_id instance_id choices correct_choice_idx direct_answers",
    ("aok_vqa", "test"): "image text_input question_id instance_id choices correct_choice_idx direct_answers",
    ("nlvr", "train"): "image0 image1 text_input label instance_id",
    ("nlvr", "val"): "image0 image1 text_input label instance_id",
    ("snli_ve", "val"): "image text_input label image_id instance_id",
    ("snli_ve", "test"): "image text_input label image_id instance_id",
    ("imagenet", "val"): "image label image_id instance_id",
    ("vg_caption", "train"): "image text_input",
    ("sbu_caption", "train"): "image text_input",
    ("conceptual_caption_3m", "train"): "image text_input",
    ("conceptual_caption_12m", "train"): "image text_input",
    ("msrvtt_qa", "train"): "video text_input answers question_id instance_id",
    ("msrvtt_qa", "val"): "video text_input answers question_id instance_id",
    ("msvd_qa", "train"): "video text_input answers question_id instance_id",
    ("msvd_qa", "test"): "video text_input answers question_id instance_id",
    ("msrvtt_caption", "train"): "video text_input image_id instance_id",
    ("msrvtt_caption", "val"): "video image_id instance_id",
    ("msvd_caption", "test"): "video image_id instance_id",
    ("vatex_caption", "train"): "video text_input image_id instance_id",
    ("vatex_caption", "val"): "video image_id instance_id",
    ("msrvtt_retrieval", "test"): "video index",
    ("didemo_retrieval", "train"): "video text_input image_id instance_id",
    ("didemo_retrieval", "val"): "video index",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    return tmp_path


def prepared(home: Path, case: Case) -> Any:
    """The split of a case with all its images on the disk."""
    write(home, case.files)
    for folder in case.folders:
        (home / folder).mkdir(parents=True, exist_ok=True)
    media = home / find_entry(case.name).media
    for names, _ in case.rows:
        for name in names:
            put(media / name)
    return load_dataset(case.name)[case.split]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_have_lavis_keys(case: Case, home: Path) -> None:
    rows = prepared(home, case)
    first = rows[0]
    assert " ".join(first) == KEYS[case.name, case.split]
    for name in ("image", "image0", "image1"):
        if name in first:
            assert isinstance(first[name], Image.Image) and first[name].mode == "RGB"
    assert "video" not in first or Path(first["video"]).parent.is_dir()
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_the_seeds_rows(home: Path) -> None:
    rows = prepared(home, CASES[0])
    assert {key: value for key, value in rows[0].items() if key != "image"} == {
        "text_input": "A woman. ",
        "image_id": 0,
        "instance_id": "0",
    }
    assert rows[-1]["text_input"] == "A net." and rows[1]["image_id"] == 0
    (evaluated,) = [
        case for case in CASES if (case.name, case.layout, case.split) == ("coco_retrieval", "LAVIS", "test")
    ]
    rows = prepared(home, evaluated)
    assert (rows.text, rows.img2txt, rows.txt2img) == (["One.", "Two."], {0: [0, 1]}, {0: 0, 1: 0})
    assert rows.image == [str(home / "coco/images/val2014" / COCO)]


def test_captions_of_ones_own_coco_files_are_a_row_each(home: Path) -> None:
    (case,) = [case for case in CASES if case.layout == "COCO 2014"]
    rows = prepared(home, case)
    assert [rows[index]["text_input"] for index in range(len(rows))] == ["One.", "Two."]


def test_vqa_weights_answers_as_lavis(home: Path) -> None:
    write(
        home,
        {
            f"coco/annotations/vqa_{part}.json": [
                {"question_id": 1, "question": "Where?", "answer": TEN, "image": "a.jpg", "dataset": "vqa"}
            ]
            for part in ("train", "val")
        },
    )
    put(home / "coco/images/a.jpg")
    rows = load_dataset("coco_vqa")["train"]
    row = rows[0]
    assert row["answers"] == ["net", "racket", "yes"]
    assert row["weights"] == pytest.approx([0.8, 0.1, 0.1])
    rows.set_processors(Blip2ImageTrainProcessor(ImageTransform(16)), BlipCaptionProcessor("question: "))
    (batch,) = DataLoader(rows, batch_size=2, collate_fn=rows.collater)
    assert batch["image"].shape == (2, 3, 16, 16) and batch["text_input"] == ["question: where?"] * 2
    assert batch["answer"] == ["net", "racket", "yes"] * 2 and batch["n_answers"].tolist() == [3, 3]
    assert len(batch["weight"]) == 6


def test_training_images_follow_the_seeds_of_pytorch() -> None:
    image_path = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    processor = Blip2ImageTrainProcessor(ImageTransform(16))

    def seen(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [processor(image_path) for _ in range(4)]

    first = seen(1)
    assert all(map(torch.equal, first, seen(1)))
    assert not torch.equal(first[0], seen(2)[0]) and not torch.equal(first[0], first[1])
    own = [Blip2ImageTrainProcessor(ImageTransform(16), rng=random.Random(3))(image_path) for _ in range(2)]
    assert torch.equal(*own), "a source of one's own is not PyTorch's"


def test_nlvr_changes_sides_in_training_alone(home: Path) -> None:
    names = [f"images/train/1/train-1-0-img{side}.png" for side in (0, 1)]
    told = [{"sentence": "The left dog, right?", "label": "True", "images": names}]
    write(home, {"nlvr/annotations/train.json": told, "nlvr/annotations/dev.json": told})
    for side, name in enumerate(names):
        put(home / "nlvr" / name, shade=200 * side)
    splits = load_dataset("nlvr")
    seen = set()
    for _ in range(40):
        row = splits["train"][0]
        seen.add((row["image0"].getpixel((0, 0))[0] > 100, row["text_input"]))
    assert seen == {(False, "The left dog, right?"), (True, "The right dog, left?")}
    assert {splits["val"][0]["text_input"] for _ in range(20)} == {"The left dog, right?"}
    assert splits["val"].classnames == ["False", "True"] and splits["val"][0]["label"] == 1


def test_answers_of_video_questions_have_lavis_numbers(home: Path) -> None:
    rows = [
        {"video": "a.mp4", "question": "who?", "answer": answer, "question_id": 1} for answer in ("man", "cat", "x")
    ]
    write(home, {"msvd/annotations/qa_train.json": rows})
    own = load_dataset("msvd_qa")["train"]
    assert [own[index]["answers"] for index in range(3)] == [0, 1, 2]
    write(home, {"msvd/annotations/qa_ans2label.json": {"cat": 0, "man": 1}})
    theirs = load_dataset("msvd_qa")["train"]
    assert [theirs[index]["answers"] for index in range(3)] == [1, 0, 2]


def test_films_are_shown_once_in_evaluation(home: Path) -> None:
    rows = [{"video": "a.mp4", "caption": text, "image_id": "a"} for text in ("one", "two")]
    write(home, {"msvd/annotations/cap_train.json": rows, "msvd/annotations/cap_test.json": rows})
    splits = load_dataset("msvd_caption", vis_path=home / "films")
    assert (len(splits["train"]), len(splits["test"])) == (2, 1)
    assert splits["test"][0]["video"] == str(home / "films/a.mp4")


def test_an_image_that_is_gone_is_left_out_of_training_and_told_in_evaluation(home: Path) -> None:
    write(
        home,
        {
            "sbu_captions/annotations/sbu.json": [{"image": f"{name}.jpg", "caption": name} for name in "ab"],
            "coco/annotations/coco_karpathy_val.json": [{"image": "val2014/x.jpg", "caption": ["x"]}],
        },
    )
    put(home / "sbu_captions/images/b.jpg")
    rows = load_dataset("sbu_caption")["train"]
    assert rows[0] is None and rows[1] is not None and list(rows.unreadable) == [0]
    assert rows.collater([rows[0], rows[1]])["text_input"] == ["b"]
    assert rows.collater([None]) == {}
    with pytest.raises(ImageError, match="no such file"):
        load_dataset("coco_caption")["val"][0]


def test_tars_of_laion(home: Path) -> None:
    members = {"0.jpg": jpeg(), "0.json": json.dumps({"caption": "from a tar"}).encode()}
    write_tar(home / "part-00000/00000.tar", members)
    rows = load_dataset("laion2B_multi", vis_path=home / "part-00000/{00000..00000}.tar")["train"]
    assert rows[0]["text_input"] == "from a tar" and rows[0]["image"].size == (6, 4)


def test_the_zoo_and_what_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset_zoo.get_names() == dataset_names()
    with pytest.raises(OptionError, match="vis_path and ann_path"):
        load_dataset("coco_caption", cfg_path="my.yaml")
    with pytest.raises(OptionError, match="has images, no features"):
        load_dataset("coco_caption", data_type="features")
    with pytest.raises(OptionError, match="did you mean"):
        load_dataset("coco_captions")
    with pytest.raises(OpenBlipError, match="imagenet is not at"):
        load_dataset("imagenet", data_type="images")
    asked: list[str] = []
    monkeypatch.setattr("openblip.integrations.lavis.datasets.download_annotations", asked.append)
    with pytest.raises(OpenBlipError, match="has no annotations"):
        load_dataset("vg_vqa")
    assert asked == ["vg_vqa"]
