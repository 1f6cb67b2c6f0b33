"""`openblip models`."""

from __future__ import annotations

from openblip.checkpoints.registry import list_models

from .conftest import Run


def test_the_table_tells_every_model(run: Run) -> None:
    table, records = run("models"), run("models", "--json").records
    assert table.code == 0
    known = list_models()
    assert [record["name"] for record in records] == [info.name for info in known]
    for info, record in zip(known, records, strict=True):
        assert record["abilities"] == list(info.abilities)
        assert record["folder"] == str(info.folder)
        for shown in (info.name, f"{info.image_size} px", *info.abilities, info.licence.split()[0]):
            assert shown in table.out
