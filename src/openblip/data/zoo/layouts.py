"""Annotation files of the public image data sets, as LAVIS keeps them and as their makers publish them, to samples.

Every reader here takes the files of one split, the folder of pictures and the split's name. Nothing is looked up in the
folder but where stated: a picture that is not there is found missing when it is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any, TypeAlias

from openblip.data.sample import Sample
from openblip.data.sources.records import shown_columns
from openblip.data.sources.tables import load_json
from openblip.errors import OpenBlipError

Reader: TypeAlias = Callable[[Sequence[Path], Path, str], list[Sample]]
"""(files, folder of pictures or films, split) to samples. Raises OpenBlipError for files that are not of the layout."""

COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")


class Shared:
    """Paths below a folder, one object a path: five captions of a picture share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[str, Path] = {}

    def __call__(self, name: str) -> Path:
        if name not in self._paths:
            self._paths[name] = self.folder / name
        return self._paths[name]


class CocoPictures(Shared):
    """COCO's pictures. Where only those of 2017 are there, names of 2014 find them: they are the same pictures."""

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


def read_rows(path: Path, *needed: str) -> Iterator[dict[str, Any]]:
    """JSON objects of a list, or one a line.

    Raises:
        OpenBlipError: the file is not of that kind, or a row lacks what is needed; the message says which and where.
    """
    for number, row in enumerate(_json_rows(path), start=1):
        if not isinstance(row, dict):
            raise OpenBlipError(f"{path}, entry {number}, is no JSON object: this is not the file it should be")
        missing = [name for name in needed if name not in row]
        if missing:
            raise OpenBlipError(
                f"{path}, entry {number}, has no {' and no '.join(missing)}; "
                f"it has {shown_columns([str(name) for name in row])}"
            )
        yield row


