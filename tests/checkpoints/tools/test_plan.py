"""What models are said to need, and what this machine is said to have."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.checkpoints.registry import list_models
from openblip.checkpoints.tools import plan
from openblip.checkpoints.tools.plan import BYTES_PER_WEIGHT, PROGRAM_BYTES, free_memory, make_plan, memory_of
from openblip.errors import CheckpointError, OptionError

NAME = "Salesforce/blip2-opt-2.7b"


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def leave(monkeypatch: pytest.MonkeyPatch, **left: int | None) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda: list(left.items()))


def test_memory_follows_the_number_format() -> None:
    for model in list_models():
        memory = memory_of(model)
        assert memory["float32"] == pytest.approx(4 * model.parameters / 1e6, abs=0.1)
        assert memory["bfloat16"] == pytest.approx(2 * model.parameters / 1e6, abs=0.1)
        assert memory["int8"] >= model.parameters / 1e6 and memory["int8"] > memory["int4"]
    (memory,) = [memory_of(model) for model in list_models() if model.name == NAME]
    assert memory["int4"] < 0.8 * memory["int8"]


def test_a_plan_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, cpu=10**12)
    monkeypatch.setattr(plan, "_disk_free", lambda _: 10**10)  # which others change meanwhile
    plans = {dtype: make_plan(NAME, dtype) for dtype in BYTES_PER_WEIGHT}
    weights = [made.weights for made in plans.values()]
    assert weights == sorted(weights, reverse=True)
    assert plans["float32"].weights == 4 * plans["float32"].parameters
    assert plans["float32"].loading == PROGRAM_BYTES
    # converting, the word table is there in float32 as well
    assert plans["int8"].loading == PROGRAM_BYTES + 4 * 50304 * 2560
    for made in plans.values():
        assert made.memory == made.weights + max(made.working, made.loading)
        assert PROGRAM_BYTES < made.working < PROGRAM_BYTES + 2 * 10**9
        assert made.download == pytest.approx(4 * made.parameters, rel=1e-3)
    assert make_plan(NAME, "bf16") == plans["bfloat16"]


def test_whether_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = make_plan(NAME, "int8").memory
    leave(monkeypatch, cpu=needed - 1, gpu=needed, other=None)
    assert [(room.device, room.fits) for room in make_plan(NAME, "int8").devices] == [
        ("cpu", False),
        ("gpu", True),
        ("other", None),
    ]
    monkeypatch.setattr(plan, "_disk_free", lambda _: 10**10)
    assert not make_plan(NAME).download_fits
    monkeypatch.setattr(plan, "_disk_free", lambda _: 10**11)
    assert make_plan(NAME).download_fits


def test_what_is_here_needs_no_download(tmp_path: Path) -> None:
    folder = tmp_path / "home/hub/models--Salesforce--blip2-opt-2.7b/snapshots/main"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    assert make_plan(NAME).download == 0
    assert make_plan(NAME).download_fits


def test_other_names_mean_the_same() -> None:
    assert make_plan("blip2_image_text_matching/coco").name == make_plan("blip2/coco").name == "blip2/coco"


def test_this_machine_has_memory() -> None:
    rooms = dict(free_memory())
    assert rooms["cpu"] is None or 0 < rooms["cpu"] < 2**50


def test_wrong_names_and_formats() -> None:
    with pytest.raises(CheckpointError, match=rf"did you mean {NAME}"):
        make_plan("Salesforce/blip2-opt-27b")
    with pytest.raises(OptionError, match="dtype 'int3' is not one of float32, bfloat16, int8, int4, bf16"):
        make_plan(NAME, "int3")
