"""What a text of outside may name as an image, and what it may not."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import ImageError, OptionError
from openblip.images import references
from openblip.images.references import ImageReferences, name_of
from openblip.web.policy import UrlPolicy

from ..test_web import GOOD, PNG, serving

BASE64 = base64.b64encode(PNG).decode()


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(PNG)
    (root / "sub" / "b c.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "photos2").mkdir()
    (tmp_path / "photos2" / "c.png").write_bytes(PNG)
    return root


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;name=a.png;base64,{BASE64}",
        f"data:;base64,{BASE64.rstrip('=')}",
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        BASE64,
        "\n" + "\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)) + "\n",
    ],
)
def test_an_image_in_the_text_itself(text: str) -> None:
    images = ImageReferences(paths=False)
    assert images.read(text) == PNG
    assert images.load(text).size == (8, 8)
    assert len(name_of(text)) < 60


@pytest.mark.parametrize(
    "text", ["a.png", "./a.png", "sub/b c.png", "sub/../a.png", "{root}/a.png", "file://{root}/sub/b%20c.png"]
)
def test_a_file_in_the_folder(root: Path, text: str) -> None:
    assert ImageReferences(root).load(text.format(root=root)).size == (8, 8)


@pytest.mark.parametrize(
    "text",
    [
        *("../secret.png", "sub/../../secret.png", "{root}/../secret.png", "../photos2/c.png", "..", ".", "{root}"),
        *("/etc/passwd", "/etc/nothing", "file:///etc/passwd", "file://localhost/etc/passwd", "file:../secret.png"),
        *(
            "file:///%2e%2e/etc/passwd",
            "file://{root}/%2e%2e/secret.png",
            "link.png",
            "folder/secret.png",
            "~/a.png/../../..",
        ),
        *("../nothing.png", "gone/../../secret.png", "/proc/self/environ", "/dev/stdin"),
    ],
)
def test_what_lies_outside_of_the_folder_is_not_read_whether_it_is_there_or_not(root: Path, text: str) -> None:
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent)
    with pytest.raises(ImageError, match="lies outside of the folder that images are read from"):
        ImageReferences(root).load(text.format(root=root))


def test_links_within_the_folder_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to("sub/b c.png")
    (root.parent / "alias").symlink_to(root)
    assert ImageReferences(root.parent / "alias").load("link.png").size == (8, 8)


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="this system opens no file relative to a folder")
@pytest.mark.parametrize("swapped", ["sub", "sub/b c.png"])
def test_a_link_that_comes_between_the_check_and_the_opening_is_not_followed(
    root: Path, swapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_below = references._open_below

    def swap(folder: Path, place: Path) -> Any:
        (root / swapped).rename(root.parent / "moved")
        (root / swapped).symlink_to(root.parent / "moved")
        return open_below(folder, place)

    monkeypatch.setattr(references, "_open_below", swap)
    with pytest.raises(ImageError, match=r"b c\.png: cannot be opened"):
        ImageReferences(root).load("sub/b c.png")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gone.png", "there is no such file in the folder"),
        ("sub", "is a folder, not an image"),
        ("", "names no image"),
        (" \n", "names no image"),
        ("a\0.png", "names no image"),
        ("x" * 5000, "is no path|cannot be opened|no such file"),
        ("a.png/b.png", "cannot be opened|no such file"),
        ("ftp://example.org/a.png", "only http and https addresses|not allowed here"),
        ("http://example.org/a.png", "those are not allowed here"),
        ("file://elsewhere/a.png", "a file of another machine"),
        ("data:image/png;base64,????", "is no valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64," + "A" * 30, "is not an image"),
        ("data:" + "x" * 1000, "no such file|is no path|only http|not allowed|cannot be opened"),
        (3, "is no text"),
        (None, "is no text"),
    ],
)
def test_what_names_no_image(root: Path, text: Any, problem: str) -> None:
    with pytest.raises(ImageError, match=problem) as caught:
        ImageReferences(root).load(text)
    assert len(str(caught.value)) < 600


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes of POSIX")
def test_a_pipe_in_the_folder_holds_nobody_up(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    with pytest.raises(ImageError, match="named pipe"):
        ImageReferences(root).load("pipe.png")


def test_files_can_be_forbidden_or_free(root: Path) -> None:
    for text in (str(root / "a.png"), "a.png", f"file://{root}/a.png"):
        with pytest.raises(ImageError, match="files of this machine are not read here"):
            ImageReferences(root, paths=False).load(text)
    assert ImageReferences().load(str(root / "a.png")).size == (8, 8)


def test_limits_and_addresses() -> None:
    small = ImageReferences(max_bytes=len(PNG) - 1)
    for text in (BASE64, f"data:image/png;base64,{BASE64}", "data:image/png," + "%41" * 300 + "x" * 3000):
        with pytest.raises(ImageError, match="is larger than"):
            small.load(text)
    with serving((GOOD, b"")) as server, pytest.raises(ImageError, match="is larger than"):
        ImageReferences(urls=UrlPolicy("*", True), max_bytes=50).load(server.url)
    with serving((GOOD, b"")) as server:
        assert ImageReferences(urls=UrlPolicy("*", True)).load(f"{server.url}/a.png").size == (8, 8)


@pytest.mark.parametrize("wrong", [{"root": "/nowhere/at/all"}, {"root": ""}, {"max_bytes": 0}, {"urls": "*"}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ImageReferences(**wrong)


def test_a_long_text_is_not_kept_in_memory() -> None:
    """Python keeps the last addresses that it has split, however long they are."""
    from urllib.parse import urlsplit

    urlsplit.cache_clear()
    for text in ("data:image/png;base64," + "A" * 10**6, "http://example.org/" + "a" * 10**6):
        with pytest.raises(ImageError):
            ImageReferences(urls=UrlPolicy("*")).load(text)
    assert urlsplit.cache_info().currsize <= 1  # the beginning of the second one, for its name
