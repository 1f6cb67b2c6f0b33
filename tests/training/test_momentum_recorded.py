"""BLIP's losses on pairs as LAVIS computed them: `OPENBLIP_LAVIS_ZOO=folder pytest -m real THIS_FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.names.blip import LAVIS_PARTS, layout_of, momentum_tensors
from openblip.nn.blip import BlipNetwork
from openblip.training import momentum_losses
from openblip.training.loop.optim import make_optimizer
from openblip.training.losses import HardNegatives, Pairing, TextBatch
from openblip.training.momentum import NO_IMAGE, Momentum
from openblip.training.momentum_losses import (
    matching_logits,
    momentum_contrast,
    pretrain_loss,
    retrieval_loss,
    soft_share,
)
from openblip.training.recipe import OptimizerSection
from tests.pairs.blip import Recording, load, need_recordings
from tests.pairs.gaps import difference
from tests.training.momentum_pairs import images_of

pytestmark = pytest.mark.real
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folder() -> Path:
    return need_recordings()


def close(ours: Tensor, theirs: Tensor, tolerance: float = CLOSE) -> None:
    assert ours.shape == theirs.shape
    assert difference(ours, theirs) <= tolerance


def started(folder: Path, task: str) -> tuple[Recording, BlipNetwork, Momentum]:
    """The recorded network, and its momentum copies and queues."""
    recording = load(folder, f"blip_{task}")
    config, text = recording.config, recording.bert()
    shared: dict[str, Any] = {"decoder": text, "shares_text": True} if task == "pretrain" else {}
    network = recording.network(encoder=text, shared_width=config["embed_dim"], itm=True, **shared)
    momentum = Momentum(network, config["queue_size"], config["momentum"])
    found = stored(recording.weights, network, momentum)
    assert momentum.load({"ids": torch.full((config["queue_size"],), NO_IMAGE), **found})
    return recording, network, momentum


def stored(weights: Mapping[str, Tensor], network: BlipNetwork, momentum: Momentum) -> dict[str, Tensor]:
    return momentum_tensors(
        weights, layout_of(network.config, LAVIS_PARTS), momentum.weights, lambda name: weights[name]
    )


def text_of(recording: Recording, texts: list[str]) -> TextBatch:
    return TextBatch(*recording.ids(texts, cut=recording.config["max_txt_len"]))


def soft_of(recording: Recording, place: Mapping[str, Any], batches: int = 10) -> float:
    return soft_share(recording.config["alpha"], place["epoch"] + place["iters"] / batches)


def negatives_of(found: Mapping[str, Any]) -> HardNegatives:
    return HardNegatives(found["negative_image_for_text"], found["negative_text_for_image"])


def check_gradients(network: BlipNetwork, loss: Tensor, recorded: Mapping[str, Tensor]) -> None:
    own = dict(network.named_parameters())
    places = {**layout_of(network.config, LAVIS_PARTS).places(own), "temp": None}
    parameters = [own[places[name].name if places[name] else "temperature"] for name in recorded]  # type: ignore[union-attr]
    for name, found in zip(recorded, torch.autograd.grad(loss, parameters), strict=True):
        close(found, recorded[name])


def check_after(
    network: BlipNetwork, momentum: Momentum, after: Mapping[str, Tensor], tolerance: float = CLOSE
) -> None:
    """Queues and momentum copies under LAVIS' names; copies of what is never read are not kept."""
    ours = momentum.state()
    found = momentum_tensors(after, layout_of(network.config, LAVIS_PARTS), momentum.weights, lambda name: after[name])
    assert len(found) >= len(after) - 1 and len(found) > 2
    for name, tensor in found.items():
        close(ours[name], tensor, tolerance)