def _json_rows(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        # NLVR2 calls JSON lines .json.
        start = file.read(1024).lstrip()[:1]
    if start != "{":
        content = load_json(path)
        if not isinstance(content, list):
            raise OpenBlipError(f"{path} is no list of JSON objects: this is not the file it should be")
        return content
    return _json_lines(path)


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise OpenBlipError(f"{path}, line {number}, is not JSON, or cut short ({error})") from error


def read_object(path: Path, *needed: str) -> dict[str, Any]:
    """One JSON object with the lists that are needed. Raises OpenBlipError as `read_rows`."""
    content = load_json(path)
    missing = [name for name in needed if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise OpenBlipError(f"{path} has no list {' and no list '.join(missing)}: this is not the file it should be")
    return dict(content)


def texts(value: object) -> tuple[str, ...]:
    """One text or a list of them; repeated ones, as answers are, share their memory."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(intern(str(text)) for text in values)


def picture_id(name: str) -> str:
    """COCO's number of a picture where it is one of COCO's, else the file's name without its ending."""
    file = PurePosixPath(name).name
    found = COCO_NAME.fullmatch(file)
    return str(int(found.group(1))) if found else PurePosixPath(file).stem


# LAVIS' own lists: a JSON list of rows, all data sets alike but for the names of some keys.


def read_lavis(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """Rows with `image` and a `caption` (a list in evaluation splits), a `question` with `answer`, or a sentence."""
    shared = CocoPictures(pictures)
    return [_lavis_row(row, shared) for path in files for row in read_rows(path, "image")]


def _lavis_row(row: Mapping[str, Any], shared: Shared) -> Sample:
    name = str(row["image"])
    answers = row.get("direct_answers", row.get("answer"))
    choices = texts(row.get("choices"))
    return Sample(
        (shared(name),),
        image_id=picture_id(name),
        sample_id=str(row.get("question_id", row.get("img_id", ""))),
        captions=texts(row.get("caption")),
        question=str(row.get("question", "")),
        answers=texts(answers),
        label=_choice(row, choices),
        choices=choices,
        kind=str(row.get("domain", "")),
    )


def _choice(row: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    index = row.get("correct_choice_idx")
    return choices[index] if isinstance(index, int) and 0 <= index < len(choices) else ""


# Captions.


def read_karpathy(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """Karpathy's `dataset_coco.json` and `dataset_flickr30k.json`: one row a caption in training, else one a picture.

    COCO's "restval" is part of the training set, as everyone has it since Karpathy and Fei-Fei (2015).
    """
    wanted = {"train", "restval"} if split == "train" else {split}
    shared = CocoPictures(_subfolder(pictures, ["flickr30k-images"]))
    samples = []
    for path in files:
        for entry in read_object(path, "images")["images"]:
            if entry.get("split") not in wanted:
                continue
            picture = shared("/".join(name for name in (entry.get("filepath", ""), entry["filename"]) if name))
            captions = texts([sentence["raw"] for sentence in entry["sentences"]])
            told = [(caption,) for caption in captions] if split == "train" else [captions]
            samples += [Sample((picture,), picture_id(entry["filename"]), captions=each) for each in told]
    return samples


def read_coco_captions(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """COCO's `captions_train2014.json` and their like, NoCaps' too: `images` and `annotations`, one row a picture.

    Pictures lie in a subfolder that is called as in the file's name (`train2014`), where there is one.
    """
    samples = []
    for path in files:
        content = read_object(path, "images")
        told: dict[Any, list[str]] = {}
        for annotation in content.get("annotations", []):
            told.setdefault(annotation["image_id"], []).append(annotation["caption"])
        found = re.search(r"(train|val|test)20\d\d", path.name)
        folder = _subfolder(pictures, [found.group() if found else "", split])
        samples += [
            Sample(
                (folder / entry["file_name"],),
                image_id=picture_id(entry["file_name"]),
                sample_id=str(entry["id"]),
                captions=texts(told.get(entry["id"])),
                kind=str(entry.get("domain", "")),
            )
            for entry in content["images"]
        ]
    return samples


def _subfolder(folder: Path, names: Iterable[str]) -> Path:
    return next((folder / name for name in names if name and (folder / name).is_dir()), folder)


# Questions.


def read_vqa(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """Pairs of VQA's (v1, v2) and OK-VQA's files: questions, and the annotations with what ten people answered.

    A test set has questions alone.
    """
    answered: dict[Any, tuple[tuple[str, ...], str]] = {}
    asked: list[tuple[str, Mapping[str, Any]]] = []
    for path in files:
        content = load_json(path)
        if not isinstance(content, dict):
            raise OpenBlipError(f"{path} is no JSON object: this is not the file it should be")
        answered |= _given_answers(content)
        part = str(content.get("data_subtype", ""))
        asked += [(part, row) for row in content.get("questions", [])]
    shared = CocoPictures(pictures)
    samples = []
    for part, row in asked:
        # Questions of test-dev are about pictures of the test set.
        folder = {"test-dev2015": "test2015"}.get(part, part)
        number = int(row["image_id"])
        people, kind = answered.get(row["question_id"], ((), ""))
        samples.append(
            Sample(
                (shared(f"{folder}/COCO_{folder}_{number:012d}.jpg"),),
                image_id=str(number),
                sample_id=str(row["question_id"]),
                question=row["question"],
                answers=people,
                kind=kind,
            )
        )
    if not samples:
        raise OpenBlipError(f"{', '.join(map(str, files))}: no file has a list of questions, which one has to")
    return samples


def _given_answers(content: Mapping[str, Any]) -> dict[Any, tuple[tuple[str, ...], str]]:
    """By question: what people answered, and the question's kind."""
    return {
        row["question_id"]: (
            texts([answer["answer"] for answer in row["answers"]]),
            intern(str(row.get("question_type", ""))),
        )
        for row in content.get("annotations", [])
    }


def read_lavis_vqa(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """LAVIS' lists of questions; for evaluation its list names no answers, the annotations beside it do."""
    lists = [path for path in files if not path.name.endswith("annotations.json")]
    answered: dict[Any, tuple[tuple[str, ...], str]] = {}
    for path in files:
        if path not in lists:
            answered |= _given_answers(read_object(path, "annotations"))
    if not answered:
        return read_lavis(lists, pictures, split)
    by_name = {str(number): given for number, given in answered.items()}
    samples = []
    for sample in read_lavis(lists, pictures, split):
        people, kind = by_name.get(sample.sample_id, (sample.answers, ""))
        samples.append(replace(sample, answers=people, kind=kind))
    return samples


def read_aokvqa(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """A-OKVQA's own files, whose pictures are COCO's of 2017; LAVIS' copy names those of 2014 in `image`."""
    shared = CocoPictures(pictures)
    samples = []
    for path in files:
        for row in read_rows(path, "question_id", "question"):
            number = row.get("image_id")
            name = row.get("image") or f"{split}2017/{int(number or 0):012d}.jpg"
            samples.append(_lavis_row({**row, "image": name}, shared))
    return samples


def read_vg_regions(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """Visual Genome's `region_descriptions.json`: a caption for each region, of which the whole picture is taken."""
    folders = VisualGenomeFolders(pictures)
    return [
        Sample((folders(entry["id"]),), str(entry["id"]), str(region["region_id"]), captions=(region["phrase"],))
        for path in files
        for entry in read_rows(path, "id", "regions")
        for region in entry["regions"]
    ]


def read_vg_questions(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """Visual Genome's `question_answers.json`."""
    folders = VisualGenomeFolders(pictures)
    return [
        Sample(
            (folders(entry["id"]),),
            str(entry["id"]),
            str(asked["qa_id"]),
            question=asked["question"],
            answers=texts(asked["answer"]),
        )
        for path in files
        for entry in read_rows(path, "id", "qas")
        for asked in entry["qas"]
    ]


class VisualGenomeFolders:
    """Which of its two folders a picture of Visual Genome lies in: the annotations do not say, the disk does."""

    def __init__(self, pictures: Path) -> None:
        second = pictures / "VG_100K_2"
        self._shared = Shared(pictures)
        self._in_second = {path.name for path in second.iterdir()} if second.is_dir() else set()

    def __call__(self, number: int) -> Path:
        name = f"{number}.jpg"
        return self._shared(f"VG_100K_2/{name}" if name in self._in_second else f"VG_100K/{name}")


# Sentences to be judged.


def read_nlvr(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """NLVR2: two pictures and a sentence that is true of them, or not.

    LAVIS' rows name the pictures; the originals number them ("dev-850-0-1" is about dev-850-0-img0.png and ...img1.png)
    and keep those of the training set in numbered folders.
    """
    samples = []
    shared = Shared(pictures)
    for path in files:
        for row in read_rows(path, "sentence", "label"):
            names = row.get("images") or _nlvr_names(row, path)
            samples.append(
                Sample(
                    tuple(shared(name) for name in names),
                    image_id=PurePosixPath(names[0]).stem.rpartition("-")[0],
                    sample_id=str(row.get("identifier", "")),
                    captions=(row["sentence"],),
                    label=intern(str(row["label"])),
                )
            )
    return samples


def _nlvr_names(row: Mapping[str, Any], path: Path) -> list[str]:
    identifier = str(row.get("identifier", ""))
    pair, _, _ = identifier.rpartition("-")
    part = identifier.partition("-")[0]
    if not pair or not part:
        raise OpenBlipError(f"{path} has a row without images and identifier: this is not a file of NLVR2")
    folder = f"images/train/{row['directory']}" if "directory" in row else part
    return [f"{folder}/{pair}-img{side}.png" for side in (0, 1)]


def read_snli_ve(files: Sequence[Path], pictures: Path, split: str) -> list[Sample]:
    """SNLI-VE: a picture of Flickr30k and a sentence; LAVIS' lists, or the original JSON lines.

    Rows on which the annotators did not agree (gold_label "-") are left out, as in the original's statistics.
    """
    shared = Shared(pictures)
    samples = []
    for path in files:
        for row in read_rows(path):
            number = row.get("image", row.get("Flickr30K_ID"))
            sentence, label = row.get("sentence", row.get("sentence2")), row.get("label", row.get("gold_label"))
            if number is None or sentence is None or label is None:
                raise OpenBlipError(f"{path} has a row with {shown_columns(list(row))}: this is not a file of SNLI-VE")
            if label == "-":
                continue
            name = str(number) if str(number).endswith(".jpg") else f"{number}.jpg"
            samples.append(
                Sample(
                    (shared(name),),
                    PurePosixPath(name).stem,
                    str(row.get("pairID", "")),
                    captions=(sentence,),
                    label=intern(label),
                )
            )
    return samples
