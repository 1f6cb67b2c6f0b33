"""What a type checker tells users of the public API: mypy reads a script of theirs and finds every type as expected."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

IMPORTS = """\
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openblip
import PIL.Image
import torch
from openblip import (
    Answered, Captioned, Chat, Classified, ClassifiedImage, Embedded, EncodedImage, GeneratedText, Match, Matched,
    Model, Ranked, RankedAnswer, Rankings, Scores,
)
from openblip.text import Pieces
from typing_extensions import assert_type

path, paths = Path("a.jpg"), [Path("a.jpg"), Path("b.jpg")]
model = openblip.load()
encoded = model.encode_image(path)
"""
RIGHT = {
    'openblip.load("mini", device=torch.device("cpu"), dtype=torch.float16)': "Model",
    'openblip.load(path, device="auto", dtype="bf16", adapter=path, checkpoint=path, image_cache=0)': "Model",
    "(model.name, model.family, model.device, model.dtype)": "tuple[str, str, torch.device, torch.dtype]",
    'openblip.load_image("a.jpg")': "PIL.Image.Image",
    'openblip.find_images(["a", path], recursive=True)': "list[str]",
    "openblip.similarity(model.embed_images(paths), model.embed_texts(['a']))": "torch.Tensor",
    "encoded": "EncodedImage",
    "model.caption(path)": "str",
    'model.caption("a.jpg", num_beams=3, max_new_tokens=9, prompt="a")': "str",
    "model.caption(b'', details=False, stream=False, num_captions=None)": "str",
    'model.caption(open("a.jpg", "rb"))': "str",
    'model.caption(PIL.Image.new("RGB", (9, 9)))': "str",
    "model.caption(np.zeros((9, 9, 3)))": "str",
    "model.caption(encoded)": "str",
    "model.caption(paths, batch_size=2)": "list[str]",
    "model.caption(tuple(paths))": "list[str]",
    "model.caption(path for path in paths)": "list[str]",
    'model.caption(path.glob("*"))': "list[str]",
    "model.caption({path: 1}.keys())": "list[str]",
    "model.caption(['a.jpg', b'', encoded])": "list[str]",
    "model.caption(path, num_captions=3)": "list[str]",
    "model.caption(paths, num_captions=3)": "list[list[str]]",
    "model.caption(path, details=True)": "GeneratedText",
    "model.caption(paths, details=True)": "list[GeneratedText]",
    "model.caption(path, details=True, num_captions=3)": "list[GeneratedText]",
    "model.caption(paths, details=True, num_captions=3)": "list[list[GeneratedText]]",
    "model.caption(path, stream=True, top_p=0.9, seed=1)": "Pieces",
    "model.caption_many(paths, num_captions=2)": "Iterator[Captioned]",
    'model.ask(path, "a?")': "str",
    'model.ask(path, ["a?", "b?"])': "list[str]",
    'model.ask(path, ("a?", "b?"), template="{question}")': "list[str]",
    'model.ask(paths, "a?")': "list[str]",
    'model.ask(paths, (text for text in ["a?"]))': "list[list[str]]",
    'model.ask(path, "a?", details=True)': "GeneratedText",
    'model.ask(path, ["a?"], details=True)': "list[GeneratedText]",
    'model.ask(paths, "a?", details=True)': "list[GeneratedText]",
    'model.ask(paths, ["a?"], details=True)': "list[list[GeneratedText]]",
    'model.ask(path, "a?", stream=True, template="{question}")': "Pieces",
    'model.ask_many([(path, "a?")])': "Iterator[Answered]",
    'model.ask_many((path, ["a?"]) for path in paths)': "Iterator[Answered]",
    'model.generate(path, "a")': "str",
    'model.generate(path, ["a"])': "list[str]",
    'model.generate(paths, "a", batch_size=2)': "list[str]",
    'model.generate(paths, ["a"])': "list[list[str]]",
    'model.generate(path, "a", details=True)': "GeneratedText",
    'model.generate(paths, ["a"], details=True)': "list[list[GeneratedText]]",
    'model.generate(path, "a", stream=True)': "Pieces",
    "model.chat(path)": "Chat",
    'model.chat(path).ask("a?")': "str",
    'model.chat(path).ask("a?", stream=True)': "Pieces",
    "model.chat(path).turns": "list[tuple[str, str]]",
    'model.match(path, "a")': "Match",
    'model.match(path, ["a"])': "list[Match]",
    'model.match(paths, "a")': "list[Match]",
    'model.match(paths, ["a"])': "list[list[Match]]",
    'model.match_many(paths, ["a"])': "Iterator[Matched]",
    'model.scores(paths, ["a"], itm=True)': "Scores",
    'model.classify(path, ["dog", "cat"])': "list[Classified]",
    'model.rank_answers(path, "is it red?", ["yes", "no"])': "list[RankedAnswer]",
    'model.rank_answers(paths, ["is it red?"], ("yes",), top=1)': "list[list[list[RankedAnswer]]]",
    'model.classify(paths, ("dog",), templates="a {}")': "list[list[Classified]]",
    'model.classify_many(paths, ["dog"])': "Iterator[ClassifiedImage]",
    'model.rank_images("a", paths, top=None, rerank=3)': "list[Ranked]",
    'model.rank_images(["a"], (path for path in paths))': "list[list[Ranked]]",
    'model.rank_texts(path, ["a"])': "list[Ranked]",
    'model.rank_texts(paths, ["a"])': "list[list[Ranked]]",
    'model.rank_both(paths, ["a"])': "Rankings",
    "model.embed_images(path)": "torch.Tensor",
    "model.embed_images_many(paths)": "Iterator[Embedded]",
    'model.embed_texts("a")': "torch.Tensor",
    'model.save("folder", storage="float16")': "Path",
}
"""Expressions and their types."""
WRONG = (
    "model.caption(paths, stream=True)",
    "model.caption(path, stream=True, num_captions=2)",
    "model.caption(path, stream=True, details=True)",
    "model.caption(path, beams=3)",
    'model.caption(path, num_beams="3")',
    "model.caption(path, 'a photo of')",
    "model.caption(3)",
    "model.caption([3])",
    'model.ask(paths, "a?", stream=True)',
    'model.ask(path, ["a?"], stream=True)',
    'model.ask(path, "a?", max_tokens=3)',
    "model.ask(path, 3)",
    "model.ask(path)",
    'model.generate(path, ["a"], stream=True)',
    'model.generate(path, "a", template="{question}")',
    "model.chat(paths)",
    "model.match(path, [3])",
    'model.classify(path, ["dog"], template="{}")',
    'model.rank_images("a", paths, tops=3)',
    'model.save("folder", storage="int3")',
    'openblip.load("mini", precision="bf16")',
)
"""Calls that are errors."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each expression."""
    script = tmp_path_factory.mktemp("types") / "script.py"
    lines = [f"assert_type({expression}, {kind})" for expression, kind in RIGHT.items()] + list(WRONG)
    script.write_text(IMPORTS + "\n".join(lines) + "\n", encoding="utf-8")
    first = IMPORTS.count("\n") + 1
    # With the options of `make lint` alone: others would make nothing of its cache.
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-pretty", str(script)],
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    said: dict[str, list[str]] = {expression: [] for expression in (*RIGHT, *WRONG)}
    for place, message in re.findall(r"script\.py:(\d+): error: (.*)", run.stdout):
        assert int(place) >= first, message
        said[(*RIGHT, *WRONG)[int(place) - first]].append(message)
    return said


@pytest.mark.parametrize("expression", RIGHT)
def test_a_call_has_its_type(findings: dict[str, list[str]], expression: str) -> None:
    assert findings[expression] == []


@pytest.mark.parametrize("expression", WRONG)
def test_a_wrong_call_is_an_error(findings: dict[str, list[str]], expression: str) -> None:
    assert findings[expression] != []
