"""Vision transformers of transformers' and ours with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)

from openblip.nn.vit import CLIP_VIT_L, VisionTransformer, VitConfig
from tests.pairs.gaps import difference, random
from tests.pairs.names import vit_from_transformers

PATCH = 14
WIDTH, HEADS, DEPTH, MLP_WIDTH = 36, 3, 3, 50
SMALL = VitConfig(42, PATCH, WIDTH, DEPTH, HEADS, MLP_WIDTH)
IMAGE_SIZES = [(42, 42), (70, 70), (28, 98), (84, 14)]
SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "image_size": SMALL.image_size,
    "patch_size": PATCH,
}
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Pair:
    """Two models, and how transformers' gives what ours gives."""

    ours: VisionTransformer
    theirs: nn.Module
    hidden: Callable[[Tensor], Tensor]


def blip2() -> Pair:
    config = replace(SMALL, attention_bias="qv")
    # The fused bias is random on the keys, too: dropping it must not matter.
    theirs = shaken(
        Blip2VisionModel(
            Blip2VisionConfig(
                **SIZES,
                intermediate_size=MLP_WIDTH,
                num_hidden_layers=DEPTH,
                layer_norm_eps=config.layer_norm_eps,
            )
        )
    )
    ours = read(config, theirs, "blip2")
    return Pair(ours, theirs, lambda pixels: _hidden_states(theirs, pixels)[-1])


def clip() -> Pair:
    """BLIP-2 reads what the second to last block gives."""
    theirs = shaken(
        CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=MLP_WIDTH, num_hidden_layers=DEPTH + 1))
    )
    ours = read(small_clip(), theirs, "clip")
    return Pair(ours, theirs, lambda pixels: _hidden_states(theirs, pixels)[-2])


def dinov2() -> Pair:
    theirs = shaken(Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, num_hidden_layers=DEPTH)))
    config = replace(SMALL, mlp_width=2 * WIDTH, layer_scale=True, final_norm=True)
    ours = read(config, theirs, "dinov2")
    return Pair(ours, theirs, lambda pixels: theirs(pixels).last_hidden_state)


KINDS = {"blip2": blip2, "clip": clip, "dinov2": dinov2}


def gaps(kind: str, size: tuple[int, int]) -> tuple[float, float]:
    """Largest differences of outputs and of gradients."""
    pair = KINDS[kind]()
    pixels = random(3, 3, *size)
    output, hidden = pair.ours(pixels), pair.hidden(pixels)
    assert hidden.std() > 0.1
    backward(output)
    backward(hidden)
    gradients = {name: p.grad for name, p in pair.theirs.named_parameters() if p.grad is not None}
    return difference(output, hidden), worst_gradient(
        pair.ours, vit_from_transformers(gradients, kind, pair.ours.state_dict(), DEPTH)
    )


def _hidden_states(theirs: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    return theirs(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def small_clip() -> VitConfig:
    return replace(
        CLIP_VIT_L,
        image_size=SMALL.image_size,
        width=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_width=MLP_WIDTH,
    )


def read(config: VitConfig, theirs: nn.Module, kind: str) -> VisionTransformer:
    """Ours with the weights of theirs, of which CLIP has a block more."""
    with torch.device("meta"):
        names = VisionTransformer(config).state_dict()
    return loaded(config, vit_from_transformers(_tensors(theirs), kind, names, config.depth))


def loaded(config: VitConfig, state: Mapping[str, Tensor]) -> VisionTransformer:
    """Built without memory and given its tensors, as checkpoint loading does."""
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def shaken(model: Model, seed: int = 0) -> Model:
    """Every parameter random, so that a bias or norm that is left out shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Matrices keep activations near 1; vectors (norms, biases, layer scales) are as large as those.
            scale = 0.5 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def backward(output: Tensor) -> None:
    """A loss that weighs every output differently."""
    (output * random(*output.shape, seed=7)).sum().div(output.numel() ** 0.5).backward()


def worst_gradient(model: nn.Module, expected: Mapping[str, Tensor]) -> float:
    """The largest difference of any gradient, relative to that parameter's largest where this exceeds 1."""
    ours = dict(model.named_parameters())
    assert ours.keys() == expected.keys()
    worst = 0.0
    for name, parameter in ours.items():
        assert parameter.grad is not None, name
        assert expected[name].abs().max() > 1e-4, f"{name} is not tested: its gradient is zero"
        worst = max(worst, difference(parameter.grad, expected[name]) / max(1.0, expected[name].abs().max().item()))
    return worst
