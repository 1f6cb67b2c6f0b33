"""How a BLIP encodes images, writes and compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.devices import Placement
from openblip.generation.prefix import Prefix
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageCache
from openblip.matching.judge import Judge
from openblip.matching.matcher import Matcher
from openblip.models.abilities import Ability, Components
from openblip.models.writer import Writer
from openblip.nn.attention_map import LAYER, match_map, word_map
from openblip.nn.bert import ImageMemory
from openblip.nn.blip import BlipLanguageModel, BlipNetwork, BlipReading


class ImageBeside(Prefix):
    """An image that prompts are read beside: it takes no place among their tokens.

    Its keys and values are computed together with those of other images, and kept once it is used again.
    """

    def __init__(self, model: BlipLanguageModel, features: Tensor) -> None:
        super().__init__(model, features)
        self.blip = model
        self._used = False
        self._memory: ImageMemory | None = None

    @property
    def length(self) -> int:
        return 0

    @property
    def nbytes(self) -> int:
        """Memory of keys and values; the features are the image's."""
        return 0 if self._memory is None else self._memory.nbytes

    def before_all(self, prompts: Sequence[Tensor]) -> tuple[BesideReader, Sequence[Tensor]]:
        if len(prompts) > 1:
            self._used = True
        return BesideReader(self.blip, _memory_of([self])), prompts

    def before_each(
        self, prefixes: Sequence[Prefix], prompts: Sequence[Tensor]
    ) -> tuple[BesideReader, Sequence[Tensor]]:
        images = cast("list[ImageBeside]", list(dict.fromkeys(prefixes)))
        memory = _memory_of(images)
        each = len(prefixes) // len(images)
        if list(prefixes) != [image for image in images for _ in range(each)]:
            places = {image: place for place, image in enumerate(images)}
            rows = [places[cast(ImageBeside, prefix)] for prefix in prefixes]
            memory = memory.take(torch.tensor(rows, device=self.embeds.device))
        return BesideReader(self.blip, memory), prompts


def _memory_of(images: Sequence[ImageBeside]) -> ImageMemory:
    """Keys and values of images. Those of an image that was used before are kept."""
    model = images[0].blip
    if not any(image._used for image in images):
        for image in images:
            image._used = True
        return model.remember(torch.stack([image.embeds for image in images]))
    for image in images:
        if image._memory is None and image._used:
            image._memory = model.remember(image.embeds[None])
        image._used = True
    memories = [image._memory or model.remember(image.embeds[None]) for image in images]
    return memories[0] if len(memories) == 1 else ImageMemory.join(memories)


class BesideReader:
    """Reads prompts beside their images."""

    def __init__(self, model: BlipLanguageModel, memory: ImageMemory) -> None:
        self.model = model
        self.memory = memory

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[BlipReading, Tensor]:
        return self.model.read(prompts, mask, new_tokens, texts, self.memory)


class ComparedImages:
    """A batch of encoded images as the text encoder and ITC see them."""

    def __init__(self, network: BlipNetwork, images: Sequence[EncodedImage]) -> None:
        self.network = network
        self.images = images

    @cached_property
    def features(self) -> Tensor:
        """[I, N, image width]."""
        return torch.stack([image.features for image in self.images])

    @cached_property
    def memory(self) -> ImageMemory:
        """Keys and values of the text encoder's cross-attention."""
        return self.network.encoder.remember(self.features)

    @cached_property
    def embeds(self) -> Tensor:
        """Unit vectors [I, 1, shared width], float32, of the class tokens."""
        first = torch.stack([image.features[:1] for image in self.images])
        return self.network.project_images(first).float()


class BlipComparison:
    """How a BLIP compares images and texts, see `openblip.matching.comparison`."""

    averages_texts = False
    vectors = 1

    def __init__(self, network: BlipNetwork, shared_width: int) -> None:
        self.network = network
        self.shared_width = shared_width

    @property
    def pairs(self) -> BlipComparison | None:
        return self if self.network.config.itm else None

    @property
    def device(self) -> torch.device:
        return self.network.encoder.norm.weight.device

    @property
    def temperature(self) -> Tensor:
        return self.network.temperature

    @property
    def match_map(self) -> Callable[[Tensor, Tensor, Tensor, int | None], Tensor] | None:
        return self._match_map if self.network.config.itm else None

    def _match_map(self, ids: Tensor, mask: Tensor, features: Tensor, layer: int | None) -> Tensor:
        # Behind the last layer, only what the first token looks at counts.
        last = max(0, len(self.network.encoder.layers) - 2)
        chosen = min(LAYER, last) if layer is None else layer
        return word_map(match_map(self.network, ids, mask, features, chosen), mask)[0]

    def batch(self, encoder: CachedEncoder, images: Sequence[EncodedImage]) -> ComparedImages:
        return ComparedImages(self.network, images)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network.embed_texts(ids, mask).float()

    def remember(self, features: Tensor) -> ImageMemory:
        return self.network.encoder.remember(features)

    def itm_logits(self, ids: Tensor, mask: Tensor, memory: ImageMemory) -> Tensor:
        return self.network.itm_logits(ids, mask, memory)


def compose_blip(parts: ModelParts[BlipNetwork], placement: Placement, cache: ImageCache) -> Components:
    """What a BLIP on its device offers."""
    network, config = parts.network, parts.network.config
    if placement.encoder_dtype is not None:
        network.vision.compute_in(placement.encoder_dtype)

    def features(pixels: Tensor) -> Tensor:
        return network.image_features(pixels.to(placement.device, placement.dtype))

    def visual_prompts(images: Sequence[EncodedImage]) -> list[Tensor]:
        return [image.features for image in images]

    encoder = CachedEncoder(features, parts.transform, cache)
    abilities: list[Ability] = []
    writer: Writer | None = None
    matcher: Matcher | None = None
    if parts.tokenizer is not None and config.decoder is not None:
        writer = Writer(parts, network.language_model, encoder, visual_prompts, ImageBeside)
        abilities.append("ask" if config.answers else "caption")
    if parts.matching is not None and config.shared_width is not None:
        matcher = Matcher(BlipComparison(network, config.shared_width), parts.matching, encoder)
        abilities += ["match", "embed", "classify"]
    judge: Judge | None = None
    if parts.matching is not None and config.encoder is not None and config.num_classes is not None:
        judge = Judge(network, parts.classes, config.encoder.images, parts.matching, encoder, parts.name)
        abilities.append("judge")
    return Components(encoder, writer, matcher, tuple(abilities), judge)
