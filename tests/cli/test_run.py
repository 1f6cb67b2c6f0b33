"""`openblip run` with a real model: the verbs, their columns, and what the command says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import openblip
from openblip.models.model import Model
from tests.cli.conftest import Run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_captions_of_a_table(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    lines = ["id,image,kind", f"007,{image_paths[0]},dog", "8,gone.png,cat", f"9,{image_paths[1]},ball"]
    lines += [f"10,{image_paths[0]},dog", f"11,{image_paths[0]},ball"]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = tmp_path / "out.csv"
    words = ["--prompt", "a {kind}", "--prefix", "{name}: ", "--suffix", ".", "--num-beams", "2"]
    ran = run("run", "caption", table, "-o", output, "--model", tiny_model_folder, "--batch-size", "2", *words)
    assert ran.code == 1
    assert ran.out == (
        f"{output}: 5 rows, 1 of them with the image of an earlier row, 1 with an error (see its column error; "
        "--retry-errors tries them again)\n"
    )
    one, two, other = (
        tiny_model.caption(path, prompt=prompt, num_beams=2)
        for path, prompt in ((image_paths[0], "a dog"), (image_paths[1], "a ball"), (image_paths[0], "a ball"))
    )
    found = rows_of(output)
    assert [row["id"] for row in found] == ["007", "8", "9", "10", "11"]
    assert [row["caption"] for row in found] == [
        f"photo1: {one}.", "", f"photo2: {two}.", f"photo1: {one}.", f"photo1: {other}.",
    ]  # fmt: skip
    assert found[1]["error"] == "there is no such file; check the path"


def test_answers_and_vectors(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    questions = ["what is it?", "how many?"]
    output = tmp_path / "out.jsonl"
    options = ["-q", questions[0], "-q", questions[1], "--model", tiny_model_folder, "--limit", "2"]
    assert run("run", "ask", image_paths[0].parent, "-o", output, *options).code == 0
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    answers = list(tiny_model.ask_many((path, questions) for path in image_paths[:2]))
    assert [[record[question] for question in questions] for record in records] == [
        [answer.text for answer in row.answers] for row in answers
    ]
    again = tmp_path / "vectors.jsonl"
    assert run("run", "embed", output, "-o", again, "--model", tiny_model_folder).code == 2  # it has a column error
    pattern = str(image_paths[0].parent / "photo[12].png")
    assert run("run", "embed", pattern, "-o", again, "--model", tiny_model_folder).code == 0
    vectors = [json.loads(line)["embedding"] for line in again.read_text(encoding="utf-8").splitlines()]
    expected = tiny_model.embed_images(image_paths[:2])
    assert openblip.similarity(expected[:1], expected[:1, 0]).shape == (1, 1)
    assert vectors == expected.tolist()


def test_scores_and_labels(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    folder = image_paths[0].parent
    texts = ["-t", "a dog", "-t", "the beach"]
    assert run("run", "match", folder, "-o", tmp_path / "m.csv", *texts, "-m", tiny_model_folder).code == 0
    for row, matched in zip(rows_of(tmp_path / "m.csv"), tiny_model.match_many(image_paths, ["a dog", "the beach"])):  # noqa: B905
        assert json.loads(row["itm"]) == pytest.approx([one.itm for one in matched.matches], abs=1e-5)
        assert json.loads(row["itc"]) == pytest.approx([one.itc for one in matched.matches], abs=1e-5)
        assert row["best_text"] == max(matched.matches, key=lambda one: one.itm or 0).text
    labels = ["-l", "dog", "-l", "ball"]
    assert run("run", "classify", folder, "-o", tmp_path / "c.csv", *labels, "-m", tiny_model_folder).code == 0
    for row, chosen in zip(rows_of(tmp_path / "c.csv"), tiny_model.classify_many(image_paths, ["dog", "ball"])):  # noqa: B905
        assert row["label"] == chosen.labels[0].label
        assert float(row["probability"]) == pytest.approx(chosen.labels[0].probability, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["caption", "PHOTOS", "-o", "OUT.xlsx"], "has an unknown ending: a run writes .csv, .tsv, .jsonl or .parquet"),
        (["caption", "PHOTOS", "-o", "OUT.csv", "--top-p", "0.9"], "a run that samples needs --seed"),
        (["caption", "PHOTOS", "-o", "OUT.csv", "--prompt", "a {color}"], "there is no such column: use image, folder"),
        (
            ["caption", "PHOTOS", "-o", "OUT.csv", "--column", "image"],
            "has a column 'image' already: give another name",
        ),
        (["caption", "PHOTOS", "-o", "OUT.csv", "--shard", "4/3"], "give it as 3/16, the third of sixteen parts"),
        (["caption", "PHOTOS", "-o", "OUT.csv", "--limit", "0"], "it must be at least 1"),
        (["ask", "PHOTOS", "-o", "OUT.csv"], "give questions with --question, or a column of questions"),
        (["ask", "PHOTOS", "-o", "OUT.csv", "--question-column", "q"], "there is no column q"),
        (["classify", "PHOTOS", "-o", "OUT.csv"], "there are no labels: give some with --label"),
        (["classify", "PHOTOS", "-o", "OUT.csv", "--label", "cat", "--label", "cat"], "the label 'cat' is there twice"),
        (["caption", "no.csv", "-o", "OUT.csv"], "there is no file no.csv: check the path"),
        (["caption", "PHOTOS", "-o", "no/OUT.csv"], "give --output the name of a file in an existing folder"),
    ],
)
def test_refusals(run: Run, image_paths: list[Path], tmp_path: Path, arguments: list[str], said: str) -> None:
    places = {"PHOTOS": str(image_paths[0].parent), "OUT": str(tmp_path / "out"), "no/OUT": str(tmp_path / "no/out")}
    given = []
    for argument in arguments:
        stem, dot, suffix = argument.partition(".")
        given.append(places[stem] + dot + suffix if stem in places else argument)
    ran = run("run", *given)
    assert ran.code == 2 and said in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(run: Run, image_paths: list[Path], tmp_path: Path) -> None:
    ran = run("run", "caption", image_paths[0].parent, "-o", tmp_path / "o.csv", "--dry-run", "--shard", "2/2")
    assert ran.lines[:3] == ["rows        3 of 5, 0 of them done", "image       image", "new columns caption, error"]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_loaded_leaves_nothing(run: Run, image_paths: list[Path], tmp_path: Path) -> None:
    ran = run("run", "caption", image_paths[0], "-o", tmp_path / "o.csv", "--model", tmp_path / "no")
    assert ran.code == 2 and ran.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_question_that_the_model_refuses_is_an_error_of_its_row(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    questions = ["how many?", "what is it?", "why " * 300, "what color?"]
    table = tmp_path / "table.csv"
    lines = [f"{path},{question}" for path, question in zip(image_paths, questions)]  # noqa: B905
    table.write_text("\n".join(["image,q", *lines, ""]), encoding="utf-8")
    options = ["--question-column", "q", "--batch-size", "2", "--model", tiny_model_folder]
    assert run("run", "ask", table, "-o", tmp_path / "out.csv", *options).code == 1
    found = rows_of(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in found] == [False, False, True, False]
    assert "positions" in found[2]["error"] or "long" in found[2]["error"]
    assert found[3]["answer"] == tiny_model.ask(image_paths[3], "what color?")


@pytest.mark.parametrize("verb", ["run caption", "caption", "ask", "embed"])
def test_exit_codes_tell_some_errors_from_no_result(
    run: Run, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path, verb: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no image")
    words = ["what is it?"] if verb == "ask" else []
    suffix = ".npz" if verb == "embed" else ".csv"
    command = [*verb.split(), photos, *words, "--model", tiny_model_folder, "-o"]
    assert run(*command, tmp_path / f"none{suffix}").code == 2
    (photos / "good.png").write_bytes(image_paths[0].read_bytes())
    assert run(*command, tmp_path / f"some{suffix}").code == 1
    (photos / "broken.jpg").unlink()
    assert run(*command, tmp_path / f"all{suffix}").code == 0
