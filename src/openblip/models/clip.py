"""How a CLIP encodes images and texts, and compares them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.devices import Placement
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageCache
from openblip.matching.matcher import Matcher
from openblip.models.abilities import Ability, Components
from openblip.nn.clip import ClipNetwork
from openblip.text import ClipText


class EmbeddedImages:
    """A batch of encoded images, each one vector of the shared space."""

    memory = None  # no text is read with them

    def __init__(self, images: Sequence[EncodedImage]) -> None:
        self.images = images

    @cached_property
    def features(self) -> Tensor:
        """[I, 1, shared width], of any length."""
        return torch.stack([image.features for image in self.images])

    @cached_property
    def embeds(self) -> Tensor:
        """Unit vectors [I, 1, shared width], float32."""
        return F.normalize(self.features.float(), dim=-1)


class ClipComparison:
    """How a CLIP compares images and texts, see `openblip.matching.comparison`."""

    vectors = 1
    averages_texts = True
    match_map = None
    pairs = None

    def __init__(self, network: ClipNetwork) -> None:
        self.network = network

    @property
    def shared_width(self) -> int:
        return self.network.config.shared_width

    @property
    def device(self) -> torch.device:
        return self.network.log_scale.device

    @property
    def temperature(self) -> Tensor:
        return self.network.temperature

    def batch(self, encoder: CachedEncoder, images: Sequence[EncodedImage]) -> EmbeddedImages:
        return EmbeddedImages(images)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.network.embed_texts(ids, mask).float(), dim=-1)


def compose_clip(parts: ModelParts[ClipNetwork, ClipText], placement: Placement, cache: ImageCache) -> Components:
    """What a CLIP on its device offers."""
    network = parts.network
    if placement.encoder_dtype is not None:
        network.vision.compute_in(placement.encoder_dtype)

    def features(pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to [B, 1, shared width]: nothing reads an image but its one vector."""
        return network.embed_images(pixels.to(placement.device, placement.dtype))[:, None]

    encoder = CachedEncoder(features, parts.transform, cache)
    if parts.matching is None:
        return Components(encoder, None, None, ())
    abilities: tuple[Ability, ...] = ("match", "embed", "classify")
    return Components(encoder, None, Matcher(ClipComparison(network), parts.matching, encoder), abilities)
