"""Readers of the annotation files of public image data sets, in LAVIS' layouts and in those of their authors.

Each reader takes the files of one split, the folder of images and the name of the split. Unless stated otherwise, it
does not look into the folder: a missing image is found when it is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from sys import intern
from typing import TypeAlias

from openblip.data.sample import Sample
from openblip.data.sources.cells import encodable, shown_columns
from openblip.data.sources.paths import check_path
from openblip.data.zoo.annotation_files import Entry, read_entries, read_object
from openblip.errors import OpenBlipError

Reader: TypeAlias = Callable[[Sequence[Path], Path, str], list[Sample]]
"""(files, folder of images or videos, split) to samples. Raises OpenBlipError for files of another layout."""

COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")


class Shared:
    """Paths below a folder; equal paths are one object, which the rows about an image share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[str, Path] = {}

    def __call__(self, name: str) -> Path:
        if name not in self._paths:
            self._paths[name] = self.folder / name
        return self._paths[name]


class CocoImages(Shared):
    """COCO's images. If only the images of 2017 are here, names of 2014 map to them: they are the same images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.is_2017 = (folder / "train2017").is_dir() and not any(
            (folder / f"{s}2014").is_dir() for s in ("train", "val")
        )
        small = folder / "val2017"
        self._in_val = {path.name for path in small.iterdir()} if self.is_2017 and small.is_dir() else set()

    def __call__(self, name: str) -> Path:
        found = re.fullmatch(r"(?:train|val)2014/COCO_(?:train|val)2014_(\d{12}\.jpg)", name) if self.is_2017 else None
        if found is None:
            return super().__call__(name)
        return super().__call__(f"{'val' if found.group(1) in self._in_val else 'train'}2017/{found.group(1)}")


def image_id_from_name(name: str) -> str:
    """The COCO id of an image of COCO; for other images, the file name without its suffix."""
    file = PurePosixPath(name).name
    found = COCO_NAME.fullmatch(file)
    return str(int(found.group(1))) if found else encodable(PurePosixPath(file).stem)


# LAVIS' own lists: a JSON list of rows; data sets differ only in the names of some keys.


def read_lavis(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Rows with `image` and a `caption` (a list in evaluation splits), a `question` with `answer`, or a sentence."""
    shared = CocoImages(image_root)
    return [_lavis_row(row, row.file_name("image"), shared) for path in files for row in read_entries(path, "image")]


def _lavis_row(row: Entry, name: str, shared: Shared) -> Sample:
    choices = row.texts("choices")
    return Sample(
        (shared(name),),
        image_id=image_id_from_name(name),
        sample_id=row.id("question_id", "img_id"),
        captions=row.texts("caption"),
        question=row.text("question"),
        answers=row.texts("direct_answers", "answer"),
        label=_choice(row.fields.get("correct_choice_idx"), choices),
        choices=choices,
        kind=row.text("domain"),
    )


def _choice(index: object, choices: tuple[str, ...]) -> str:
    return choices[index] if isinstance(index, int) and 0 <= index < len(choices) else ""


# Captions.


