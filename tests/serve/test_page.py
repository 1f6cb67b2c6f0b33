"""The page on a socket: what its buttons do, over Gradio's own client, and who may see it."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.models.model import Model

from .conftest import WAIT, Served, served_by

pytest.importorskip("gradio", reason='the page needs Gradio: make test-web, or pip install "openblip[web]"')
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def page(tiny_model: Model) -> Iterator[Served]:
    with served_by(tiny_model, page=True) as one:
        yield one


@pytest.fixture(scope="module")
def client(page: Served, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    return Client(page.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"), analytics_enabled=False)


@pytest.fixture(scope="module")
def photo(image_paths: list[Path]) -> Any:
    from gradio_client import handle_file

    return handle_file(image_paths[0])


def test_it_answers_at_the_root_beside_everything_else(page: Served) -> None:
    shown = page.http.get("/")
    assert shown.status_code == 200 and "OpenBLIP: tiny" in shown.text
    assert "googleapis" not in shown.text and "cdnjs" not in shown.text
    assert page.http.get("/health").json() == {"status": "ok"}
    assert page.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    names = {one["props"].get("label") for one in page.http.get("/config").json()["components"]}
    assert {"One photo", "Many photos", "Caption", "Ask", "Chat", "Match"} <= names
    assert "Search" not in names


def test_buttons_do_what_the_library_does(client: Any, photo: Any, tiny_model: Model, image_paths: list[Path]) -> None:
    path = image_paths[0]
    assert client.predict(photo, "", 1, api_name="/caption") == tiny_model.caption(path)
    assert client.predict(photo, "what is this?", api_name="/ask") == tiny_model.ask(path, "what is this?")
    table, picture = client.predict(photo, "a dog\na red ball", api_name="/match")
    best, *_ = sorted(tiny_model.match(path, ["a dog", "a red ball"]), key=lambda one: -(one.itm or 0))
    assert table["data"][0] == [best.text, f"{best.itm:.3f}", f"{best.itc:.3f}"]
    assert picture["visible"] and f"“{best.text}”" in picture["label"]


def test_a_conversation_goes_on(client: Any, photo: Any, tiny_model: Model, image_paths: list[Path]) -> None:
    first, said = client.predict(photo, "what is this?", [], api_name="/chat")
    second, _ = client.predict(photo, "and now?", first, api_name="/chat")
    chat = tiny_model.chat(image_paths[0])
    answers = [chat.ask("what is this?", num_beams=1), chat.ask("and now?", num_beams=1)]
    assert said == ""
    texts = ["".join(part["text"] for part in one["content"]) for one in second if one["role"] == "assistant"]
    assert texts == answers


def test_a_batch_is_a_table_and_a_file(
    client: Any, photo: Any, tiny_model: Model, image_paths: list[Path], tmp_path: Path
) -> None:
    from gradio_client import handle_file

    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    said, table, download = client.predict([photo, handle_file(damaged)], "", api_name="/batch")
    assert said == "All 2 photos are done."
    assert table["data"][0] == [image_paths[0].name, tiny_model.caption(image_paths[0]), ""]
    assert table["data"][1][:2] == ["damaged.png", ""] and "is not an image" in table["data"][1][2]
    with open(download["value"], encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["image", "text", "error"], *table["data"]]


def test_what_is_wrong_is_one_sentence(client: Any, photo: Any, tmp_path: Path, capfd: Any) -> None:
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    damaged = tmp_path / "<b>damaged.png"
    damaged.write_bytes(b"no image")
    for image, question, said in [
        (None, "what?", "There is no photo: choose one first."),
        (handle_file(damaged), "what?", "is not an image"),
        (photo, "", "question"),
        (photo, "a" * 2001, "the limit text_chars is 2000"),
    ]:
        with pytest.raises(AppError, match=said):
            client.predict(image, question, api_name="/ask")
    with pytest.raises(AppError, match="question"):
        client.predict(photo, "", [], api_name="/chat")
    assert "Traceback" not in capfd.readouterr().err


def test_files_of_the_machine_are_not_given(page: Served, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    for path in (secret, Path(__file__), "/etc/passwd"):
        assert page.http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_with_keys_browsers_log_in(tiny_model: Model, tmp_path: Path) -> None:
    from openblip.serve.auth import read_keys

    (tmp_path / "keys.txt").write_text(KEY, encoding="utf-8")

    def login(key: str) -> str:
        return "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()

    with served_by(tiny_model, keys=read_keys(tmp_path / "keys.txt"), page=True) as one:
        refused = one.http.get("/")
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic realm=")
        for path in ("/", "/config", "/v1/models"):
            assert one.http.get(path, headers={"Authorization": login(KEY)}, timeout=WAIT).status_code == 200
            assert one.http.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        for header in (login("wrong"), "Basic", "Basic ?", login(KEY)[:-3]):
            assert one.http.get("/", headers={"Authorization": header}).status_code == 401
        elsewhere = {"Authorization": login(KEY), "Sec-Fetch-Site": "cross-site"}
        assert one.http.get("/", headers=elsewhere).status_code == 401
