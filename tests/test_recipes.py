"""Recipes refer to themselves and to bases beside them, whoever wrote them and however."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import OpenBlipError, OptionError
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


WHOLE = (
    "output: out\ntask: captions\nmodel: mini\ntext: {num_beams: 3, prompt: a}\ndata: {name: a, captions: a.jsonl}\n"
)


def write(folder: Path, **files: str) -> Path:
    """Recipes of a folder by their names; the path of the one called `r`."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "r.yaml"


def test_a_recipe_gives_what_differs_from_its_bases(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        first=WHOLE + "limit: 5\npublished: [{metric: cider, value: 1.0, source: x}]\ntitle: on ${output}\n",
        second="base: first.yaml\nmodel: x\ntext: {num_beams: 4, length_penalty: 2.0}\ndata: {name: b}\nlimit: null\n",
        r="base: ./second.yaml\ntext: {length_penalty: 3.0}\npublished: []\noutput: here\n",
    )
    recipe = load_evaluation(path, ["text.prompt=c", "data.name=d"])
    assert recipe.text == {"num_beams": 4, "prompt": "c", "length_penalty": 3.0}, (
        "mappings are merged, overrides come last"
    )
    assert (recipe.output, recipe.model, recipe.limit) == ("here", "x", None)
    assert (recipe.data.name, recipe.data.captions) == ("d", "a.jsonl")
    assert recipe.published == [], "lists are replaced"
    assert recipe.title == "on here", "references are to the merged recipe"
    saved = write(tmp_path, r=write_recipe(recipe))
    assert "base" not in saved.read_text("utf-8")
    assert load_evaluation(saved) == recipe


