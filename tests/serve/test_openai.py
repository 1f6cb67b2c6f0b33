"""OpenAI's own client against a real server, unchanged."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from openblip.models.model import Model

from .conftest import WAIT, Served


def url_of(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def image_part(path: Path) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url_of(path), "detail": "low"}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=WAIT, max_retries=0) as one:
        yield one


def test_the_model_is_listed(client: openai.OpenAI, served: Served) -> None:
    (model,) = client.models.list().data
    assert model.id == served.service.name
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError, match="this server has"):
        client.models.retrieve("gpt-4o")


def test_an_answer_is_the_librarys(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    for parts in (
        [text_part("what is this?"), image_part(image_paths[0])],
        [image_part(image_paths[0]), text_part("what is this?")],
        [{"type": "image_url", "image_url": url_of(image_paths[0])}, text_part("what is"), text_part("this?")],
    ):
        answer = client.chat.completions.create(model=served.service.name, messages=[user(*parts)])
        (choice,) = answer.choices
        expected = tiny_model.ask(image_paths[0], "what is this?", details=True)
        assert choice.message.content == expected.text
        assert choice.message.role == "assistant"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(expected.tokens)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.usage.prompt_tokens > 4
        assert choice.finish_reason == ("length" if len(expected.tokens) == 6 else "stop")


def test_an_image_without_words_is_described(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    answer = client.chat.completions.create(model=served.service.name, messages=[user(image_part(image_paths[3]))])
    assert answer.choices[0].message.content == tiny_model.caption(image_paths[3])


def test_turns_are_a_chat_of_the_library(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    chat = tiny_model.chat(image_paths[1])
    messages: list[Any] = [{"role": "system", "content": "You are helpful."}]
    for place, question in enumerate(["what is this?", "What COLOR is it?", "how many?", "is it a dog?"]):
        # As web pages do, every other turn repeats the image.
        parts = [text_part(question), *([image_part(image_paths[1])] if place % 2 == 0 else [])]
        messages.append(user(*parts))
        answer = client.chat.completions.create(model=served.service.name, messages=messages)
        said = answer.choices[0].message.content
        assert said == chat.ask(question)
        messages.append({"role": "assistant", "content": said})


def test_turns_that_do_not_fit_are_left_out(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    chat = tiny_model.chat(image_paths[1])
    messages: list[Any] = [user(image_part(image_paths[1]))]
    for number in range(12):
        question, answer = f"what is number {number} of all these things?", f"number {number} is a red ball"
        chat.turns.append((question, answer))
        messages += [user(text_part(question)), {"role": "assistant", "content": answer}]
    found = client.chat.completions.create(model=served.service.name, messages=[*messages, user(text_part("why?"))])
    assert found.choices[0].message.content == chat.ask("why?")


def test_another_image_begins_anew(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    messages: Any = [
        user(image_part(image_paths[0]), text_part("what is this?")),
        {"role": "assistant", "content": "a ball"},
        user(image_part(image_paths[2]), text_part("and this?")),
    ]
    answer = client.chat.completions.create(model=served.service.name, messages=messages)
    assert answer.choices[0].message.content == tiny_model.ask(image_paths[2], "and this?")


def test_an_image_may_come_from_a_tool(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "camera", "arguments": "{}"}}
    messages: Any = [
        {"role": "user", "content": "what is this?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [image_part(image_paths[4])]},
        {"role": "user", "content": "what is this?"},
    ]
    answer = client.chat.completions.create(model=served.service.name, messages=messages)
    assert answer.choices[0].message.content == tiny_model.ask(image_paths[4], "what is this?")


def test_a_stream_joins_to_the_librarys(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    expected = "".join(tiny_model.ask(image_paths[0], "what is this?", stream=True))
    chunks = list(
        client.chat.completions.create(
            model=served.service.name,
            messages=[user(text_part("what is this?"), image_part(image_paths[0]))],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == expected
    assert [one.choices[0].finish_reason for one in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    whole = client.chat.completions.create(
        model=served.service.name,
        messages=[user(text_part("what is this?"), image_part(image_paths[0]))],
        extra_body={"num_beams": 1},  # ignored, as any field that is not known
    )
    assert whole.usage is not None and chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stream_ends_in_done(served: Served, image_paths: list[Path]) -> None:
    asked = {"stream": True, "messages": [user(image_part(image_paths[0]))]}
    with served.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])


def test_options(client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path]) -> None:
    messages: Any = [user(text_part("what is this?"), image_part(image_paths[0]))]

    def ask(**options: Any) -> list[str]:
        found = client.chat.completions.create(model=served.service.name, messages=messages, **options)
        return [choice.message.content or "" for choice in found.choices]

    library = tiny_model.ask(image_paths[0], "what is this?", max_new_tokens=3)
    assert ask(max_tokens=3) == ask(max_completion_tokens=3) == [library]
    assert ask(temperature=0, top_p=1) == ask(top_p=1, seed=4) == ask()
    sampled = tiny_model.ask(image_paths[0], "what is this?", temperature=0.8, top_p=0.9, seed=5)
    assert ask(temperature=0.8, top_p=0.9, seed=5)[0] == sampled
    assert len(ask(n=3, temperature=1.0)) == 3
    assert len(ask(max_tokens=100_000)) == 1
    (whole,) = ask()
    assert ask(stop=[whole[1:3]]) == [whole[: whole.find(whole[1:3])]]
    streamed = client.chat.completions.create(
        model=served.service.name, messages=messages, stream=True, stop=[whole[2:4]], extra_body={"tools": []}
    )
    assert whole[2:4] not in "".join(one.choices[0].delta.content or "" for one in streamed)


def test_a_text_that_was_streamed_is_streamed_again_without_the_model(serving: Any, image_paths: list[Path]) -> None:
    messages = [user(image_part(image_paths[0]), text_part("what is it?"))]

    def streamed(**options: Any) -> tuple[str, Any, int]:
        stream = client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, **options
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reason = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]
        return text, (reason, chunks[-1].usage), int(served.metric("openblip_batch_items_count"))

    with serving() as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=WAIT) as client:
        messages[0]["content"][0]["image_url"]["detail"] = "low"
        first, how, batches = streamed()
        assert first and streamed() == (first, how, batches)
        assert served.metric("openblip_kept_texts_total", result="hit") == 1
        # Texts that are sampled, and those by other options, are written anew.
        assert streamed(temperature=1.5)[2] == batches + 1
        assert streamed(max_tokens=1)[2] == batches + 2
        # What was written at once is streamed, too, where the options are the same.
        plain = client.chat.completions.create(model="tiny", messages=messages, temperature=1.0, seed=3)
        text, _, now = streamed(temperature=1.0, seed=3)
        assert (text, now) == (plain.choices[0].message.content, batches + 3)


def test_what_is_wrong_is_said(client: openai.OpenAI, served: Served, image_paths: list[Path]) -> None:
    name = served.service.name

    def fails(kind: type[openai.APIStatusError], said: str, messages: list[Any], **options: Any) -> None:
        with pytest.raises(kind, match=said) as failed:
            client.chat.completions.create(**{"model": name, "messages": messages, **options})
        assert failed.value.request_id == failed.value.response.json()["request_id"]

    wrong = openai.UnprocessableEntityError
    photo = image_part(image_paths[0])
    fails(openai.NotFoundError, "there is no model 'gpt-4o'", [user(photo)], model="gpt-4o")
    fails(wrong, "no image in the messages", [user(text_part("hello"))])
    fails(wrong, "2 images", [user(photo, image_part(image_paths[1]))])
    fails(wrong, "with --allow-url", [user({"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}})])
    fails(wrong, "no data: URL", [user({"type": "image_url", "image_url": {"url": "file:///a.jpg"}})])
    fails(wrong, "no data: URL", [user({"type": "image_url", "image_url": {"url": "/etc/passwd"}})])
    fails(wrong, "base64", [user({"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!!"}})])
    fails(wrong, "'input_audio'", [user({"type": "input_audio", "input_audio": {}})])
    fails(wrong, "text_chars is 2000", [user(photo, text_part("why " * 600))])
    fails(wrong, "one choice can be streamed", [user(photo)], n=2, stream=True)
    fails(wrong, "captions is 4", [user(photo)], n=5, temperature=1.0)
    fails(wrong, "temperature", [user(photo)], temperature=3)
    fails(wrong, "messages", [])


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings(
    client: openai.OpenAI, served: Served, tiny_model: Model, image_paths: list[Path], encoding: Any
) -> None:
    texts = ["a dog", "the beach"]
    options = {} if encoding is None else {"encoding_format": encoding}
    inputs: Any = [texts[0], url_of(image_paths[0]), texts[1]]
    found = client.embeddings.create(model=served.service.name, input=inputs, **options).data
    vectors = [
        np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str) else one.embedding
        for one in found
    ]
    mean = tiny_model.embed_images(image_paths[0]).mean(dim=0)
    np.testing.assert_allclose([vectors[0], vectors[2]], tiny_model.embed_texts(texts), atol=1e-5)
    np.testing.assert_allclose(vectors[1], mean / mean.norm(), atol=1e-5)
    assert [one.index for one in found] == [0, 1, 2]


def test_embeddings_of_one_thing(client: openai.OpenAI, served: Served, tiny_model: Model) -> None:
    (one,) = client.embeddings.create(model=served.service.name, input="a dog").data
    np.testing.assert_allclose(one.embedding, tiny_model.embed_texts("a dog"), atol=1e-5)
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length"):
        client.embeddings.create(model=served.service.name, input=[[1, 2, 3]])
    with pytest.raises(openai.UnprocessableEntityError, match="16 dimensions"):
        client.embeddings.create(model=served.service.name, input="a dog", dimensions=8)


def test_a_large_photo_passes_as_base64(client: openai.OpenAI, served: Served) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "BMP")
    assert len(file.getvalue()) > 19_000_000
    url = "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    messages: Any = [user(part)]
    assert client.chat.completions.create(model=served.service.name, messages=messages).choices[0].message.content
