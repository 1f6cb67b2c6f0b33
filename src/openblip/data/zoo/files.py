"""The annotation files of the zoo: their paths, addresses and readers.

Addresses, paths and MD5 sums are from LAVIS' configs (lavis/configs/datasets) or from the page of the data set, and
empty if neither has them. Paths are below the root of all data sets (see `entries.data_home`).
"""

from __future__ import annotations

from openblip.data.zoo import layouts as read
from openblip.data.zoo import layouts_video
from openblip.data.zoo import layouts_web as web
from openblip.data.zoo.entries import AnnotationFile as File
from openblip.data.zoo.entries import Layout

LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets/"
OLDER = "https://storage.googleapis.com/sfr-vision-language-research/datasets/"
XINSTRUCT = "https://storage.googleapis.com/sfr-xinstructblip-data-research/data/"
NLVR = "https://raw.githubusercontent.com/lil-lab/nlvr/master/nlvr2/data/"

VQA_VAL_ANSWERS = File(
    "coco/annotations/v2_mscoco_val2014_annotations.json", LAVIS + "vqav2/v2_mscoco_val2014_annotations.json"
)
OK_VQA_ANSWERS = File(
    "okvqa/annotations/mscoco_val2014_annotations.json", LAVIS + "okvqa/mscoco_val2014_annotations.json"
)

COCO_KARPATHY = (
    Layout(
        "LAVIS",
        {
            split: (File(f"coco/annotations/coco_karpathy_{split}.json", f"{OLDER}coco_karpathy_{split}.json", md5),)
            for split, md5 in (
                ("train", "aa31ac474cf6250ebb81d18348a07ed8"),
                ("val", "b273847456ef5580e33713b1f7de52a0"),
                ("test", "3ff34b0ef2db02d01c37399f6a2a6cd1"),
            )
        },
        read.read_lavis,
    ),
    Layout(
        "Karpathy",
        {split: (File("coco/annotations/dataset_coco.json"),) for split in ("train", "val", "test")},
        read.read_karpathy,
    ),
    Layout(
        "COCO 2014",
        {split: (File(f"coco/annotations/captions_{split}2014.json"),) for split in ("train", "val")},
        read.read_coco_captions,
    ),
    Layout(
        "COCO 2017",
        {split: (File(f"coco/annotations/captions_{split}2017.json"),) for split in ("train", "val")},
        read.read_coco_captions,
    ),
)


def _lists(folder: str, names: dict[str, str], url: str = "", reader: read.Reader = read.read_lavis) -> Layout:
    """LAVIS' files: `names` maps a split to the name of its file, or to "local name=name at the address"."""
    splits = {}
    for split, name in names.items():
        kept, _, called = name.partition("=")
        splits[split] = (File(f"{folder}/{kept}", f"{url}{called or kept}" if url else ""),)
    return Layout("LAVIS", splits, reader)


def _originals(folder: str, files: dict[str, tuple[str, ...]], reader: read.Reader, url: str = "") -> Layout:
    splits = {
        split: tuple(File(f"{folder}/{name}", f"{url}{name}" if url else "") for name in names)
        for split, names in files.items()
    }
    return Layout("original", splits, reader)


def _vqa_files(place: str, version: str) -> dict[str, tuple[str, ...]]:
    return {
        split: (
            f"{version}OpenEnded_mscoco_{part}_questions.json",
            *((f"{version}mscoco_{part}_annotations.json",) if split != "test" else ()),
        )
        for split, part in (("train", "train2014"), ("val", "val2014"), ("test", place))
        if part
    }


