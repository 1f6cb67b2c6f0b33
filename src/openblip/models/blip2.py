"""How a BLIP-2 encodes images, writes and matches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.devices import Placement
from openblip.generation.cuda_graphs import Graphs
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageCache
from openblip.matching.matcher import Matcher, QueriedImages
from openblip.models.abilities import Ability, Components
from openblip.models.writer import Writer
from openblip.nn.language_model import LanguageModel


class Blip2Images:
    """A BLIP-2 where it runs: pixels to features, encoded images to visual prompts."""

    def __init__(self, parts: ModelParts, placement: Placement, cache: ImageCache) -> None:
        self.network = parts.network
        self.placement = placement
        self.encoder = CachedEncoder(self.features, parts.transform, cache)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to features [B, N, image width], as the Q-Former reads them."""
        return self.network.image_features(pixels.to(self.placement.device, self.placement.dtype))

    def visual_prompts(self, images: Sequence[EncodedImage]) -> list[Tensor]:
        """What the language model reads of each image: [Q, token width]."""
        prompts = self.network.prompt_projection(QueriedImages(self.network, self.encoder, images).queries)
        return [row.clone() for row in prompts]


def compose_blip2(parts: ModelParts, placement: Placement, cache: ImageCache) -> Components:
    """What a BLIP-2 on its device offers."""
    parts.network.vision.fold()
    if placement.convolutions is not None:
        parts.network.vision.compute_in(placement.convolutions)
    images = Blip2Images(parts, placement, cache)
    abilities: list[Ability] = []
    writer: Writer | None = None
    matcher: Matcher | None = None
    if parts.tokenizer is not None and parts.network.config.language is not None:
        writer = Writer(parts, _fast_language_model(parts, placement.device), images.encoder, images.visual_prompts)
        abilities += ["caption", "ask", "chat"]
    if parts.matching is not None:
        matcher = Matcher(parts.network, parts.matching, images.encoder)
        abilities += ["match", "embed", "classify"]
    return Components(images.encoder, writer, matcher, tuple(abilities))


def _fast_language_model(parts: ModelParts, device: torch.device) -> LanguageModel:
    """On a GPU, launching a step's many kernels one by one is what costs time; on a CPU there is nothing to launch."""
    network = parts.network
    if device.type == "cuda" and network.config.own_language is not None:
        return Graphs(network.own_language_model)
    return network.language_model
