"""Lists of answers, templates and names: what is read, and what is said about what is not one."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from openblip.errors import DownloadError, OpenBlipError
from openblip.evaluation.lists import ANSWERS, NAMES, TEMPLATES, find_list, read_list, read_names


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.json", '["yes", "no", "", " ", "yes"]', ["yes", "no"]),
        ("a.json", '\ufeff["\u00e9t\u00e9"]', ["\u00e9t\u00e9"]),
        ("a.json", '["a \\ud800 b"]', ["a \ufffd b"]),
        ("a.txt", "yes\r\nno\n\nyes\n", ["yes", "no"]),
        ("a.txt", "[yes]\n{}\n", ["[yes]", "{}"]),
    ],
)
def test_texts(tmp_path: Path, name: str, content: str, found: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_list(find_list(name, str(tmp_path), ANSWERS), "answers") == found


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{}", "holds no list"),
        (b"3", "holds no list"),
        (b'["yes", 3]', "entry 2, is no text"),
        (b'["yes", null]', "entry 2, is no text"),
        (b'[["yes"]]', "entry 1, is no text"),
        (b"[]", "has no answers"),
        (b'["", " "]', "has no answers"),
        (b"[", "is not JSON, or cut short"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe[]", "is not UTF-8"),
        (b"", "is not JSON"),
    ],
)
def test_what_is_no_list_is_one_sentence(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(OpenBlipError, match=told) as caught:
        read_list(tmp_path / "a.json", "answers")
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


def test_names(tmp_path: Path) -> None:
    labels = ["n01", "n02", "n03"]
    (tmp_path / "a.txt").write_text("tench\n\ngoldfish\ngreat white shark\n")
    (tmp_path / "list.json").write_text('["tench", "goldfish", "great white shark"]')
    (tmp_path / "a.json").write_text('{"n03": "great white shark", "n01": "tench", "n02": "goldfish", "n04": 3}')
    for name in ("a.txt", "list.json", "a.json"):
        assert read_names(tmp_path / name, labels) == ["tench", "goldfish", "great white shark"]
    for content, told in (
        ('{"n01": "tench"}', "no name for 2 labels, the first being 'n02'"),
        ('["tench"]', "has 1 names for 3 labels"),
        ('{"n01": "a", "n02": "b", "n03": 3}', "entry 3, is no text"),
        ("4", "holds no names"),
    ):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(OpenBlipError, match=told):
            read_names(tmp_path / "a.json", labels)


def test_where_lists_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/list.txt").write_text("yes\n")
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path / "home"))
    assert find_list("list.txt", str(tmp_path), ANSWERS) == tmp_path / "home/list.txt"
    (tmp_path / "list.txt").write_text("no\n")
    assert find_list("list.txt", str(tmp_path), ANSWERS) == tmp_path / "list.txt"
    for key, told in ((ANSWERS, "openblip datasets download NAME"), (TEMPLATES, "a drawing of"), (NAMES, "each line")):
        with pytest.raises(OpenBlipError, match=f"{key}: there is no file .*none.txt: .*{told}"):
            find_list("none.txt", str(tmp_path), key)
    for name in ("", ".", "a\0b", "x" * 300):
        with pytest.raises(OpenBlipError):
            find_list(name, str(tmp_path), ANSWERS)


def test_an_address_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Lists(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps(["yes", "no"]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quietly."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lists)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/answer_list.json"
        for _ in range(2):
            assert read_list(find_list(address, str(tmp_path), ANSWERS), "answers") == ["yes", "no"]
        assert asked == ["/answer_list.json"]
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert find_list(address, str(tmp_path), ANSWERS).is_file()
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
            find_list(address + "?other", str(tmp_path), ANSWERS)
    finally:
        server.shutdown()
        server.server_close()
