"""Statements about one image or two, judged as users ask for it: by a BLIP of NLVR2 and one of SNLI-VE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import openblip
from openblip.nn.quant.swap import quantized_layers
from tests.cli.conftest import Run, run  # noqa: F401
from tests.models.blip_models import Make
from tests.models.test_wrong_arguments import odd_values, public_call

STATEMENTS = ["a red ball on the beach", "two dogs play with a cat in the picture", "a photo of children"]
CLASSES = {"pair": ("False", "True"), "entail": ("contradiction", "neutral", "entailment")}


def groups_of(task: str, paths: list[Path]) -> list[Any]:
    return [(paths[0], paths[1]), (paths[2], paths[0])] if task == "pair" else paths[:3]


@pytest.mark.parametrize("task", CLASSES)
def test_classes_are_those_of_the_network(make: Make, image_paths: list[Path], task: str) -> None:
    model = make(task)
    assert model.abilities == ("judge",) and model.parts.classes == CLASSES[task]
    groups = groups_of(task, image_paths)
    found = model.judge(groups, STATEMENTS)
    network, words = model.network, model.parts.matching
    assert words is not None
    labels = set()
    with torch.inference_mode():
        for group, row in zip(groups, found, strict=True):
            images = group if task == "pair" else (group,)
            features = [model.encode_image(path).features[None] for path in images]
            for statement, one in zip(STATEMENTS, row, strict=True):
                ids = torch.tensor([words.encode(words.clean(statement))])
                odds = network.class_logits(ids, None, *features).softmax(dim=1)[0]
                assert list(one.probabilities) == list(CLASSES[task])
                assert list(one.probabilities.values()) == pytest.approx(odds.tolist(), abs=1e-5)
                assert one.label == CLASSES[task][int(odds.argmax())]
                assert one.probability == max(one.probabilities.values())
                labels.add(one.probability)
    assert len(labels) == len(found) * len(STATEMENTS)


@pytest.mark.parametrize("task", CLASSES)
def test_one_gives_one_and_several_a_list(make: Make, image_paths: list[Path], task: str) -> None:
    model = make(task)
    groups = groups_of(task, image_paths)
    alone = model.judge(groups[0], STATEMENTS[0])
    assert isinstance(alone, openblip.Judgement) and alone.statement == STATEMENTS[0]
    several = model.judge(groups[0], STATEMENTS)
    each = model.judge(iter(groups), STATEMENTS[0], batch_size=1)
    table = model.judge(groups, iter(STATEMENTS))
    assert [len(several), len(each), len(table), len(table[0])] == [3, len(groups), len(groups), 3]
    for one in (several[0], each[0], table[0][0]):
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    if task == "pair":
        left, right = groups[0]
        assert model.judge([left, right], STATEMENTS[0]) == alone
        assert model.judge([[left, right]], STATEMENTS[0]) == [alone]
        assert model.judge((right, left), STATEMENTS[0]).probabilities != alone.probabilities
        encoded = model.encode_image(left), model.encode_image(right)
        assert model.judge(encoded, STATEMENTS[0]) == alone


@pytest.mark.parametrize("task", CLASSES)
def test_many(make: Make, image_paths: list[Path], tmp_path: Path, task: str) -> None:
    """Rows with different numbers of statements and bad images between them; nothing is read ahead of need."""
    model, bad = make(task), tmp_path / "nowhere.png"
    groups = groups_of(task, image_paths)
    pairs: list[Any] = [
        (groups[0], STATEMENTS[:1]),
        ((bad, image_paths[0]) if task == "pair" else bad, STATEMENTS),
        (groups[1], STATEMENTS[0]),
        (groups[0], STATEMENTS),
        (groups[1], []),
    ]
    found = list(model.judge_many(iter(pairs), batch_size=2))
    assert [len(one.judgements) for one in found] == [1, 0, 1, 3, 0]
    assert isinstance(found[1].error, openblip.ImageError) and str(bad) in found[1].sources
    assert found[1].statements == tuple(STATEMENTS)
    expected = model.judge(groups[:2], STATEMENTS)
    for row, place in ((0, 0), (2, 1), (3, 0)):
        for one, other in zip(found[row].judgements, expected[place], strict=False):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    with pytest.raises(openblip.ImageError, match="nowhere"):
        model.judge([group for group, _ in pairs[:2]], "a dog")


def test_an_image_is_encoded_once(make: Make, image_paths: list[Path]) -> None:
    model = make("pair")
    model.image_cache.clear()
    model.judge([(image_paths[0], image_paths[1]), (image_paths[1], image_paths[0])], STATEMENTS)
    assert len(model.image_cache) == 2


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_a_saved_model_is_the_same(make: Make, image_paths: list[Path], tmp_path: Path, task: str, dtype: str) -> None:
    model, group = make(task), groups_of(task, image_paths)[0]
    folder = model.save(tmp_path / task)
    again = openblip.load(folder, device="cpu", dtype=dtype)
    assert (again.abilities, again.parts.classes) == (model.abilities, model.parts.classes)
    assert bool(quantized_layers(again.network)) == (dtype != "float32")
    found, exact = again.judge(group, STATEMENTS[0]), model.judge(group, STATEMENTS[0])
    assert found.probabilities == pytest.approx(exact.probabilities, abs=1e-6 if dtype == "float32" else 0.4)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for wrong in (["a"], ["a"] * len(CLASSES[task]), [1, 2, 3][: len(CLASSES[task])], "ab", None):
        (folder / "config.json").write_text(json.dumps({**content, "classes": wrong}), encoding="utf-8")
        with pytest.raises(openblip.CheckpointError, match="classes"):
            openblip.load(folder, device="cpu")


def test_wrong_images_and_statements_are_named(make: Make, image_paths: list[Path]) -> None:
    pair, entail = make("pair"), make("entail")
    with pytest.raises(openblip.OptionError, match="pair judges statements about two images: give both"):
        pair.judge(image_paths[0], "a dog")
    with pytest.raises(openblip.OptionError, match="pair judges statements about two images: give both"):
        pair.judge(image_paths[:3], "a dog")
    with pytest.raises(openblip.OptionError, match="entail judges statements about one image"):
        list(entail.judge_many([((image_paths[0], image_paths[1]), "a dog")]))
    with pytest.raises(openblip.OptionError, match="a statement is empty"):
        entail.judge(image_paths[0], ["a dog", " "])
    with pytest.raises(openblip.CheckpointError, match="pair has no language model to caption with: it can judge"):
        pair.caption(image_paths[0])


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("name", ["judge", "judge_many"])
def test_odd_values_are_named(make: Make, image_paths: list[Path], task: str, name: str) -> None:
    model = make(task)
    call, right, names = public_call(model, name, image_paths[0].parent)
    image = groups_of(task, image_paths)[0]
    right |= {"images": image, "pairs": [(image, "a dog")]} if name == "judge" else {"pairs": [(image, "a dog")]}
    right = {one: right[one] for one in right if one in names}
    for parameter in names:
        for value in odd_values(model):
            try:
                found = call(**right | {parameter: value})
                if name == "judge_many":
                    list(found)
            except openblip.OpenBlipError as error:
                assert str(error).isprintable() and len(str(error)) < 1_000, (parameter, value)


@pytest.mark.parametrize("task", CLASSES)
def test_command(make: Make, image_paths: list[Path], tmp_path: Path, run: Run, task: str) -> None:  # noqa: F811
    model, paths = make(task), image_paths[:2]
    folder = model.save(tmp_path / task)
    texts = [part for text in STATEMENTS for part in ("-t", text)]
    expected = model.judge([tuple(paths)] if task == "pair" else paths, STATEMENTS)
    ran = run("judge", *paths, *texts, "-m", folder)
    assert [line.rsplit(": ", 1)[1].split()[0] for line in ran.lines] == [one.label for row in expected for one in row]
    assert len(ran.lines) == 3 * len(expected)
    records = run("judge", *paths, *texts, "-m", folder, "--json").records
    assert [record["label"] for record in records] == [one.label for row in expected for one in row]
    assert records[0]["probabilities"] == pytest.approx(dict(expected[0][0].probabilities), abs=1e-5)
    assert records[0]["images"] == [str(path) for path in paths[: len(records[0]["images"])]]
    assert "give a statement with --text" in run("judge", *paths, "-m", folder).err
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"x")
    left_out = run("judge", paths[0], paths[0], paths[1], bad, "-t", "a dog", "-m", folder)
    assert left_out.code == 1 and str(bad) in left_out.err
    assert len(left_out.lines) == (1 if task == "pair" else 3)
    if task == "pair":
        assert "there are 3 of them" in run("judge", *image_paths[:3], "-t", "a dog", "-m", folder).err
