"""The parity table: its form, its exit code, and one line of it measured."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
ARCHITECTURES = """blip_caption/base_coco blip_caption/large_coco blip_vqa/vqav2 blip_image_text_matching/base
    blip_image_text_matching/large blip_retrieval/coco clip/ViT-B-32 clip/ViT-B-16 clip/ViT-L-14 clip/ViT-L-14-336
    clip/RN50""".split()
"""Those that are measured against transformers, open_clip or plain PyTorch; of the others there are recordings."""
RECORDED = """blip_caption blip_vqa blip_image_text_matching blip_feature_extractor blip_retrieval blip_pretrain
    blip_nlvr blip_classification clip""".split()


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        return importlib.import_module("benchmarks.parity")


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


def test_every_architecture_has_a_line(parity: ModuleType, tmp_path: Path) -> None:
    components = [check.component for check in parity.CHECKS]
    for name in ARCHITECTURES:
        assert [component for component in components if component.split(",")[0] == name], name
    recorded = parity.recorded_checks(tmp_path)
    for name in RECORDED:
        assert [check for check in recorded if name in check.component], name
    assert all((ROOT / "tests" / check.test).exists() for check in recorded)


def test_what_tests_of_recordings_compare_is_measured(parity: ModuleType) -> None:
    watched = importlib.import_module("tests.parity.blip").watched
    module = ModuleType("recorded")

    def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
        raise AssertionError("is replaced")

    module.CLOSE, module.GRADIENT, module.close = 1e-5, 1e-4, close  # type: ignore[attr-defined]

    def compare(apart: float, same: bool) -> None:
        module.close(torch.zeros(2), torch.tensor([0.0, apart]))
        module.close(torch.zeros(1), torch.tensor([apart / 2]), 1e-4)
        assert same

    good = watched(module, [partial(compare, 2e-6, True), partial(compare, 4e-6, True)])
    assert [str(gap) for gap in good] == ["gradients 2.0e-6", "outputs 4.0e-6", "exact checks: all 2 equal"]
    bad = watched(module, [partial(compare, 2e-5, True), partial(compare, 0.0, False)])
    assert [gap.within for gap in bad] == [True, False, False]
    assert module.close is close
