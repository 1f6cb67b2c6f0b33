"""LAVIS' BLIPs that compare images and texts: matching, retrieval, features, Grad-CAM.

Where LAVIS fails, these do not: `k_test` may be larger than the data set, and a pair that is among the best both of an
image and of a text is read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

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

PAIRS = 64
"""Texts that are read with one image at once."""
NOT_LISTED = -100.0
"""The score of a pair that is not among the best of the first round."""


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


class TextsDataset(Protocol):
    """All texts that images are compared with."""

    @property
    def text(self) -> Sequence[str]: ...


class ImageLoader(Protocol):
    """Batches of a test set's images."""

    @property
    def dataset(self) -> TextsDataset: ...
    def __iter__(self) -> Iterator[Any]: ...


class RetrievalSettings(Protocol):
    """LAVIS' task settings."""

    @property
    def k_test(self) -> int: ...


class BlipRetrieval(BlipMatcher):
    """LAVIS' `blip_retrieval`."""

    @torch.no_grad()
    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """How much texts [B, L] fit image features [B, N, image width]: the logits of a match [B]."""
        return self.network.itm_logits(text_ids, text_atts, image_inputs)[:, 1]

    @torch.no_grad()
    def compute_sim_matrix(
        self, data_loader: ImageLoader, task_cfg: RetrievalSettings | Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """How LAVIS evaluates: scores of images for texts [I, T] and of texts for images [T, I], as NumPy arrays.

        A score is the logit of a match and the cosine, of the `k_test` texts of an image with the largest cosines, and
        of the `k_test` images of a text; -100 of all others. A pair that is in both is read once.

        Args:
            data_loader: batches with "image"; its `dataset` has all texts under `text`.
            task_cfg: says `k_test`; larger than what there is means all.
        """
        told = task_cfg.get("k_test") if isinstance(task_cfg, Mapping) else task_cfg.k_test
        first = whole_number("k_test", told, 1)
        network = self.network
        ids, mask = self._texts(list(data_loader.dataset.text))
        parts = zip(torch.split(ids, PAIRS), torch.split(mask, PAIRS), strict=True)
        hidden = [network.encoder(some, present)[:, 0] for some, present in parts]
        texts = network.project_texts(torch.cat(hidden))
        # On the CPU, where there is room for thousands.
        batches = [self.image_features(samples).cpu() for samples in data_loader]
        features = torch.cat(batches)
        cosines = network.project_images(features[:, 0].to(self.device)) @ texts.T
        for_image, for_text = (
            torch.zeros_like(table, dtype=torch.bool).scatter(1, table.topk(min(first, table.shape[1])).indices, True)
            for table in (cosines, cosines.T)
        )
        wanted = for_image | for_text.T
        logits = torch.zeros_like(cosines)
        for row, listed in enumerate(wanted):
            memory = network.encoder.remember(features[row : row + 1].to(self.device))
            for places in torch.split(listed.nonzero()[:, 0], PAIRS):
                length = int(mask[places].sum(dim=1).max())
                pair = network.itm_logits(ids[places, :length], mask[places, :length], memory)
                logits[row, places] = pair[:, 1]
        scores = logits + cosines
        images = scores.masked_fill(~for_image, NOT_LISTED)
        return images.float().cpu().numpy(), scores.T.masked_fill(~for_text, NOT_LISTED).float().cpu().numpy()


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
