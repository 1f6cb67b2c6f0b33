"""The loss of a head for classes against a plain formula, and against LAVIS' values (`-m real`)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.names.blip import LAVIS_PARTS, layout_of, momentum_tensors
from openblip.nn.blip import BlipNetwork
from openblip.training.class_losses import RAMP_EPOCHS, class_copies, class_loss, copied_class_logits
from openblip.training.losses import TextBatch
from openblip.training.momentum_losses import soft_share
from tests.models.blip_models import small_config
from tests.pairs.blip import load, need_recordings
from tests.pairs.blip_transformers import shake
from tests.pairs.gaps import difference

CLOSE = 1e-5


def made() -> BlipNetwork:
    torch.manual_seed(3)
    config = small_config("entail")
    network = BlipNetwork(replace(config, vision=replace(config.vision, depth=1))).eval()
    shake(network)
    return network


def text_of(count: int) -> TextBatch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (count, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 4, 5, 3][:count])[:, None]
    return TextBatch(ids.masked_fill(~mask, 0), mask)


def test_loss_is_that_of_the_plain_formula() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    soft, labels, share = torch.randn(4, 3), torch.tensor([2, 0, 1, 1]), 0.3
    total: Tensor = torch.zeros(())
    for row in range(4):
        probabilities = logits[row].exp() / logits[row].exp().sum()
        wanted = soft[row].exp() / soft[row].exp().sum()
        right = -probabilities[labels[row]].log()
        total = total + (1 - share) * right - share * (wanted * probabilities.log()).sum()
    found = class_loss(logits, labels, soft, share)
    assert difference(found, total / 4) <= 1e-6
    assert difference(class_loss(logits, labels, soft, 0.0), class_loss(logits, labels)) <= 1e-6
    (gradient,) = torch.autograd.grad(found, logits)
    (expected,) = torch.autograd.grad(total / 4, logits)
    assert difference(gradient, expected) <= 1e-6


def test_copies_follow_the_network_and_compute_as_it_does() -> None:
    network = made()
    slow = deepcopy(network)
    copies = class_copies(network, 0.9)
    pixels, text = torch.randn(4, 3, 32, 32), text_of(4)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    copies.update(network)
    for name, weight in slow.named_parameters():
        moved = 0.9 * weight + 0.1 * network.get_parameter(name)
        assert difference(copies.weights[name], moved.detach()) <= 1e-6
        weight.data.copy_(moved)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    expected = slow.class_logits(text.ids, text.mask, slow.image_features(pixels))
    assert difference(copied_class_logits(copies, network, pixels, text), expected.detach()) <= 10 * CLOSE
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    assert soft_share(0.4, 0.5, RAMP_EPOCHS) == 0.2 and soft_share(0.4, 3.0, RAMP_EPOCHS) == 0.4


@pytest.mark.real
def test_distilled_loss_is_that_of_lavis() -> None:
    folder = need_recordings()
    recording = load(Path(folder), "blip_classification")
    inputs, outputs, config = recording.inputs, recording.outputs, recording.config
    network = recording.network(encoder=recording.bert(), num_classes=config["num_classes"])
    layout = layout_of(network.config, LAVIS_PARTS)
    copies = class_copies(network, config["momentum"])
    stored = momentum_tensors(recording.weights, layout, copies.weights, lambda name: recording.weights[name])
    assert stored.keys() == copies.weights.keys()
    copies.weights.update(stored)
    text = TextBatch(*recording.ids(inputs["text_input"], cut=config["max_txt_len"]))
    logits = network.class_logits(text.ids, text.mask, network.image_features(inputs["image"]))
    assert difference(logits, outputs["logits"]) <= CLOSE
    copies.update(network)
    soft_logits = copied_class_logits(copies, network, inputs["image"], text)
    assert difference(soft_logits, outputs["logits_m"]) <= CLOSE
    epochs = inputs["epoch"] + inputs["iters"] / inputs["num_iters_per_epoch"]
    soft = soft_share(config["alpha"], epochs, RAMP_EPOCHS)
    assert soft == pytest.approx(float(outputs["alpha_used"]))
    loss = class_loss(logits, inputs["label"], soft_logits, soft)
    assert difference(loss, outputs["loss"]) <= CLOSE
    own = dict(network.named_parameters())
    places = layout.places(own)

    def ours(name: str) -> str:
        place = places[name]
        assert place is not None
        return str(place.name)

    recorded = outputs["gradients"]
    found = torch.autograd.grad(loss, [own[ours(name)] for name in recorded])
    for gradient, name in zip(found, recorded, strict=True):
        assert difference(gradient, recorded[name]) <= CLOSE, name
    for name, tensor in outputs["after"].items():
        online = name.replace("_m.", ".")
        assert difference(copies.weights[ours(online)], tensor) <= CLOSE, name
