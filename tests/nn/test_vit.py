"""The ViT against LAVIS' recorded outputs, transformers' models and CLIP's own layout."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openblip.errors import CheckpointError
from openblip.nn.quant.swap import quantize, quantized_layers
from openblip.nn.vit import (
    CLIP_VIT_L,
    EVA_VIT_G,
    VisionTransformer,
    VitConfig,
    interpolate_positions,
)
from tests.pairs.gaps import difference
from tests.pairs.lavis_names import vit_from_lavis
from tests.pairs.shake import shake
from tests.pairs.vit import (
    DEPTH,
    HEADS,
    IMAGE_SIZES,
    KINDS,
    MLP_WIDTH,
    PATCH,
    SMALL,
    WIDTH,
    backward,
    gaps,
    loaded,
    shaken,
    small_clip,
)

LAVIS = Path(__file__).parents[1] / "fixtures" / "lavis"


@pytest.fixture(scope="module")
def lavis() -> tuple[VisionTransformer, dict[str, Tensor], dict[str, Tensor]]:
    sizes = json.loads((LAVIS / "meta.json").read_text())["config"]["vit"]
    config = replace(
        EVA_VIT_G,
        image_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        mlp_width=int(sizes["embed_dim"] * sizes["mlp_ratio"]),
    )
    weights = load_file(LAVIS / "stage1_weights.safetensors")
    return loaded(config, vit_from_lavis(weights)), weights, load_file(LAVIS / "stage1_ref.safetensors")


def test_lavis_outputs(lavis: tuple[VisionTransformer, dict[str, Tensor], dict[str, Tensor]]) -> None:
    model, weights, recorded = lavis
    steps: dict[str, Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda _m, _i, output, name=f"vit_block{index}": steps.update({name: output}))
        for index, block in enumerate(model.blocks)
    ]
    with torch.no_grad():
        steps["vit_patch"] = model.patch_embed(recorded["images"]).flatten(2).transpose(1, 2)
        steps["vit_out"] = model(recorded["images"])
        # Outside the encoder, and the one norm with another eps.
        steps["ln_vision_out"] = nn.functional.layer_norm(
            steps["vit_out"], (model.width,), weights["ln_vision.weight"], weights["ln_vision.bias"], eps=1e-5
        )
    for hook in hooks:
        hook.remove()
    assert len(steps) == 6
    for name, tensor in steps.items():
        # Values reach 5.5 and the recording itself is 3.5e-6 away from float64; an eps of 1e-5 gives 4.8e-5.
        assert difference(tensor, recorded[name]) <= 5e-6, name


def test_lavis_position_interpolation(
    lavis: tuple[VisionTransformer, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    model, _, recorded = lavis
    assert difference(interpolate_positions(model.positions, 6, 6), recorded["pos_embed_interp_6x6"]) <= 2e-6


@pytest.mark.parametrize("size", IMAGE_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_equal_transformers(kind: str, size: tuple[int, int]) -> None:
    forward, gradient = gaps(kind, size)
    assert forward <= 1e-5
    assert gradient <= 1e-5


def test_clip_in_its_own_layout() -> None:
    """CLIP as published, built from torch's own attention, whose parameter names its files carry."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, MLP_WIDTH), "c_proj": nn.Linear(MLP_WIDTH, WIDTH)})

        def forward(self, x: Tensor) -> Tensor:
            normal = self.ln_1(x)
            x = x + self.attn(normal, normal, normal, need_weights=False)[0]
            wide = self.mlp["c_fc"](self.ln_2(x))
            return x + self.mlp["c_proj"](wide * torch.sigmoid(1.702 * wide))

    class Published(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
            self.positional_embedding = nn.Parameter(torch.zeros(10, WIDTH))
            self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Layers() for _ in range(DEPTH + 1))})
            self.proj = nn.Parameter(torch.zeros(WIDTH, 8))

        def forward(self, pixels: Tensor) -> Tensor:
            x = self.conv1(pixels).flatten(2).mT
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
            x = self.ln_pre(x + self.positional_embedding)
            for layers in self.transformer["resblocks"][:-1]:
                x = layers(x)
            return x

    theirs = shaken(Published())
    state = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    state["token_embedding.weight"] = torch.zeros(2, 2)
    ours = loaded(small_clip(), vit_from_lavis(state, DEPTH))
    pixels = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(ours(pixels), theirs(pixels)) <= 1e-5


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (EVA_VIT_G, 985_894_528),
        (replace(EVA_VIT_G, image_size=364), 986_485_888),
        (CLIP_VIT_L, 290_581_504),
    ],
    ids=["eva_vit_g", "eva_vit_g_364", "clip_vit_l"],
)
def test_presets_have_the_official_files_sizes(config: VitConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.num_patches == model.positions.shape[1] and model.width == model.class_token.shape[2]


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"query_tokens": torch.zeros(1)}, "query_tokens"),
        (
            {"visual_encoder.cls_token": torch.zeros(1), "visual_encoder.blocks.0.attn.rope": torch.zeros(1)},
            "rope",
        ),
        ({}, "no image encoder"),
    ],
)
def test_unknown_weights_are_named(state: dict[str, Tensor], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        vit_from_lavis(state)


@pytest.mark.parametrize("shape", [(2, 3, 42, 41), (2, 3, 43, 42), (2, 1, 42, 42), (3, 42, 42), (2, 3, 0, 42)])
def test_wrong_pixels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of the patch size 14|\[batch, 3, height, width\]"):
        VisionTransformer(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 43},
        {"num_heads": 5},
        {"activation": "relu"},
        {"attention_bias": "k"},
        {"drop_path": 1.0},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "num_heads" not in wrong else "5 heads"):
        replace(SMALL, **wrong)


