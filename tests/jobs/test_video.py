"""What is said of a video, and the files that it is written to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.errors import CheckpointError, ImageError, OpenBlipError, OptionError
from openblip.images.video import View
from openblip.jobs.kept_output import KeptOutput
from openblip.jobs.video.description import Description, VideoQuestions, describe
from openblip.jobs.video.output import check_outputs, write_outputs
from openblip.jobs.video.run import describe_video
from openblip.jobs.video.segment import Segment
from openblip.jobs.video.subtitles import srt_lines, vtt_lines
from openblip.jobs.video.thumbnails import Thumbnails
from openblip.jobs.words import load_word_lists
from openblip.results import Answered, Captioned, GeneratedText
from tests.videos import number_of, numbered, write_video

ODD = 'a <i>"dog"</i> --> & {\\an8}runs'


class Speaker:
    """Says what its list has for the number that an image shows."""

    name = "speaker"
    abilities = ("caption", "ask")

    def __init__(self, texts: Iterable[str], stop_at: int | None = None) -> None:
        self.texts = list(texts)
        self.stop_at = stop_at
        self.batches: list[list[int]] = []

    def caption_many(self, images: list[Image.Image], **_: object) -> Iterator[Captioned]:
        numbers = [number_of(image) for image in images]
        self.batches.append(numbers)
        if self.stop_at in numbers:
            raise KeyboardInterrupt
        return (Captioned("", (GeneratedText(self.texts[number // 25], 0.0),)) for number in numbers)

    def ask_many(self, pairs: list[tuple[Image.Image, tuple[str, ...]]], **_: object) -> Iterator[Answered]:
        for image, questions in pairs:
            answers = tuple(GeneratedText(f"{number_of(image) // 50}", 0.0) for _ in questions)
            yield Answered("", questions, answers)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds; the image of each second is another."""
    folder = tmp_path_factory.mktemp("clip")
    return write_video(folder / "a & b.mp4", [numbered(index // 25 * 25) for index in range(150)])


TEXTS = ["a dog", "a dog", "a red cat", "", ODD, "a dog"]


def said(clip: Path, outputs: Iterable[Path] = (), **options: Any) -> tuple[Description, Speaker]:
    speaker = Speaker(TEXTS, options.pop("stop_at", None))
    return describe_video(clip, lambda: speaker, VideoQuestions(batch_size=4, **options), list(outputs)), speaker


def test_the_same_words_are_one_segment(clip: Path) -> None:
    found, speaker = said(clip)
    assert [(one.start, one.end, one.caption) for one in found.segments] == [
        (0, 2, "a dog"),
        (2, 3, "a red cat"),
        (3, 4, ""),
        (4, 5, ODD),
        (5, 6, "a dog"),
    ]
    assert speaker.batches == [[0, 25, 50, 75], [100, 125]]
    assert found.fault is None and found.images == 6


def test_answers_and_words_of_lists(clip: Path) -> None:
    found, _ = said(clip, questions=("which half?",), word_lists=load_word_lists("colors"))
    assert [(one.start, one.answers["which half?"]) for one in found.segments] == [
        (0, "0"),
        (2, "1"),
        (3, "1"),
        (4, "2"),
        (5, "2"),
    ]
    assert found.segments[1].found == {"colors": ["red"]}
    found, _ = said(clip, questions=("which half?",), captions=False)
    assert [(one.start, one.end, one.caption) for one in found.segments] == [(0, 2, None), (2, 4, None), (4, 6, None)]


def test_each_file(clip: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("a.srt", "a.vtt", "a.json", "a.html")]
    said(clip, outputs, questions=("which <b>half</b>?",))
    srt, vtt, document, page = (path.read_text(encoding="utf-8") for path in outputs)
    assert srt.startswith("1\n00:00:00,000 --> 00:00:02,000\na dog\nwhich \u2039b\u203ahalf\u2039/b\u203a? 0\n\n2\n")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\na dog\nwhich &lt;b&gt;half&lt;/b&gt;? 0\n\n")
    record = json.loads(document)
    assert (record["complete"], record["error"], record["video"]) == (True, None, "a & b.mp4")
    assert record["segments"][3] == {
        "start": 4,
        "end": 5,
        "time": 4,
        "caption": ODD,
        "answers": {"which <b>half</b>?": "2"},
    }
    assert "<title>a &amp; b.mp4</title>" in page and "<b>half" not in page and ODD not in page
    reader = Images()
    reader.feed(page)
    assert len(reader.sources) == 5 and "href" not in page
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.sources)
    assert sorted(tmp_path.iterdir()) == sorted(outputs)  # no lock and no draft is left


class Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attributes)["src"] or "")


