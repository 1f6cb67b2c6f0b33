"""What becomes of the annotation files of every public data set."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from openblip.data.sample import Sample
from openblip.data.zoo.data_sets import ZOO, dataset_names, find_entry, load_dataset
from openblip.errors import OpenBlipError, OptionError
from tests.data.annotation_cases import CASES, COCO, COCO_OWN, Case, load, write
from tests.data.tiny_images import jpeg, put, write_tar


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout(case: Case, tmp_path: Path) -> None:
    dataset = load(tmp_path, case)
    entry = find_entry(case.name)
    media = tmp_path / entry.media
    assert dataset.layout.title == case.layout
    assert len(dataset) == len(case.rows)
    for row, (names, expected) in zip(dataset, case.rows, strict=True):
        assert isinstance(row, Sample)
        found = row.images if not entry.is_video else (row.video,)
        assert found == tuple(media / name for name in names)
        assert {name: getattr(row, name) for name in expected} == expected
        assert isinstance(row.image_id, str) and row.image_id


def test_every_data_set_and_layout_has_a_case() -> None:
    tried = {(case.name, case.layout) for case in CASES}
    known = {(entry.name, layout.title) for entry in ZOO for layout in entry.layouts}
    # COCO's layouts are those of coco_caption; the files of CC12M are like those of CC3M; tars are below.
    shared = {("coco_retrieval", title) for title in ("Karpathy", "COCO 2014", "COCO 2017")}
    assert known - tried == shared | {("conceptual_caption_12m", "LAVIS"), ("laion2B_multi", "tars")}


@pytest.mark.parametrize("case", [case for case in CASES if any(name.endswith("json") for name in case.files)], ids=str)
def test_a_file_that_is_cut_short_or_another_is_said_to_be(case: Case, tmp_path: Path) -> None:
    dataset = load(tmp_path, case)
    path = next(path for path in dataset.files if path.suffix == ".json")
    content = path.read_text(encoding="utf-8")
    path.write_text(content[: len(content) // 2], encoding="utf-8")
    with pytest.raises(OpenBlipError, match="not JSON, or cut short"):
        len(load_dataset(case.name, root=tmp_path)[case.split])
    for other in ('[{"foo": 1}]', '{"foo": []}', '{"images": [{"foo": 1, "split": "train"}]}', "[[1]]", "3"):
        path.write_text(other)
        try:
            rows = load_dataset(case.name, root=tmp_path)[case.split].rows
        except OpenBlipError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        else:
            assert len(dataset.files) > 1 or not rows  # the other files of the split are whole


def test_laion_is_read_from_tars_by_folder_and_pattern(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        told = {"caption": f"shard {number}", "url": "x", "key": "0"}
        members = {"0.jpg": jpeg(), "0.json": json.dumps(told).encode(), "1.jpg": jpeg(), "1.json": b'["one", "two"]'}
        write_tar(tmp_path / f"laion2B-multi/part-00000/{number:05}.tar", members)
    rows = load_dataset("laion2B_multi", root=tmp_path)["train"]
    assert [row.captions for row in rows[:2]] == [("shard 0",), ("one", "two")] and len(rows) == 6
    pattern = tmp_path / "laion2B-multi/part-00000/{00001..00002}.tar"
    assert len(load_dataset("laion2B_multi", vis_path=pattern)["train"]) == 4
    cut = tmp_path / "laion2B-multi/part-00000/00001.tar"
    cut.write_bytes(cut.read_bytes()[:600])
    with caplog.at_level(logging.WARNING):
        assert len(load_dataset("laion2B_multi", vis_path=pattern)["train"]) == 2
    assert "00001.tar is cut short" in caplog.text


def test_folders_of_ones_own(tmp_path: Path) -> None:
    case = CASES[0]
    write(tmp_path, {"mine/coco_karpathy_train.json": case.files["coco/annotations/coco_karpathy_train.json"]})
    put(tmp_path / "photos/val2014" / COCO)
    splits = load_dataset(
        "coco_caption", vis_path=tmp_path / "photos", ann_path=tmp_path / "mine", root=tmp_path / "no"
    )
    assert list(splits) == ["train", "val", "test"]
    assert splits["train"][0].image.is_file()
    assert [row.captions for row in splits["train"][1:]] == [("A net.",)]
    with pytest.raises(OpenBlipError, match=r"coco_karpathy_val.json: get the split val with `openblip datasets downl"):
        len(splits["val"])


def test_splits_of_different_makers_are_never_mixed(tmp_path: Path) -> None:
    case = CASES[0]
    write(tmp_path, {**case.files, "coco/annotations/captions_val2014.json": COCO_OWN})
    splits = load_dataset("coco_caption", root=tmp_path)
    assert {dataset.layout.title for dataset in splits.values()} == {"LAVIS"}
    write(tmp_path, {"coco/annotations/captions_train2014.json": COCO_OWN})
    assert {dataset.layout.title for dataset in load_dataset("coco_caption", root=tmp_path).values()} == {"LAVIS"}


def test_images_of_coco_2017_serve_names_of_2014(tmp_path: Path) -> None:
    rows = [{"image": f"val2014/COCO_val2014_{number:012}.jpg", "caption": "x"} for number in (1, 2)]
    write(tmp_path, {"coco/annotations/coco_karpathy_train.json": rows})
    for name in ("train2017/000000000001.jpg", "val2017/000000000002.jpg"):
        put(tmp_path / "coco/images" / name)
    found = load_dataset("coco_caption", root=tmp_path)["train"]
    assert all(row.image.is_file() for row in found) and [row.image_id for row in found] == ["1", "2"]
    (tmp_path / "coco/images/val2014").mkdir()
    assert load_dataset("coco_caption", root=tmp_path)["train"][0].image.name == "COCO_val2014_000000000001.jpg"


def test_what_is_not_there_or_not_known_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        OpenBlipError, match=r"coco_caption has no annotations in .*: get them with `openblip datasets d"
    ):
        load_dataset("coco_caption", root=tmp_path)
    with pytest.raises(OpenBlipError, match="imagenet is not at"):
        load_dataset("imagenet", root=tmp_path)
    with pytest.raises(OptionError, match=r"there is no data set 'coco_captions': did you mean coco_caption"):
        load_dataset("coco_captions")
    with pytest.raises(OptionError, match="`openblip datasets` lists them all"):
        load_dataset("zzz")


def test_the_names_are_lavis() -> None:
    names = (
        "aok_vqa coco_caption coco_retrieval coco_vqa conceptual_caption_12m conceptual_caption_3m "
        "didemo_retrieval flickr30k imagenet laion2B_multi msrvtt_caption msrvtt_qa msrvtt_retrieval msvd_caption "
        "msvd_qa nlvr nocaps ok_vqa sbu_caption snli_ve vatex_caption vg_caption vg_vqa"
    )
    assert dataset_names() == names.split()
    for entry in ZOO:
        assert entry.title and entry.size and entry.licence and entry.citation and entry.page.startswith("https://")
        assert all(file.url.startswith("https://") and file.path for file in entry.public_files)
