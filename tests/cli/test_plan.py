"""`openblip plan`."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.checkpoints.tools import plan as plans
from openblip.checkpoints.tools.plan import make_plan

from .conftest import Run

NAME = "Salesforce/blip2-flan-t5-xl"


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 10 GB of memory and 20 GB of disk."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(plans, "free_memory", lambda: [("cpu", 10**10), ("cuda:0", None)])
    monkeypatch.setattr(plans, "_disk_free", lambda _: 2 * 10**10)


def test_it_tells_what_fits(run: Run) -> None:
    ran = run("plan", NAME, "--dtype", "int8")
    made = make_plan(NAME, "int8")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        f"{NAME}, 3,942 M weights in int8",
        "  disk    15.77 GB to fetch, 20.00 GB free: fits",
        f"  memory  {made.memory / 1e9:.2f} GB: 3.95 GB weights, {(made.memory - made.weights) / 1e9:.2f} GB beside",
        "  cpu     10.00 GB free: fits",
        "  cuda:0  unknown",
    ]
    assert "does not fit" in run("plan", NAME).lines[3]


def test_json_has_the_same_numbers(run: Run) -> None:
    (record,) = run("plan", NAME, "--dtype", "bf16", "--json").records
    made = make_plan(NAME, "bfloat16")
    assert (record["memory"], record["weights"], record["dtype"]) == (made.memory, made.weights, "bfloat16")
    assert record["devices"][0] == {"device": "cpu", "free": 10**10, "fits": True}
    assert record["download_fits"] is True


def test_a_typo_gives_the_nearest_name(run: Run) -> None:
    ran = run("plan", "Salesforce/blip2-flan-t5")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean Salesforce/blip2-flan-t5-xl" in ran.err
