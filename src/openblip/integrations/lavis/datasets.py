"""LAVIS' `load_dataset` and `dataset_zoo`: the same names, files and rows, over OpenBLIP's data sets.

>>> from openblip.integrations.lavis import load_dataset  # was: from lavis.datasets.builders import load_dataset
>>> coco = load_dataset("coco_caption", vis_path="coco/images")  # doctest: +SKIP
>>> coco["train"][0]  # doctest: +SKIP
{'image': <PIL.Image.Image ...>, 'text_input': 'A woman wearing a net ...', 'image_id': 0, 'instance_id': '0'}
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from openblip.data.image_files import open_image
from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.json_rows import load_json
from openblip.data.zoo.data_sets import ZOO, find_entry
from openblip.data.zoo.downloads import download_annotations
from openblip.data.zoo.entries import DatasetEntry, Place, data_home, find_layout, open_dataset
from openblip.errors import ImageError, OpenBlipError, OptionError

Row: TypeAlias = dict[str, Any]
Processor: TypeAlias = Callable[[Any], Any]

NLVR_LABELS = {"False": 0, "True": 1}
SNLI_LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}


def load_dataset(
    name: str,
    cfg_path: str | Path | None = None,
    vis_path: str | Path | None = None,
    data_type: str | None = None,
    *,
    ann_path: str | Path | None = None,
) -> dict[str, LavisDataset]:
    """The splits of a data set, whose rows are dictionaries as LAVIS' are.

    As in LAVIS, annotations that are nowhere on this machine are downloaded where they are public; images are not.

    Args:
        name: one of `dataset_zoo.get_names()`.
        vis_path: the folder of images or videos, where it is not the usual one below `data_home()`.
        ann_path: the folder of annotation files, likewise.

    Raises:
        OptionError: no such name; a `cfg_path`, which is of no use here; a `data_type` that the set is not of.
        OpenBlipError: the annotations are not there and cannot be had.
    """
    entry = find_entry(name)
    if cfg_path is not None:
        raise OptionError("LAVIS' dataset configs are not read: name folders by vis_path and ann_path instead")
    usual = "videos" if entry.is_video else "images"
    if data_type not in (None, usual):
        raise OptionError(f"{entry.name} has {usual}, no {data_type}: leave data_type out")
    place = Place(
        data_home(),
        None if vis_path is None else Path(vis_path).expanduser(),
        None if ann_path is None else Path(ann_path).expanduser(),
    )
    if ann_path is None and entry.public_files and find_layout(entry, place) is None:
        download_annotations(entry.name)
    return {split: LavisDataset(entry, split, dataset) for split, dataset in open_dataset(entry, place).items()}


class LavisDataset(torch.utils.data.Dataset[Row | None]):
    """Rows as LAVIS has them. Images are opened as rows are asked for; videos are given by their paths.

    Attributes:
        samples: OpenBLIP's rows.
        vis_processor, text_processor: what images (or paths of videos) and texts go through; nothing at first.
        text, image, txt2img, img2txt: of evaluation splits for retrieval, as LAVIS' evaluation reads them.
        classnames: of classification.
        unreadable: rows that are None because their image cannot be read, with what is wrong.
    """

    def __init__(self, entry: DatasetEntry, split: str, samples: Sequence[Sample]) -> None:
        self.entry = entry
        self.split = split
        self.samples = samples
        self.vis_processor: Processor = _as_it_is
        self.text_processor: Processor = _as_it_is
        self.unreadable: dict[int, str] = {}
        self._make_row = _row_maker(entry, is_train=split == "train")

    def set_processors(self, vis_processor: Processor, text_processor: Processor) -> None:
        self.vis_processor, self.text_processor = vis_processor, text_processor

    def __len__(self) -> int:
        return len(self._places) if self._places is not None else len(self.samples)

    def __getitem__(self, index: int) -> Row | None:
        """A row; None where LAVIS gives None: an image of a training set of captions that cannot be read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.entry.name} has {len(self)} rows of {self.split}, there is no row {index}")
        index %= len(self)
        try:
            return self._make_row(self, self.sample_of(index), index)
        except ImageError as error:
            if self.split != "train" or self.entry.kind != "captions":
                raise
            self.unreadable[index] = str(error)
            return None

    def sample_of(self, index: int) -> Sample:
        """The sample that a row is made of."""
        if self._places is None:
            return self.samples[index]
        place, caption = self._places[index]
        sample = self.samples[place]
        return sample if caption is None else replace(sample, captions=(sample.captions[caption],))

    def collater(self, samples: Sequence[Row | None]) -> Row:
        """A batch: tensors stacked, all else in lists; answers of all questions in one list with `n_answers`."""
        rows = [row for row in samples if row is not None]
        if not rows:
            return {}
        if "weights" in rows[0]:
            return {
                "image": _stack([row["image"] for row in rows]),
                "text_input": [row["text_input"] for row in rows],
                "answer": [answer for row in rows for answer in row["answers"]],
                "weight": [weight for row in rows for weight in row["weights"]],
                "n_answers": torch.tensor([len(row["answers"]) for row in rows]),
            }
        return {name: _stack([row[name] for row in rows]) for name in rows[0]}

    # What row makers ask for.

    def look(self, image: ImageFile) -> Any:
        """The image as RGB, through the processor."""
        return self.vis_processor(open_image(image))

    def video(self, sample: Sample) -> Any:
        return self.vis_processor(str(sample.video))

    def number(self, sample: Sample) -> int:
        """Images are numbered as they first occur."""
        return self._numbers[sample.image_id]

    def answer_label(self, sample: Sample) -> int:
        """The number of an answer of video questions; unknown ones share the last."""
        return self._answers.get(sample.answers[0] if sample.answers else "", len(self._answers))

    def class_label(self, sample: Sample) -> int:
        return self._class_labels[sample.label]

    @cached_property
    def classnames(self) -> list[str]:
        named = {"nlvr": NLVR_LABELS, "snli_ve": SNLI_LABELS}.get(self.entry.name)
        return list(named) if named is not None else sorted({row.label for row in self.samples if row.label})

    @cached_property
    def _class_labels(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classnames)}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        distinct = dict.fromkeys(row.image_id for row in self.samples)
        return {name: number for number, name in enumerate(distinct)}

    @cached_property
    def _answers(self) -> Mapping[str, int]:
        for file in self.entry.extras:
            path = data_home() / file.path
            if "ans2label" in file.path and path.is_file():
                found = load_json(path)
                if not isinstance(found, dict):
                    raise OpenBlipError(f"{path} is no JSON object of answers and their numbers: get it again")
                return found
        # Without LAVIS' file, answers are numbered as they first occur.
        answers = dict.fromkeys(answer for row in self.samples for answer in row.answers)
        return {answer: number for number, answer in enumerate(answers)}

    @cached_property
    def _places(self) -> list[tuple[int, int | None]] | None:
        """Sample and caption of each row, where rows are not the samples.

        Training has a row a caption, whatever the annotations have; evaluation of video captions a row a video.
        """
        if "captions" not in self.entry.kind:
            return None
        if self.split == "train":
            if all(len(row.captions) == 1 for row in self.samples):
                return None
            return [(at, caption) for at, row in enumerate(self.samples) for caption in range(len(row.captions))]
        if self.entry.kind != "video captions":
            return None
        first: dict[str, int] = {}
        for at, row in enumerate(self.samples):
            first.setdefault(row.image_id, at)
        return [(at, None) for at in first.values()]

    # Retrieval, evaluation.

    @property
    def text(self) -> list[Any]:
        return [self.text_processor(caption) for row in self.samples for caption in row.captions]

    @cached_property
    def image(self) -> list[str]:
        return [str(row.video or row.image) for row in self.samples]

    @cached_property
    def img2txt(self) -> dict[int, list[int]]:
        texts: dict[int, list[int]] = {}
        count = 0
        for index, row in enumerate(self.samples):
            texts[index] = list(range(count, count + len(row.captions)))
            count += len(row.captions)
        return texts

    @cached_property
    def txt2img(self) -> dict[int, int]:
        return {text: image for image, texts in self.img2txt.items() for text in texts}


