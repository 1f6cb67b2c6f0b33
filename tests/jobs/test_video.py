"""What is said of a video, and the files that it is written to."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.errors import CheckpointError, ImageError, OptionError
from openblip.images.video import View
from openblip.jobs.video.description import Description, Segment, VideoQuestions, describe
from openblip.jobs.video.output import check_outputs, write_outputs
from openblip.jobs.video.run import describe_video
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
    assert found.is_complete and found.images == 6


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


def test_ctrl_c_keeps_what_is_done(clip: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("a.srt", "a.vtt", "a.json", "a.html")]
    with pytest.raises(KeyboardInterrupt):
        said(clip, outputs, stop_at=100)
    srt, vtt, document, page = (path.read_text(encoding="utf-8") for path in outputs)
    assert srt.endswith("2\n00:00:02,000 --> 00:00:03,000\na red cat\n\n")
    assert "NOTE the end of the video was not described" in vtt
    assert json.loads(document)["complete"] is False
    assert "Stopped at 0:00:04" in page and page.endswith("</html>\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "a.srt", "a.vtt"]


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


def test_files_are_written_now_and_then(clip: Path, tmp_path: Path) -> None:
    """Whoever kills the process loses a minute at most."""
    times = iter(range(0, 10_000, 100))
    sizes: list[int] = []

    class Watching(Speaker):
        def caption_many(self, images: list[Image.Image], **options: object) -> Iterator[Captioned]:
            sizes.append((tmp_path / "a.srt").stat().st_size if (tmp_path / "a.srt").exists() else 0)
            return super().caption_many(images, **options)

    questions = VideoQuestions(batch_size=2)
    describe_video(clip, lambda: Watching(TEXTS), questions, [tmp_path / "a.srt"], clock=lambda: float(next(times)))
    assert sizes[0] == 0 and 0 < sizes[1] < sizes[2]


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
        write_outputs([tmp_path / "a.html"], found, thumbnails)
    reader = Images()
    reader.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert len(set(reader.sources)) == 30


class Counting(Speaker):
    def __init__(self) -> None:
        super().__init__([])

    def caption_many(self, images: list[Image.Image], **_: object) -> Iterator[Captioned]:
        return (Captioned("", (GeneratedText(str(number_of(image)), 0.0),)) for image in images)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("name", ["a.srt", "a.vtt"])
def test_a_player_reads_the_subtitles(clip: Path, tmp_path: Path, name: str) -> None:
    said(clip, [tmp_path / name])
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / name, "-f", "srt", "-"]
    read = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True, stdin=subprocess.DEVNULL)
    assert read.stderr == ""
    cues = [cue.split("\n", 2)[1:] for cue in read.stdout.strip().split("\n\n")]
    assert [times for times, _ in cues] == [
        "00:00:00,000 --> 00:00:02,000",
        "00:00:02,000 --> 00:00:03,000",
        "00:00:04,000 --> 00:00:05,000",
        "00:00:05,000 --> 00:00:06,000",
    ]
    assert [text for _, text in cues][:2] == ["a dog", "a red cat"]
    assert "dog" in cues[2][1] and "runs" in cues[2][1]
