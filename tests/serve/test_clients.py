"""Other programs' clients of OpenAI's API, as they are: LangChain's, and requests in the order of a chat page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openblip.models.model import Model

from .conftest import WAIT, Served
from .test_openai import image_part, text_part, url_of, user


def test_langchain_asks_and_streams(served: Served, tiny_model: Model, image_paths: list[Path]) -> None:
    langchain = pytest.importorskip("langchain_openai")
    messages = pytest.importorskip("langchain_core.messages")
    chat = langchain.ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        model=served.service.name,
        timeout=WAIT,
        max_retries=0,
        max_tokens=8,
    )
    parts = [text_part("what is this?"), {"type": "image_url", "image_url": {"url": url_of(image_paths[0])}}]
    asked = [messages.SystemMessage("be brief"), messages.HumanMessage(parts)]
    answer = chat.invoke(asked)
    assert answer.content == tiny_model.ask(image_paths[0], "what is this?", max_new_tokens=8)
    assert answer.usage_metadata["output_tokens"] > 0
    block = {
        "type": "image",
        "source_type": "base64",
        "mime_type": "image/png",
        "data": url_of(image_paths[0]).split(",")[1],
    }
    again = chat.invoke([messages.HumanMessage([text_part("what is this?"), block])])
    assert again.content == answer.content
    pieces = [piece.content for piece in chat.stream(asked)]
    expected = tiny_model.ask(image_paths[0], "what is this?", max_new_tokens=8, stream=True)
    assert "".join(pieces) == "".join(expected)
    follow = chat.invoke([*asked, answer, messages.HumanMessage("and what else?")])
    turns = tiny_model.chat(image_paths[0])
    turns.turns.append(("what is this?", answer.content))
    assert follow.content == turns.ask("and what else?", max_new_tokens=8)


def test_langchain_embeds(served: Served, tiny_model: Model) -> None:
    langchain = pytest.importorskip("langchain_openai")
    embeddings = langchain.OpenAIEmbeddings(
        base_url=f"{served.url}/v1",
        api_key="none",
        model=served.service.name,
        check_embedding_ctx_length=False,
        timeout=WAIT,
        max_retries=0,
    )
    found = embeddings.embed_documents(["a dog", "the beach"])
    np.testing.assert_allclose(found, tiny_model.embed_texts(["a dog", "the beach"]), atol=1e-5)


def test_the_requests_of_a_chat_page(served: Served, tiny_model: Model, image_paths: list[Path]) -> None:
    headers = {"Authorization": "Bearer whatever", "Content-Type": "application/json"}
    name = served.http.get("/v1/models", headers=headers).json()["data"][0]["id"]
    messages: list[dict[str, Any]] = []
    for question in ("what is this?", "how many dogs?"):
        messages.append(user(text_part(question), image_part(image_paths[0])))
        asked = {
            "model": name,
            "stream": True,
            "messages": messages,
            "stream_options": {"include_usage": True},
            "session_id": "x",
            "chat_id": "y",
            "features": {"web_search": False},
            "temperature": 0,
        }
        with served.http.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as answer:
            assert answer.status_code == 200
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        assert said
        messages.append({"role": "assistant", "content": said})
    # The page asks for a title next, without the image.
    title = {"model": name, "messages": [{"role": "user", "content": "### Task: write a title"}], "stream": False}
    refused = served.http.post("/v1/chat/completions", json=title, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_image")
