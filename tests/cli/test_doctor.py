"""`openblip doctor`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openblip import machine
from openblip.checkpoints.blip2_models import OFFICIAL
from openblip.nn.opt import OptConfig

from .conftest import Run


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    small = OptConfig(vocab_size=300, width=256, depth=1, num_heads=4, ffn_width=512)
    monkeypatch.setattr(machine, "LANGUAGE", small)
    monkeypatch.setattr(machine, "IMAGE", replace(machine.IMAGE, width=128, mlp_width=256, num_heads=2))
    monkeypatch.setattr(machine, "READ_NUMBERS", 10**6)


def test_it_tells_every_writing_model(run: Run) -> None:
    ran = run("doctor")
    assert (ran.code, ran.err) == (0, "")
    table = ran.lines[ran.lines.index("") + 2 :]
    told = {line.split()[0] for line in table}
    writers = {(model.vision, model.language, model.image_size) for model in OFFICIAL if model.language is not None}
    assert len(table) == len(told) == len(writers)
    assert told <= {model.name for model in OFFICIAL}


def test_json_adds_up(run: Run) -> None:
    (record,) = run("doctor", "--json").records
    assert record["reads"] > 0 and record["cores"] >= 1
    assert [speed["dtype"] for speed in record["speeds"]] == ["float32", "int8"]
    for speed in record["speeds"]:
        assert min(speed["many"], speed["few"], speed["row"], speed["scores"]) > 0
    for estimate in record["captions"]:
        assert all(seconds > 0 for seconds in estimate["seconds"].values())


def test_a_machine_twice_as_fast_takes_half_as_long() -> None:
    model = next(model for model in OFFICIAL if model.language is not None)
    assert model.language is not None and model.vision is not None
    slow = machine.Speed("float32", many=1e11, few=5e10, row=1e10, scores=1e10, weight_bytes=4)
    fast = machine.Speed("float32", many=2e11, few=1e11, row=2e10, scores=2e10, weight_bytes=4)
    taken = [machine.caption_seconds(model, model.vision, model.language, speed) for speed in (slow, fast)]
    assert taken[0] == pytest.approx(2 * taken[1])


@pytest.mark.parametrize("computes", [True, False])
def test_half_types_that_the_cpu_does_not_compute_are_told(
    run: Run, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_computes", lambda dtype: computes)
    told = [line.strip() for line in run("doctor").lines if "kept in" in line]
    names = () if computes else ("bfloat16", "float16")
    assert told == [f"{name} is computed in float32 here, from weights kept in {name}" for name in names]
    (record,) = run("doctor", "--json").records
    assert record["half_types"] == {"bfloat16": computes, "float16": computes}