def test_interpolation_keeps_what_it_should() -> None:
    positions = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
    assert interpolate_positions(positions, 3, 3) is positions
    wide = interpolate_positions(positions, 2, 7)
    assert torch.equal(wide[:, :1], positions[:, :1])
    half = interpolate_positions(positions.bfloat16(), 2, 7)
    assert torch.equal(half, interpolate_positions(positions.bfloat16().float(), 2, 7).bfloat16())
    with pytest.raises(ValueError, match="11 patch positions"):
        interpolate_positions(torch.zeros(1, 12, 4), 3, 3)


def test_gradient_checkpointing_changes_memory_only() -> None:
    config = replace(SMALL, attention_bias="qv", drop_path=0.5)
    model = shaken(VisionTransformer(config)).train()
    calls: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    pixels = torch.randn(4, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    results: list[dict[str, Tensor | None]] = []
    for checkpointing, expected_calls in ((False, DEPTH), (True, 2 * DEPTH)):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        calls.clear()
        torch.manual_seed(0)
        backward(model(pixels))
        assert len(calls) == expected_calls
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(results[1], results[0], rtol=0.0, atol=0.0)


def test_drop_path_skips_branches_in_training_only() -> None:
    model = shaken(VisionTransformer(replace(SMALL, drop_path=0.4)))
    plain = VisionTransformer(SMALL).eval()
    plain.load_state_dict(model.state_dict())
    pixels = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(pixels), plain(pixels))
        model.train()
        assert [round(block.drop_path, 6) for block in model.blocks] == [0.0, 0.2, 0.4]
        torch.manual_seed(0)
        weights = model.blocks[2].weigh(torch.ones(4000, 2, 3), None)
    # An image keeps its branch whole, scaled to the same expectation, or loses all of it.
    assert (weights == weights[:, :1, :1]).all()
    assert weights.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert weights.mean().item() == pytest.approx(1.0, abs=0.05)


def test_attention_over_many_tokens_may_be_in_half_precision() -> None:
    torch.manual_seed(0)
    plain = VisionTransformer(VitConfig(184, 8, 192, depth=2, num_heads=4, mlp_width=256)).eval()
    shake(plain)
    quantized = copy.deepcopy(plain)
    quantize(quantized, 8)
    assert quantized_layers(quantized)
    half = copy.deepcopy(quantized)
    half.compute_in(torch.bfloat16)
    many, few = torch.randn(2, 3, 184, 184), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        exact, rounded, found = plain(many), quantized(many), half(many)
        assert torch.equal(half(few), quantized(few))
        alone = torch.cat([half(one[None]) for one in many])
    assert not torch.equal(found, rounded)
    assert found.dtype == torch.float32
    assert difference(alone, found) <= 1e-4 * exact.abs().max()
    # What it adds is a part of what 8 bits err by, and the sum of both is hardly more.
    assert (found - rounded).norm() <= 0.8 * (rounded - exact).norm()
    assert (found - exact).norm() <= 1.2 * (rounded - exact).norm()
    pixels = many.requires_grad_()
    assert torch.equal(half(pixels), quantized(pixels))  # where gradients may be wanted
