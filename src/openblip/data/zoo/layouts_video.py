"""Annotation files of the public video data sets to samples; rows name the film, frames are not taken here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.data.sample import Sample
from openblip.data.zoo.layouts import Shared, read_object, read_rows, texts
from openblip.errors import OpenBlipError

MSRVTT_SPLITS = {"train": "train", "val": "validate", "test": "test"}


def read_lavis_videos(files: Sequence[Path], films: Path, split: str) -> list[Sample]:
    """LAVIS' lists: rows with `video` and a `caption` (or several), or a `question` with its `answer`."""
    shared = Shared(films)
    return [_row(shared, str(row["video"]), row) for path in files for row in read_rows(path, "video")]


def _row(shared: Shared, name: str, row: Mapping[str, Any]) -> Sample:
    return Sample(
        video=shared(name),
        image_id=PurePosixPath(name).stem,
        sample_id=str(row.get("question_id", row.get("id", ""))),
        captions=texts(row.get("caption")),
        question=str(row.get("question", "")),
        answers=texts(row.get("answer")),
    )


def read_msrvtt(files: Sequence[Path], films: Path, split: str) -> list[Sample]:
    """MSR-VTT's `train_val_videodatainfo.json` and its like: `videos` with their splits, and `sentences`."""
    shared = Shared(films)
    samples = []
    for path in files:
        content = read_object(path, "videos", "sentences")
        wanted = {entry["video_id"] for entry in content["videos"] if entry.get("split") == MSRVTT_SPLITS[split]}
        samples += [
            _row(shared, f"{row['video_id']}.mp4", {"caption": row["caption"], "id": row.get("sen_id", "")})
            for row in content["sentences"]
            if row["video_id"] in wanted
        ]
    return samples


def read_video_questions(files: Sequence[Path], films: Path, split: str) -> list[Sample]:
    """MSRVTT-QA's and MSVD-QA's `train_qa.json`: `video_id` is a number.

    Of MSR-VTT it is the film's own; for MSVD a second file, `youtube_mapping.txt`, has lines of a film's name and vidN.
    """
    shared = Shared(films)
    names: dict[str, str] = {}
    for path in files:
        if path.suffix == ".txt":
            pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            names |= {label: f"{name}.avi" for name, label in pairs}
    samples = []
    for path in (path for path in files if path.suffix != ".txt"):
        for row in read_rows(path, "question", "answer", "video_id"):
            number = row["video_id"]
            name = names.get(f"vid{number}") if names else f"video{number}.mp4"
            if name is None:
                raise OpenBlipError(f"{path} asks about vid{number}, which the mapping beside it does not name")
            samples.append(_row(shared, name, row))
    return samples


def read_msvd_captions(files: Sequence[Path], films: Path, split: str) -> list[Sample]:
    """MSVD's `AllVideoDescriptions.txt` (a film's name and a sentence a line) with the list of films of a split."""
    described, listed = files
    wanted = {line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()}
    wanted = {re.sub(r"\.(avi|mp4)$", "", name) for name in wanted}
    shared = Shared(films)
    samples = []
    for line in described.read_text(encoding="utf-8").splitlines():
        name, _, caption = line.strip().partition(" ")
        if name in wanted and caption and not line.startswith("#"):
            samples.append(_row(shared, f"{name}.avi", {"caption": caption}))
    if not samples:
        raise OpenBlipError(f"{described} describes no film that {listed} lists: they do not belong together")
    return samples


def read_didemo(files: Sequence[Path], films: Path, split: str) -> list[Sample]:
    """DiDeMo's `train_data.json`: a description of a moment of a film, of which the whole film is taken."""
    shared = Shared(films)
    return [
        _row(shared, row["video"], {"caption": row["description"], "id": row.get("annotation_id", "")})
        for path in files
        for row in read_rows(path, "video", "description")
    ]


def read_vatex(files: Sequence[Path], films: Path, split: str) -> list[Sample]:
    """VATEX' `vatex_training_v1.0.json`: ten English captions a film (and ten Chinese ones, left out)."""
    shared = Shared(films)
    return [
        _row(shared, f"{row['videoID']}.mp4", {"caption": row.get("enCap")})
        for path in files
        for row in read_rows(path, "videoID")
    ]