THREE = ("train", "val", "test")

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "aok_vqa": (
        _lists(
            "aokvqa/annotations",
            {split: f"aokvqa_v1p0_{split}.json" for split in THREE},
            LAVIS + "aokvqa/",
            read.read_aokvqa,
        ),
    ),
    "coco_caption": COCO_KARPATHY,
    "coco_retrieval": COCO_KARPATHY,
    "coco_vqa": (
        Layout(
            "LAVIS",
            {
                "train": (
                    File("coco/annotations/vqa_train.json", LAVIS + "vqav2/vqa_train.json"),
                    File("coco/annotations/vqa_val.json", LAVIS + "vqav2/vqa_val.json"),
                ),
                "val": (
                    File("coco/annotations/vqa_val_eval.json", LAVIS + "vqav2/vqa_val_eval.json"),
                    VQA_VAL_ANSWERS,
                ),
                "test": (File("coco/annotations/vqa_test.json", LAVIS + "vqav2/vqa_test.json"),),
            },
            read.read_lavis_vqa,
        ),
        Layout(
            "original",
            {
                **_originals("coco/annotations", _vqa_files("test2015", "v2_"), read.read_vqa).splits,
                "val": (
                    File(
                        "coco/annotations/v2_OpenEnded_mscoco_val2014_questions.json",
                        LAVIS + "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
                    ),
                    VQA_VAL_ANSWERS,
                ),
            },
            read.read_vqa,
        ),
    ),
    "conceptual_caption_12m": (
        _lists("conceptual_caption/annotations", {"train": "cc12m.json"}),
        _originals(
            "conceptual_caption/annotations",
            {"train": ("cc12m.tsv",)},
            web.read_conceptual,
            "https://storage.googleapis.com/conceptual_12m/",
        ),
    ),
    "conceptual_caption_3m": (
        _lists("conceptual_caption/annotations", {"train": "cc3m.json"}),
        _originals("conceptual_caption/annotations", {"train": ("Train_GCC-training.tsv",)}, web.read_conceptual),
    ),
    "didemo_retrieval": (
        _lists(
            "didemo/annotations",
            {split: f"retrieval_{split}.json" for split in THREE},
            LAVIS + "didemo/",
            layouts_video.read_lavis_videos,
        ),
        _originals(
            "didemo/annotations", {split: (f"{split}_data.json",) for split in THREE}, layouts_video.read_didemo
        ),
    ),
    "flickr30k": (
        _lists("flickr30k/annotations", {split: f"{split}.json=flickr30k_{split}.json" for split in THREE}, OLDER),
        Layout(
            "Karpathy",
            {split: (File("flickr30k/annotations/dataset_flickr30k.json"),) for split in THREE},
            read.read_karpathy,
        ),
    ),
    "imagenet": (Layout("a folder a class", {"train": (), "val": ()}, web.read_classes),),
    "laion2B_multi": (Layout("tars", {"train": ()}, web.read_laion),),
    "msrvtt_caption": (
        _lists(
            "msrvtt/annotations",
            {split: f"cap_{split}.json" for split in THREE},
            LAVIS + "msrvtt/",
            layouts_video.read_lavis_videos,
        ),
        _originals(
            "msrvtt/annotations",
            {
                "train": ("train_val_videodatainfo.json",),
                "val": ("train_val_videodatainfo.json",),
                "test": ("test_videodatainfo.json",),
            },
            layouts_video.read_msrvtt,
        ),
    ),
    "msrvtt_qa": (
        _lists(
            "msrvtt/annotations",
            {split: f"qa_{split}.json" for split in THREE},
            LAVIS + "msrvtt/",
            layouts_video.read_lavis_videos,
        ),
        _originals(
            "msrvtt/annotations", {split: (f"{split}_qa.json",) for split in THREE}, layouts_video.read_video_questions
        ),
    ),
    "msrvtt_retrieval": (
        _lists(
            "msrvtt/annotations",
            {split: f"retrieval_{split}.json" for split in THREE},
            LAVIS + "msrvtt/",
            layouts_video.read_lavis_videos,
        ),
    ),
    "msvd_caption": (
        _lists(
            "msvd/annotations",
            {split: f"cap_{split}.json" for split in THREE},
            LAVIS + "msvd/",
            layouts_video.read_lavis_videos,
        ),
        _originals(
            "msvd/annotations",
            {split: ("AllVideoDescriptions.txt", f"{split}_list.txt") for split in THREE},
            layouts_video.read_msvd_captions,
        ),
    ),
    "msvd_qa": (
        _lists(
            "msvd/annotations",
            {split: f"qa_{split}.json" for split in THREE},
            LAVIS + "msvd/",
            layouts_video.read_lavis_videos,
        ),
        _originals(
            "msvd/annotations",
            {split: (f"{split}_qa.json", "youtube_mapping.txt") for split in THREE},
            layouts_video.read_video_questions,
        ),
    ),
    "nlvr": (
        Layout(
            "LAVIS",
            {
                "train": (File("nlvr/annotations/train.json", LAVIS + "nlvr/nlvr_train.json"),),
                "val": (File("nlvr/annotations/dev.json", LAVIS + "nlvr/nlvr_dev.json"),),
                "test": (File("nlvr/annotations/test1.json", NLVR + "test1.json"),),
            },
            read.read_nlvr,
        ),
    ),
    "nocaps": (
        # These files have the captions; LAVIS' lists do not.
        _originals(
            "nocaps/annotations",
            {"val": ("nocaps_val_4500_captions.json",), "test": ("nocaps_test_image_info.json",)},
            read.read_coco_captions,
        ),
        _lists("nocaps/annotations", {split: f"nocaps_{split}.json" for split in ("val", "test")}, OLDER),
    ),
    "ok_vqa": (
        Layout(
            "LAVIS",
            {
                "train": (File("okvqa/annotations/okvqa_train.json", LAVIS + "okvqa/okvqa_train.json"),),
                "test": (
                    File("okvqa/annotations/vqa_val_eval.json", LAVIS + "okvqa/okvqa_val_eval.json"),
                    OK_VQA_ANSWERS,
                ),
            },
            read.read_lavis_vqa,
        ),
        Layout(
            "original",
            {
                "train": (
                    File("okvqa/annotations/OpenEnded_mscoco_train2014_questions.json"),
                    File("okvqa/annotations/mscoco_train2014_annotations.json"),
                ),
                "test": (
                    File(
                        "okvqa/annotations/OpenEnded_mscoco_val2014_questions.json",
                        LAVIS + "okvqa/OpenEnded_mscoco_val2014_questions.json",
                    ),
                    OK_VQA_ANSWERS,
                ),
            },
            read.read_vqa,
        ),
    ),
    "sbu_caption": (
        _lists("sbu_captions/annotations", {"train": "sbu.json"}, LAVIS + "sbu/"),
        _originals("sbu_captions/annotations", {"train": ("sbu-captions-all.json",)}, web.read_sbu),
        _originals(
            "sbu_captions/annotations",
            {
                "train": (
                    "SBU_captioned_photo_dataset_urls.txt",
                    "SBU_captioned_photo_dataset_captions.txt",
                )
            },
            web.read_sbu,
        ),
    ),
    "snli_ve": (
        _lists(
            "snli/annotations",
            {"train": "ve_train.json", "val": "ve_dev.json", "test": "ve_test.json"},
            XINSTRUCT + "snlive/",
            read.read_snli_ve,
        ),
        _originals(
            "snli/annotations",
            {"train": ("snli_ve_train.jsonl",), "val": ("snli_ve_dev.jsonl",), "test": ("snli_ve_test.jsonl",)},
            read.read_snli_ve,
        ),
    ),
    "vatex_caption": (
        _lists(
            "vatex/annotations",
            {"train": "cap_train.json", "val": "cap_val.json", "test": "cap_test.json=cap_private_test.json"},
            LAVIS + "vatex/",
            layouts_video.read_lavis_videos,
        ),
        _originals(
            "vatex/annotations",
            {
                "train": ("vatex_training_v1.0.json",),
                "val": ("vatex_validation_v1.0.json",),
                "test": ("vatex_public_test_english_v1.1.json",),
            },
            layouts_video.read_vatex,
        ),
    ),
    "vg_caption": (
        _lists("vg/annotations", {"train": "vg_caption.json"}, LAVIS + "visual_genome/"),
        _originals("vg/annotations", {"train": ("region_descriptions.json",)}, read.read_vg_regions),
    ),
    "vg_vqa": (
        _lists("vg/annotations", {"train": "vg_qa.json"}, LAVIS + "visual_genome/"),
        _originals("vg/annotations", {"train": ("question_answers.json",)}, read.read_vg_questions),
    ),
}
"""The layouts of each data set, most likely first."""

EXTRAS: dict[str, tuple[File, ...]] = {
    "aok_vqa": (
        File("aokvqa/annotations/specialized_vocab_train_lavis.json", LAVIS + "aokvqa/specialized_vocab_train.json"),
    ),
    "coco_vqa": (File("coco/annotations/answer_list.json", LAVIS + "vqav2/answer_list.json"),),
    "msrvtt_qa": (File("msrvtt/annotations/qa_ans2label.json", LAVIS + "msrvtt/train_ans2label.json"),),
    "msvd_qa": (File("msvd/annotations/qa_ans2label.json", LAVIS + "msvd/train_ans2label.json"),),
    "ok_vqa": (File("okvqa/annotations/answer_list.json", LAVIS + "okvqa/okvqa_answer_list_train.json"),),
}
"""Other files that LAVIS downloads with a data set; rows do not need them."""
