"""`openblip video`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from openblip.models.model import Model
from tests import warm
from tests.videos import write_video

from .conftest import Run

FOUR = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 220)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, each in a colour of its own."""
    images = [Image.new("RGB", (160, 96), FOUR[index // 25]) for index in range(100)]
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", images)


def test_a_line_for_each_part(run: Run, clip: Path, tiny_model_folder: Path) -> None:
    ran = run("video", clip, "-m", tiny_model_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].startswith("0:00:00-0:00:0") and ran.lines[-1].split()[0].endswith("-0:00:04")
    fine = run("video", clip, "-m", tiny_model_folder, "--every", "500ms", "--max-new-tokens", "2")
    assert fine.lines[0].startswith("0:00:00.0-0:00:0")


def test_files_and_questions(run: Run, clip: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a.srt", tmp_path / "a.json", tmp_path / "a.html"]
    flags = [flag for path in outputs for flag in ("-o", path)]
    ran = run("video", clip, "-m", tiny_model_folder, "--scenes", "--ask", "what is it?", "--find", "colors", *flags)
    assert (ran.code, ran.err) == (0, "")
    assert [line.split(": ")[0] for line in ran.lines] == [str(path) for path in outputs]
    record = json.loads(outputs[1].read_text(encoding="utf-8"))
    assert record["scenes"] is True and record["complete"] is True
    assert all(set(one["answers"]) == {"what is it?"} for one in record["segments"])
    again = run("video", clip, "-m", tiny_model_folder, "-o", outputs[0])
    assert again.code == 2 and "is there already" in again.err


def test_the_caption_is_that_of_the_frame(run: Run, clip: Path, tiny_model: Model, tiny_model_folder: Path) -> None:
    from openblip.images.video import read_frames

    images = [image for _, image in read_frames(clip)]
    captions = tiny_model.caption(images, prompt="a dog")
    shown = " ".join(run("video", clip, "-m", tiny_model_folder, "--prompt", "a dog", "--batch-size", "3").lines)
    assert all(" ".join(caption.split()) in " ".join(shown.split()) for caption in captions)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--every", "soon"], "give a time such as"),
        (["--every", "2s", "--scenes"], "give one of them"),
        (["--every", "0"], "every is 0.0"),
        (["-o", "a.txt"], "unknown ending"),
        (["--find", "colours"], "did you mean colors"),
        (["--no-captions"], "nothing to say"),
        (["--seed", "1"], "a seed is for sampling"),
    ],
)
def test_wrong_options(run: Run, clip: Path, tiny_model_folder: Path, flags: list[str], said: str) -> None:
    ran = run("video", clip, "-m", tiny_model_folder, *flags)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err and ran.err.count("\n") == 1


def test_what_is_no_video_loads_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    ran = run("video", tmp_path / "a.mp4", "-m", "no such model")
    assert (ran.code, ran.err) == (2, f"error: {tmp_path / 'a.mp4'}: is empty (0 bytes); copy or download it again\n")


def test_a_video_that_is_cut_short_ends_with_1(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    images = [Image.effect_noise((160, 96), 80).convert("RGB") for _ in range(100)]
    path = write_video(tmp_path / "a.mp4", images, mux={"movflags": "faststart"}, options={"preset": "ultrafast"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    ran = run("video", path, "-m", tiny_model_folder, "-o", tmp_path / "a.vtt")
    assert ran.code == 1
    assert "cut short" in ran.err and (tmp_path / "a.vtt").read_text(encoding="utf-8").startswith("WEBVTT\n\nNOTE ")


SLOW = """
import sys, time
from openblip.cli import main
from openblip.models.model import Model

caption_many = Model.caption_many

def slowly(self, images, **options):
    print("at work", file=sys.stderr, flush=True)
    time.sleep(0.2)
    return caption_many(self, images, **options)

Model.caption_many = slowly
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals that programs are told of")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_what_a_signal_stops_goes_on_to_the_same_bytes(
    run: Run, tiny_model_folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    images = [Image.new("RGB", (64, 64), (index % 200, 40 * (index % 5), 90)) for index in range(60)]
    path = write_video(tmp_path / "a.mp4", images, options={"preset": "ultrafast"})
    names = ["a.srt", "a.vtt", "a.json", "a.html"]
    (tmp_path / "whole").mkdir()

    def arguments(folder: Path) -> list[str]:
        flags = ["video", str(path), "--every", "40ms", "--batch-size", "2", "-m", str(tiny_model_folder)]
        return [*flags, *(flag for name in names for flag in ("-o", str(folder / name)))]

    program = warm.Process(["-c", SLOW, *arguments(tmp_path)], stderr=subprocess.PIPE)
    assert program.stderr is not None
    try:
        seen = ""
        while seen.count("at work") < 3:
            line = program.stderr.readline()
            assert line, seen
            seen += line
        program.send_signal(number)
        rest = program.communicate(timeout=600)[1]
    finally:
        program.kill()
        program.wait(timeout=600)
    assert program.returncode == code, seen + rest
    if number != signal.SIGKILL:
        assert "images are done and kept in" in rest and "stopped at 0:00:0" in rest and "Traceback" not in rest
    assert not any((tmp_path / name).exists() for name in names)

    other = run(*arguments(tmp_path), "--prompt", "a dog")
    assert other.code == 2 and "--prompt was left out, now a dog" in other.err
    again = run(*arguments(tmp_path))
    assert (again.code, "images are done" in again.err) == (0, True), again.err
    assert run(*arguments(tmp_path / "whole")).code == 0
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["a.mp4", *names, "whole"])


def test_help_is_there_without_pyav() -> None:
    program = "import sys; sys.modules['av'] = None\nfrom openblip.cli import main\nmain(['video', '--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and "--scenes" in done.stdout
