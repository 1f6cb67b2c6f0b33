"""`openblip caption`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import openblip
from openblip.errors import printable
from openblip.models.model import Model
from openblip.results import Captioned, GeneratedText

from .conftest import Run


class FakeModel:
    """Gives captions one at a time and runs a check between two of them."""

    def __init__(self, between: Any) -> None:
        self.between = between

    def caption_many(self, images: list[str], **_: object) -> Iterator[Captioned]:
        for index, image in enumerate(images):
            if index:
                self.between()
            yield Captioned(image, (GeneratedText(f"caption {index}", -1.0),))


def test_a_line_an_image(run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    ran = run("caption", *image_paths, "-m", tiny_model_folder, "--batch-size", "2")
    assert (ran.code, ran.err) == (0, "")
    captions = tiny_model.caption(image_paths)
    assert ran.lines == [f"{image_path}: {caption}" for image_path, caption in zip(image_paths, captions, strict=True)]


def test_json_and_several_captions(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    ran = run("caption", image_paths[0], image_paths[1], "-m", tiny_model_folder, "--num-captions", "2", "--json")
    found = tiny_model.caption_many(image_paths[:2], num_captions=2)
    assert ran.records == [
        {
            "image": one.source,
            "captions": [{"text": each.text, "score": pytest.approx(each.score, rel=1e-5)} for each in one.captions],
        }
        for one in found
    ]
    text = run("caption", image_paths[0], "-m", tiny_model_folder, "--num-captions", "2")
    assert text.lines == [f"{image_paths[0]}: {each['text']}" for each in ran.records[0]["captions"]]


def test_generation_options_arrive(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    base = ["caption", str(image_paths[0]), "-m", str(tiny_model_folder)]
    flags: dict[str, dict[str, Any]] = {
        "--num-beams 2 --length-penalty -2 --max-new-tokens 5": {
            "num_beams": 2,
            "length_penalty": -2.0,
            "max_new_tokens": 5,
        },
        "--top-p 0.95 --temperature 1.4 --seed 5": {"top_p": 0.95, "temperature": 1.4, "seed": 5},
        "--top-k 9 --seed 0 --min-new-tokens 6": {"top_k": 9, "seed": 0, "min_new_tokens": 6},
        "--num-beams 1 --repetition-penalty 3": {"num_beams": 1, "repetition_penalty": 3.0},
    }
    for words, options in flags.items():
        expected = tiny_model.caption(image_paths[0], prompt="a dog", **options)
        assert run(*base, "--prompt", "a dog", *words.split()).lines == [f"{image_paths[0]}: {printable(expected)}"]
    ran = run(*base, "--num-beams", "3", "--top-p", "0.9")
    assert (ran.code, ran.out) == (2, "")
    assert "num_beams" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_broken_images_do_not_stop_the_others(
    run: Run, tiny_model_folder: Path, mixed_folder: Path, as_json: bool
) -> None:
    ran = run("caption", mixed_folder, "-r", "-m", tiny_model_folder, *(["--json"] if as_json else []))
    assert ran.code == 1
    assert ran.err.startswith(f"error: {mixed_folder / 'b.jpg'}: is not an image")
    assert ran.err.count("\n") == 1
    if as_json:
        names = [Path(record["image"]).relative_to(mixed_folder).as_posix() for record in ran.records]
        assert names == ["a.png", "b.jpg", "c.png", "more/d.png"]
        assert ran.records[1]["error"].startswith("is not an image")
    else:
        names = [line.partition(": ")[0].removeprefix(f"{mixed_folder}{os.sep}") for line in ran.lines]
        assert names == ["a.png", "c.png", os.path.join("more", "d.png")]


def test_captions_appear_while_others_are_made(
    run: Run, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(openblip, "load", lambda *_, **__: FakeModel(lambda: seen.append(capsys.readouterr().out)))
    run("caption", *image_paths[:3])
    assert seen == [f"{image_paths[0]}: caption 0\n", f"{image_paths[1]}: caption 1\n"]


def test_an_output_file_appears_when_it_is_complete(
    run: Run, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("old", encoding="utf-8")

    def interrupt() -> None:
        assert path.read_text(encoding="utf-8") == "old"
        raise KeyboardInterrupt

    monkeypatch.setattr(openblip, "load", lambda *_, **__: FakeModel(interrupt))
    assert run("caption", *image_paths, "--output", path).code == 130
    assert [entry.name for entry in tmp_path.iterdir()] == ["captions.txt"]
    assert path.read_text(encoding="utf-8") == "old"

    monkeypatch.setattr(openblip, "load", lambda *_, **__: FakeModel(lambda: None))
    ran = run("caption", *image_paths[:2], "--output", path, "--json")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    written = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["captions"][0]["text"] for line in written] == ["caption 0", "caption 1"]


def test_an_output_that_cannot_be_written_is_told_before_the_model_loads(
    run: Run, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblip, "load", lambda *_, **__: pytest.fail("loaded a model for nothing"))
    for output in (tmp_path, tmp_path / "no" / "captions.txt"):
        ran = run("caption", image_paths[0], "--output", output)
        assert ran.code == 2
        assert f"{output} cannot be written" in ran.err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes among its files")
def test_pipes_are_written_to_not_replaced(
    run: Run, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblip, "load", lambda *_, **__: FakeModel(lambda: None))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("caption", image_paths[0], "--output", pipe).code == 0
        assert os.read(reader, 1000).decode() == f"{image_paths[0]}: caption 0\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_file_names_stay_on_one_line_and_survive_json(
    run: Run, image_paths: list[Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    for name in (b"two\nlines.png", b"latin-\xe9.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        Path(os.fsdecode(path)).write_bytes(image_paths[0].read_bytes())
    text = run("caption", tmp_path, "-m", tiny_model_folder)
    assert (text.code, len(text.lines)) == (0, 2)
    images = {record["image"] for record in run("caption", tmp_path, "-m", tiny_model_folder, "--json").records}
    assert {os.path.basename(os.fsencode(image)) for image in images} == {
        b"two\nlines.png",
        b"latin-\xe9.png",
    }


def test_the_progress_bar_stays_out_of_the_results(
    run: Run, image_paths: list[Path], mixed_folder: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    ran = run("caption", mixed_folder, "-m", tiny_model_folder)
    assert [line.partition(": ")[0] for line in ran.lines] == [str(mixed_folder / name) for name in ("a.png", "c.png")]
    assert "3/3" in terminal.getvalue()
    assert "b.jpg" in terminal.getvalue()