RowMaker: TypeAlias = Callable[[LavisDataset, Sample, int], Row]


def _caption(data: LavisDataset, sample: Sample, index: int) -> Row:
    row = {"image": data.look(sample.image), "text_input": data.text_processor(sample.captions[0])}
    return {**row, "image_id": data.number(sample), "instance_id": str(index)}


def _caption_eval(data: LavisDataset, sample: Sample, index: int) -> Row:
    return {"image": data.look(sample.image), "image_id": _eval_id(data, sample), "instance_id": str(index)}


def _eval_id(data: LavisDataset, sample: Sample) -> str | int:
    if data.entry.name == "nocaps":
        return int(sample.sample_id) if sample.sample_id.isdecimal() else sample.sample_id
    return Path(sample.image.name).stem.rpartition("_")[2]


def _retrieval_eval(data: LavisDataset, sample: Sample, index: int) -> Row:
    return {"image": data.look(sample.image), "index": index}


def _pair(data: LavisDataset, sample: Sample, index: int) -> Row:
    return {"image": data.look(sample.image), "text_input": data.text_processor(sample.captions[0])}


def _question(data: LavisDataset, sample: Sample, index: int) -> Row:
    shares: dict[str, float] = {}
    for answer in sample.answers:
        shares[answer] = shares.get(answer, 0.0) + 1 / len(sample.answers)
    question = data.text_processor(sample.question)
    return {
        "image": data.look(sample.image),
        "text_input": question,
        "answers": list(shares),
        "weights": list(shares.values()),
    }


