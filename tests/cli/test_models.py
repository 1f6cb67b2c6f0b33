"""`openblip models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openblip.checkpoints.registry import list_models
from openblip.checkpoints.tools.plan import memory_of

from .conftest import Run


def test_the_table_tells_every_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    table, records = run("models"), run("models", "--json").records
    assert (table.code, table.err) == (0, "")
    rows = list_models()
    assert [record["name"] for record in records] == [row.name for row in rows]
    for row, record in zip(rows, records, strict=True):
        assert record["abilities"] == list(row.abilities)
        assert (record["licence"], record["memory"]) == (row.licence, memory_of(row))
        (line,) = [line for line in table.lines if line.split()[:1] == [row.name] and "is also" not in line]
        memory = memory_of(row)
        sizes = [row.megabytes, *(memory[name] for name in ("float32", "int8", "int4"))]
        expected = [f"{row.parameters / 1e6:.0f}M", *(f"{size / 1e3:.2f}" for size in sizes)]
        assert line.split()[1:] == [*expected, str(row.image_size), "yes" if row.cached else "no"]
        above = table.out[: table.out.index(line)].rpartition("\n\n")[2]  # its group: the heading, and models before it
        assert " ".join(above.split()).startswith(f"{row.family}: {', '.join(row.abilities)}; licence {row.terms}")
        assert all(alias in table.out for alias in row.aliases)
    assert max(len(line) for line in table.lines) <= 80


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["opt-2.7b"], {"pattern": "opt-2.7b"}),
        (["blip2_*/coco", "--family", "blip2"], {"pattern": "blip2_*/coco", "family": "blip2"}),
        (["--ability", "match"], {"ability": "match"}),
        (["--cached"], {"cached": True}),
        (["--not-cached", "coco"], {"cached": False, "pattern": "coco"}),
    ],
)
def test_filters_are_those_of_list_models(
    run: Run, given: list[str], asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    names = [model.name for model in list_models(**asked)]
    assert 0 < len(names) < len(list_models())
    assert [record["name"] for record in run("models", *given, "--json").records] == names
    assert [line.split()[0] for line in run("models", *given).lines if line.endswith((" yes", " no"))] == names


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["opt-27b"], "no model has a name like 'opt-27b'"),
        (["Salesforce/blip2-opt-27b"], "did you mean Salesforce/blip2-opt-2.7b"),
        (["--family", "blip-2"], "'blip-2' is no family of models: did you mean blip2?"),
        (["--ability", "captions"], "'captions' is no ability of a model: did you mean caption?"),
    ],
)
def test_what_no_model_is_like(run: Run, given: list[str], told: str) -> None:
    ran = run("models", *given)
    assert (ran.code, ran.out) == (2, "") and told in ran.err and ran.err.count("\n") == 1


def test_nothing_is_a_table_without_rows(run: Run) -> None:
    ran = run("models", "mini", "--not-cached")
    assert (ran.code, ran.lines) == (0, ["no model is like that: ask for less"])
    assert run("models", "mini", "--not-cached", "--json").out == ""
