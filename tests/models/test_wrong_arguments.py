"""Whatever is given to a public method in place of what belongs there is taken, or named in one sentence."""

from __future__ import annotations

import decimal
import fractions
import inspect
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import openblip
from openblip import Model, OpenBlipError, OptionError
from openblip.checkpoints.openblip.folder import save_native
from openblip.generation.options import USER_OPTIONS
from tests.checkpoints.clip_theirs import write_clip
from tests.models.blip_models import small_parts

FLAGS = {"stream", "details", "itm", "no_repeat_words", "early_stopping", "do_sample", "recursive"}
"""Parameters that are True or False, and nothing else: "no" would count as true."""
METHODS = [name for name, value in vars(Model).items() if callable(value) and not name.startswith("_")]
FUNCTIONS = ["GenerationOptions", "find_images", "list_models", "load_image", "similarity"]


def odd_values(model: Model) -> Iterator[Any]:
    yield from (None, True, False, 0, 1, -1, 3, 1.5, -0.5, float("nan"), float("inf"), 10**30, -(10**30), 2**31, 2**63)
    yield from (1e308, 1e-320, 1j, decimal.Decimal(2), fractions.Fraction(1, 2), np.float32(2), np.int64(2))
    yield from (np.bool_(True), np.array(3), np.array([]), np.array([1, 2]), np.array(["a", "b"]), np.array([None]))
    yield from (torch.tensor(3), torch.tensor([1.0, 2.0]), torch.zeros(0), torch.float16, torch.device("cpu"))
    yield from ("", " ", "x", "3", "\0", "\ud800", "a" * 70_000, "{question}", "\x1b[31m", b"", b"x", bytearray(b"x"))
    yield from ([], (), {}, {"a": 1}, set(), [None], [3], [[]], ["a", 3], [b"x"], range(3), memoryview(b"abc"))
    yield from (object(), int, io, io.StringIO("x"), io.BytesIO(b""), ..., NotImplemented, Exception("odd"), model)
    yield from (Path("none"), Path("a\0b"), lambda: 1, [model.encode_image(GREY)])


GREY = np.zeros((8, 8, 3), np.uint8)


def public_call(model: Model, name: str, folder: Path) -> tuple[Callable[..., Any], dict[str, Any], list[str]]:
    """Something public, right values of what it has to be given, and the names of all that it takes."""
    call = model.chat(GREY).ask if name == "Chat.ask" else getattr(model if name in METHODS else openblip, name)
    right = {
        **dict.fromkeys(("images", "image", "source", "inputs"), folder / "image.png"),
        **{"questions": "why?", "question": "why?", "prompts": "a", "texts": ["a", "b"], "labels": ["a", "b"]},
        **{"answers": ["a", "b"], "text": "a dog", "statements": "a dog"},
        **{"pairs": [(GREY, "why?")], "query": GREY if name == "rank_texts" else "a dog", "pattern": "*"},
        **{"folder": folder / "model", "a": torch.eye(2), "b": torch.eye(2), "max_new_tokens": 2},
    }
    needed = [one.name for one in inspect.signature(call).parameters.values() if one.default is one.empty]
    lacking = set(needed) - {*right, "options"}
    assert not lacking, f"give {name} right values of {lacking} here"
    names = [one for one in inspect.signature(call).parameters if one not in ("stop_ids", "vocabulary")]
    if "options" in names:
        names = [*names[: names.index("options")], *USER_OPTIONS]
    return call, {one: right[one] for one in names if one in right}, names


@pytest.mark.parametrize("name", [*METHODS, "Chat.ask", *FUNCTIONS])
def test_odd_values_are_taken_or_named(
    tiny_model: Model, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where models are saved by odd names
    (tmp_path / "image.png").write_bytes(image_paths[0].read_bytes())
    give_odd_values(tiny_model, name, tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("match", "heatmap"), ("answer", "rank_answers"), ("pair", "judge"), ("clip", "classify"), ("clip", "match")],
)
def test_odd_values_for_other_families(kind: str, name: str, image_paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(image_paths[0].read_bytes())
    if kind == "clip":
        write_clip(tmp_path / "source")
    else:
        save_native(small_parts(kind, tmp_path), tmp_path / "source", "float32")
    give_odd_values(openblip.load(tmp_path / "source", device="cpu"), name, tmp_path)


def give_odd_values(model: Model, name: str, folder: Path) -> None:
    """One after the other, in place of each argument."""
    call, right, names = public_call(model, name, folder)
    for parameter in names:
        sampled = {"top_p": 0.9} if parameter in ("temperature", "top_k", "seed") else {}
        for value in odd_values(model):
            try:
                found = call(**sampled | right | {parameter: value})
                if hasattr(found, "__next__"):
                    list(found)
            except OpenBlipError as error:
                assert str(error).isprintable() and len(str(error)) < 1_000, (parameter, value)
            except Exception as error:
                pytest.fail(f"{name}({parameter}={value!r:.80}) raises {type(error).__name__}: {error}")
            else:
                assert parameter not in FLAGS or value is None or type(value) in (bool, np.bool_), (parameter, value)


@pytest.mark.parametrize("value", ["False", "no", 0, 1, [], np.array([True])])
def test_web_addresses_are_not_allowed_by_accident(value: Any) -> None:
    with pytest.raises(OptionError, match=r"allow_urls is .*: it must be True or False"):
        openblip.load_image("http://127.0.0.1:1/a.png", allow_urls=value)


@pytest.mark.parametrize("name", ["checkpoint", "tokenizer", "adapter"])
def test_what_is_no_path_is_named(tiny_model_folder: Path, name: str) -> None:
    for value in (3, True, b"x", ["x"], {}, object(), "", "\0", "\ud800", "a" * 5_000, "~nobody-of-that-name/x"):
        with pytest.raises(OptionError, match=f"the {name} "):
            openblip.load(tiny_model_folder, **{name: value})


def test_a_model_is_saved_in_the_home_of_the_user(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert tiny_model.save("~/saved") == tmp_path / "saved"
    assert (tmp_path / "saved" / "config.json").is_file()
