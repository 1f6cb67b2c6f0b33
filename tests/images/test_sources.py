"""Names, paths, folders and a real web server on this machine."""

from __future__ import annotations

import contextlib
import gc
import http.server
import io
import os
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openblip.errors import ImageError, OpenBlipError
from openblip.images import sources as image_sources
from openblip.images.decode import load_image
from openblip.images.sources import describe_source, download, find_images
from openblip.web.policy import url_policy

PHOTO = np.random.default_rng(0).integers(0, 256, (23, 37, 3), dtype=np.uint8)
_file = io.BytesIO()
Image.fromarray(PHOTO).save(_file, "PNG")
PNG = _file.getvalue()


# ---- names


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("photos/cat.jpg", "photos/cat.jpg"),
        (Path("cat.jpg"), "cat.jpg"),
        (b"12345", "<5 bytes>"),
        (np.zeros((4, 5, 3), np.uint8), "<uint8 array of shape (4, 5, 3)>"),
        (Image.new("L", (7, 8)), "<L image of 7 x 8 pixels>"),
        (io.BytesIO(), "<BytesIO>"),
        (3, "<int>"),
        ("two\nlines\udcff.png", "two\\nlines\\udcff.png"),
        ("x" * 5000, "x" * 199 + "…"),
        ("https://me:secret@host/a.png?token=secret#frag", "https://host/a.png?…"),
        ("https://[broken/a.png?token=secret", "https://[broken/a.png"),
        ("data:image/png;base64," + "A" * 500, "data:image/png;base64,AAAAAAAAAAAAAAAAAA…"),
    ],
)
def test_describing_a_source_is_short_printable_and_keeps_secrets(source: object, text: str) -> None:
    assert describe_source(source) == text


def test_describing_names_the_file_behind_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as file, Image.open(path) as image:
        assert describe_source(file) == describe_source(image) == str(path)


# ---- paths and objects


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=r"^gone\.jpg: there is no such file.*relative to .*test_paths"):
        load_image("gone.jpg")
    with pytest.raises(ImageError, match=r"gone\.jpg: there is no such file; check the path$"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("nul\0byte.jpg")
    with pytest.raises(ImageError, match="cannot be opened") as caught:
        load_image("iVBORw0KGgo" * 9999)  # base64 taken for a path
    assert len(str(caught.value)) < 400


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="file permissions of POSIX")
def test_a_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "private.png"
    path.write_bytes(PNG)
    path.chmod(0)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:  # the superuser may read everything
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match=r"private\.png: may not be read by this user; change"):
            load_image("private.png")
    finally:
        os.seteuid(user)
        path.chmod(0o600)


class BrokenFile(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise OSError("the disk is on fire")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "type int is no image; pass a path"),
        (None, "type NoneType is no image"),
        ([PNG], "type list is no image"),
        (io.StringIO("text"), "text mode"),
        (BrokenFile(), "the disk is on fire"),
        (Image.new("RGB", (0, 5)), "no pixels"),
    ],
)
def test_sources_of_other_kinds(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)


# ---- web addresses


class Site(http.server.BaseHTTPRequestHandler):
    release = threading.Event()

    def do_GET(self) -> None:
        redirects = {
            "/moved": "/photo.png",
            "/to-file": "file:///etc/passwd",
            "/to-ftp": "ftp://127.0.0.1/photo.png",
            "/to-data": "data:image/png;base64,AAAA",
            "/loop": "/loop",
        }
        path = self.path.split("?")[0]
        if path in redirects:
            self.answer(302, b"", Location=redirects[path])
        elif path in ("/photo.png", "/caf%C3%A9%20au%20lait.png"):
            self.answer(200, PNG)
        elif path == "/page":
            self.answer(200, b"<!DOCTYPE html><title>Log in</title>")
        elif path == "/short":
            self.answer(200, PNG[:-200], **{"Content-Length": str(len(PNG))})
        elif path == "/huge":
            self.answer(200, PNG, **{"Content-Length": str(10**12)})
        elif path == "/endless":
            self.drip(bytes(4096), pause=0)
        elif path == "/drip":
            self.drip(b"x", pause=0.02)
        elif path == "/silent":
            self.release.wait(5)
        else:
            self.answer(404, b"gone")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, piece: bytes, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(500):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass  # the client hung up, as it should

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[str]:
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        Site.release.set()
        site.shutdown()
        site.server_close()
        thread.join()


