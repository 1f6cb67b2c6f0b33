"""The tools in an agent of LangChain whose chat model follows a script, and called one by one."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain", reason="LangChain needs Python 3.11")

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import ToolException

import openblip
from openblip import Answered, Captioned, Matched, UrlPolicy
from openblip.errors import CheckpointError
from openblip.integrations.langchain import ImageCaptionTool, ImageMatchTool, VisualQATool, image_tools
from openblip.models import shared as shared_models
from openblip.models.model import Model


class Scripted(BaseChatModel):
    """Answers with the messages of a script, one after the other."""

    script: list[AIMessage]
    tools: list[Any] = []
    heard: list[list[BaseMessage]] = []

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Scripted:  # type: ignore[override]
        self.tools[:] = tools
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.heard.append(messages)
        return ChatResult(generations=[ChatGeneration(message=self.script[len(self.heard) - 1])])


def call(name: str, number: int = 1, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "args": arguments, "id": f"call_{number}", "type": "tool_call"}


def test_an_agent_captions_asks_and_matches(tiny_model: Model, image_paths: list[Path]) -> None:
    photo = image_paths[0]
    calls = [
        call("image_caption", 1, image=photo.name),
        call("visual_qa", 2, image=photo.name, question="what color is the ball?"),
        call("image_match", 3, image=photo.name, texts=["the dog", "the ball"]),
        call("image_caption", 4, image="../../etc/passwd"),
        call("image_match", 5, image=photo.name, texts=[]),
        call("visual_qa", 6, image=f"{photo.name}|what color is the ball?"),
    ]
    chat = Scripted(script=[AIMessage("", tool_calls=calls), AIMessage("a ball")])
    agent = create_agent(chat, tools=image_tools(tiny_model, root=photo.parent))
    messages = agent.invoke({"messages": [("user", "what is on the photo?")]})["messages"]
    caption, answer, match, outside, wrong, joined = (one for one in messages if isinstance(one, ToolMessage))
    assert messages[-1].content == "a ball" and [one.tool_call_id for one in (caption, joined)] == ["call_1", "call_6"]

    assert caption.content == tiny_model.caption(photo) and caption.status == "success"
    assert isinstance(caption.artifact, Captioned) and caption.artifact.text == caption.content
    assert caption.artifact.source == photo.name
    assert answer.content == joined.content == tiny_model.ask(photo, "what color is the ball?")
    assert isinstance(answer.artifact, Answered) and answer.artifact.answers[0].text == answer.content
    expected = sorted(tiny_model.match(photo, ["the dog", "the ball"]), key=lambda one: -(one.itm or 0))
    assert match.content == "\n".join(f"{one.itm:.3f} {one.text}" for one in expected)
    assert isinstance(match.artifact, Matched) and [one.text for one in match.artifact.matches] == [
        "the dog",
        "the ball",
    ]

    assert outside.status == wrong.status == "error"
    assert "lies outside of the folder" in outside.content and "passwd" in outside.content
    assert wrong.content.startswith("the arguments are wrong (texts: List should have at least 1 item")
    # The agent's model sees which arguments there are, and what for.
    schemas = {tool.name: tool.tool_call_schema.model_json_schema() for tool in chat.tools}
    assert schemas["visual_qa"]["required"] == ["image", "question"]
    assert schemas["image_match"]["properties"]["texts"]["items"] == {"type": "string"}
    assert set(schemas["image_caption"]["properties"]) == {"image"}


def test_tools_by_themselves(tiny_model: Model, image_paths: list[Path]) -> None:
    path = str(image_paths[1])
    caption, question, match = image_tools(tiny_model)
    encoded = base64.b64encode(image_paths[1].read_bytes()).decode()
    texts = {
        caption.run(given) for given in (path, {"image": f"file://{path}"}, f"data:image/png;base64,{encoded}", encoded)
    }
    assert texts == {tiny_model.caption(path)}
    answer = tiny_model.ask(path, "is it a dog?")
    assert (
        question.run(f" {path} | is it a dog? ")
        == question.invoke({"image": path, "question": "is it a dog?"})
        == answer
    )
    assert asyncio.run(question.ainvoke({"image": path, "question": "is it a dog?"})) == answer
    assert match.run({"image": path, "texts": ["the dog"]}).endswith(" the dog")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("gone.jpg", "the arguments are wrong (question: Field required)"),
        ("gone.jpg|", "the arguments are wrong (question: String should have at least 1 character)"),
        ("gone.jpg|what?", "gone.jpg: there is no such file"),
        ({"image": "http://127.0.0.1/a.png", "question": "what?"}, "those are not allowed here"),
        ({"image": 3, "question": "what?"}, "the arguments are wrong (image: Input should be a valid string)"),
        ({"image": "data:image/png;base64,AAAA", "question": "what?"}, "is damaged"),
        ({"question": "what?"}, "the arguments are wrong (image: Field required)"),
        ({"image": None, "question": ["x"]}, "the arguments are wrong"),
    ],
)
def test_errors_are_for_the_agent(tiny_model: Model, given: Any, told: str) -> None:
    assert told in VisualQATool(model=tiny_model).run(given)


def test_errors_can_be_raised_instead(tiny_model: Model) -> None:
    tool = ImageCaptionTool(model=tiny_model, handle_tool_error=False)
    with pytest.raises(ToolException, match=r"gone\.jpg: there is no such file"):
        tool.run("gone.jpg")


def test_what_a_model_cannot_do_is_said(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model, "abilities", ("match",))
    assert "has no language model to caption with" in ImageCaptionTool(model=tiny_model).run(str(image_paths[0]))
    tool = ImageCaptionTool(model="nowhere/at-all", device="cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nowhere/at-all" in tool.run(str(image_paths[0]))


def test_settings_are_checked_when_a_tool_is_made(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        ImageCaptionTool(model=tiny_model, root="/nowhere/at/all")
    with pytest.raises(ValueError, match="the model is 3"):
        ImageCaptionTool(model=3)
    with pytest.raises(ValueError, match="UrlPolicy"):
        ImageCaptionTool(model=tiny_model, urls="*")


def test_one_model_is_loaded_for_all_tools_when_it_is_needed(
    tiny_model_folder: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    def load(name: Any, **options: Any) -> Model:
        loaded.append(name)
        if len(loaded) == 1:
            raise CheckpointError("the network is down")
        return openblip.load(name, **options)

    monkeypatch.setattr(shared_models, "load", load)
    shared_models.shared.cache_clear()
    tools = [
        tool(model=str(tiny_model_folder), device="cpu") for tool in (ImageCaptionTool, VisualQATool, ImageMatchTool)
    ]
    assert loaded == []
    path = str(image_paths[0])
    assert tools[0].run(path) == "the network is down"
    texts: list[str] = []
    given = [path, f"{path}|what?", {"image": path, "texts": ["dog"]}, path]
    threads = [
        threading.Thread(target=lambda tool=tool, one=one: texts.append(tool.run(one)))
        for tool, one in zip([*tools, tools[0]], given, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 4 and not any("down" in text for text in texts)
    assert loaded == [str(tiny_model_folder)] * 2
    shared_models.shared.cache_clear()


def test_addresses_are_fetched_from_named_servers(tiny_model: Model) -> None:
    from ..test_web import GOOD, serving

    with serving((GOOD, b"")) as server:
        tool = ImageCaptionTool(model=tiny_model, urls=UrlPolicy(f"127.0.0.1:{server.port}", True))
        assert "not among the hosts" in tool.run("http://localhost:1/a.png")
        message = tool.invoke(call("image_caption", image=f"{server.url}/a.png?key=secret"))
        assert message.status == "success"
        assert message.artifact.source == f"{server.url}/a.png?…"
