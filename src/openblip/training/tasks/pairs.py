"""BLIP's tasks on pairs of images and texts, which keep momentum copies and queues: retrieval, and pre-training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.blip import LAVIS_PARTS, ROOTS, layout_of, momentum_tensors
from openblip.checkpoints.origin import model_files
from openblip.checkpoints.tensors.files import open_weights
from openblip.checkpoints.tensors.wrappers import Peeled
from openblip.errors import CheckpointError
from openblip.nn.blip import BlipNetwork
from openblip.training.input.batches import BatchRow
from openblip.training.input.targets import choose_caption
from openblip.training.lora.adapters import adapts_vision
from openblip.training.losses import Pairing, TextBatch
from openblip.training.momentum import NO_IMAGE, Momentum
from openblip.training.momentum_losses import ImageBatch, pretrain_loss, retrieval_loss, soft_share
from openblip.training.parallel.processes import ALONE, World
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.stages import matching_text
from openblip.training.tasks.task import Runtime, Task, Views

LOG = logging.getLogger("openblip")
LAVIS_FILES = frozenset({".pth"})


class RetrievalTask(Task):
    """Contrast (ITC) and matching (ITM), in which all texts of an image match it."""

    network: BlipNetwork
    loss_names: tuple[str, ...] = ("itc", "itm")
    usual_tokens = 35

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        """Raises CheckpointError when the model lacks what the stage trains."""
        super().__init__(parts, recipe, runtime)
        config = self.network.config
        if not config.itm or config.shared_width is None:
            raise CheckpointError(
                f"{parts.name} cannot learn stage {recipe.stage.value}: give a model that compares images and texts by "
                "contrast and matching, such as blip_retrieval/coco"
            )
        self.matching = matching_text(parts, self.text_tokens)
        section, adapters = recipe.momentum, recipe.lora is not None
        self.vision_learns = adapts_vision(self.network) if adapters else recipe.train_vision
        self.momentum = Momentum(
            self.network,
            section.queue_size,
            section.decay,
            runtime.device,
            torch.Generator().manual_seed(recipe.seed),
            self.vision_learns,
            adapters,
        )
        if not adapters and recipe.init is not None:
            start_momentum(self.momentum, self.network, recipe.init)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        network = self.network
        heads = [network.image_projection, network.text_projection, network.itm_head]
        return [*self.seen_parts(), network.encoder, *heads, network.temperature]

    def state(self) -> dict[str, Tensor]:
        return self.momentum.state()

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        texts = [choose_caption(row.pair, self.recipe.mixture, row.rng) for row in batch]
        text = TextBatch(*self.matching.batch(texts)).to(self.runtime.device)
        pixels = views.pixels if views is not None and self.vision_learns else None
        images = ImageBatch(self.patches(views), pixels)
        among, world = self.runtime.world, self.runtime.world
        if not self.recipe.momentum.negative_all_rank and world.size > 1:
            among = ALONE
            # Processes that sample independently need different seeds.
            generator = None if generator is None else _apart(generator, world)
        ids = torch.tensor([row.number for row in batch], dtype=torch.int64, device=self.runtime.device)
        pairing = Pairing(ids, generator=generator, world=world)
        soft = soft_share(self.recipe.momentum.alpha, self.position.epochs)
        with self.runtime.arithmetic.quickly():
            return self.losses(images, text, soft, pairing, among)

    def losses(
        self, images: ImageBatch, text: TextBatch, soft: float, pairing: Pairing, among: World
    ) -> dict[str, Tensor]:
        """For the arguments see `retrieval_loss`."""
        found = retrieval_loss(self.network, self.momentum, images, text, soft, pairing, among)
        return {"itc": found.itc, "itm": found.itm}


class PretrainTask(RetrievalTask):
    """Contrast (ITC), matching (ITM) and language modelling (LM) with the decoder that shares the encoder's weights."""

    loss_names = ("itc", "itm", "lm")
    usual_tokens = 30

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        if not parts.network.config.shares_text:
            raise CheckpointError(
                f"{parts.name} cannot learn stage {recipe.stage.value}: give a model whose encoder and decoder share "
                "their weights, such as blip_pretrain/base"
            )
        super().__init__(parts, recipe, runtime)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [*super().trained(), self.network.decoder]

    def losses(
        self, images: ImageBatch, text: TextBatch, soft: float, pairing: Pairing, among: World
    ) -> dict[str, Tensor]:
        found = pretrain_loss(self.network, self.momentum, images, text, soft, pairing, among)
        return {"itc": found.itc, "itm": found.itm, "lm": found.lm}


def start_momentum(momentum: Momentum, network: BlipNetwork, place: str) -> None:
    """Load momentum copies and queues from the checkpoint of the model, if it has all of them in these sizes.

    Which images the queue is of is not taken over: other data have other numbers.

    Args:
        place: a model's name or folder.
    """
    layout = layout_of(network.config, LAVIS_PARTS)
    for path in model_files(place, LAVIS_FILES) or []:
        weights = Peeled(open_weights(path), ROOTS)
        found = momentum_tensors(weights.shapes, layout, momentum.weights, weights.read)
        found["ids"] = torch.full_like(momentum.ids, NO_IMAGE)
        if len(found) > 1 and not momentum.load(found):
            LOG.warning("%s has momentum weights or queues of other sizes: they start from the model itself", path)


def _apart(generator: torch.Generator, world: World) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed() + world.rank)