@pytest.mark.parametrize("path", ["/photo.png", "/photo.png?token=1#part", "/moved", "/café au lait.png"])
def test_images_from_the_web(server: str, path: str) -> None:
    assert np.array_equal(np.asarray(load_image(server + path)), PHOTO)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "the server answered 404 Not Found; check the address"),
        ("/to-file", "redirects in a circle or to something that is not http or https"),
        ("/to-ftp", "redirects in a circle or to something that is not http or https"),
        ("/to-data", "redirects in a circle or to something that is not http or https"),
        ("/loop", "redirects in a circle"),
        ("/page", "is not an image but a web page"),
        ("/short", "the connection ended 200 bytes early"),
        ("/huge", "larger than 104857600 bytes"),
    ],
)
def test_answers_that_are_no_images(server: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=f"{server}{path}: .*{message}"):
        load_image(server + path)


def test_downloads_close_their_connections(server: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for path in ("/photo.png", "/moved", "/missing", "/to-file", "/short", "/page"):
            with contextlib.suppress(ImageError):
                load_image(server + path)
        gc.collect()
    assert [warning for warning in caught if warning.category is ResourceWarning] == []


def test_downloads_have_limits(server: str) -> None:
    with pytest.raises(ImageError, match="larger than 1000 bytes"):
        download(f"{server}/photo.png", replace(url_policy(), max_bytes=1000))
    with pytest.raises(ImageError, match="larger than 9000 bytes"):
        download(f"{server}/endless", replace(url_policy(), max_bytes=9000))
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"the server was silent for 0\.2 s"):
        download(f"{server}/silent", replace(url_policy(), silence_s=0.2))
    with pytest.raises(ImageError, match=r"took longer than 0\.3 s"):
        download(f"{server}/drip", replace(url_policy(), total_s=0.3))
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("FTP://127.0.0.1/a.png", "only http and https"),
        ("s3://bucket/a.png", "only http and https"),
        ("data:image/png;base64,AAAA", "only http and https"),
        ("http:///a.png", "names no server"),
        ("http://[::1/a.png", "not a valid address"),
        ("http://me:hunter2@127.0.0.1/a.png", "holds a user name"),
        ("http://127.0.0.1:notaport/a.png", "cannot be downloaded"),
        ("http://127.0.0.1:1/a.png?key=hunter2", "cannot be downloaded"),
    ],
)
def test_addresses_that_are_not_fetched(address: str, message: str, server: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(address)
    assert "hunter2" not in str(caught.value)


# ---- finding files


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [
        *("img10.jpg", "img2.JPG", "IMG1.png", "notes.txt", "._img2.jpg", ".hidden.png", "odd[1].webp"),
        *("sub/img3.gif", "sub/deep/img4.tiff", ".cache/img5.png", "empty/readme.md"),
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_give_their_images_in_natural_order(folder: Path) -> None:
    expected = ["IMG1.png", "img2.JPG", "img10.jpg", "odd[1].webp"]
    assert find_images([folder]) == [str(folder / name) for name in expected]
    assert find_images("sub") == [os.path.join("sub", "img3.gif")]
    deep = find_images(["sub"], recursive=True)
    assert deep == [os.path.join("sub", "deep", "img4.tiff"), os.path.join("sub", "img3.gif")]
    assert not any("cache" in path for path in find_images(["."], recursive=True))


def test_patterns_files_and_addresses_keep_their_order_and_appear_once(folder: Path) -> None:
    address = "https://example.org/a.jpg?x=[1]"
    inputs = [
        "sub/*.gif",
        "notes.txt",
        address,
        "img*",
        str(folder / "img2.JPG"),
        address,
        "./img10.jpg",
        "odd[1].webp",
    ]
    found = [path.replace(os.sep, "/") for path in find_images(inputs)]
    assert found == ["sub/img3.gif", "notes.txt", address, "img2.JPG", "img10.jpg", "odd[1].webp"]
    assert [Path(path).name for path in find_images([Path("**/img[34].*")])] == ["img4.tiff", "img3.gif"]
    assert find_images([]) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gone.jpg", r"^gone\.jpg: there is no such file or folder; check the path"),
        ("*.bmp", r"^\*\.bmp: the pattern matches no image file"),
        ("*.txt", "the pattern matches no image file"),
        ("folder*", "the pattern matches no image file"),
        ("empty", "^empty: there is no image in this folder.*recursive"),
        ("file:///etc/passwd", "only http and https"),
    ],
)
def test_inputs_that_give_nothing(folder: Path, entry: str, message: str) -> None:
    with pytest.raises(OpenBlipError, match=message):
        find_images(["img2.JPG", entry])


@given(st.lists(st.integers(0, 10**30), min_size=1, max_size=6, unique=True))
def test_numbers_in_names_sort_as_numbers(numbers: list[int]) -> None:
    names = [f"a{number}b.png" for number in numbers]
    assert sorted(names, key=image_sources.natural_order) == [f"a{number}b.png" for number in sorted(numbers)]
