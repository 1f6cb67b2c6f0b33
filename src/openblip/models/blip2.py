"""How a BLIP-2 encodes images, writes and matches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.devices import Placement
from openblip.generation.cuda_graphs import Graphs
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageCache
from openblip.matching.matcher import Matcher
from openblip.models.abilities import Ability, Components
from openblip.models.writer import Writer
from openblip.nn.attention_map import query_map
from openblip.nn.bert import ImageMemory
from openblip.nn.blip2 import Blip2Network
from openblip.nn.language_model import LanguageModel

QUERIES = "queries"
"""What is kept of an encoded image: the Q-Former's outputs [Q, width]."""


class QueriedImages:
    """A batch of encoded images as the Q-Former's queries see them, which is kept with each image.

    Args:
        cache: measures images anew that have more to keep; None where the caller does so.
    """

    def __init__(self, network: Blip2Network, images: Sequence[EncodedImage], cache: ImageCache | None = None) -> None:
        self.network = network
        self.images = images
        self.cache = cache

    @cached_property
    def features(self) -> Tensor:
        """[I, N, image width], as the Q-Former reads them; of images that were queried before, nobody asks for it."""
        return torch.stack([image.features for image in self.images])

    @cached_property
    def memory(self) -> ImageMemory:
        """Keys and values of the Q-Former's cross-attention."""
        return self.network.qformer.remember(self.features)

    @cached_property
    def queries(self) -> Tensor:
        """Outputs of the queries [I, Q, width]."""
        new = {id(image): place for place, image in enumerate(self.images) if QUERIES not in image.derived}
        if new:
            places = list(new.values())
            memory = self.memory
            if len(places) < len(self.images):
                memory = memory.take(torch.tensor(places, device=self.features.device))
            for place, row in zip(places, self.network.qformer.image(memory), strict=True):
                # Cloned: a row of the batch would keep the memory of all of it.
                self.images[place].derived[QUERIES] = row.clone()
                if self.cache is not None:
                    self.cache.keep(self.images[place])
        return torch.stack([image.derived[QUERIES] for image in self.images])

    @cached_property
    def embeds(self) -> Tensor:
        """Unit vectors [I, Q, shared width], float32."""
        return self.network.project_queries(self.queries).float()


class Blip2Comparison:
    """How a BLIP-2 with a text side compares images and texts, see `openblip.matching.comparison`."""

    averages_texts = False

    def __init__(self, network: Blip2Network) -> None:
        self.network = network

    @property
    def vectors(self) -> int:
        return self.network.config.qformer.num_queries

    @property
    def shared_width(self) -> int:
        return self.network.config.shared_width

    @property
    def pairs(self) -> Blip2Comparison:
        return self

    @property
    def device(self) -> torch.device:
        return self.network.vision_norm.weight.device

    @property
    def temperature(self) -> Tensor:
        return self.network.temperature

    def match_map(self, ids: Tensor, mask: Tensor, features: Tensor, layer: int | None) -> Tensor:
        return query_map(self.network, ids, mask, features, layer)[0]

    def batch(self, encoder: CachedEncoder, images: Sequence[EncodedImage]) -> QueriedImages:
        return QueriedImages(self.network, images, encoder.cache)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network.project_text(self.network.qformer.text(ids, mask)).float()

    def remember(self, features: Tensor) -> ImageMemory:
        return self.network.qformer.remember(features)

    def itm_logits(self, ids: Tensor, mask: Tensor, memory: ImageMemory) -> Tensor:
        return self.network.itm_logits(ids, mask, memory)


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
        # The writer keeps prompts of them, too, and measures the images then.
        prompts = self.network.prompt_projection(QueriedImages(self.network, images).queries)
        return [row.clone() for row in prompts]


def compose_blip2(parts: ModelParts, placement: Placement, cache: ImageCache) -> Components:
    """What a BLIP-2 on its device offers."""
    parts.network.vision.fold()
    if placement.encoder_dtype is not None:
        parts.network.vision.compute_in(placement.encoder_dtype)
    images = Blip2Images(parts, placement, cache)
    abilities: list[Ability] = []
    writer: Writer | None = None
    matcher: Matcher | None = None
    if parts.tokenizer is not None and parts.network.config.language is not None:
        writer = Writer(parts, _fast_language_model(parts, placement.device), images.encoder, images.visual_prompts)
        abilities += ["caption", "ask", "chat"]
    if parts.matching is not None:
        matcher = Matcher(Blip2Comparison(parts.network), parts.matching, images.encoder)
        abilities += ["match", "embed", "classify"]
    return Components(images.encoder, writer, matcher, tuple(abilities))


def _fast_language_model(parts: ModelParts, device: torch.device) -> LanguageModel:
    """On a GPU, launching a step's many kernels one by one is what costs time; on a CPU there is nothing to launch."""
    network = parts.network
    if device.type == "cuda" and network.config.own_language is not None:
        return Graphs(network.own_language_model)
    return network.language_model