@pytest.mark.parametrize("task", ["retrieval", "pretrain"])
def test_one_step(folder: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, network, momentum = started(folder, task)
    inputs, outputs = recording.inputs, recording.outputs
    soft = soft_of(recording, inputs, inputs["num_iters_per_epoch"])
    assert soft == pytest.approx(float(outputs["alpha_used"]))
    text, pairing = text_of(recording, inputs["text_input"]), Pairing(inputs.get("image_id"), negatives_of(outputs))
    lm = {}
    if task == "retrieval":
        found = retrieval_loss(network, momentum, images_of(network, inputs["image"]), text, soft, pairing)
    else:
        pretrained = pretrain_loss(network, momentum, images_of(network, inputs["image"]), text, soft, pairing)
        found, lm = pretrained, {"lm": pretrained.lm}  # type: ignore[assignment]
    losses = {"itc": found.itc, "itm": found.itm, **lm}
    for name, value in losses.items():
        close(value, outputs[f"loss_{name}"])
    total = torch.stack(list(losses.values())).sum()
    close(total, outputs["loss"])
    check_gradients(network, total, outputs["gradients"])
    check_after(network, momentum, outputs["after"])
    features = network.image_features(inputs["image"])
    memory = network.encoder.remember(features)
    close(matching_logits(network, features, memory, text, negatives_of(outputs)), outputs["itm_logits"])


@pytest.mark.parametrize("task", ["retrieval", "pretrain"])
def test_targets_and_weights_of_negatives(folder: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, network, momentum = started(folder, task)
    inputs, outputs = recording.inputs, recording.outputs
    entropies: list[tuple[Tensor, Tensor]] = []
    entropy, draw = torch.nn.functional.cross_entropy, momentum_losses.draw_negatives
    drawn: list[tuple[Any, ...]] = []

    def note(scores: Tensor, targets: Tensor, **settings: Any) -> Tensor:
        entropies.append((scores, targets))
        return entropy(scores, targets, **settings)

    def note_draw(*arguments: Any) -> HardNegatives:
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(momentum_losses.F, "cross_entropy", note)
    monkeypatch.setattr(momentum_losses, "draw_negatives", note_draw)
    text = text_of(recording, inputs["text_input"])
    soft = soft_of(recording, inputs, inputs["num_iters_per_epoch"])
    step = retrieval_loss if task == "retrieval" else pretrain_loss
    step(network, momentum, images_of(network, inputs["image"]), text, soft, Pairing(inputs.get("image_id")))
    for direction, (scores, targets) in zip(("i2t", "t2i"), entropies, strict=False):
        close(targets, outputs[f"sims_sim_{direction}_targets"])
        if task == "pretrain":
            close(scores, outputs[f"sims_sim_{direction}"])
    ((image_to_text, text_to_image, same, _, _, *floor),) = drawn
    for direction, scores in (("i2t", image_to_text), ("t2i", text_to_image)):
        weights = (scores.softmax(dim=1) + (floor[0] if floor else 0.0)).masked_fill(same, 0)
        close(weights, outputs[f"negative_weights_{direction}"])
        if task == "retrieval":
            close(scores, outputs[f"sims_sim_{direction}"])


def test_momentum_embeddings_come_after_the_copies_have_moved(folder: Path) -> None:
    recording, network, momentum = started(folder, "retrieval")
    inputs, outputs = recording.inputs, recording.outputs
    text = text_of(recording, inputs["text_input"])
    embeds = network.project_images(outputs["image_embeds"][:, 0]), network.project_texts(outputs["text_embeds"][:, 0])
    momentum_contrast(network, momentum, images_of(network, inputs["image"]), text, embeds, inputs["image_id"], 0.1)
    images, texts = momentum.embed(network, outputs["image_embeds"], inputs["image"], text.ids, text.mask)
    close(images, momentum.images[4:8])
    close(texts, momentum.texts[4:8])


def test_steps_of_adamw(folder: Path) -> None:
    """Four steps with changing images and share of soft targets, in which the queues begin again from their start."""
    recording, network, momentum = started(folder, "retrieval")
    optimizer = make_optimizer(
        dict(network.named_parameters()), OptimizerSection(lr=1e-3, weight_decay=0.05, beta2=0.999)
    )
    for step in recording.outputs["train"]["steps"]:
        pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step["image_seed"]))
        pairing = Pairing(step["image_id"], negatives_of(step))
        text = text_of(recording, step["text_input"])
        found = retrieval_loss(network, momentum, images_of(network, pixels), text, soft_of(recording, step), pairing)
        close(found.itc, step["loss_itc"])
        close(found.itm, step["loss_itm"])
        assert momentum.place.tolist() == step["queue_ptr"].tolist()
        optimizer.zero_grad()
        (found.itc + found.itm).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        close(network.temperature, step["temp"])
    after = recording.outputs["train"]["after"]
    check_after(network, momentum, {name: tensor for name, tensor in after.items() if name != "vision_proj.weight"})
    close(network.image_projection.weight, after["vision_proj.weight"])