def read_karpathy(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Karpathy's `dataset_coco.json` and `dataset_flickr30k.json`: one row per caption in training, else one per image.

    COCO's "restval" is part of the training set, as usual since Karpathy and Fei-Fei (2015).
    """
    wanted = {"train", "restval"} if split == "train" else {split}
    shared = CocoImages(_subfolder(image_root, ["flickr30k-images"]))
    samples = []
    for path in files:
        for entry in read_object(path, "images").entries("images"):
            if entry.text("split") not in wanted:
                continue
            entry.need("sentences")
            name = entry.file_name("filename")
            folder = entry.file_name("filepath") if entry.fields.get("filepath") else ""
            image = shared(f"{folder}/{name}" if folder else name)
            captions = entry.texts("sentences")
            groups = [(caption,) for caption in captions] if split == "train" else [captions]
            samples += [Sample((image,), image_id_from_name(name), captions=each) for each in groups]
    return samples


def read_coco_captions(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Files such as COCO's `captions_train2014.json` and NoCaps': `images` and `annotations`, one row per image.

    Images are in the subfolder that the file name mentions (`train2014`), if there is one.
    """
    samples = []
    for path in files:
        content = read_object(path, "images")
        captions_of: dict[str, list[str]] = {}
        for annotation in content.entries("annotations") if "annotations" in content else ():
            annotation.need("image_id", "caption")
            captions_of.setdefault(annotation.id("image_id"), []).append(annotation.text("caption"))
        found = re.search(r"(train|val|test)20\d\d", path.name)
        folder = _subfolder(image_root, [found.group() if found else "", split])
        for entry in content.entries("images"):
            entry.need("id")
            name, number = entry.file_name("file_name"), entry.id("id")
            captions = tuple(captions_of.get(number, ()))
            samples.append(
                Sample((folder / name,), image_id_from_name(name), number, captions, kind=entry.text("domain"))
            )
    return samples


def _subfolder(folder: Path, names: Iterable[str]) -> Path:
    return next((folder / name for name in names if name and (folder / name).is_dir()), folder)


# Questions.


def read_vqa(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Pairs of files of VQA (v1, v2) and OK-VQA: questions, and annotations with the answers of ten people.

    A test set has questions only.
    """
    answered: dict[str, tuple[tuple[str, ...], str]] = {}
    questions: list[tuple[str, Entry]] = []
    for path in files:
        content = read_object(path)
        answered |= _answers_by_question(content)
        part = check_path(content.text("data_subtype"), content.place)
        questions += [(part, row) for row in (content.entries("questions") if "questions" in content else ())]
    shared = CocoImages(image_root)
    samples = []
    for part, row in questions:
        row.need("question_id", "question")
        # Questions of test-dev are about images of the test set.
        folder = {"test-dev2015": "test2015"}.get(part, part)
        number, question_id = row.number("image_id"), row.id("question_id")
        people, kind = answered.get(question_id, ((), ""))
        image = shared(f"{folder}/COCO_{folder}_{number:012d}.jpg")
        samples.append(
            Sample((image,), str(number), question_id, question=row.text("question"), answers=people, kind=kind)
        )
    if not samples:
        raise OpenBlipError(f"{', '.join(map(str, files))}: no file has a list of questions, which one has to")
    return samples


def _answers_by_question(content: Entry) -> dict[str, tuple[tuple[str, ...], str]]:
    """For each question, the answers of people and the kind of the question."""
    found = {}
    for row in content.entries("annotations") if "annotations" in content else ():
        row.need("question_id", "answers")
        found[row.id("question_id")] = row.texts("answers"), intern(row.text("question_type"))
    return found


def read_lavis_vqa(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """LAVIS' lists of questions; for evaluation, the answers are in a separate file of annotations."""
    lists = [path for path in files if not path.name.endswith("annotations.json")]
    answered: dict[str, tuple[tuple[str, ...], str]] = {}
    for path in files:
        if path not in lists:
            answered |= _answers_by_question(read_object(path, "annotations"))
    if not answered:
        return read_lavis(lists, image_root, split)
    samples = []
    for sample in read_lavis(lists, image_root, split):
        people, kind = answered.get(sample.sample_id, (sample.answers, ""))
        samples.append(replace(sample, answers=people, kind=kind))
    return samples


def read_aokvqa(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """A-OKVQA's own files, with images of COCO 2017; LAVIS' copy names images of COCO 2014 in `image`."""
    shared = CocoImages(image_root)
    samples = []
    for path in files:
        for row in read_entries(path, "question_id", "question"):
            named = bool(row.fields.get("image"))
            name = row.file_name("image") if named else f"{split}2017/{row.number('image_id'):012d}.jpg"
            samples.append(_lavis_row(row, name, shared))
    return samples


def read_vg_regions(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Visual Genome's `region_descriptions.json`: captions of regions, used as captions of the whole image."""
    folders = VisualGenomeFolders(image_root)
    samples = []
    for path in files:
        for entry in read_entries(path, "id", "regions"):
            number = entry.number("id")
            for region in entry.entries("regions"):
                region.need("region_id", "phrase")
                phrase = (region.text("phrase"),)
                samples.append(Sample((folders(number),), str(number), region.id("region_id"), captions=phrase))
    return samples


def read_vg_questions(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Visual Genome's `question_answers.json`."""
    folders = VisualGenomeFolders(image_root)
    samples = []
    for path in files:
        for entry in read_entries(path, "id", "qas"):
            number = entry.number("id")
            for qa in entry.entries("qas"):
                qa.need("qa_id", "question", "answer")
                question, answers = qa.text("question"), qa.texts("answer")
                sample = Sample((folders(number),), str(number), qa.id("qa_id"), question=question, answers=answers)
                samples.append(sample)
    return samples


class VisualGenomeFolders:
    """Finds the folder of an image of Visual Genome: the annotations do not say which of the two it is."""

    def __init__(self, image_root: Path) -> None:
        second = image_root / "VG_100K_2"
        self._shared = Shared(image_root)
        self._in_second = {path.name for path in second.iterdir()} if second.is_dir() else set()

    def __call__(self, number: int) -> Path:
        name = f"{number}.jpg"
        return self._shared(f"VG_100K_2/{name}" if name in self._in_second else f"VG_100K/{name}")


# Sentences to be judged.


def read_nlvr(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """NLVR2: two images and a sentence that is true or false.

    LAVIS' rows name the images; the original rows have an identifier ("dev-850-0-1" is about dev-850-0-img0.png and
    dev-850-0-img1.png), and the training images are in numbered folders.
    """
    samples = []
    shared = Shared(image_root)
    for path in files:
        for row in read_entries(path, "sentence", "label"):
            names = row.file_names("images") if row.fields.get("images") else _nlvr_names(row)
            samples.append(
                Sample(
                    tuple(shared(name) for name in names),
                    image_id=encodable(PurePosixPath(names[0]).stem).rpartition("-")[0],
                    sample_id=row.id("identifier"),
                    captions=(row.text("sentence"),),
                    label=intern(row.text("label")),
                )
            )
    return samples


def _nlvr_names(row: Entry) -> list[str]:
    identifier = check_path(row.id("identifier"), row.place)
    pair, _, _ = identifier.rpartition("-")
    part = identifier.partition("-")[0]
    if not pair or not part:
        raise OpenBlipError(f"{row.place} has no images and no identifier: this is not a file of NLVR2")
    folder = f"images/train/{check_path(row.id('directory'), row.place)}" if "directory" in row else part
    return [f"{folder}/{pair}-img{side}.png" for side in (0, 1)]


def read_snli_ve(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """SNLI-VE: an image of Flickr30k and a sentence; LAVIS' lists, or the original JSON lines.

    Rows on which the annotators did not agree (gold_label "-") are left out, as in the original's statistics.
    """
    shared = Shared(image_root)
    samples = []
    for path in files:
        for row in read_entries(path):
            number, label = check_path(row.id("image", "Flickr30K_ID"), row.place), row.text("label", "gold_label")
            sentence = row.text("sentence", "sentence2")
            if not number or not sentence or not label:
                raise OpenBlipError(f"{row.place} has {shown_columns(row.fields)}: this is not a file of SNLI-VE")
            if label == "-":
                continue
            name = number if number.endswith(".jpg") else f"{number}.jpg"
            image, stem = shared(name), encodable(PurePosixPath(name).stem)
            samples.append(Sample((image,), stem, row.id("pairID"), captions=(sentence,), label=intern(label)))
    return samples
