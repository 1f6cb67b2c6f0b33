"""`openblip models`."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.checkpoints.registry import list_models
from openblip.checkpoints.tools.plan import list_rows

from .conftest import Run


def test_the_table_tells_every_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    table, records = run("models"), run("models", "--json").records
    assert (table.code, table.err) == (0, "")
    rows = list_rows()
    assert [record["name"] for record in records] == [row.name for row in rows]
    assert {info.name for info in list_models()} <= {row.name for row in rows}
    for row, record in zip(rows, records, strict=True):
        assert record["abilities"] == list(row.abilities)
        assert (record["licence"], record["memory"]) == (row.licence, row.memory)
        (line,) = [line for line in table.lines if line.split()[0] == row.name and "is also" not in line]
        for shown in (f"{row.image_size} px", row.abilities[0], f"{row.parameters / 1e6:,.0f} M"):
            assert shown in line
        for shown in (*row.abilities, row.terms, *row.aliases):
            assert shown in table.out
        for column, size in enumerate(row.memory.values()):
            assert line.split(" M ")[1].split()[1 + column] == f"{size / 1e3:.2f}"
        assert ("yes" if row.cached else "no") in line.split()
    assert max(len(line) for line in table.lines) <= 120
