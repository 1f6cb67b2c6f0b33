"""Damaged data files: rows or one sentence that names the file, whatever happened to them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from openblip.data.sample import Sample
from openblip.data.sources.open import DataSource, find_missing, read_source
from openblip.data.sources.stream import TarStream
from openblip.data.zoo.data_sets import load_dataset
from openblip.errors import ImageError, OpenBlipError
from tests.data import damage
from tests.data.annotation_cases import CASES, Case, write
from tests.data.tiny_images import put


def check(read: Callable[[], Sequence[Sample]], name: str) -> bool:
    """Whether there are rows; if so, of texts that can be written to a file, and with paths that can be looked for."""
    try:
        rows = read()
    except OpenBlipError as error:
        sentence = str(error)
        assert name in sentence and "\n" not in sentence and len(sentence) < 2000
        return False
    for row in rows:
        for text in (*row.captions, *row.answers, row.question, row.label, row.image_id, row.sample_id, row.kind):
            text.encode()
        for image in row.images:
            if not isinstance(image, Path):
                try:
                    image.read_bytes()
                except ImageError as error:
                    assert "\n" not in str(error)
    find_missing(rows)
    return True


@pytest.mark.parametrize("form", damage.FORMS)
def test_tables_and_tars(tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    outcomes = set()
    for seed in range(60):
        rng = random.Random(f"{form}:{seed}")
        content = damage.FORMS[form](damage.with_odd_value(damage.ROWS, rng) if rng.random() < 0.6 else damage.ROWS)
        path.write_bytes(damage.damaged(content, rng) if rng.random() < 0.6 else content)
        outcomes.add(check(lambda: read_source(DataSource("mine", table=form), tmp_path, []), form))
        if path.suffix == ".tar":
            check(lambda: list(TarStream([path])), form)
        elif path.suffix.startswith(".json"):
            check(lambda: read_source(DataSource("mine", captions=form), tmp_path, []), form)
            check(lambda: read_source(DataSource("mine", questions=form), tmp_path, []), form)
    assert outcomes == {True, False}


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    outcomes = set()
    for seed in range(250):
        rng = random.Random(seed)
        damage.write_parquet(path, rng)
        if rng.random() < 0.3:
            path.write_bytes(damage.damaged(path.read_bytes(), rng))
        outcomes.add(check(lambda: read_source(DataSource("mine", table=path.name), tmp_path), path.name))
    assert outcomes == {True, False}


def test_folders(tmp_path: Path) -> None:
    names = (
        "c/a.txt",
        "c/a.JSON",
        "b.x.caption",
        "b.x.jpg.txt",
        "b.x.json",
        "b.json",
        "metadata.jsonl",
        "metadata.csv",
    )
    outcomes = set()
    for seed in range(60):
        rng = random.Random(seed)
        put(tmp_path / "photos/c/a.jpg")
        put(tmp_path / "photos/b.x.jpg")
        for name in rng.sample(names, 2):
            content = damage.as_json(damage.with_odd_value(damage.ROWS[0], rng))
            (tmp_path / "photos" / name).write_bytes(damage.damaged(content, rng) if rng.random() < 0.5 else content)
        outcomes.add(check(lambda: read_source(DataSource("mine", table="photos"), tmp_path, []), "photos"))
        shutil.rmtree(tmp_path / "photos")
    assert outcomes == {True, False}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_annotations_of_public_sets(tmp_path: Path, case: Case) -> None:
    for seed in range(12):
        rng = random.Random(f"{case}:{seed}")
        name = rng.choice([*case.files])
        content = case.files[name]
        if isinstance(content, dict | list | tuple):
            odd = damage.with_odd_value([*content] if isinstance(content, tuple) else content, rng)
            written = damage.as_lines(odd) if isinstance(content, tuple) else damage.as_json(odd)
        else:
            written = damage.damaged(content if isinstance(content, bytes) else content.encode(), rng)
        write(tmp_path, {**case.files, name: written})
        for folder in case.folders:
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        check(lambda: load_dataset(case.name, root=tmp_path)[case.split].rows, str(tmp_path))


@pytest.mark.parametrize("field", ["table", "captions", "questions", "images", "annotations"])
def test_paths_that_are_none(tmp_path: Path, field: str) -> None:
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,one\n")
    others = {"images": {"table": "t.csv"}, "annotations": {"dataset": "coco_caption"}}.get(field, {})
    for path in ("a\0b", "x" * 300, "a/" * 3000, "\ud83d", "a\nb", "*\0", "{0..3}\0.tar"):
        with pytest.raises(OpenBlipError, match=r"mine.* has a path "):
            read_source(DataSource("mine", **{**others, field: path}), tmp_path)
    for path in ("~nobody/*", "**foo/*", "[", "*" * 40 + "z"):
        with pytest.raises(OpenBlipError):
            read_source(DataSource("mine", **{"table": path}), tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for without end."""
    for name in ("t.csv", "t.jsonl", "t.parquet", "t.tar", "photos/a.txt", "photos/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    put(tmp_path / "photos/a.jpg")
    put(tmp_path / "photos/b.jpg")
    for kind in ("table", "captions", "questions"):
        for name in ("t.csv", "t.jsonl", "t.parquet", "t.tar", "photos"):
            with pytest.raises(OpenBlipError):
                read_source(DataSource("mine", **{kind: name}), tmp_path, [])
