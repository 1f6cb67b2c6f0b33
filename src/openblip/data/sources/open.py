"""Read a recipe's sources of data, in any format, as `Sample` rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from openblip.data.sample import Sample
from openblip.data.sources.annotations import is_held_out, read_captions, read_questions
from openblip.data.sources.cells import encodable
from openblip.data.sources.folders import read_folder
from openblip.data.sources.paths import check_path, expand_pattern
from openblip.data.sources.records import tell_skipped
from openblip.data.sources.stream import SHUFFLED
from openblip.data.sources.tables import TableOptions, read_table
from openblip.data.sources.tars import read_tars
from openblip.data.zoo.data_sets import find_entry
from openblip.data.zoo.entries import Place, data_home, find_layout, open_dataset
from openblip.errors import OpenBlipError, OptionError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables that Hugging Face's `datasets` looks for in a folder of images."""

SHOWN_REASONS = 5


@dataclass
class DataSource:
    """One source of data in a recipe: our own annotation files (`captions`, `questions`), a `table`, or a known
    `dataset`. All paths are relative to the recipe's data_root.

    Attributes:
        captions: JSON lines with an image and its captions.
        questions: JSON lines with an image, a question and its answers.
        split: the part to use; None: all. For a dataset, one of its splits, by default "train".
        table: a CSV, TSV, JSONL or Parquet file, an annotation file (COCO's, Karpathy's, VQA's, LLaVA's, kohya's), a
            folder of images, a tar, or a pattern of several (`shards/{00000..00017}.tar`, `part-*.parquet`).
        dataset: a name of `openblip datasets`.
        images: the folder of the images, if it is not the default one.
        annotations: the folder of a dataset's annotation files, if it is not the default one; of a table of VQA's
            questions, the file of their answers, if it is not beside it under its official name.
        question: of a table without questions, the one that all its answers answer.
        held_out: leave out the `1 / held_out` of the images that evaluation uses (see `is_held_out`).
        clean: make captions lower case and remove their punctuation, as in the paper; otherwise only white space is
            normalized.
        statements: make captions from questions (good for COCO-QA, whose questions were made from captions).
        make_questions: make questions from captions.
        plain_questions: also make questions that people ask about any photo ("what is this", "is there a dog").
        mirror: whether images may be mirrored; left and right are then swapped in their texts.
        word_dropout: share of the words of people's questions that are left out, different ones each time. Without it,
            a small model memorizes the questions of a small data set. Questions made from captions stay whole.
        augment: whether images are cropped and mirrored at random if their features are not cached.
        repeat: how often an epoch shows each image, with different texts and views each time.
        stream: read the tars of `table` during training, instead of reading all headers and texts first: for data
            sets that do not fit in memory. Each process reads its own tars.
        rows: of a streamed source, the number of rows in its tars; 0: unknown, so the recipe needs `steps_per_epoch`.
        shuffle: of a streamed source, size of the shuffle buffer of a process, in rows (only headers are kept).
        readers: of a streamed source, number of tars that a process reads in turn, so that their rows mix.
    """

    name: str
    captions: str | None = None
    questions: str | None = None
    split: str | None = None
    held_out: int = 0
    clean: bool = True
    statements: bool = False
    make_questions: bool = False
    plain_questions: bool = False
    mirror: bool = True
    word_dropout: float = 0.0
    views: int = 2
    augment: bool = True
    repeat: int = 1
    min_area: float = 0.6
    table: str | None = None
    dataset: str | None = None
    images: str | None = None
    annotations: str | None = None
    question: str | None = None
    stream: bool = False
    rows: int = 0
    shuffle: int = SHUFFLED
    readers: int = 4


def read_source(source: DataSource, data_root: Path, skipped: list[str] | None = None) -> list[Sample]:
    """All rows of a source, in the order of its files; `held_out` is not applied here.

    A caption file gives one sample for each image, a question file one for each question. Several answers in our own
    question files are parts of one answer, joined by commas; in a table, they are the answers of several people.

    Args:
        skipped: gets a sentence for each broken tar and row that was left out; by default they are logged.

    Raises:
        OptionError: the source names no data, or several kinds of it.
        OpenBlipError: a file is missing or malformed, or there is no row in it.
    """
    left_out: list[str] = []
    if source.question is not None and source.table is None:
        raise OptionError(f"the data source {source.name!r} has questions of its own: leave question out")
    kinds = [source.captions or source.questions, source.table, source.dataset]
    if sum(kind is not None for kind in kinds) != 1:
        raise OptionError(
            f"the data source {source.name!r} needs one kind of data: captions and questions, a table, or a dataset"
        )
    for path in (source.captions, source.questions, source.table, source.images, source.annotations):
        check_path(path or "", f"the data source {source.name!r}")
    if source.table is not None:
        samples = _from_table(source, data_root, left_out)
    elif source.dataset is not None:
        samples = _from_zoo(source, data_root)
    else:
        samples = _from_annotations(source, data_root)
    tell_skipped(left_out, skipped)
    if not samples:
        more = [f"{len(left_out) - SHOWN_REASONS} more"] if len(left_out) > SHOWN_REASONS else []
        files = (source.captions, source.questions, source.table, source.dataset)
        reasons = "; ".join(left_out[:SHOWN_REASONS] + more) or f"check {' and '.join(filter(None, files))}"
        raise OpenBlipError(f"the data source {source.name!r} has no rows: {reasons}")
    return samples


