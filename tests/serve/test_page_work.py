"""What the page does, without the page: it answers what the library answers, and says what is wrong."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.errors import OpenBlipError, OptionError
from openblip.models.model import Model
from openblip.serve.errors import Refusal
from openblip.serve.limits import Limits
from openblip.serve.page_visitors import Sessions, Visited
from openblip.serve.page_work import Described, PageWork, write_csv
from openblip.serve.service import Service


@pytest.fixture(scope="module")
def work(tiny_model: Model) -> Iterator[PageWork]:
    service = Service(tiny_model, Limits(images=2), threads=1).start()
    yield PageWork(service)
    service.end(600)


def done(work: Any) -> Any:
    return asyncio.run(work)


async def last(stream: Any) -> list[Any]:
    return [one async for one in stream]


def test_captions_are_the_librarys(work: PageWork, tiny_model: Model, image_paths: list[Path]) -> None:
    path = image_paths[0]
    assert done(work.caption(str(path))) == tiny_model.caption(path, num_captions=1)
    begun = tiny_model.caption(path, prompt="a dog", num_captions=2)
    assert done(work.caption(str(path), " a dog ", 2)) == begun


def test_answers_are_the_librarys_and_come_as_they_are_written(
    work: PageWork, tiny_model: Model, image_paths: list[Path]
) -> None:
    path = image_paths[1]
    assert done(work.ask(str(path), "what is this?")) == tiny_model.ask(path, "what is this?")
    texts = done(last(work.answer(str(path), "what is this?")))
    assert texts[-1] == tiny_model.ask(path, "what is this?", num_beams=1)
    assert all(after.startswith(before) for before, after in pairwise(texts))
    chat = tiny_model.chat(path)
    chat.turns = [("how many?", "two")]
    again = done(last(work.answer(str(path), "and now?", [("how many?", "two")])))
    assert again[-1] == chat.ask("and now?", num_beams=1)


def test_texts_are_matched_and_shown(work: PageWork, tiny_model: Model, image_paths: list[Path]) -> None:
    path = image_paths[2]
    found, picture = done(work.match(str(path), ["a dog", "  ", "a red ball"]))
    expected = sorted(tiny_model.match(path, ["a dog", "a red ball"]), key=lambda one: -(one.itm or 0))
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.itm for one in found] == pytest.approx([one.itm for one in expected], abs=1e-5)
    assert picture is not None and picture.mode == "RGB"


def test_labels_are_ranked(work: PageWork, tiny_model: Model, image_paths: list[Path]) -> None:
    found = done(work.classify(str(image_paths[0]), [" dog ", "", "ball", "tree"]))
    expected = tiny_model.classify(image_paths[0], ["dog", "ball", "tree"])
    assert [one.label for one in found] == [one.label for one in expected]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_an_index_is_searched(work: PageWork, tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    from openblip.search import Index

    index = Index.open(tmp_path / "db", model=tiny_model)
    index.add(image_paths)
    searcher = PageWork(work.service, index)
    found = done(searcher.search(" a dog ", None, 3))
    expected = index.search("a dog", top=3)
    assert [said for _, said in found] == [f"{Path(one.path).name} ({one.score:.2f})" for one in expected]
    ((shown, said),) = done(searcher.search("", str(image_paths[1]), 1))
    assert said.startswith(image_paths[1].name) and shown.size == Image.open(image_paths[1]).size
    for text, path in (("", None), ("a dog", str(image_paths[0]))):
        with pytest.raises(OptionError, match="one of both"):
            done(searcher.search(text, path, 1))


def test_who_leaves_ends_what_is_done_for_them_alone() -> None:
    ended: list[str] = []

    async def stream() -> Any:
        try:
            yield "first"
            yield "second"
        finally:
            ended.append("stream")

    async def work(name: str) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)
        raise AssertionError

    async def visit() -> None:
        sessions = Sessions()
        shown = sessions.stream("a", stream())
        assert await anext(shown) == "first"  # and nobody asks for more
        one = asyncio.create_task(sessions.run("a", work("one")))
        other = asyncio.create_task(sessions.run("b", work("other")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sessions.leave("a")
        sessions.leave("nobody")
        with pytest.raises(asyncio.CancelledError):
            await one
        assert sorted(ended) == ["one", "stream"] and not other.done()
        with pytest.raises(asyncio.CancelledError):
            await anext(shown)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        assert ended[-1] == "other" and await sessions.run("a", asyncio.sleep(0, "again")) == "again"
        assert [text async for text in sessions.stream(None, stream())] == ["first", "second"]

    done(visit())


def test_failures_of_the_page_are_the_servers_to_tell() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        if scope["path"] == "/raises":
            raise RuntimeError("why")

    async def visit(path: str) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])

        scope = {"type": "http", "path": path, "headers": [], "query_string": b""}
        try:
            await Visited(fails, Sessions(), ".", asyncio.Event())(scope, lambda: asyncio.sleep(0), send)  # type: ignore[arg-type]
        except RuntimeError as error:
            sent.append(str(error))
        return sent

    assert done(visit("/raises")) == ["why"]
    assert done(visit("/answers")) == ["http.response.start", "http.response.body"]


def test_a_batch_costs_a_damaged_photo_alone(
    work: PageWork, tiny_model: Model, image_paths: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / '=1+1, "damaged".png'
    damaged.write_bytes(b"no image")
    paths = [image_paths[0], damaged, image_paths[1], image_paths[2]]
    *_, rows = steps = done(last(work.describe([str(path) for path in paths], "")))
    assert [len(step) for step in steps] == [2, 4]  # as many as the server takes at once
    assert [row.name for row in rows] == [path.name for path in paths]
    captions = tiny_model.caption([path for path in paths if path != damaged])
    assert [row.text for row in rows if row.error is None] == captions
    assert "is not an image" in (rows[1].error or "")
    write_csv(tmp_path / "out.csv", rows)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["image"] for row in read] == [path.name for path in paths]
    assert [row["text"] for row in read] == [row.text or "" for row in rows]
    assert [row["error"] for row in read] == [row.error or "" for row in rows]


def test_a_batch_asks_one_question_of_all(work: PageWork, tiny_model: Model, image_paths: list[Path]) -> None:
    *_, rows = done(last(work.describe([str(path) for path in image_paths[:2]], "what is this?")))
    assert [row.text for row in rows] == [tiny_model.ask(path, "what is this?") for path in image_paths[:2]]


def test_a_batch_waits_for_a_busy_server(work: PageWork, image_paths: list[Path], monkeypatch: Any) -> None:
    waits: list[float] = []
    place = work.service.admission.take(work.service.limits.queue)

    async def sleep(seconds: float) -> None:
        place.free()

    monkeypatch.setattr("openblip.serve.page_work.asyncio.sleep", sleep)
    *_, rows = done(last(work.describe([str(image_paths[0])], "", waits.append)))
    assert len(waits) == 1 and 1 <= waits[0] <= 30
    assert rows[0].error is None


def test_a_batch_that_never_has_room_says_so(work: PageWork, image_paths: list[Path], monkeypatch: Any) -> None:
    async def sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr("openblip.serve.page_work.asyncio.sleep", sleep)
    place = work.service.admission.take(work.service.limits.queue)
    try:
        with pytest.raises(Refusal, match="--limit queue=N"):
            done(last(work.describe([str(image_paths[0])], "")))
    finally:
        place.free()


def test_what_is_missing_or_wrong_is_said(work: PageWork, image_paths: list[Path], tmp_path: Path) -> None:
    path = str(image_paths[0])
    with pytest.raises(OptionError, match="choose one first"):
        done(work.caption(None))
    with pytest.raises(OptionError, match="choose it again"):
        done(work.caption(str(tmp_path / "gone.png")))
    with pytest.raises(OpenBlipError, match="question"):
        done(work.ask(path, " "))
    with pytest.raises(OptionError, match="write one a line"):
        done(work.match(path, [" "]))
    with pytest.raises(OptionError, match="no labels"):
        done(work.classify(path, ["", " "]))
    with pytest.raises(OptionError, match="choose some first"):
        done(last(work.describe([], "")))
    with pytest.raises(Refusal, match="the limit text_chars is 2000"):
        done(work.ask(path, "a" * 2001))
    with pytest.raises(Refusal, match="the limit texts is 64"):
        done(work.match(path, ["a dog"] * 65))
    with pytest.raises(Refusal, match="there are 65 labels"):
        done(work.classify(path, ["dog"] * 65))
    with pytest.raises(Refusal, match="the limit captions is 4"):
        done(work.caption(path, captions=5))
    assert work.service.visits == 0 and work.service.admission.waiting == 0


def test_a_row_of_a_table_may_be_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", [Described("a.png", "two\nlines", None)])
    assert (tmp_path / "out.csv").read_bytes() == b'image,text,error\na.png,"two\nlines",\n'
