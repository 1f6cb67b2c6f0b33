"""The parity table: its form, its exit code, and one line of it measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks" / "parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "parity", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def test_what_exceeds_its_limit_is_bold_and_fails(parity: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    good = parity.Gap("outputs", 2.34e-7, 1e-5)
    cases = [
        ([good, parity.Gap("ids", 0, 0, 250)], 0, "outputs 2.3e-7; ids: all 250 equal | 1e-5, equal"),
        ([parity.Gap("pixels", 0.0, 0)], 0, "pixels 0 | equal"),
        ([good, parity.Gap("gradients", 2e-5, 1e-5)], 1, "outputs 2.3e-7; **gradients 2.0e-5** | 1e-5"),
        ([parity.Gap("outputs", float("nan"), 1e-5)], 1, "**outputs nan** | 1e-5"),
        ([parity.Gap("ids", 3, 0, 250)], 1, "**ids: 3 differ** | equal"),
    ]
    for gaps, code, shown in cases:
        check = parity.Check("component", "reference", lambda gaps=gaps: gaps, "nn/test_vit.py")
        assert parity.run([check], "a machine") == code
        printed = capsys.readouterr().out
        assert f"| component | reference | {shown} | tests/nn/test_vit.py |" in printed
        assert "a machine, one thread" in printed
    assert parity.worst([1.0, float("nan"), 2.0]) != parity.worst([1.0, 2.0]) == 2.0


def test_a_line_is_measured_and_every_test_exists(parity: ModuleType) -> None:
    (recorded,) = (check for check in parity.CHECKS if check.component == "ITM and ITC scores")
    gaps = recorded.measure()
    assert [gap.name for gap in gaps] == ["ITM logits", "ITC cosines"]
    assert all(gap.within and gap.value > 0 for gap in gaps)
    for check in parity.CHECKS:
        assert (ROOT / "tests" / check.test).exists()