@dataclass(frozen=True)
class Missing:
    """How many images of a data set are missing on this machine.

    Attributes:
        checked: number of different images; missing: number of those that are missing; first: some of the missing.
    """

    checked: int
    missing: int
    first: tuple[Path, ...]


def find_missing(samples: Iterable[Sample], shown: int = 5) -> Missing:
    """Count the image files, video files and archives that are missing; no file is opened."""
    files: dict[Path, None] = {}
    for sample in samples:
        for image in sample.images:
            files[image if isinstance(image, Path) else image.archive] = None
        if sample.video is not None:
            files[sample.video] = None
    gone = [path for path in files if not os.path.isfile(path)]  # also False for names that no system allows
    return Missing(len(files), len(gone), tuple(gone[:shown]))


def keep_training_part(samples: Iterable[Sample], one_in: int) -> list[Sample]:
    """The rows whose images are not held out for evaluation (see `is_held_out`); all rows if `one_in` is 0."""
    return [row for row in samples if not (one_in and any(is_held_out(image, one_in) for image in row.images))]


def keep_held_out_part(samples: Iterable[Sample], one_in: int) -> list[Sample]:
    """The rows with an image that is held out for evaluation."""
    return [row for row in samples if any(is_held_out(image, one_in) for image in row.images)]


def _from_annotations(source: DataSource, data_root: Path) -> list[Sample]:
    images = None if source.images is None else data_root / source.images
    samples: list[Sample] = []
    shared: dict[Path, Path] = {}
    if source.captions is not None:
        for row in read_captions(data_root / source.captions, source.split, images):
            image = shared.setdefault(row.image, row.image)
            captions = tuple(caption for caption in row.captions if caption.strip())
            samples.append(Sample((image,), encodable(image.name), captions=captions))
    if source.questions is not None:
        for item in read_questions(data_root / source.questions, images):
            image = shared.setdefault(item.image, item.image)
            name, answers = encodable(image.name), (item.answer,)
            samples.append(Sample((image,), name, question=item.question, answers=answers, kind=item.kind))
    return samples


def _from_zoo(source: DataSource, data_root: Path) -> list[Sample]:
    entry = find_entry(str(source.dataset))
    images = None if source.images is None else data_root / source.images
    annotations = None if source.annotations is None else data_root / source.annotations
    place = Place(data_root, images, annotations)
    if annotations is None and find_layout(entry, place) is None and find_layout(entry, Place(data_home(), images)):
        place = Place(data_home(), images)
    splits = open_dataset(entry, place)
    split = source.split or "train"
    if split not in splits:
        raise OptionError(f"{entry.name} has the splits {', '.join(splits)}: name one of them, not {split}")
    return splits[split].rows


def _from_table(source: DataSource, data_root: Path, skipped: list[str]) -> list[Sample]:
    table = str(source.table)
    images = None if source.images is None else data_root / source.images
    annotations = None if source.annotations is None else data_root / source.annotations
    options = TableOptions(images, source.split, annotations, source.question or "")
    place = data_root / table
    if place.is_dir():
        return _from_folder(place, options, skipped)
    paths = [place] if place.exists() else expand_pattern(table, data_root)
    if all(path.suffix.lower() == ".tar" for path in paths):
        if source.split is not None:
            raise OptionError(f"{table} is made of tars, which have no splits: leave split: {source.split} out")
        if options.question or options.annotations:
            raise OptionError(f"{table} is made of tars: leave question and annotations out")
        return read_tars(paths, skipped)
    options = replace(options, together=frozenset(paths))
    return [row for path in paths for row in read_table(path, options, skipped)]


def tar_paths(source: DataSource, data_root: Path) -> list[Path]:
    """The tars of a streamed source, in order. Raises OpenBlipError if its table is not made of tars."""
    table = check_path(str(source.table), f"the data source {source.name!r}")
    place = data_root / table
    paths = sorted(place.glob("*.tar")) if place.is_dir() else [place] if place.exists() else []
    paths = paths or expand_pattern(table, data_root)
    if not all(path.suffix.lower() == ".tar" for path in paths):
        raise OptionError(f"{source.name} is streamed, but {table} is not made of tars: leave stream out")
    return paths


def _from_folder(folder: Path, options: TableOptions, skipped: list[str]) -> list[Sample]:
    """Read a folder of tars, tables or images; if it has a subfolder with the name of the split, read that."""
    split = options.split
    if options.question or options.annotations:
        raise OptionError(f"{folder} is a folder: leave question and annotations out")
    if split is not None and (folder / split).is_dir():
        folder, split = folder / split, None
    for name in METADATA:
        if (folder / name).is_file():
            return read_table(folder / name, replace(options, split=split), skipped)
    tars = sorted(folder.glob("*.tar"))
    if tars and split is None:
        return read_tars(tars, skipped)
    if split is not None:
        raise OptionError(f"{folder} has no folder {split}: leave split out, or name one that it has")
    return read_folder(folder, skipped)
