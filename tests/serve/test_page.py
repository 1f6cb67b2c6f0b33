"""The page on a socket: what its buttons do, over Gradio's own client, and who may see it."""

from __future__ import annotations

import base64
import csv
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.models.model import Model
from openblip.serve.limits import Limits

from .conftest import WAIT, Served, served_by
from .test_faults import held, is_quiet, until
from .test_leaving import stepped

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
    assert {"One photo", "Many photos", "Caption", "Ask", "Chat", "Match", "Classify"} <= names
    assert "Search" not in names


def test_buttons_do_what_the_library_does(client: Any, photo: Any, tiny_model: Model, image_paths: list[Path]) -> None:
    path = image_paths[0]
    assert client.predict(photo, "", 1, api_name="/caption") == tiny_model.caption(path)
    assert client.predict(photo, "what is this?", api_name="/ask") == tiny_model.ask(path, "what is this?")
    table, picture = client.predict(photo, "a dog\na red ball", api_name="/match")
    best, *_ = sorted(tiny_model.match(path, ["a dog", "a red ball"]), key=lambda one: -(one.itm or 0))
    assert table["data"][0] == [best.text, f"{best.itm:.3f}", f"{best.itc:.3f}"]
    assert picture["visible"] and f"“{best.text}”" in picture["label"]


def test_labels_are_ranked(client: Any, photo: Any, tiny_model: Model, image_paths: list[Path]) -> None:
    table = client.predict(photo, "dog\nball\n", api_name="/classify")
    expected = tiny_model.classify(image_paths[0], ["dog", "ball"])
    assert table["data"] == [[one.label, f"{one.probability:.3f}"] for one in expected]


@pytest.mark.slow
def test_the_command_shows_and_searches_an_index(
    tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    """`openblip serve --web --index`, by a browser's requests; an index of another model is refused."""
    pytest.importorskip("lancedb")
    from gradio_client import Client, handle_file

    from openblip.search import Index

    index = Index.open(tmp_path / "db", model=tiny_model_folder)
    index.add(image_paths)
    command = [sys.executable, "-m", "openblip", "serve", "--web", "--port", "0", "--index", str(tmp_path / "db")]
    other = subprocess.run([*command, "--model", "mini"], capture_output=True, text=True, timeout=WAIT, check=False)
    assert (other.returncode, other.stdout) == (2, "") and "error: " in other.stderr and "model" in other.stderr
    with subprocess.Popen(
        [*command, "--model", str(tiny_model_folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        _, _, address = process.stdout.readline().strip().partition(": ")
        try:
            client = Client(address, verbose=False, download_files=tmp_path / "found", analytics_enabled=False)
            found = client.predict("a dog", None, 3, api_name="/search")
            assert [one["caption"] for one in found] == [
                f"{Path(one.path).name} ({one.score:.2f})" for one in index.search("a dog", top=3)
            ]
            (same,) = client.predict("", handle_file(image_paths[2]), 1, api_name="/search")
            assert same["caption"].startswith(image_paths[2].name)
        finally:
            begun = time.monotonic()
            process.terminate()
    assert process.returncode == 0
    # Gradio's client has a page open all the time, which is not waited for.
    assert time.monotonic() - begun < Limits().request_seconds


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


def ask_and_leave(page: Served, session: str, name: str, data: list[Any], when: Any) -> None:
    """A visitor presses a button and closes the page once something has happened, as browsers do it."""
    listed = page.http.get("/config").json()["dependencies"]
    (number,) = (place for place, one in enumerate(listed) if one["api_name"] == name)
    asked = {"data": data, "fn_index": listed[number]["id"], "session_hash": session}
    assert page.http.post("/gradio_api/queue/join", json=asked).status_code == 200
    with page.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as results:
        assert results.status_code == 200
        lines = results.iter_lines()
        next(lines)
        when(lines)


def test_who_closes_the_page_in_the_queue_costs_the_model_nothing(page: Served, image_paths: list[Path]) -> None:
    (path,) = page.http.post("/gradio_api/upload", files=[("files", ("a.png", image_paths[0].read_bytes()))]).json()
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for name, data in [
        ("ask", [photo, "who closes?"]),
        ("chat", [photo, "who closes?", []]),
        ("match", [photo, "who\ncloses"]),
        ("batch", [[photo], "who closes?"]),
    ]:
        with held(page):
            begun, given_up = (page.metric(f"openblip_{what}") for what in ("batch_items_count", "given_up_total"))
            ask_and_leave(page, f"leaves-{name}", name, data, lambda _: until(lambda: page.service.visits == 1))
            until(lambda: page.service.visits == 0)
        until(lambda: is_quiet(page))
        assert page.metric("openblip_batch_items_count") == begun, name
        assert page.metric("openblip_given_up_total") == given_up + 1, name


def test_who_closes_the_page_while_an_answer_is_written_ends_it(page: Served, image_paths: list[Path]) -> None:
    (path,) = page.http.post("/gradio_api/upload", files=[("files", ("a.png", image_paths[0].read_bytes()))]).json()
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with stepped() as steps:

        def some(lines: Iterator[str]) -> None:
            go = threading.Event()

            def push() -> None:
                while not go.is_set():
                    if steps.waits.wait(0.01):
                        steps.waits.clear()
                        steps.may.release()

            thread = threading.Thread(target=push)
            thread.start()
            try:
                next(line for line in lines if "process_generating" in line)
            finally:
                go.set()
                thread.join()

        ask_and_leave(page, "leaves-early", "chat", [photo, "who leaves early?", []], some)
        until(lambda: page.service.visits == 0)
        done = steps.done
        steps.may.release()
        until(lambda: is_quiet(page))
        assert steps.done <= done + 1
    # Nothing of it is in the way of the next visitor.
    ask_and_leave(
        page, "comes-next", "ask", [photo, "what?"], lambda lines: next(x for x in lines if "process_completed" in x)
    )


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
