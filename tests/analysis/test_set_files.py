"""Sets of questions: those of the package, and files whose every key is checked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from openblip.analysis.question_sets import MEDICAL_WARNING, Question, QuestionSet, built_in_sets
from openblip.analysis.set_files import find_question_set, load_question_set
from openblip.errors import OpenBlipError, OptionError

WHOLE = """\
# Comments are fine.
title: Invoices
description: What we want of invoices.
warning: Check the numbers.
caption: a scan of
questions:
  - Who sent this?
  - "What is the total: in euros?"
  - ask: Is it paid?
    choices: [yes, no]
    pages: last
  - ask: What is it?
    choices: [invoice, letter, 012]
    pages: 1-3,7
template: "Q: {question} A:"
options:
  max_new_tokens: 40
  length_penalty: -0.5
  no_repeat_words: true
find: {flaws: [scratch, dent], colors: [red]}
"""


def read(tmp_path: Path, text: str, name: str = "my.yaml") -> QuestionSet:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_question_set(path)


def test_a_file_with_everything(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    assert (found.name, found.title, found.warning) == ("my", "Invoices", "Check the numbers.")
    assert (found.caption, found.prompt, found.template) == (True, "a scan of", "Q: {question} A:")
    assert found.questions == (
        Question("Who sent this?"),
        Question("What is the total: in euros?"),
        Question("Is it paid?", ("yes", "no"), "last"),
        Question("What is it?", ("invoice", "letter", "012"), "1-3,7"),
    )
    assert found.options == {"max_new_tokens": 40, "length_penalty": -0.5, "no_repeat_words": True}
    assert [(one.name, one.find("Dented, red and scratched: dents")) for one in found.find] == [
        ("flaws", ["dent"]),
        ("colors", ["red"]),
    ]


def test_json_is_read_without_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    content = {"caption": True, "questions": ["a?", {"ask": "b?", "pages": 2}], "options": {"num_beams": 2}}
    found = read(tmp_path, json.dumps(content), "my.json")
    assert found.questions == (Question("a?"), Question("b?", pages="2")) and found.caption
    with pytest.raises(OpenBlipError, match=r'pip install "openblip\[documents\]", or write the set as JSON'):
        read(tmp_path, WHOLE)


@pytest.mark.parametrize("name", ["document", "xray", "ct", "mri", "product"])
def test_built_in_sets_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    ours = built_in_sets()[name]
    assert find_question_set(name).identity() == ours.identity()
    theirs = read(tmp_path, ours.to_yaml(), f"{name}.yaml")
    assert theirs == ours
    assert (ours.warning == MEDICAL_WARNING) == (name in ("xray", "ct", "mri"))


def test_word_lists_beside_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "animals.txt").write_text("dog\ncat\n", encoding="utf-8")
    for find in ("colors, animals.txt", "[colors, animals.txt]"):
        found = read(tmp_path, f"caption: true\nfind: {find}")
        assert [one.name for one in found.find] == ["colors", "animals"]
        assert found.find[1].find("two dogs") == ["dog"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("question: [a]", "my.yaml, line 1: question is unknown: did you mean questions?"),
        ("colour: red", "my.yaml, line 1: colour is unknown: use title, description, warning, caption, questions"),
        ("\nquestions: what?", "my.yaml, line 2: questions must be a list of questions"),
        ("questions:\n- ask: a?\n  choice: [b, c]", "line 3: questions.1.choice is unknown: did you mean choices?"),
        ("questions:\n- ask: a?\n  choices: yes", "questions.1.choices must be a list of answers, such as [yes, no]"),
        ("questions:\n- ask: a?\n  choices: [b]", "questions.1: the choices of 'a?' are ['b']: give two or more words"),
        ("questions:\n- ask: a?\n  choices: [b, b]", "a choice of 'a?' is there twice"),
        ("questions:\n- b?\n- ask: a?\n  pages: frist", "line 3: questions.2: pages is 'frist': write all, first"),
        ("questions:\n- choices: [a, b]", "my.yaml, line 2: questions.1 has no question: write ask: QUESTION"),
        ("questions:\n- is it: red?", "my.yaml, line 2: questions.1 is keys and values: put a question"),
        ("questions:\n- [a]", "questions.1 is a list, and must be a text"),
        ("questions:\n- '?'", "line 2: questions.1: a question is empty: ask something about the page"),
        (f"questions:\n- {'word ' * 51}", "questions.1: a question is longer than the 50 words that models read"),
        ("questions:\n- a?\n- a?", "'a?' is asked twice: ask each question once"),
        ("title: nothing", "the set my asks nothing: give it questions, or a caption"),
        ("caption: []", "caption must be true, false, or the words that captions begin with"),
        ("caption: true\noptions: 5", "my.yaml, line 2: options must be keys and values, such as max_new_tokens: 50"),
        ("caption: true\noptions: {max_tokens: 5}", "line 2: options: unknown option max_tokens: did you mean max"),
        ("caption: true\noptions: {num_beams: many}", "options: num_beams is 'many': it must be a whole number"),
        ("caption: true\noptions: {num_beams: [1]}", "options.num_beams must be one value"),
        ("caption: true\ntemplate: Q", "template is 'Q': say with {question} where the question stands"),
        ("caption: true\nfind: colours", "my.yaml, line 2: find: there is no list of words colours: did you mean col"),
        ("caption: true\nfind: {a: red}", "find.a must be a list of words, such as [red]"),
        ("caption: true\nfind: {a: []}", "find.a has no words in it"),
        ("caption: true\ncaption: false", "line 2: the key 'caption' is there twice: write it once"),
        ("- a", "my.yaml is no set of questions: write keys and values"),
        ("", "my.yaml is no set of questions: write keys and values"),
        ("a: [b", "this is no YAML"),
        ("title: a\n  b: c", "my.yaml, line 2: this is no YAML (mapping values are not allowed here): put texts in q"),
        ("? [a]\n: b", "line 1: a key must be a word"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d "
         "[*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d]", "nested too deeply, or the file is too long"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(OpenBlipError) as caught:
        read(tmp_path, text)
    assert problem in str(caught.value)
    assert str(tmp_path / "my.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"questions": [3]}', "questions.1 is 3, and must be a text"),
        ('{"questions": ["a"]', "is no JSON (Expecting"),
        ('{"caption": true, "caption": false}', "the key 'caption' is there twice"),
        ('{"caption": null}', "caption must be true, false, or the words"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_in_json_is_named(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(OpenBlipError) as caught:
        read(tmp_path, text, "my.json")
    assert problem in str(caught.value)


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no set of questions xrya: did you mean xray\?"):
        find_question_set("xrya")
    with pytest.raises(OptionError, match="give document, xray, ct, mri, product, or a YAML file of your own"):
        find_question_set("invoices")
    with pytest.raises(OptionError, match=r"there is no file nowhere\.yaml"):
        find_question_set("nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: \xe9t\xe9")
    with pytest.raises(OpenBlipError, match="is no text in UTF-8"):
        find_question_set(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(OpenBlipError, match="is too large for a set of questions"):
        find_question_set(tmp_path / "large.yaml")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.yaml")
        with pytest.raises(OpenBlipError, match="named pipe"):
            find_question_set(tmp_path / "pipe.yaml")


def test_a_file_without_a_suffix_and_other_spellings(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("\ufeffquestions: ['a?']\r\n", encoding="utf-8")
    assert find_question_set(str(tmp_path / "mine")).questions == (Question("a?"),)
    assert find_question_set(["a?", Question("b?")]).questions == (Question("a?"), Question("b?"))
