"""LAVIS' BLIPs that compare images and texts: matching, features, Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import OptionError, whole_number
from openblip.integrations.lavis.blip import LONGEST_TEXT, BlipModel
from openblip.integrations.lavis.models import listed_texts
from openblip.integrations.lavis.outputs import BlipOutputFeatures, Samples
from openblip.nn.attention_map import match_map, word_map
from openblip.nn.blip import BlipNetwork
from openblip.text import MatchingText


class BlipMatcher(BlipModel):
    """What BLIPs that compare images and texts have in common."""

    task = "match images and texts"

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int = LONGEST_TEXT) -> None:
        super().__init__(parts, max_txt_len)
        self.cut = MatchingText(self.words, max_txt_len)

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return parts.network.config.itm and parts.matching is not None

    def _texts(self, texts: str | Sequence[str] | None, count: int | None = None) -> tuple[Tensor, Tensor]:
        ids, mask = self.cut.batch(listed_texts(texts, count, "text_input"))
        return ids.to(self.device), mask.to(self.device)


class BlipITM(BlipMatcher):
    """LAVIS' `blip_image_text_matching`: how well each text fits its image."""

    def forward(self, samples: Samples, match_head: Literal["itm", "itc"] = "itm") -> Tensor:
        """ITM logits [B, 2], of which index 1 is yes, or ITC cosines of all images with all texts [I, T].

        Of ITM, there is a text for each image, or one image for all texts, or one text for all images.

        Raises:
            OptionError: another head, or texts and images that make no pairs.
        """
        network, features = self.network, self.image_features(samples)
        if match_head == "itc":
            ids, mask = self._texts(samples.get("text_input"))
            texts = network.project_texts(network.encoder(ids, mask)[:, 0])
            return network.project_images(features[:, 0]) @ texts.T
        if match_head != "itm":
            raise OptionError(f"match_head is {match_head!r}: use itm or itc")
        ids, mask = self._texts(samples.get("text_input"), None if len(features) == 1 else len(features))
        return network.itm_logits(ids, mask, features)


class BlipFeatureExtractor(BlipMatcher):
    """LAVIS' `blip_feature_extractor`."""

    task = "compare images and texts"

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int = LONGEST_TEXT) -> None:
        super().__init__(parts, max_txt_len)
        # LAVIS' extract_features cuts nothing.
        self.cut = MatchingText(self.words, self.network.config.text_positions)

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return parts.matching is not None and parts.network.config.shared_width is not None

    @torch.no_grad()
    def extract_features(
        self, samples: Samples, mode: Literal["image", "text", "multimodal"] = "multimodal"
    ) -> BlipOutputFeatures:
        """Features of images, of texts, or of images with their texts; unit vectors of every patch and every token.

        Raises:
            OptionError: another mode, or the samples lack what the mode needs.
        """
        network = self.network
        if mode == "image":
            features = self.image_features(samples)
            return BlipOutputFeatures(image_embeds=features, image_embeds_proj=network.project_images(features))
        if mode == "text":
            ids, mask = self._texts(samples.get("text_input"))
            hidden: Tensor = network.encoder(ids, mask)
            return BlipOutputFeatures(text_embeds=hidden, text_embeds_proj=network.project_texts(hidden))
        if mode == "multimodal":
            features = self.image_features(samples)
            ids, mask = self._texts(samples.get("text_input"), len(features))
            together = network.read_together(ids, mask, features)
            return BlipOutputFeatures(image_embeds=features, multimodal_embeds=together)
        raise OptionError(f"mode is {mode!r}: use image, text or multimodal")


def compute_gradcam(
    model: BlipITM,
    visual_input: Tensor,
    text_input: str | Sequence[str],
    tokenized_text: Mapping[str, Tensor] | None = None,
    block_num: int = 6,
) -> tuple[list[Tensor], Tensor]:
    """Where a BLIP looks when it matches images with texts: Grad-CAM of its cross-attention.

    Args:
        visual_input: pixels [B, 3, S, S].
        tokenized_text: what `model.tokenizer` makes of the texts; by default that is done here.
        block_num: the layer, counted from 0.

    Returns:
        of each text a map [1 + L, grid, grid]: of its first token, the mean over its words, and of every token behind
        the first; and ITM logits [B, 2].

    Raises:
        OptionError: there is no such layer, or texts and images do not make pairs.
    """
    network = model.network
    with torch.no_grad():
        features = model.image_features({"image": visual_input})
    ids, mask = model._texts(text_input, len(features))
    if tokenized_text is not None:
        ids, mask = (tokenized_text[name].to(model.device) for name in ("input_ids", "attention_mask"))
    layers = len(network.encoder.layers)
    if not 0 <= whole_number("block_num", block_num, 0) < layers:
        raise OptionError(f"block_num is {block_num}: the text encoder has {layers} layers, counted from 0")
    maps = match_map(network, ids, mask, features, block_num)
    means = word_map(maps, mask)
    side = math.isqrt(maps.shape[-1])
    rows = [torch.cat([own[:1], mean[None], own[1:]]) for own, mean in zip(maps, means, strict=True)]
    with torch.no_grad():
        logits = network.itm_logits(ids, mask, features)
    return [row.view(len(row), side, -1) for row in rows], logits
