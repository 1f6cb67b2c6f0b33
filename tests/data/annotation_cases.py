"""A few rows of every public annotation layout, and what is to become of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.data.zoo.data_sets import load_dataset
from openblip.data.zoo.entries import Dataset
from tests.data.tiny_images import jpeg

TEN = ["net"] * 7 + ["racket", "yes", "net"]


@dataclass(frozen=True)
class Case:
    """One layout of one data set: files below the root, and the rows of a split by what matters in them.

    Attributes:
        files: a list becomes JSON, a tuple JSON lines, text stays text.
        rows: expected (images below the media folder or the film, then fields of the sample).
    """

    name: str
    layout: str
    split: str
    files: dict[str, Any]
    rows: list[tuple[tuple[str, ...], dict[str, Any]]] = field(default_factory=list)
    folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}-{self.layout}-{self.split}"


COCO = "COCO_val2014_000000522418.jpg"
KARPATHY_COCO = {
    "images": [
        {
            "filepath": "val2014",
            "filename": COCO,
            "split": split,
            "cocoid": 522418,
            "sentences": [{"raw": "One.", "tokens": ["one"]}, {"raw": "Two.", "tokens": ["two"]}],
        }
        for split in ("restval", "test")
    ],
    "dataset": "coco",
}
COCO_OWN = {
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 9, "id": 1, "caption": "One."}, {"image_id": 9, "id": 2, "caption": "Two."}],
}
VQA_QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [{"image_id": 262148, "question": "Where?", "question_id": 262148000}],
}
VQA_ANSWERS = {
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_id": 262148000,
            "image_id": 262148,
            "question_type": "where",
            "multiple_choice_answer": "net",
            "answers": [
                {"answer": answer, "answer_id": number, "answer_confidence": "yes", "raw_answer": answer + "s"}
                for number, answer in enumerate(TEN, start=1)
            ],
        }
    ],
}
VQA_ROW = (
    ("val2014/COCO_val2014_000000262148.jpg",),
    {"image_id": "262148", "sample_id": "262148000", "question": "Where?", "answers": tuple(TEN), "kind": "where"},
)
AOKVQA = {
    "split": "val",
    "image_id": 299207,
    "question_id": "22Mex",
    "question": "What awaits?",
    "choices": ["skateboarder", "train", "delivery", "cab"],
    "correct_choice_idx": 3,
    "direct_answers": ["ride", "ride", "bus"],
}
AOKVQA_FIELDS = {
    "image_id": "299207",
    "sample_id": "22Mex",
    "answers": ("ride", "ride", "bus"),
    "label": "cab",
    "choices": ("skateboarder", "train", "delivery", "cab"),
}
MSRVTT = {
    "info": {},
    "videos": [{"video_id": f"video{i}", "split": split} for i, split in enumerate(("train", "validate"))],
    "sentences": [{"caption": f"film {i}", "video_id": f"video{i}", "sen_id": 10 + i} for i in (0, 1, 0)],
}
FLICKR_KARPATHY = {
    "images": [{"filename": "1000.jpg", "split": "val", "sentences": [{"raw": "One."}, {"raw": "Two."}]}],
    "dataset": "flickr30k",
}
SNLI = {
    "gold_label": "neutral",
    "pairID": "3416.jpg#4r1n",
    "sentence1": "x",
    "sentence2": "He sleeps",
    "Flickr30K_ID": "3416",
}

CASES = [
    Case(
        *("coco_caption", "LAVIS", "train"),
        {
            "coco/annotations/coco_karpathy_train.json": [
                {"caption": "A woman. ", "image": f"val2014/{COCO}", "image_id": "coco_522418"},
                {"caption": "A net.", "image": f"val2014/{COCO}", "image_id": "coco_522418"},
            ]
        },
        [((f"val2014/{COCO}",), {"image_id": "522418", "captions": (text,)}) for text in ("A woman. ", "A net.")],
    ),
    Case(
        *("coco_retrieval", "LAVIS", "test"),
        {"coco/annotations/coco_karpathy_test.json": [{"image": f"val2014/{COCO}", "caption": ["One.", "Two."]}]},
        [((f"val2014/{COCO}",), {"image_id": "522418", "captions": ("One.", "Two.")})],
    ),
    Case(
        *("coco_caption", "Karpathy", "train"),
        {"coco/annotations/dataset_coco.json": KARPATHY_COCO},
        [((f"val2014/{COCO}",), {"image_id": "522418", "captions": (text,)}) for text in ("One.", "Two.")],
    ),
    Case(
        *("coco_caption", "Karpathy", "test"),
        {"coco/annotations/dataset_coco.json": KARPATHY_COCO},
        [((f"val2014/{COCO}",), {"captions": ("One.", "Two.")})],
    ),
    Case(
        *("coco_caption", "COCO 2014", "train"),
        {"coco/annotations/captions_train2014.json": COCO_OWN},
        [
            (("train2014/COCO_train2014_000000000009.jpg",), {"image_id": "9", "captions": ("One.", "Two.")}),
            (("train2014/b.jpg",), {"captions": ()}),
        ],
        folders=("coco/images/train2014",),
    ),
    Case(
        *("coco_caption", "COCO 2017", "val"),
        {
            "coco/annotations/captions_val2017.json": {
                **COCO_OWN,
                "images": [{"id": 9, "file_name": "000000000009.jpg"}],
            }
        },
        [(("000000000009.jpg",), {"image_id": "9", "captions": ("One.", "Two.")})],
    ),
    Case(
        *("coco_vqa", "LAVIS", "val"),
        {
            "coco/annotations/vqa_val_eval.json": [
                {"question_id": 262148000, "question": "Where?", "image": VQA_ROW[0][0], "dataset": "vqa"},
                {"question_id": 1, "question": "Why?", "image": VQA_ROW[0][0], "answer": ["so", "so"]},
            ],
            "coco/annotations/v2_mscoco_val2014_annotations.json": VQA_ANSWERS,
        },
        [VQA_ROW, (VQA_ROW[0], {"sample_id": "1", "answers": ("so", "so"), "kind": ""})],
    ),
    Case(
        *("coco_vqa", "LAVIS", "train"),
        {
            f"coco/annotations/vqa_{part}.json": [
                {"question_id": number, "question": "What?", "answer": ["a"], "image": "train2014/x.jpg"}
            ]
            for number, part in enumerate(("train", "val"))
        },
        [(("train2014/x.jpg",), {"sample_id": number, "image_id": "x"}) for number in "01"],
    ),
    Case(
        *("coco_vqa", "original", "val"),
        {
            "coco/annotations/v2_OpenEnded_mscoco_val2014_questions.json": VQA_QUESTIONS,
            "coco/annotations/v2_mscoco_val2014_annotations.json": VQA_ANSWERS,
        },
        [VQA_ROW],
    ),
    Case(
        *("coco_vqa", "original", "test"),
        {"coco/annotations/v2_OpenEnded_mscoco_test2015_questions.json": {**VQA_QUESTIONS, "data_subtype": "test2015"}},
        [(("test2015/COCO_test2015_000000262148.jpg",), {"answers": (), "kind": ""})],
    ),
    Case(
        *("ok_vqa", "LAVIS", "test"),
        {
            "okvqa/annotations/vqa_val_eval.json": [
                {"question_id": 262148000, "question": "Where?", "image": VQA_ROW[0][0], "answer": "unused"}
            ],
            "okvqa/annotations/mscoco_val2014_annotations.json": VQA_ANSWERS,
        },
        [VQA_ROW],
    ),
    Case(
        *("ok_vqa", "original", "test"),
        {
            "okvqa/annotations/OpenEnded_mscoco_val2014_questions.json": VQA_QUESTIONS,
            "okvqa/annotations/mscoco_val2014_annotations.json": VQA_ANSWERS,
        },
        [VQA_ROW],
    ),
    Case(
        *("aok_vqa", "LAVIS", "val"),
        {"aokvqa/annotations/aokvqa_v1p0_val.json": [{**AOKVQA, "image": "train2014/COCO_train2014_000000299207.jpg"}]},
        [(("train2014/COCO_train2014_000000299207.jpg",), AOKVQA_FIELDS)],
    ),
    Case(
        *("aok_vqa", "LAVIS", "test"),
        {
            "aokvqa/annotations/aokvqa_v1p0_test.json": [
                {key: AOKVQA[key] for key in ("image_id", "question_id", "question", "choices")}
            ]
        },
        [(("test2017/000000299207.jpg",), {**AOKVQA_FIELDS, "answers": (), "label": ""})],
    ),
    Case(
        *("vg_caption", "LAVIS", "train"),
        {"vg/annotations/vg_caption.json": [{"image": "VG_100K/2.jpg", "caption": "a bike"}]},
        [(("VG_100K/2.jpg",), {"captions": ("a bike",), "image_id": "2"})],
    ),
    Case(
        *("vg_caption", "original", "train"),
        {
            "vg/annotations/region_descriptions.json": [
                {"id": number, "regions": [{"region_id": 5, "image_id": number, "phrase": "a bike", "x": 1}]}
                for number in (1, 2)
            ],
            "vg/images/VG_100K_2/2.jpg": b"",
        },
        [(("VG_100K/1.jpg",), {"captions": ("a bike",), "sample_id": "5"}), (("VG_100K_2/2.jpg",), {"image_id": "2"})],
    ),
    Case(
        *("vg_vqa", "LAVIS", "train"),
        {
            "vg/annotations/vg_qa.json": [
                {"image": "VG_100K/2.jpg", "question": "What?", "answer": "A bike.", "dataset": "vg"}
            ]
        },
        [(("VG_100K/2.jpg",), {"question": "What?", "answers": ("A bike.",)})],
    ),
    Case(
        *("vg_vqa", "original", "train"),
        {
            "vg/annotations/question_answers.json": [
                {"id": 1, "qas": [{"qa_id": 7, "image_id": 1, "question": "What?", "answer": "A bike."}]}
            ]
        },
        [(("VG_100K/1.jpg",), {"question": "What?", "answers": ("A bike.",), "sample_id": "7"})],
    ),
    Case(
        *("nlvr", "LAVIS", "train"),
        {
            "nlvr/annotations/train.json": [
                {
                    "sentence": "Two dogs.",
                    "label": "True",
                    "images": [f"images/train/51/train-10171-0-img{side}.png" for side in (0, 1)],
                }
            ]
        },
        [
            (
                tuple(f"images/train/51/train-10171-0-img{side}.png" for side in (0, 1)),
                {"captions": ("Two dogs.",), "label": "True", "image_id": "train-10171-0"},
            )
        ],
    ),
    Case(
        *("nlvr", "LAVIS", "val"),
        {"nlvr/annotations/dev.json": ({"sentence": "One.", "label": "False", "identifier": "dev-850-0-1"},)},
        [(("dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"), {"label": "False", "sample_id": "dev-850-0-1"})],
    ),
    Case(
        *("nlvr", "LAVIS", "train"),
        {
            "nlvr/annotations/train.json": (
                {"sentence": "One.", "label": "True", "identifier": "train-10171-0-0", "directory": 51},
            )
        },
        [(tuple(f"images/train/51/train-10171-0-img{side}.png" for side in (0, 1)), {"label": "True"})],
    ),
    Case(
        *("snli_ve", "LAVIS", "val"),
        {"snli/annotations/ve_dev.json": [{"image": "4705", "sentence": "He sleeps", "label": "contradiction"}]},
        [(("4705.jpg",), {"captions": ("He sleeps",), "label": "contradiction", "image_id": "4705"})],
    ),
    Case(
        *("snli_ve", "original", "test"),
        {"snli/annotations/snli_ve_test.jsonl": (SNLI, {**SNLI, "gold_label": "-"})},
        [(("3416.jpg",), {"captions": ("He sleeps",), "label": "neutral", "sample_id": "3416.jpg#4r1n"})],
    ),
    Case(
        *("flickr30k", "LAVIS", "train"),
        {"flickr30k/annotations/train.json": [{"image": "flickr30k-images/1.jpg", "caption": "One.", "image_id": 0}]},
        [(("flickr30k-images/1.jpg",), {"captions": ("One.",), "image_id": "1"})],
    ),
    Case(
        *("flickr30k", "Karpathy", "val"),
        {"flickr30k/annotations/dataset_flickr30k.json": FLICKR_KARPATHY},
        [(("1000.jpg",), {"captions": ("One.", "Two."), "image_id": "1000"})],
    ),
    Case(
        *("nocaps", "LAVIS", "val"),
        {"nocaps/annotations/nocaps_val.json": [{"image": "val/0013.jpg", "img_id": 0, "domain": "near-domain"}]},
        [(("val/0013.jpg",), {"image_id": "0013", "sample_id": "0", "kind": "near-domain", "captions": ()})],
    ),
    Case(
        *("nocaps", "original", "val"),
        {
            "nocaps/annotations/nocaps_val_4500_captions.json": {
                "images": [{"id": 0, "file_name": "0013.jpg", "open_images_id": "0013", "domain": "in-domain"}],
                "annotations": [{"image_id": 0, "id": number, "caption": f"A {number}."} for number in range(10)],
            }
        },
        [
            (
                ("val/0013.jpg",),
                {"image_id": "0013", "kind": "in-domain", "captions": tuple(f"A {i}." for i in range(10))},
            )
        ],
        folders=("nocaps/images/val",),
    ),
    Case(
        *("nocaps", "original", "test"),
        {"nocaps/annotations/nocaps_test_image_info.json": {"images": [{"id": 3, "file_name": "x.jpg"}]}},
        [(("x.jpg",), {"captions": (), "sample_id": "3"})],
    ),
    Case(
        *("sbu_caption", "LAVIS", "train"),
        {
            "sbu_captions/annotations/sbu.json": [
                {"image": "4385058960_b0f291553e.jpg", "caption": "a wooden chair", "url": "x"}
            ]
        },
        [(("4385058960_b0f291553e.jpg",), {"captions": ("a wooden chair",)})],
    ),
    Case(
        *("sbu_caption", "original", "train"),
        {
            "sbu_captions/annotations/sbu-captions-all.json": {
                "image_urls": ["http://static.flickr.com/2/43_b.jpg?x=1"],
                "captions": ["a chair "],
                "user_ids": ["u"],
            }
        },
        [(("43_b.jpg",), {"captions": ("a chair",), "image_id": "43_b"})],
    ),
    Case(
        *("sbu_caption", "original", "train"),
        {
            "sbu_captions/annotations/SBU_captioned_photo_dataset_urls.txt": "http://f.com/a.jpg\nhttp://f.com/b.jpg\n",
            "sbu_captions/annotations/SBU_captioned_photo_dataset_captions.txt": "one\ntwo\n",
        },
        [(("a.jpg",), {"captions": ("one",)}), (("b.jpg",), {"captions": ("two",)})],
    ),
    Case(
        *("conceptual_caption_3m", "original", "train"),
        {
            "conceptual_caption/annotations/Train_GCC-training.tsv": 'a "big" house\thttp://x.org/1.jpg\nthe sea\thttps://y.org/2\n'
        },
        [
            (("0_2940745468.jpg",), {"captions": ('a "big" house',)}),
            (("1_2617178061.jpg",), {"captions": ("the sea",)}),
        ],
    ),
    Case(
        *("conceptual_caption_12m", "original", "train"),
        {"conceptual_caption/annotations/cc12m.tsv": "http://x.org/1.jpg\ta house\n"},
        [(("0_2940745468.jpg",), {"captions": ("a house",)})],
    ),
    Case(
        *("conceptual_caption_3m", "LAVIS", "train"),
        {"conceptual_caption/annotations/cc3m.json": [{"image": "0_1.jpg", "caption": "a house"}]},
        [(("0_1.jpg",), {"captions": ("a house",)})],
    ),
    Case(
        *("imagenet", "a folder a class", "val"),
        {f"imagenet/val/{wnid}/{wnid}_1.JPEG": jpeg() for wnid in ("n01440764", "n01443537")},
        [((f"val/{wnid}/{wnid}_1.JPEG",), {"label": wnid}) for wnid in ("n01440764", "n01443537")],
    ),
    Case(
        *("msrvtt_caption", "LAVIS", "train"),
        {"msrvtt/annotations/cap_train.json": [{"video": "video0.mp4", "caption": "a film", "image_id": "video0"}]},
        [(("video0.mp4",), {"captions": ("a film",), "image_id": "video0"})],
    ),
    Case(
        *("msrvtt_caption", "original", "train"),
        {"msrvtt/annotations/train_val_videodatainfo.json": MSRVTT},
        [(("video0.mp4",), {"captions": ("film 0",), "sample_id": "10"})] * 2,
    ),
    Case(
        *("msrvtt_caption", "original", "val"),
        {"msrvtt/annotations/train_val_videodatainfo.json": MSRVTT},
        [(("video1.mp4",), {"captions": ("film 1",)})],
    ),
    Case(
        *("msrvtt_retrieval", "LAVIS", "test"),
        {"msrvtt/annotations/retrieval_test.json": [{"video": "video7.mp4", "caption": ["one", "two"]}]},
        [(("video7.mp4",), {"captions": ("one", "two")})],
    ),
    Case(
        *("msrvtt_qa", "LAVIS", "val"),
        {
            "msrvtt/annotations/qa_val.json": [
                {"video": "video7.mp4", "question": "who?", "answer": "man", "question_id": 3}
            ]
        },
        [(("video7.mp4",), {"question": "who?", "answers": ("man",), "sample_id": "3"})],
    ),
    Case(
        *("msrvtt_qa", "original", "train"),
        {
            "msrvtt/annotations/train_qa.json": [
                {"answer": "couch", "category_id": 14, "id": 0, "question": "what?", "video_id": 0}
            ]
        },
        [(("video0.mp4",), {"question": "what?", "answers": ("couch",), "sample_id": "0"})],
    ),
    Case(
        *("msvd_caption", "LAVIS", "test"),
        {"msvd/annotations/cap_test.json": [{"video": "-4ws_5_15.avi", "caption": "a squirrel", "image_id": "x"}]},
        [(("-4ws_5_15.avi",), {"captions": ("a squirrel",)})],
    ),
    Case(
        *("msvd_caption", "original", "test"),
        {
            "msvd/annotations/AllVideoDescriptions.txt": "# MSVD\n-4ws_5_15 a squirrel eats\nother_1_2 a man\n",
            "msvd/annotations/test_list.txt": "-4ws_5_15.avi\n",
        },
        [(("-4ws_5_15.avi",), {"captions": ("a squirrel eats",), "image_id": "-4ws_5_15"})],
    ),
    Case(
        *("msvd_qa", "LAVIS", "train"),
        {
            "msvd/annotations/qa_train.json": [
                {"video": "-4ws_5_15.avi", "question": "who?", "answer": "man", "question_id": 1}
            ]
        },
        [(("-4ws_5_15.avi",), {"answers": ("man",)})],
    ),
    Case(
        *("msvd_qa", "original", "test"),
        {
            "msvd/annotations/test_qa.json": [{"answer": "man", "id": 4, "question": "who?", "video_id": 1301}],
            "msvd/annotations/youtube_mapping.txt": "-4ws_5_15 vid1\nz_1_9 vid1301\n",
        },
        [(("z_1_9.avi",), {"question": "who?", "answers": ("man",), "sample_id": "4"})],
    ),
    Case(
        *("didemo_retrieval", "LAVIS", "train"),
        {"didemo/annotations/retrieval_train.json": [{"video": "12@N00_3.mp4", "caption": "a dog. a cat."}]},
        [(("12@N00_3.mp4",), {"captions": ("a dog. a cat.",)})],
    ),
    Case(
        *("didemo_retrieval", "original", "val"),
        {
            "didemo/annotations/val_data.json": [
                {
                    "annotation_id": 5,
                    "description": "a dog",
                    "video": "12@N00_3.mp4",
                    "times": [[0, 1]],
                    "num_segments": 6,
                }
            ]
        },
        [(("12@N00_3.mp4",), {"captions": ("a dog",), "sample_id": "5"})],
    ),
    Case(
        *("vatex_caption", "LAVIS", "train"),
        {"vatex/annotations/cap_train.json": [{"video": "Ptf_1_2.mp4", "caption": "a dog", "image_id": "Ptf_1_2"}]},
        [(("Ptf_1_2.mp4",), {"captions": ("a dog",)})],
    ),
    Case(
        *("vatex_caption", "original", "val"),
        {
            "vatex/annotations/vatex_validation_v1.0.json": [
                {"videoID": "Ptf_1_2", "enCap": ["a dog", "the dog"], "chCap": ["狗"]}
            ]
        },
        [(("Ptf_1_2.mp4",), {"captions": ("a dog", "the dog"), "image_id": "Ptf_1_2"})],
    ),
]


def write(root: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, tuple):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def load(root: Path, case: Case) -> Dataset:
    write(root, case.files)
    for folder in case.folders:
        (root / folder).mkdir(parents=True)
    return load_dataset(case.name, root=root)[case.split]
