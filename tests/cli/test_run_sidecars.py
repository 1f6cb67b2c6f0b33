"""`openblip run --sidecar` with a real model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from openblip.jobs.xmp import read_xmp
from openblip.models.model import Model
from tests.cli.conftest import Run


@pytest.fixture
def photos(image_paths: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in image_paths[:3]:
        shutil.copy(path, folder)
    return folder


def test_captions_beside_photos(run: Run, tiny_model: Model, tiny_model_folder: Path, photos: Path) -> None:
    (photos / "photo2.txt").write_text("mine")
    command = ["run", "caption", photos, "--sidecar", "txt", "--model", tiny_model_folder, "--batch-size", "2"]
    dry = run(*command, "--dry-run")
    assert dry.lines[0] == "rows        2 of 3, 0 of them done"
    assert dry.lines[3:] == [
        "to write    2 .txt files",
        "to skip     1 photos, which have a text already",
        f"kept in     {photos}/sidecars.openblip, until all is done",
    ]
    ran = run(*command)
    assert (ran.code, ran.out) == (0, f"{photos}: 2 .txt files written, 1 photo skipped\n")
    first, _, third = (tiny_model.caption(photos / f"photo{number}.png") for number in (1, 2, 3))
    texts = {path.name: path.read_text() for path in photos.glob("*.txt")}
    assert texts == {"photo1.txt": f"{first}\n", "photo2.txt": "mine", "photo3.txt": f"{third}\n"}
    # The model never sees what is skipped.
    ran = run(*command[:-4], "--model", photos / "none")
    assert (ran.code, ran.out) == (0, f"{photos}: 0 .txt files written, 3 photos skipped\n")
    assert run(*command, "--existing", "append").code == 0
    assert (photos / "photo1.txt").read_text() == f"{first}\n"
    assert len(list(photos.iterdir())) == 6


def test_labels_are_keywords_and_answers_descriptions(
    run: Run, tiny_model: Model, tiny_model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,q\nphotos/photo1.png,what is it?\nphotos/gone.png,what?\n")
    asked = ["ask", table, "--question-column", "q"]
    ran = run("run", *asked, "--sidecar", "xmp", "--model", tiny_model_folder)
    assert (ran.code, ran.out) == (1, f"{table}: 1 .xmp file written, 0 photos skipped, 1 with an error\n")
    assert f"error: {tmp_path}/photos/gone.png: there is no such file; check the path\n" in ran.err
    command = ["classify", photos, "-l", "dog", "-l", "ball", "--sidecar", "xmp", "-m", tiny_model_folder]
    assert run("run", *command).code == 0
    found = read_xmp((photos / "photo1.png.xmp").read_bytes(), photos)
    answer = tiny_model.ask(photos / "photo1.png", "what is it?")
    assert found.description == ({"x-default": answer} if answer else {})
    assert found.subjects == (tiny_model.classify(photos / "photo1.png", ["dog", "ball"])[0].label,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "table.csv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["caption"], "say where the results go: --output FILE, or --sidecar for files beside the photos"),
        (["caption", "-o", "x.csv", "--existing", "skip"], "--existing is for files beside photos: give --sidecar"),
        (["caption", "--sidecar", "txt", "--num-captions", "2"], "a file beside a photo has one caption"),
        (["caption", "--sidecar", "txt", "--column", "x"], "--column is for tables"),
        (["embed", "--sidecar", "txt"], "run embed gives no text for a file beside a photo: give --output FILE"),
        (["match", "-t", "a dog", "--sidecar", "xmp"], "run match gives no text for a file beside a photo"),
        (["caption", "--sidecar", "txt", "-o", "no/work"], "no/work cannot be written"),
    ],
)
def test_refusals(run: Run, photos: Path, arguments: list[str], said: str) -> None:
    ran = run("run", arguments[0], photos, *arguments[1:])
    assert ran.code == 2 and said in ran.err
    ran = run("run", "caption", "https://example.org/a.jpg", "--sidecar", "txt")
    assert ran.code == 2 and "https://example.org/a.jpg is a web address, so nothing can lie beside it" in ran.err
    assert len(list(photos.iterdir())) == 3
