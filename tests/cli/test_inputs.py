"""Images from lists, tables, tars and standard input."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from openblip.models.model import Model

from .conftest import Run

pytestmark = pytest.mark.usefixtures("captions")


@pytest.fixture
def captions(tiny_model: Model, image_paths: list[Path]) -> list[str]:
    return tiny_model.caption(image_paths[:2])


@pytest.fixture
def here(image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images, in which commands run."""
    for name, image_path in (("a.png", image_paths[0]), ("b ü.png", image_paths[1])):
        (tmp_path / name).write_bytes(image_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_parquet(path: Path, here: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    cells = [{"bytes": (here / name).read_bytes(), "path": name} for name in ("a.png", "b ü.png")]
    parquet.write_table(pyarrow.table({"image": cells, "caption": ["", ""]}), path)


def write_tar(path: Path, here: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "b ü.png"):
            tar.add(here / name, name)
            text = b"what somebody says"
            told = tarfile.TarInfo(name.replace(".png", ".txt"))
            told.size = len(text)
            tar.addfile(told, io.BytesIO(text))


def written(text: str, encoding: str = "utf-8") -> Callable[[Path, Path], None]:
    return lambda path, _: path.write_bytes(text.encode(encoding)) and None


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "list.txt": written("a.png\nb ü.png\n"),
    "windows.txt": written("a.png\r\n\r\nb ü.png", "utf-8-sig"),
    "found.txt": written("./a.png\0./b ü.png\0"),
    "list.lst": written("  a.png  \nb ü.png\n"),
    "table.csv": written('image,caption\na.png,"one, two"\nb ü.png,three\n'),
    "table.tsv": written("file_name\tcaption\na.png\tone\nb ü.png\ttwo\n"),
    "paths.csv": written("path\na.png\nb ü.png\n"),
    "table.jsonl": written('{"image": "a.png", "captions": [{"text": "x"}]}\n{"image": "b ü.png", "error": "y"}\n'),
    "table.json": written('[{"image": "a.png"}, {"image": "b ü.png"}]'),
    "table.parquet": write_parquet,
    "photos.tar": write_tar,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_list_gives_its_images(
    run: Run, here: Path, tiny_model_folder: Path, captions: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "below").mkdir()
    for path in (here / name, here / "below" / name):
        WRITERS[name](path, here)
    ran = run("caption", name, "-m", tiny_model_folder, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert [record["captions"][0]["text"] for record in ran.records] == captions
    assert ["a.png" in ran.records[0]["image"], "b ü.png" in ran.records[1]["image"]] == [True, True]
    # From elsewhere, the paths begin at the list's own folder.
    monkeypatch.chdir(here / "below")
    ran = run("caption", here / name, "-m", tiny_model_folder, "--json")
    assert [record["captions"][0]["text"] for record in ran.records] == captions


@pytest.mark.parametrize("name", ["list.txt", "table.csv", "photos.tar"])
def test_all_commands_take_them(run: Run, here: Path, tiny_model_folder: Path, name: str) -> None:
    WRITERS[name](here / name, here)
    model = ["-m", tiny_model_folder]
    assert len(run("ask", name, "what is it?", *model).lines) == 2
    assert len(run("match", name, "a dog", "a ball", *model, "--json").records) == 4
    assert len(run("embed", name, *model, "--json").records) == 2
    assert run("embed", name, *model, "--output", "f.npz").lines == ["f.npz: 2 images, 0 texts"]
    # Each image once, however it is named.
    first = run("caption", name, name, "a.png", *model).lines
    assert len(first) == (3 if name == "photos.tar" else 2)


def through_a_pipe(content: bytes, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-m", "openblip", *map(str, arguments)]
    return subprocess.run(program, input=content, capture_output=True, check=False)


def test_paths_from_standard_input(here: Path, tiny_model_folder: Path, captions: list[str]) -> None:
    lines = "a.png\nb ü.png\nnowhere.png\n".encode()
    ran = through_a_pipe(lines, "caption", "-", "-m", tiny_model_folder, "--output", "out.txt")
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.decode().startswith("error: nowhere.png: there is no such file; check the path")
    assert (here / "out.txt").read_text().splitlines() == [f"a.png: {captions[0]}", f"b ü.png: {captions[1]}"]


def test_an_image_from_standard_input(here: Path, tiny_model_folder: Path, captions: list[str]) -> None:
    ran = through_a_pipe((here / "a.png").read_bytes(), "caption", "-", "-m", tiny_model_folder)
    assert (ran.returncode, ran.stdout.decode(), ran.stderr) == (0, f"-: {captions[0]}\n", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "AVIF", "JPEG2000"])
def test_every_kind_of_image_is_known_by_its_beginning(
    run: Run, here: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    buffer = io.BytesIO()
    try:
        with Image.open(here / "a.png") as image:
            image.convert("RGB").save(buffer, kind)
    except (KeyError, OSError):
        pytest.skip(f"Pillow cannot write {kind} here")
    content = buffer.getvalue()
    (here / "image.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    ran = run("caption", "-", "image.txt", "-m", tiny_model_folder)
    assert (ran.code, ran.err, len(ran.lines)) == (0, "", 2)
    assert ran.lines[0].removeprefix("-: ") == ran.lines[1].removeprefix("image.txt: ")


def test_lists_of_nothing_are_told_in_a_sentence(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "empty.tar").write_bytes(bytes(10240))
    (here / "broken.tar").write_bytes(b"no tar" * 1000)
    wrong = {
        "empty.txt": ("", "empty.txt names no image"),
        "story.txt": (
            "Once upon a time\nthere was a dog.\n",
            "story.txt names no image that is there, Once upon a time",
        ),
        "captions.txt": ("a.png: a dog\nb.png: a cat\n", "captions.txt names no image that is there"),
        "binary.txt": ("\x01\x02\x03", "binary.txt names no image that is there"),
        "empty.csv": ("image\n", "empty.csv has no rows"),
        "other.csv": ("name,size\na,1\n", "has no column of images: name one image or image_path; it has name, size"),
        "hole.csv": ("image,x\na.png,1\n,2\n", "hole.csv, line 3, names no image"),
        "broken.jsonl": ('{"image": "a.png"}\n{"ima', "broken.jsonl, line 2, is not JSON"),
        "list.json": ('["a.png"]', "list.json"),
        "broken.parquet": ("no table", "broken.parquet"),
        "empty.tar": (None, "empty.tar: there is no image in this tar"),
        "broken.tar": (None, "broken.tar: there is no image in this tar"),
    }
    for name, (text, told) in wrong.items():
        if text is not None:
            (here / name).write_text(text)
        ran = run("caption", name)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), (name, ran)
        assert told in ran.err, ran.err
    for text, told in (
        ("", "standard input names no image"),
        ("nowhere.png\n", "standard input names no image that is"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        ran = run("caption", "-")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert told in ran.err
    monkeypatch.setattr(sys, "stdin", None)
    assert "there is no standard input" in run("caption", "-").err


def test_one_bad_line_costs_one_image(run: Run, here: Path, tiny_model_folder: Path, captions: list[str]) -> None:
    (here / "list.txt").write_text(f"a.png\n.\ngone.png\n{here}/x\nlist.txt\nb ü.png\n")
    ran = run("caption", "list.txt", "-m", tiny_model_folder, "--json")
    assert ran.code == 1
    assert [record["image"] for record in ran.records if "error" not in record] == ["a.png", "b ü.png"]
    assert ran.err.count("error: ") == 4
    assert ran.records[-1]["captions"][0]["text"] == captions[1]


def test_a_tiff_of_several_pages_is_told_of(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Of a file that is named; in a folder it is one image among many."""
    page, path = Image.new("L", (30, 20)), tmp_path / "scan.tif"
    page.save(path, save_all=True, append_images=[page, page])
    ran = run("caption", path, "--model", tiny_model_folder)
    assert (ran.code, len(ran.lines)) == (0, 1)
    assert f"{path} has 3 pages, of which the first is used: openblip analyze reads all of them" in ran.err
    assert "pages" not in run("caption", tmp_path, "--model", tiny_model_folder).err
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    assert "`openblip analyze` reads its pages" in run("caption", tmp_path / "a.pdf", "-m", tiny_model_folder).err