def _question_eval(data: LavisDataset, sample: Sample, index: int) -> Row:
    question = data.text_processor(sample.question)
    row = {"image": data.look(sample.image), "text_input": question, "question_id": _as_number(sample.sample_id)}
    row["instance_id"] = str(index)
    if sample.choices:
        chosen = sample.choices.index(sample.label) if sample.label else None
        row |= {"choices": list(sample.choices), "correct_choice_idx": chosen}
        row["direct_answers"] = list(sample.answers) or None
    return row


def _nlvr(data: LavisDataset, sample: Sample, index: int) -> Row:
    row = _nlvr_eval(data, sample, index)
    # As LAVIS: the images change places half of the time, and "left" and "right" of the sentence with them.
    if random.random() < 0.5:
        row["image0"], row["image1"] = row["image1"], row["image0"]
        sentence = str(row["text_input"])
        swapped = sentence.replace("left", "\0").replace("right", "left").replace("\0", "right")
        row["text_input"] = swapped
    return row


def _nlvr_eval(data: LavisDataset, sample: Sample, index: int) -> Row:
    left, right = (data.look(image) for image in sample.images)
    sentence = data.text_processor(sample.captions[0])
    label = NLVR_LABELS[sample.label]
    return {"image0": left, "image1": right, "text_input": sentence, "label": label, "instance_id": str(index)}


def _entailment(data: LavisDataset, sample: Sample, index: int) -> Row:
    row = _pair(data, sample, index)
    return {**row, "label": SNLI_LABELS[sample.label], "image_id": sample.image_id, "instance_id": str(index)}


def _class(data: LavisDataset, sample: Sample, index: int) -> Row:
    row = {"image": data.look(sample.image), "label": data.class_label(sample)}
    return {**row, "image_id": str(sample.image), "instance_id": str(index)}


def _video_caption(data: LavisDataset, sample: Sample, index: int) -> Row:
    row = {"video": data.video(sample), "text_input": data.text_processor(sample.captions[0])}
    return {**row, "image_id": data.number(sample), "instance_id": str(index)}


def _video_eval(data: LavisDataset, sample: Sample, index: int) -> Row:
    return {"video": data.video(sample), "image_id": sample.image_id, "instance_id": str(index)}


def _video_retrieval_eval(data: LavisDataset, sample: Sample, index: int) -> Row:
    return {"video": data.video(sample), "index": index}


def _video_question(data: LavisDataset, sample: Sample, index: int) -> Row:
    row = {"video": data.video(sample), "text_input": data.text_processor(sample.question)}
    row |= {"answers": data.answer_label(sample), "question_id": _as_number(sample.sample_id)}
    return {**row, "instance_id": str(index)}


WEB_PAIRS = ("conceptual_caption_3m", "conceptual_caption_12m", "sbu_caption", "vg_caption", "laion2B_multi")

MAKERS: dict[str, tuple[RowMaker, RowMaker]] = {
    "captions": (_caption, _caption_eval),
    "captions, for retrieval": (_caption, _retrieval_eval),
    "questions": (_question, _question_eval),
    "true or false about two images": (_nlvr, _nlvr_eval),
    "entailment": (_entailment, _entailment),
    "classes": (_class, _class),
    "video captions": (_video_caption, _video_eval),
    "video captions, for retrieval": (_video_caption, _video_retrieval_eval),
    "video questions": (_video_question, _video_question),
}
"""A training row and an evaluation row of each kind of data set."""


def _row_maker(entry: DatasetEntry, is_train: bool) -> RowMaker:
    if entry.name in WEB_PAIRS:
        return _pair
    training, evaluation = MAKERS[entry.kind]
    return training if is_train else evaluation


def _as_number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _as_it_is(value: Any) -> Any:
    return value


def _stack(values: Sequence[Any]) -> Any:
    return torch.stack(list(values)) if isinstance(values[0], Tensor) else list(values)


class DatasetZoo:
    """LAVIS' list of data sets."""

    def __init__(self) -> None:
        self.dataset_zoo = {entry.name: ["default"] for entry in ZOO}

    def get_names(self) -> list[str]:
        return list(self.dataset_zoo)


dataset_zoo = DatasetZoo()
