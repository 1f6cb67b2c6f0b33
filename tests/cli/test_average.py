"""`openblip average`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openblip.checkpoints.openblip.folder import load_native, save_native

from .conftest import Run


@pytest.fixture
def moved(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with every weight one larger."""
    parts = load_native(tiny_model_folder)
    with torch.no_grad():
        for parameter in parts.network.parameters():
            parameter += 1
    save_native(replace(parts, name="moved"), tmp_path / "moved")
    return tmp_path / "moved"


@pytest.mark.parametrize(("shares", "expected"), [(("", ""), 0.5), (("=0.75", "=0.25"), 0.25)])
def test_the_mean_lies_between(
    run: Run, tiny_model_folder: Path, moved: Path, tmp_path: Path, shares: tuple[str, str], expected: float
) -> None:
    ran = run("average", tmp_path / "mean", f"{tiny_model_folder}{shares[0]}", f"{moved}{shares[1]}")
    assert (ran.code, ran.err) == (0, "")
    start, mean = load_file(tiny_model_folder / "model.safetensors"), load_file(tmp_path / "mean/model.safetensors")
    parameters = dict(load_native(tiny_model_folder).network.named_parameters())
    for name, value in start.items():
        shift = expected if name in parameters else 0
        assert torch.allclose(mean[name].float(), value.float() + shift, atol=1e-6), name
    assert load_native(tmp_path / "mean").name == "mean"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["{tiny}"], "give at least two"),
        (["{tiny}=0.5", "{moved}=0.6"], "add up to 1.1"),
        (["{tiny}=0.5", "{moved}"], "give every model a share"),
        (["{tiny}=half", "{moved}=0.5"], "'half' is no share"),
        (["{tiny}=0.5", "{tiny}=0.5"], "named twice"),
        (["{tiny}", "mini"], "different models"),
    ],
)
def test_what_has_no_mean(
    run: Run, tiny_model_folder: Path, moved: Path, tmp_path: Path, models: list[str], message: str
) -> None:
    named = [model.format(tiny=tiny_model_folder, moved=moved) for model in models]
    ran = run("average", tmp_path / "mean", *named)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1
    assert not (tmp_path / "mean").exists()
