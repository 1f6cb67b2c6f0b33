"""Recipes refer to themselves alone, whoever wrote them and however."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import OpenBlipError
from openblip.evaluation.recipe import load_evaluation
from openblip.recipes import write_recipe
from openblip.training.recipe import load_recipe

READERS: list[Callable[..., Any]] = [load_evaluation, load_recipe]
SECRET = "hunter2-of-the-environment"

REACHING = [
    "${oc.env:SECRET}",
    "${ oc.env:SECRET }",
    "${oc.env:SECRET,none}",
    "${oc.env:${title}}",
    "${oc.${title}:SECRET}",
    "${${title}:SECRET}",
    "${data.${oc.env:SECRET}}",
    "x ${oc.decode:${oc.env:SECRET}} y",
    "${oc.select:title,${oc.env:SECRET}}",
    "${oc.create:{a:1}}",
    "${oc.deprecated:title}",
    "${mine:1}",
    "${oc.env:SECRET",
    "\\${oc.env:SECRET}",
    "\\\\${oc.env:SECRET}",
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", REACHING)
def test_no_resolver_is_asked(text: str, read: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    path = tmp_path / "r.yaml"
    escaped = text.replace("\\", "\\\\").replace("$", "\\x24")
    forms = [f"output: '{text}'\n", f'output: "{escaped}"\n', f"output: out\n? '{text}'\n: 1\n"]
    forms += [f"output: &a '{text}'\ntitle: *a\n", f"output: |\n  {text}\n", f"output: [1, {{a: '{text}'}}]\n"]
    for form in forms:
        path.write_text("# recipe\n" + form)
        with pytest.raises(OpenBlipError, match="is not read in a recipe") as raised:
            read(path)
        assert SECRET not in str(raised.value)
    path.write_text("output: out\n")
    for override in (f"output={text}", f'output="{escaped}"', f"data={{a: '{text}'}}", f"data=[['{text}']]"):
        with pytest.raises(OpenBlipError, match="is not read in a recipe") as raised:
            read(path, [override])
        assert SECRET not in str(raised.value)


def test_a_resolver_is_not_put_together(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "task: captions\nmodel: $\ntitle: '{oc.env:PATH}'\noutput: ${model}${title}\n"
        "data: {name: a, captions: a.jsonl}\n"
    )
    with pytest.raises(OpenBlipError, match="is not read in a recipe") as raised:
        load_evaluation(path)
    assert os.environ["PATH"] not in str(raised.value)


def test_values_of_other_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "task: captions\noutput: out\ntitle: 'all of ${data.name}'\n"
        "data: {name: cats, captions: '${.name}.jsonl', images: '${ data.name }'}\n"
    )
    recipe = load_evaluation(path, ["model=${data.name}"])
    assert (recipe.title, recipe.data.captions, recipe.model) == ("all of cats", "cats.jsonl", "cats")
    assert "oc.env" not in write_recipe(recipe)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("read", READERS)
def test_a_recipe_is_an_ordinary_file(read: Callable[..., Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, kind in ((tmp_path / "pipe.yaml", "a named pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(OpenBlipError, match=f"cannot be read: it is {kind}"):
            read(path)
    with pytest.raises(OpenBlipError, match="cannot be read"):
        read(tmp_path)