def test_subtitles_are_never_empty_and_never_begin_after_their_frame() -> None:
    segments = [
        Segment(0, 0, 0, "short"),
        Segment(0.9676, 1.9686, 0.9676, "a\n\nb"),
        Segment(2, 3, 2, " "),
        Segment(3, 4, 3, None, {"how many?": ""}),
        Segment(3723.0004, 3724, 3, "late"),
    ]
    assert list(srt_lines(segments)) == [
        "1\n00:00:00,000 --> 00:00:00,001\nshort\n\n",
        "2\n00:00:00,967 --> 00:00:01,968\na b\n\n",
        "3\n01:02:03,000 --> 01:02:04,000\nlate\n\n",
    ]
    assert "".join(vtt_lines([], "a --> b")) == "WEBVTT\n\nNOTE a -> b\n\n"


@pytest.mark.parametrize("names", [["a.srt"], ["a.srt", "a.vtt", "a.json", "a.html"]])
def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(clip: Path, tmp_path: Path, names: list[str]) -> None:
    outputs, others = [tmp_path / name for name in names], [tmp_path / f"other.{name}" for name in names]
    with pytest.raises(KeyboardInterrupt):
        said(clip, outputs, stop_at=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.srt.openblip"]
    found, speaker = said(clip, outputs)
    assert (speaker.batches, found.images) == ([[100, 125]], 6)
    whole, _ = said(clip, others)
    assert [path.read_bytes() for path in outputs] == [path.read_bytes() for path in others]
    assert found.segments == whole.segments or found.segments[0].thumbnail
    assert sorted(tmp_path.iterdir()) == sorted([*outputs, *others])


@pytest.mark.parametrize("when", ["draft", "place"])
def test_a_kill_when_only_the_files_are_left_to_write(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Of two files none, or one, is in its place; the same call puts the other there, and does not ask the model."""
    outputs = [tmp_path / "a.json", tmp_path / "a.srt"]

    def killed(self: KeptOutput) -> None:
        if when == "draft":
            (tmp_path / "a.json").unlink()
        (tmp_path / "a.srt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(KeptOutput, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            said(clip, outputs)
    _, speaker = said(clip, outputs)
    assert speaker.batches == [] and all(path.exists() for path in outputs)
    assert sorted(tmp_path.iterdir()) == outputs


def test_what_somebody_put_there_meanwhile_is_not_overwritten(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        said(clip, [tmp_path / "a.srt"], stop_at=100)
    (tmp_path / "a.srt").write_text("mine", encoding="utf-8")
    with pytest.raises(OptionError, match="is there already"):
        said(clip, [tmp_path / "a.srt"])


def test_another_video_does_not_go_on_with_what_is_kept(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b.mp4"
    shutil.copy(clip, copy)
    with pytest.raises(KeyboardInterrupt):
        said(copy, [tmp_path / "a.srt"], stop_at=100)
    write_video(copy, [numbered(index // 25 * 50) for index in range(100)])
    with pytest.raises(OpenBlipError, match="the video changed"):
        said(copy, [tmp_path / "a.srt"])


def test_what_comes_before_a_fault_is_kept(clip: Path, tmp_path: Path) -> None:
    frames = [numbered(index // 25 * 25, (160, 400)) for index in range(150)]
    generator = np.random.default_rng(0)
    for frame in frames:
        frame.paste(Image.fromarray(generator.integers(0, 255, (304, 160, 3), dtype=np.uint8)), (0, 96))
    whole = write_video(tmp_path / "a.mp4", frames, options={"preset": "ultrafast"}, mux={"movflags": "faststart"})
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * 0.6)])
    found, _ = said(whole, [tmp_path / "a.srt", tmp_path / "a.json"])
    assert found.fault is not None and "cut short" in found.fault
    assert found.segments[0].end == 2
    record = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert record["error"] == found.fault and record["complete"] is False


def test_nothing_is_written_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ImageError):
        said(tmp_path / "a.mp4", [tmp_path / "a.srt"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_outputs_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.srt").touch()
    for names, why in [
        (["a.srt"], "is there already"),
        (["a.txt"], "unknown ending"),
        (["b/a.srt"], "does not exist"),
        (["b.srt", "b.srt"], "twice"),
    ]:
        with pytest.raises(OptionError, match=why):
            check_outputs([tmp_path / name for name in names])


def test_options_that_contradict_and_abilities_that_lack(clip: Path) -> None:
    for options, why in [
        ({"captions": False}, "nothing to say"),
        ({"questions": ("a?", "a?")}, "twice"),
        ({"questions": (" ?",)}, "empty"),
        ({"captions": False, "questions": ("a?",), "prompt": "a"}, "about captions"),
        ({"every": 0.0}, "every is"),
    ]:
        with pytest.raises(OptionError, match=why):
            VideoQuestions(**options)
    mute = Speaker([])
    mute.abilities = ("embed",)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="no language model to caption"):
        describe_video(clip, lambda: mute, VideoQuestions())


def test_a_page_is_written_from_a_file_not_from_memory(tmp_path: Path) -> None:
    views = (View(second, second + 1, second, numbered(second)) for second in range(30))
    with Thumbnails() as thumbnails:
        found = Description("a.mp4", 30, "speaker", VideoQuestions())
        describe(views, Counting(), found, thumbnails)
        write_outputs([tmp_path / "a.html"], found, thumbnails, tmp_path)
    reader = Images()
    reader.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert len(set(reader.sources)) == 30


class Counting(Speaker):
    def __init__(self) -> None:
        super().__init__([])

    def caption_many(self, images: list[Image.Image], **_: object) -> Iterator[Captioned]:
        return (Captioned("", (GeneratedText(str(number_of(image)), 0.0),)) for image in images)


@pytest.mark.parametrize("name", ["a.srt", "a.vtt"])
def test_a_player_reads_the_subtitles(clip: Path, tmp_path: Path, name: str) -> None:
    """By FFmpeg's own parser, which PyAV has within it."""
    import av

    said(clip, [tmp_path / name], questions=("which half?",))
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.subtitles[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        scale = float(stream.time_base or 0)
        times = [(packet.pts * scale, (packet.pts + packet.duration) * scale) for packet in packets]
        lines = [dialogue_of(packet) for packet in packets]
    assert times == pytest.approx(np.array([(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]))
    assert lines[:3] == [["a dog", "which half? 0"], ["a red cat", "which half? 1"], ["which half? 1"]]
    # SubRip has no way to write these signs so that all players show them; WebVTT has.
    start = 'a <i>"dog"</i> --> & ' if name == "a.vtt" else 'a \u2039i\u203a"dog"\u2039/i\u203a \u2192 & '
    assert lines[3][0].startswith(start) and lines[3][0].endswith("an8}runs" if name == "a.vtt" else "(\\an8)runs")


def dialogue_of(packet: Any) -> list[str]:
    """The lines of a subtitle as a player gets them, in the form of ASS: nine fields, then the text."""
    (subtitle,) = packet.decode()
    ass = subtitle.dialogue if hasattr(subtitle, "dialogue") else subtitle.ass.split(b",", 8)[-1]
    text = ass.decode() if isinstance(ass, bytes) else str(ass)
    return text.split("\\N") if "\\N" in text else text.split("\n")
