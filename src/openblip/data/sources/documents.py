"""Annotation files that are one JSON object: COCO's captions, Karpathy's splits, VQA's pairs, kohya's metadata and
objects with images as keys. `kind_of` is the one place that tells them apart, by their content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.cells import is_empty, shown_columns, to_texts
from openblip.data.sources.image_index import ImageIndex
from openblip.data.sources.records import SAYS, Columns, asked_columns, known_columns
from openblip.data.zoo.layouts import read_coco_captions, read_karpathy, read_vqa
from openblip.errors import OpenBlipError, OptionError
from openblip.images.sources import IMAGE_SUFFIXES

KNOWN = (
    "COCO's captions (images and annotations), Karpathy's splits (images with sentences), VQA's questions and "
    "annotations, {name: caption}, kohya's metadata, and lists of rows with an image and a caption, a question and "
    "answers, or conversations"
)


@dataclass
class Read:
    """What a document says, and sentences about what was left out of it."""

    samples: list[Sample]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A file of annotations in one JSON object.

    Attributes:
        content: the object.
        split: the part to read; None: all.
        annotations: the other file of a pair of VQA's, if it is given.
        question: what the texts answer, if they are answers to one question.
        together: files that are read with this one.
    """

    path: Path
    content: Mapping[str, Any]
    images: ImageIndex
    split: str | None = None
    annotations: Path | None = None
    question: str = ""
    together: frozenset[Path] = frozenset()


Reader: TypeAlias = Callable[[Document], Read]


def kind_of(content: Mapping[str, Any]) -> Reader | None:
    """The reader of a file that is one object; None if the object is a row of a table."""
    lists = {name: value for name, value in content.items() if isinstance(value, list)}
    names_images = any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in content)
    if _has(lists.get("data"), "image_id") or _has(lists.get("data"), "image"):
        return _listed
    if "questions" in lists or _has(lists.get("annotations"), "question_id"):
        return _vqa
    if "images" in lists and (_has(lists["images"], "") or not _is_row(content)):
        return _karpathy if _has(lists["images"], "sentences") else _coco
    if _is_row(content) and not names_images:
        return None
    if content and all(isinstance(value, dict) for value in content.values()):
        return _named_rows
    if content and all(_is_text(value) for value in content.values()):
        return _named_texts
    return _unknown


def read_document(reader: Reader, document: Document) -> Read:
    """Read a document with its reader.

    Raises:
        OpenBlipError: it is not of the form that it begins as, or names a part that it has not.
    """
    if document.split is not None and reader is not _karpathy:
        raise OptionError(f"{document.path} has no splits: leave split: {document.split} out")
    if document.annotations is not None and reader is not _vqa:
        raise OptionError(f"{document.path} is no file of VQA's questions or annotations: leave annotations out")
    if document.question and reader in (_karpathy, _coco, _vqa):
        raise OptionError(f"{document.path} has texts that answer no question: leave question: {document.question} out")
    return reader(document)


def _unknown(document: Document) -> Read:
    raise OpenBlipError(
        f"{document.path} is an object of {shown_columns(document.content)}, which is no known form: known are {KNOWN}"
    )


def _is_row(content: Mapping[str, Any]) -> bool:
    """Whether an object is about one image, or tries to be."""
    known = known_columns(content).keys()
    return bool({"image", "image_id"} & known or SAYS & known or asked_columns(content))


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _has(entries: object, name: str) -> bool:
    """Whether the first entries of a list are objects with this key; with any, if it is empty."""
    first = entries[:10] if isinstance(entries, list) else []
    return any(isinstance(each, dict) and (not name or name in each) for each in first)


def _karpathy(document: Document) -> Read:
    entries = document.content["images"]
    counts: dict[str, int] = {}
    for entry in entries:
        if isinstance(entry, dict):
            name = str(entry.get("split"))
            counts[name] = counts.get(name, 0) + 1
    if document.split not in counts:
        of = ", ".join(f"{name} ({count:,} images)" for name, count in counts.items())
        wanted = "choose one" if document.split is None else f"choose one of them, not {document.split}"
        raise OptionError(f"{document.path} has the splits {of}: {wanted} (--split, or split in a recipe)")
    return Read(_found(document, read_karpathy([document.path], document.images.folder, str(document.split))))