def test_a_training_recipe_has_bases(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", b="base: ../a.yaml\noptimizer: {lr: 0.5}\nlora: {rank: 3}\n")
    data = "data: [{name: a, captions: a.jsonl}, {name: b, captions: b.jsonl}]"
    path = write(
        tmp_path,
        a=f"stage: stage2\noutput: a\ninit: m\noptimizer: {{lr: 1.0, min_lr: 0.25}}\n{data}\n",
        r="base: below/b.yaml\noutput: c\nlora: {alpha: 7}\ndata: [{name: c, captions: c.jsonl}]\n",
    )
    recipe = load_recipe(path, ["data.0.views=2"])
    assert (recipe.output, recipe.optimizer.lr, recipe.optimizer.min_lr) == ("c", 0.5, 0.25)
    assert [(source.name, source.views) for source in recipe.data] == [("c", 2)]
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.alpha) == (3, 7)
    assert load_recipe(write(tmp_path, r="base: below/b.yaml\nlora: null\n")).lora is None


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"r": "base: r.yaml\n"}, "r.yaml: its base r.yaml builds on this recipe"),
        ({"r": "base: a.yaml\n", "a": "base: b.yaml\n", "b": "base: ./a.yaml\n"}, "b.yaml: its base a.yaml builds on"),
        ({"r": "base: no.yaml\n"}, "r.yaml: its base no.yaml does not exist: name a recipe in "),
        ({"r": "base: a.yaml\n", "a": "base: ''\n"}, "a.yaml: its base is '': write the name"),
        ({"r": "base:\n"}, "its base is 'None'"),
        ({"r": "base: ???\n"}, "its base ??? does not exist"),
        ({"r": "base: [a.yaml]\n"}, "write the name of a recipe"),
        ({"r": "base: 3\n"}, "its base is '3'"),
        ({"r": "base: ${output}.yaml\noutput: a\n"}, "write the name of a recipe"),
        ({"r": 'base: "a\\0.yaml"\n'}, "write the name of a recipe"),
        ({"r": "base: ../outside.yaml\n"}, "its base ../outside.yaml is outside of "),
        ({"r": "base: sub/../../outside.yaml\n"}, "is outside of "),
        ({"r": "base: /etc/passwd\n"}, "its base /etc/passwd is outside of "),
        ({"r": "base: link.yaml\n"}, "its base link.yaml is outside of "),
        ({"r": "base: .\n"}, "cannot be read"),
        ({"r": f"base: {'a' * 300}.yaml\n"}, "r.yaml"),
        ({"r": "base: a.yaml\n", "a": "- 1\n"}, "a.yaml is no recipe"),
        ({"r": "base: a.yaml\n", "a": "outptu: 1\n"}, "a.yaml: Key 'outptu'"),
        ({"r": "base: a.yaml\n", "a": "output: [\n"}, "a.yaml: "),
        ({"r": "base: a.yaml\n", "a": "output: ${oc.env:SECRET}\n"}, "a.yaml, line 1: ${oc.env:SECRET} is not read"),
        ({"r": "base: a.yaml\n", "a": "output: a\n"}, "is missing: every recipe has to say it"),
        ({"r": "base: a.yaml\n", "a": "data_root: {a: {base: 1}}\n"}, "a.yaml: data_root"),
    ],
)
def test_a_wrong_base_is_one_sentence(
    files: dict[str, str], words: str, read: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (tmp_path / "outside.yaml").write_text(WHOLE)
    (folder / "link.yaml").symlink_to("../outside.yaml")
    with pytest.raises(OpenBlipError) as caught:
        read(write(folder, **files))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_is_no_override(tmp_path: Path) -> None:
    with pytest.raises(OpenBlipError, match="a recipe names its base in its file: write base: other"):
        load_evaluation(write(tmp_path, r=WHOLE, other=WHOLE), ["base=other.yaml"])


def test_a_folder_behind_a_link_has_its_bases(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write(tmp_path / "real", r="base: a.yaml\n", a=WHOLE)
    (tmp_path / "link").symlink_to("real")
    assert load_evaluation(tmp_path / "link" / "r.yaml").output == "out"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("precision=half", r"precision: .*'half', expected one of \[float32, bf16, fp16\]"),
        ("storage=[]", r"storage: .* is none of its choices"),
        ("optimizer=3", r"optimizer has keys of its own: write optimizer\.KEY=VALUE"),
        ("batch_size=null", r"batch_size may not be null: write a value, or leave it out"),
        ("data=[{name: a, captions: a.jsonl, repeat: 2147483648}]", r"repeat of a is 2147483648: it must be at most"),
    ],
)
def test_a_wrong_value_is_told_in_the_recipes_words(override: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: stage2\ninit: mini\noutput: run\ndata: [{name: a, captions: a.jsonl}]\n")
    load_recipe(path)
    with pytest.raises(OptionError, match=problem) as caught:
        load_recipe(path, [override])
    assert "enum" not in str(caught.value) and "subclass" not in str(caught.value)


WRONG = [
    ("captions: true\n", "captions has keys of its own: write them as {KEY: VALUE}"),
    ("captions:\n", "captions may not be null"),
    ("captions: {meteor: }\n", "captions.meteor may not be null"),
    ("captions: {metor: auto}\n", "Key 'metor' is unknown: did you mean meteor?"),
    ("foo: 1\n", "Key 'foo' is unknown"),
    ("text: 3\n", "text has keys of its own"),
    ("text: []\n", "text has keys of its own"),
    ("title: [a]\n", "title is a list: write one value"),
    ("title: {a: 1}\n", "title is a mapping: write one value"),
    ("dtype: [1]\n", "dtype is a list: write one value"),
    ("batch_size: []\n", "batch_size is a list"),
    ("batch_size: x\n", "batch_size: x is no whole number"),
    ("limit: 1.5\n", "limit: 1.5 is no whole number"),
    ("retrieval: {clean_texts: maybe}\n", "retrieval.clean_texts: maybe is neither true nor false"),
    ("published: 3\n", "published is a list: begin each of its entries with a dash"),
    ("published: [3]\n", "published.0 has keys of its own"),
    ("published: [{metric: [a], value: 1, source: b}]\n", "published.0.metric is a list"),
    ("published: [{metric: a, value: b, source: c}]\n", "value: b is no number"),
    ("published: [{metric: a, value: .nan, source: c}]\n", "the published a is nan: write a number such as 0.785"),
    ("published: [{metric: a, value: .inf, source: c}]\n", "the published a is inf"),
    ("classification: {answers: 3}\n", "classification.answers has keys of its own"),
    ("classification: {answers: {a: [b]}}\n", "classification.answers.a is a list"),
    ("classification: {labels: 3}\n", "classification.labels is a list"),
    ("classification: {labels: [[a]]}\n", "classification.labels.0 is a list"),
    ("classification: {labels: [a, null]}\n", "classification.labels.1 is null"),
    ("captions: ${title}\n", "what a key refers to may not be null"),
    ("questions: {candidates: 0}\n", "questions.candidates is 0: it must be at least 1"),
    ("retrieval: {rerank: -1}\n", "retrieval.rerank is -1: it must be 0 or more"),
    (f"batch_size: {'b' * 5000}\n", "batch_size: bbb"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_a_value_of_a_wrong_kind_is_told_with_its_key(text: str, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, r="output: out\ntask: captions\ndata: {name: a, captions: a.jsonl}\n" + text)
    with pytest.raises(OpenBlipError) as caught:
        load_evaluation(path)
    said = str(caught.value)
    assert told in said and "\n" not in said and len(said) < 500 + len(str(path))
    for name in ("Settings", "DictConfig", "ListConfig", "EvaluationRecipe", "Merge error", "NoneType", "Optional"):
        assert name not in said


def test_overrides_are_held_to_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, r="output: out\ntask: captions\ndata: {name: a, captions: a.jsonl}\n")
    for override, told in (
        ("classification.labels=[[1]]", "classification.labels.0 is a list"),
        ("classification.answers={a: [1]}", "a list"),
        ("title=[1]", "title: it is one text, not a list"),
        ("published=3", "published: it is a list: write [VALUE, VALUE]"),
        ("questions=[1]", "a list or a mapping stands where the other belongs"),
        ("captions={a: 1}", "Key 'a' is unknown"),
    ):
        with pytest.raises(OpenBlipError) as caught:
            load_evaluation(path, [override])
        assert told in str(caught.value)
