"""Half types on CPUs that compute them and on CPUs that do not, whichever this one is."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openblip
from openblip import devices
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig
from openblip.nn.quant import linear as module
from openblip.nn.quant.linear import HALF_TYPES, Conv2d, Linear, cpu_computes
from openblip.nn.vit import VisionTransformer, VitConfig
from openblip.training.loop import precision
from openblip.training.loop.precision import Arithmetic
from openblip.training.recipe import Precision
from tests.pairs.gaps import random

SENTENCE = "this CPU does not compute {} itself: weights are kept in {}, products and convolutions are made in float32"
PHOTO = Path(__file__).parents[3] / "examples" / "000000126107.jpg"
AVX2 = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture(params=HALF_TYPES, ids=["bfloat16", "float16"])
def half(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that computes neither of the half types."""
    monkeypatch.setattr(module, "cpu_computes", lambda dtype: dtype not in HALF_TYPES)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("shape", [(1, 40, 30), (7, 40, 30), (3, 2000, 900)])
@pytest.mark.parametrize("inference", [True, False])
def test_products_are_float32s(half: torch.dtype, shape: tuple[int, int, int], inference: bool) -> None:
    rows, inputs, outputs = shape
    layer = Linear(inputs, outputs).to(half)
    x = random(2, rows, inputs).to(half)
    with torch.inference_mode(inference):
        found = layer(x)
    weight, bias = layer.weight.double(), layer.bias.double()
    exact = x.double() @ weight.T + bias
    room = torch.finfo(half).eps / 2 * exact.abs() + 1e-6 * (x.double().abs() @ weight.abs().T + bias.abs())
    assert found.dtype == half and found.shape == (2, rows, outputs)
    assert ((found.double() - exact).abs() <= room).all()


@pytest.mark.usefixtures("without")
def test_gradients_come_back_in_the_half_type(half: torch.dtype) -> None:
    linear, conv = Linear(12, 5).to(half), Conv2d(3, 4, 3, stride=2, padding=1).to(half)
    for layer, x in ((linear, random(2, 12)), (conv, random(2, 3, 9, 9))):
        x = x.to(half).requires_grad_()
        (layer(x) ** 2).sum().backward()
        wide = [tensor.detach().float().requires_grad_() for tensor in (x, *layer.parameters())]
        same = F.linear(*wide) if layer is linear else F.conv2d(*wide, stride=2, padding=1)
        (same**2).sum().backward()
        for own, expected in zip((x, *layer.parameters()), wide, strict=True):
            assert own.grad is not None and expected.grad is not None and own.grad.dtype == half
            assert (own.grad - expected.grad).norm() <= 0.02 * expected.grad.norm()


def vision(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vit":
        return VisionTransformer(VitConfig(image_size=28, patch_size=14, width=32, depth=2, num_heads=2, mlp_width=64))
    built = EfficientNet(EfficientNetConfig(image_size=64, place_width=8)).eval()
    built.fold()
    return built


@pytest.mark.parametrize("kind", ["vit", "efficientnet"])
@pytest.mark.parametrize("computes", [True, False])
def test_image_encoders_see_the_same(
    half: torch.dtype, kind: str, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if computes and kind == "efficientnet" and not cpu_computes(half):
        pytest.skip("its fused convolutions are refused by this CPU, whatever a probe says")
    monkeypatch.setattr(module, "cpu_computes", lambda dtype: computes or dtype not in HALF_TYPES)
    encoder, size = vision(kind), 28 if kind == "vit" else 64
    pixels = random(2, 3, size, size)
    with torch.inference_mode():
        expected = encoder(pixels)
        found = encoder.to(half)(pixels.to(half))
    assert found.dtype == half
    assert (found.float() - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("computes", [True, False])
def test_a_substitution_is_told_in_one_sentence(
    half: torch.dtype, computes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "cpu_computes", lambda dtype: computes or dtype not in HALF_TYPES)
    name = str(half).removeprefix("torch.")
    with caplog.at_level(logging.WARNING, "openblip"):
        model = openblip.load("mini", device="cpu", dtype=name)
        openblip.load("mini", device="cpu", dtype="float32")
    assert model.network.qformer.queries.dtype == half
    assert [record.message.partition(";")[0] for record in caplog.records] == (
        [] if computes else [SENTENCE.format(name, name)]
    )
    if not computes:
        assert model.caption(PHOTO)
        assert not devices.has_fast_bfloat16()


@pytest.mark.parametrize("emulated", [True, False])
def test_training_tells_of_a_type_that_is_emulated(
    half: torch.dtype, emulated: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "is_emulated", lambda dtype: emulated and dtype in HALF_TYPES)
    asked = next(name for name, dtype in precision.DTYPES.items() if dtype == half)
    with caplog.at_level(logging.WARNING, "openblip"):
        Arithmetic.of(torch.device("cpu"), Precision.FLOAT32, Precision.FLOAT32).tell_emulation()
        Arithmetic.of(torch.device("cuda"), asked, asked).tell_emulation()
        Arithmetic.of(torch.device("cpu"), asked, asked).tell_emulation()
    assert [record.message for record in caplog.records] == (
        [f"this CPU emulates {asked.value}, which takes longer than float32: train with precision=float32"]
        if emulated
        else []
    )


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these settings are those of x86")
def test_the_command_on_a_cpu_with_avx2_alone(half: torch.dtype) -> None:
    name = str(half).removeprefix("torch.")
    command = [sys.executable, "-m", "openblip", "caption", str(PHOTO), "--dtype", name]
    ran = subprocess.run(command, env=os.environ | AVX2, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{PHOTO}: ")
    assert ran.stderr.startswith(SENTENCE.format(name, name)) and ran.stderr.count("\n") == 1