def _coco(document: Document) -> Read:
    annotations = document.content.get("annotations")
    if annotations and not _has(annotations, "caption"):
        keys = annotations[0] if isinstance(annotations, list) and isinstance(annotations[0], dict) else {}
        raise OpenBlipError(
            f"{document.path} has annotations of {shown_columns(keys)}, but no captions: COCO's are in files named "
            "captions_...json"
        )
    samples = read_coco_captions([document.path], document.images.folder, "")
    if not samples:
        raise OpenBlipError(f"{document.path} has no images: check that it is the right file")
    return Read(_found(document, samples))


def _vqa(document: Document) -> Read:
    other = document.annotations or _other_file(document)
    has_questions = isinstance(document.content.get("questions"), list)
    if not has_questions and other is None:
        raise OpenBlipError(
            f"{document.path} has answers, but no questions: give the file of questions, and this one as its "
            "annotations (--annotations, or annotations in a recipe)"
        )
    if not has_questions and other in document.together:
        return Read([])  # read with its questions
    files = [document.path] if other is None else [document.path, other]
    samples = read_vqa(files, document.images.folder, "")
    answered = sum(bool(sample.answers) for sample in samples)
    if other is not None and not answered:
        raise OpenBlipError(f"{other} has no answer to any question in {document.path}: they are of different sets")
    notes = []
    if other is not None and answered < len(samples):
        notes.append(
            f"{document.path}: {len(samples) - answered:,} of {len(samples):,} questions have no answers in {other}"
        )
    return Read(_found(document, samples), notes)


def _other_file(document: Document) -> Path | None:
    """The other file of VQA's two, beside this one under its official name."""
    name = document.path.name
    if "question" in name.lower() and isinstance(document.content.get("questions"), list):
        plain = name.replace("questions", "annotations").replace("Questions", "Annotations")
        guesses = [plain, *(plain.replace(task, "") for task in ("OpenEnded_", "MultipleChoice_"))]
    else:
        plain = name.replace("annotations", "questions").replace("Annotations", "Questions")
        guesses = [plain]
        for place in ("mscoco_", "abstract_"):
            if place in plain:
                guesses.append(plain.replace(place, f"OpenEnded_{place}", 1))
    paths = (document.path.with_name(guess) for guess in guesses if guess != name)
    return next((path for path in paths if path.is_file()), None)


def _listed(document: Document) -> Read:
    """TextVQA's and TextCaps' files: rows in a list `data`."""
    rows = ((f"{document.path}, data {number},", row) for number, row in enumerate(document.content["data"], start=1))
    return Read(_from_rows(document, rows))


def _named_rows(document: Document) -> Read:
    """Objects with texts by the name of their image (kohya's metadata), or by the id of their question (GQA)."""

    def rows() -> Iterable[tuple[str, Any]]:
        for name, row in document.content.items():
            has_image = isinstance(row, dict) and {"image", "image_id"} & known_columns(row).keys()
            yield f"{document.path}, {name!r},", ({"question_id": name} if has_image else {"image": name}) | row

    return Read(_from_rows(document, rows()))


def _named_texts(document: Document) -> Read:
    samples = []
    for name, value in document.content.items():
        place = f"{document.path}, {name!r},"
        images, texts = (document.images.find(name, place),), to_texts(value, place, "captions")
        if document.question:
            samples.append(Sample(images, name, question=document.question, answers=texts))
        else:
            samples.append(Sample(images, name, captions=texts))
    return Read(samples)


def _from_rows(document: Document, rows: Iterable[tuple[str, Any]]) -> list[Sample]:
    columns_of: dict[tuple[str, ...], Columns] = {}
    samples: list[Sample] = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise OpenBlipError(f"{place} is no JSON object: {document.path} is no file of a known form ({KNOWN})")
        key = tuple(row)
        if key not in columns_of:
            columns_of[key] = Columns(row, place, question=document.question)
        columns = columns_of[key]
        name = columns.id(row, "image" if is_empty(columns.value(row, "image_id")) else "image_id", place)
        samples += columns.samples(row, (document.images.find(name, place),), name, place)
    return samples


def _found(document: Document, samples: Iterable[Sample]) -> list[Sample]:
    """The samples with their images where they are."""

    def find(image: ImageFile) -> Path:
        path = image if isinstance(image, Path) else image.archive
        name = path.relative_to(document.images.folder) if path.is_relative_to(document.images.folder) else path
        return document.images.find(name.as_posix(), str(document.path))

    return [replace(sample, images=tuple(map(find, sample.images))) for sample in samples]
