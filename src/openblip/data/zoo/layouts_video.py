"""Readers of the annotation files of public video data sets; rows name the video file, frames are not read here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from openblip.data.sample import Sample
from openblip.data.sources.cells import encodable
from openblip.data.zoo.annotation_files import read_entries, read_lines, read_object
from openblip.data.zoo.layouts import Shared
from openblip.errors import OpenBlipError

MSRVTT_SPLITS = {"train": "train", "val": "validate", "test": "test"}


def read_lavis_videos(files: Sequence[Path], video_root: Path, split: str) -> list[Sample]:
    """LAVIS' lists: rows with `video` and a `caption` (or several), or a `question` with its `answer`."""
    shared = Shared(video_root)
    return [
        Sample(
            video=shared(row.file_name("video")),
            image_id=encodable(PurePosixPath(row.file_name("video")).stem),
            sample_id=row.id("question_id", "id"),
            captions=row.texts("caption"),
            question=row.text("question"),
            answers=row.texts("answer"),
        )
        for path in files
        for row in read_entries(path, "video")
    ]


def _captioned(shared: Shared, name: str, captions: tuple[str, ...], sample_id: str = "") -> Sample:
    stem = encodable(PurePosixPath(name).stem)
    return Sample(video=shared(name), image_id=stem, sample_id=sample_id, captions=captions)


def read_msrvtt(files: Sequence[Path], video_root: Path, split: str) -> list[Sample]:
    """MSR-VTT's `train_val_videodatainfo.json` and its like: `videos` with their splits, and `sentences`."""
    shared = Shared(video_root)
    samples = []
    for path in files:
        content = read_object(path, "videos", "sentences")
        videos = (entry for entry in content.entries("videos") if entry.text("split") == MSRVTT_SPLITS[split])
        wanted = {entry.file_name("video_id") for entry in videos}
        for row in content.entries("sentences"):
            row.need("video_id", "caption")
            if (stem := row.file_name("video_id")) in wanted:
                samples.append(_captioned(shared, f"{stem}.mp4", (row.text("caption"),), row.id("sen_id")))
    return samples


def read_video_questions(files: Sequence[Path], video_root: Path, split: str) -> list[Sample]:
    """MSRVTT-QA's and MSVD-QA's `train_qa.json`: `video_id` is a number.

    For MSR-VTT, it is the number of the video. For MSVD, a second file, `youtube_mapping.txt`, has lines of the name of
    a video and vidN.
    """
    shared = Shared(video_root)
    names: dict[str, str] = {}
    for path in files:
        if path.suffix == ".txt":
            pairs = (line.split() for line in read_lines(path) if line.strip())
            names |= {label: f"{name}.avi" for name, label in pairs}
    samples = []
    for path in (path for path in files if path.suffix != ".txt"):
        for row in read_entries(path, "question", "answer", "video_id"):
            number = row.number("video_id")
            name = names.get(f"vid{number}") if names else f"video{number}.mp4"
            if name is None:
                raise OpenBlipError(f"{path} asks about vid{number}, which the mapping beside it does not name")
            sample = _captioned(shared, name, (), row.id("question_id", "id"))
            samples.append(replace(sample, question=row.text("question"), answers=row.texts("answer")))
    return samples


def read_msvd_captions(files: Sequence[Path], video_root: Path, split: str) -> list[Sample]:
    """MSVD's `AllVideoDescriptions.txt` (a video's name and a sentence a line) with the list of videos of a split."""
    described, listed = files
    wanted = {line.strip() for line in read_lines(listed) if line.strip()}
    wanted = {re.sub(r"\.(avi|mp4)$", "", name) for name in wanted}
    shared = Shared(video_root)
    samples = []
    for line in read_lines(described):
        name, _, caption = line.strip().partition(" ")
        if name in wanted and caption and not line.startswith("#"):
            samples.append(_captioned(shared, f"{name}.avi", (caption,)))
    if not samples:
        raise OpenBlipError(f"{described} describes no video that {listed} lists: they do not belong together")
    return samples


def read_didemo(files: Sequence[Path], video_root: Path, split: str) -> list[Sample]:
    """DiDeMo's `train_data.json`: descriptions of moments, used as descriptions of the whole video."""
    shared = Shared(video_root)
    return [
        _captioned(shared, row.file_name("video"), (row.text("description"),), row.id("annotation_id"))
        for path in files
        for row in read_entries(path, "video", "description")
    ]


def read_vatex(files: Sequence[Path], video_root: Path, split: str) -> list[Sample]:
    """VATEX' `vatex_training_v1.0.json`: ten English captions a video (and ten Chinese ones, left out)."""
    shared = Shared(video_root)
    return [
        _captioned(shared, f"{row.file_name('videoID')}.mp4", row.texts("enCap"))
        for path in files
        for row in read_entries(path, "videoID")
    ]
