"""How far the captions' scores of a quantized BLIP are from those in floating point, with weights that keep sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from openblip.nn.blip import BlipLanguageModel, BlipNetwork
from openblip.nn.quant.int4 import Int4Linear
from openblip.nn.quant.int4_wide import Int4WideLinear
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.swap import prepare_layers, quantize, quantized_layers
from tests.models.blip_models import small_config

BOUNDS = {8: (0.07, 0.015), 4: (0.4, 0.4)}
"""By bits: of the distance of logits relative to their size, and of the KL divergence, in nats a token.

With all levels of inputs, 8 bits are off by 0.03 and 0.003, without VNNI by 0.05 and 0.008; 4 bits by 0.3 and 0.25:
they change one word in three where nothing was trained to tell words apart.
"""


def captioner(seed: int) -> BlipNetwork:
    """Layers that keep the size of what goes in, and words told apart about as well as by a trained model."""
    torch.manual_seed(seed)
    network = BlipNetwork(small_config("caption")).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            kind = next((kind for kind in ("words", "positions") if kind in name), "")
            parameter.normal_(std={"words": 0.25, "positions": 0.1}.get(kind, parameter.shape[1] ** -0.5))
    return network


@torch.inference_mode()
def scores(network: BlipNetwork, pixels: Tensor, ids: Tensor) -> Tensor:
    model = BlipLanguageModel(network)
    hidden = model.decoder.decode(model.embed(ids), None, model.remember(network.image_features(pixels)))
    return model.logits(hidden)


@pytest.mark.parametrize("bits", [8, 4])
def test_captions_score_closely(bits: int) -> None:
    distances, divergences = [], []
    for seed in range(3):
        network = captioner(seed)
        small = copy.deepcopy(network)
        quantize(small, bits)
        prepare_layers(small)
        kinds = {type(layer) for layer in quantized_layers(small).values()}
        assert kinds == ({Int8Linear} if bits == 8 else {Int8Linear, Int4Linear, Int4WideLinear})
        pixels, ids = torch.randn(4, 3, 32, 32), torch.randint(5, 60, (4, 12))
        expected, found = scores(network, pixels, ids), scores(small, pixels, ids)
        distances.append(float((found - expected).norm() / expected.norm()))
        expected, found = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
        divergences.append(float((expected.exp() * (expected - found)).sum(dim=-1).mean()))
    distance, divergence = sum(distances) / 3, sum(divergences) / 3
    assert 0 < distance < BOUNDS[bits][0]
    assert 0 < divergence < BOUNDS[bits][1]
