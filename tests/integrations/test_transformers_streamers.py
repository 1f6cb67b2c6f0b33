"""transformers' streamers are told the same ids by both libraries, and never wait for a text that will not come."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import TextIteratorStreamer, TextStreamer

import openblip.integrations.transformers as ours
from openblip.errors import OptionError
from openblip.nn.opt import Opt
from tests.checkpoints.theirs import Theirs

from .cases import PROMPT


class Noting:
    """A streamer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []
        self.shapes: list[int] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.told.append(value.flatten().tolist())
        self.shapes.append(value.ndim)

    def end(self) -> None:
        self.ended += 1


OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 9, "eos_token_id": 21},
    {"max_new_tokens": 12, "repetition_penalty": 1.7},
    {"do_sample": True, "max_new_tokens": 8, "temperature": 1.4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_both_tell_the_same(
    writer: Theirs, images: list[Image.Image], options: dict[str, Any], prompt: str | None
) -> None:
    model: Any = ours.Blip2ForConditionalGeneration.from_pretrained(writer.folder)
    inputs = writer.processor(images=images[0], text=prompt, return_tensors="pt")
    told = []
    for one in (writer.model, model):
        streamer = Noting()
        torch.manual_seed(5)
        ids = one.generate(**inputs, **options, streamer=streamer)
        torch.manual_seed(5)
        assert ids.equal(one.generate(**inputs, **options))
        assert streamer.ended == 1
        told.append((streamer.told, streamer.shapes))
    assert told[0] == told[1]


def test_their_streamers_give_the_text(writer: Theirs, images: list[Image.Image], capsys: Any) -> None:
    model: Any = ours.Blip2ForConditionalGeneration.from_pretrained(writer.folder)
    words = writer.processor.tokenizer
    inputs = writer.processor(images=images[0], text=PROMPT, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=9)
    new = ids[0, inputs["input_ids"].shape[1] :] if isinstance(model.language_model, Opt) else ids[0, 1:]
    expected = words.decode(new, skip_special_tokens=True)
    model.generate(**inputs, max_new_tokens=9, streamer=TextStreamer(words, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out == expected + "\n"
    streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=600, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, "max_new_tokens": 9, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


def test_what_cannot_be_streamed_is_refused(opt: Theirs, images: list[Image.Image]) -> None:
    model: Any = ours.Blip2ForConditionalGeneration.from_pretrained(opt.folder)
    for count, options, words in [
        (1, {"num_beams": 2}, "a beam search chooses its text at the end"),
        (1, {"do_sample": True, "num_return_sequences": 2}, "one at a time"),
        (2, {}, "2 images: it takes the text of one"),
    ]:
        inputs, streamer = opt.processor(images=images[:count], return_tensors="pt"), Noting()
        with pytest.raises(OptionError, match=words):
            model.generate(**inputs, **options, streamer=streamer)
        assert (streamer.told, streamer.ended) == ([], 1)


def test_a_failure_ends_the_stream(opt: Theirs, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = ours.Blip2ForConditionalGeneration.from_pretrained(opt.folder)
    inputs, streamer = opt.processor(images=images[:1], return_tensors="pt"), Noting()

    def broken(*given: object) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(Opt, "decode_step", broken)
    with pytest.raises(RuntimeError, match="it broke"):
        model.generate(**inputs, min_new_tokens=5, max_new_tokens=9, streamer=streamer)
    assert streamer.ended == 1 and len(streamer.told) == 2
