"""The data-set zoo: the 23 names of LAVIS, what each is, and how to get its images; `files` has the annotations.

Sizes and licences are those that the authors of a data set state.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from openblip.data.zoo.entries import Dataset, DatasetEntry, Place, data_home, open_dataset, unknown_name
from openblip.data.zoo.files import EXTRAS, LAYOUTS

COCO_IMAGES = (
    "train2014.zip, val2014.zip, test2014.zip and test2015.zip from http://images.cocodataset.org/zips/, unpacked "
    "side by side: coco/images/train2014, val2014, ...; the images of 2017 work as well"
)
COCO_LICENCE = "annotations: CC BY 4.0; images: Flickr's terms"
FLICKR_IMAGES = (
    "request them at https://shannon.cs.illinois.edu/DenotationGraph/, or download them with a Kaggle account from "
    "https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset, into flickr30k/images/flickr30k-images"
)
MSRVTT_IMAGES = (
    "train_val_videos.zip (https://www.mediafire.com/file/x3rrbe4hwp04e6w/train_val_videos.zip/file) and "
    "test_videos.zip "
    "(https://www.mediafire.com/file/czh8sezbo9s4692/test_videos.zip/file), the videos of both into one folder"
)
MSVD_IMAGES = "https://www.cs.utexas.edu/users/ml/clamp/videoDescription/YouTubeClips.tar, unpacked into msvd/videos"
CC_LICENCE = "annotations: free for any purpose; images: their owners' terms"
ASK_PAGE = "see its page"

COCO_CITATION = "Chen et al. 2015, Microsoft COCO Captions: Data Collection and Evaluation Server, arXiv:1504.00325"
MSRVTT_CITATION = "Xu et al. 2016, MSR-VTT: A Large Video Description Dataset for Bridging Video and Language, CVPR"
VIDEO_QA_CITATION = (
    "Xu et al. 2017, Video Question Answering via Gradually Refined Attention over Appearance and Motion, ACM "
    "Multimedia"
)
MSVD_CITATION = "Chen and Dolan 2011, Collecting Highly Parallel Data for Paraphrase Evaluation, ACL"
VG_CITATION = "Krishna et al. 2017, Visual Genome, IJCV 123, arXiv:1602.07332"

_ENTRIES = (
    DatasetEntry(
        name="aok_vqa",
        title="A-OKVQA",
        kind="questions",
        media="coco/images",
        size="about 25,000 questions with four choices and ten free answers; test: no answers",
        licence=ASK_PAGE,
        page="https://github.com/allenai/aokvqa",
        media_source=COCO_IMAGES
        + ". The authors' own files name the images of 2017 instead: train2017, val2017, test2017",
        citation="Schwenk et al. 2022, A-OKVQA: A Benchmark for VQA using World Knowledge, ECCV, arXiv:2206.01718",
    ),
    DatasetEntry(
        name="coco_caption",
        title="COCO captions, Karpathy's splits",
        kind="captions",
        media="coco/images",
        size="train: 566,747 captions; val and test: 5,000 images each",
        licence=COCO_LICENCE,
        page="https://cocodataset.org",
        media_source=COCO_IMAGES,
        citation=COCO_CITATION,
        note="COCO's own captions_train2014.json and captions_val2014.json are read, too: they split the images "
        "differently.",
    ),
    DatasetEntry(
        name="coco_retrieval",
        title="COCO retrieval, Karpathy's splits",
        kind="captions, for retrieval",
        media="coco/images",
        size="train: 566,747 captions; val and test: 5,000 images each",
        licence=COCO_LICENCE,
        page="https://cocodataset.org",
        media_source=COCO_IMAGES,
        citation=COCO_CITATION,
    ),
    DatasetEntry(
        name="coco_vqa",
        title="VQA v2",
        kind="questions",
        media="coco/images",
        size="train: 443,757 questions; val: 214,354, with ten answers each; test: no answers",
        licence=COCO_LICENCE,
        page="https://visualqa.org",
        media_source=COCO_IMAGES,
        citation="Goyal et al. 2017, Making the V in VQA Matter, CVPR, arXiv:1612.00837",
        note="LAVIS trains on train and val together (vqa_train.json and vqa_val.json); so does its split train here.",
    ),
    DatasetEntry(
        name="conceptual_caption_12m",
        title="Conceptual 12M",
        kind="captions",
        media="conceptual_caption/images_12m",
        size="about 12 million captions with web addresses (2.5 GB), some of which no longer work",
        licence=CC_LICENCE,
        page="https://github.com/google-research-datasets/conceptual-12m",
        media_source="download them from the addresses in cc12m.tsv, with LAVIS' download_data_cc12m.py, or with "
        "img2dataset into tars (`table`)",
        citation="Changpinyo et al. 2021, Conceptual 12M, CVPR, arXiv:2102.08981",
    ),
    DatasetEntry(
        name="conceptual_caption_3m",
        title="Conceptual Captions",
        kind="captions",
        media="conceptual_caption/images",
        size="3,318,333 captions with web addresses, some of which no longer work",
        licence=CC_LICENCE,
        page="https://ai.google.com/research/ConceptualCaptions/download",
        media_source="download them from the addresses in the TSV, with LAVIS' download_data_cc3m.py, or with "
        "img2dataset into tars (`table`)",
        citation="Sharma et al. 2018, Conceptual Captions: A Cleaned, Hypernymed, Image Alt-text Dataset, ACL",
    ),
    DatasetEntry(
        name="didemo_retrieval",
        title="DiDeMo",
        kind="video captions, for retrieval",
        media="didemo/videos",
        size="over 10,000 videos with over 40,000 descriptions of moments",
        licence="code: BSD-2-Clause; videos: a Creative Commons licence each",
        page="https://github.com/LisaAnne/LocalizingMoments",
        media_source="https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets/didemo/"
        "didemo_videos.tar.gz; unpack its folder videos as didemo/videos",
        citation="Hendricks et al. 2017, Localizing Moments in Video with Natural Language, ICCV, arXiv:1708.01641",
    ),
    DatasetEntry(
        name="flickr30k",
        title="Flickr30k retrieval, Karpathy's splits",
        kind="captions, for retrieval",
        media="flickr30k/images",
        size="over 31,000 images with five captions each",
        licence="research and education; images: Flickr's terms",
        page="https://shannon.cs.illinois.edu/DenotationGraph/",
        media_source=FLICKR_IMAGES,
        citation="Young et al. 2014, From Image Descriptions to Visual Denotations, TACL 2",
        needs_form=True,
    ),
    DatasetEntry(
        name="imagenet",
        title="ImageNet (ILSVRC 2012)",
        kind="classes",
        media="imagenet",
        size="train: 1,281,167 images; val: 50,000, in 1,000 classes",
        licence="non-commercial research and education, by agreement",
        page="https://image-net.org/download.php",
        media_source="download them with an account at https://image-net.org; imagenet/train and imagenet/val need a "
        "folder for each class",
        citation="Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge, IJCV 115, "
        "arXiv:1409.0575",
        needs_form=True,
    ),
    DatasetEntry(
        name="laion2B_multi",
        title="LAION-2B in many languages",
        kind="captions",
        media="laion2B-multi",
        size="about 2.2 billion captions with web addresses, many of which no longer work",
        licence="addresses and captions: CC BY 4.0; images: their owners' terms",
        page="https://laion.ai/blog/laion-5b/",
        media_source="download them from the addresses with img2dataset, into tars of NAME.jpg, NAME.txt and "
        "NAME.json, and give the folder of the tars or a pattern (part-00000/{00000..01743}.tar)",
        citation="Schuhmann et al. 2022, LAION-5B, NeurIPS, arXiv:2210.08402",
    ),
    DatasetEntry(
        name="msrvtt_caption",
        title="MSR-VTT captions",
        kind="video captions",
        media="msrvtt/videos",
        size="10,000 videos with 200,000 sentences",
        licence=ASK_PAGE,
        page="https://www.microsoft.com/en-us/research/publication/"
        "msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/",
        media_source=MSRVTT_IMAGES,
        citation=MSRVTT_CITATION,
    ),
    DatasetEntry(
        name="msrvtt_qa",
        title="MSRVTT-QA",
        kind="video questions",
        media="msrvtt/videos",
        size="10,000 videos with 243,000 questions",
        licence=ASK_PAGE,
        page="https://github.com/xudejing/video-question-answering",
        media_source=MSRVTT_IMAGES,
        citation=VIDEO_QA_CITATION,
    ),
    DatasetEntry(
        name="msrvtt_retrieval",
        title="MSR-VTT retrieval",
        kind="video captions, for retrieval",
        media="msrvtt/videos",
        size="10,000 videos with 200,000 sentences",
        licence=ASK_PAGE,
        page="https://www.microsoft.com/en-us/research/publication/"
        "msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/",
        media_source=MSRVTT_IMAGES,
        citation=MSRVTT_CITATION,
    ),
    DatasetEntry(
        name="msvd_caption",
        title="MSVD captions",
        kind="video captions",
        media="msvd/videos",
        size="1,970 videos",
        licence=ASK_PAGE,
        page="https://www.cs.utexas.edu/users/ml/clamp/videoDescription/",
        media_source=MSVD_IMAGES,
        citation=MSVD_CITATION,
    ),
    DatasetEntry(
        name="msvd_qa",
        title="MSVD-QA",
        kind="video questions",
        media="msvd/videos",
        size="1,970 videos with 50,505 questions",
        licence=ASK_PAGE,
        page="https://github.com/xudejing/video-question-answering",
        media_source=MSVD_IMAGES,
        citation=VIDEO_QA_CITATION,
    ),
    DatasetEntry(
        name="nlvr",
        title="NLVR2",
        kind="true or false about two images",
        media="nlvr",
        size="107,292 sentences, each with two images",
        licence="annotations: see its page; images for research only",
        page="https://lil.nlp.cornell.edu/nlvr/",
        media_source="request them at https://lil.nlp.cornell.edu/nlvr/; put the folders images/train/0 to 99, dev and "
        "test1 into nlvr",
        citation="Suhr et al. 2019, A Corpus for Reasoning About Natural Language Grounded in Photographs, ACL, "
        "arXiv:1811.00491",
        needs_form=True,
        note="LAVIS' config downloads the development set for test, too; here, test is the authors' test1.json.",
    ),
    DatasetEntry(
        name="nocaps",
        title="NoCaps",
        kind="captions",
        media="nocaps/images",
        size="val: 4,500 images; test: 10,600, with ten captions each; those of test are private",
        licence=ASK_PAGE,
        page="https://nocaps.org",
        media_source="download them from Open Images with LAVIS' download_nocaps.py, into nocaps/images/val and "
        "nocaps/images/test",
        citation="Agrawal et al. 2019, nocaps: Novel Object Captioning at Scale, ICCV, arXiv:1812.08658",
    ),
    DatasetEntry(
        name="ok_vqa",
        title="OK-VQA",
        kind="questions",
        media="coco/images",
        size="14,055 questions with ten answers each",
        licence=ASK_PAGE,
        page="https://okvqa.allenai.org",
        media_source=COCO_IMAGES,
        citation="Marino et al. 2019, OK-VQA: A Visual Question Answering Benchmark Requiring External Knowledge, "
        "CVPR, "
        "arXiv:1906.00067",
    ),
    DatasetEntry(
        name="sbu_caption",
        title="SBU captions",
        kind="captions",
        media="sbu_captions/images",
        size="1 million captions with web addresses, some of which no longer work",
        licence="images: Flickr's terms",
        page="https://www.cs.rice.edu/~vo9/sbucaptions/",
        media_source="download them from the addresses in sbu.json, with LAVIS' download_sbu.py, or with "
        "img2dataset into tars (`table`)",
        citation="Ordonez, Kulkarni and Berg 2011, Im2Text: Describing Images Using 1 Million Captioned "
        "Photographs, NIPS",
    ),
    DatasetEntry(
        name="snli_ve",
        title="SNLI-VE",
        kind="entailment",
        media="flickr30k/images/flickr30k-images",
        size="train: 529,527 sentences; val: 17,858; test: 17,901",
        licence=ASK_PAGE,
        page="https://github.com/necla-ml/SNLI-VE",
        media_source="the images of Flickr30k: " + FLICKR_IMAGES,
        citation="Xie et al. 2019, Visual Entailment: A Novel Task for Fine-Grained Image Understanding, "
        "arXiv:1901.06706",
        needs_form=True,
    ),
    DatasetEntry(
        name="vatex_caption",
        title="VATEX captions",
        kind="video captions",
        media="vatex/videos",
        size="over 41,250 videos with 825,000 captions, half of them Chinese",
        licence=ASK_PAGE,
        page="https://eric-xw.github.io/vatex-website/",
        media_source="download the clips from YouTube, as its page says, into vatex/videos",
        citation="Wang et al. 2019, VATEX: A Large-Scale, High-Quality Multilingual Dataset for Video-and-Language "
        "Research, ICCV, arXiv:1904.03493",
        needs_form=True,
    ),
    DatasetEntry(
        name="vg_caption",
        title="Visual Genome regions",
        kind="captions",
        media="vg/images",
        size="108,077 images with 5.4 million descriptions of regions",
        licence="CC BY 4.0",
        page="https://homes.cs.washington.edu/~ranjay/visualgenome/",
        media_source="https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip and images2.zip, unpacked side by "
        "side: vg/images/VG_100K and VG_100K_2",
        citation=VG_CITATION,
    ),
    DatasetEntry(
        name="vg_vqa",
        title="Visual Genome questions",
        kind="questions",
        media="vg/images",
        size="108,077 images with 1.7 million questions",
        licence="CC BY 4.0",
        page="https://homes.cs.washington.edu/~ranjay/visualgenome/",
        media_source="https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip and images2.zip, unpacked side by "
        "side: vg/images/VG_100K and VG_100K_2",
        citation=VG_CITATION,
    ),
)

ZOO: tuple[DatasetEntry, ...] = tuple(
    replace(entry, layouts=LAYOUTS[entry.name], extras=EXTRAS.get(entry.name, ())) for entry in _ENTRIES
)


def dataset_names() -> list[str]:
    """The names, in alphabetical order."""
    return [entry.name for entry in ZOO]


def find_entry(name: str) -> DatasetEntry:
    """Raises OptionError for a name that is not in the zoo; the message names the nearest."""
    for entry in ZOO:
        if entry.name.lower() == name.lower():
            return entry
    raise unknown_name(name, lambda typed: get_close_matches(typed, dataset_names(), n=3, cutoff=0.5))


def load_dataset(
    name: str, vis_path: str | Path | None = None, ann_path: str | Path | None = None, root: str | Path | None = None
) -> dict[str, Dataset]:
    """The splits of a data set that lies on this machine, as sequences of `Sample`.

    >>> load_dataset("coco_caption", vis_path="photos/coco")["val"][0].captions  # doctest: +SKIP

    Args:
        vis_path: its folder of images or videos (of tars: a pattern, too), where that is not the usual one.
        ann_path: the folder of its annotation files, where that is not the usual one.
        root: of all data sets, by default `data_home()`.

    Raises:
        OptionError: no such name.
        OpenBlipError: no annotation file is where it should be.
    """
    entry = find_entry(name)
    place = Place(
        Path(root).expanduser() if root is not None else data_home(),
        Path(vis_path).expanduser() if vis_path is not None else None,
        Path(ann_path).expanduser() if ann_path is not None else None,
    )
    return open_dataset(entry, place)
