"""CLIP as LAVIS' scripts call it: `clip` and `clip_feature_extractor`.

Where LAVIS fails, this does not: a loss needs no process group, a long text keeps its end, which is where CLIP reads it
(LAVIS gives all long texts the same feature), and images may be of any size that the model takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.lavis.clip import ClipParts
from openblip.checkpoints.names.clip import openai_layout
from openblip.errors import CheckpointError
from openblip.integrations.lavis.models import LavisModel, listed_texts, pixels_of
from openblip.integrations.lavis.outputs import Samples
from openblip.integrations.lavis.processors import ClipImageTrainProcessor
from openblip.nn.clip import ClipNetwork
from openblip.text import ClipText, pad_ids

PADDING = 0
"""What OpenAI's code fills texts up with, to their full length."""
SCALE = 100.0
"""What LAVIS multiplies cosines with classes by, whatever the model has learned."""


@dataclass(frozen=True)
class ClipFeatures:
    """Features of images and texts: vectors of any length [B, E], and unit vectors under `*_proj`."""

    image_embeds: Tensor
    image_embeds_proj: Tensor
    text_embeds: Tensor
    text_embeds_proj: Tensor


@dataclass(frozen=True)
class ClipOutput:
    """CLIP's contrastive loss, the unit vectors under it, and the number that their cosines were multiplied by."""

    loss: Tensor
    intermediate_output: ClipFeatures
    logit_scale_exp: Tensor


class Clip(LavisModel):
    """LAVIS' `clip` and `clip_feature_extractor`; all of it is trained."""

    network: ClipNetwork
    image_training = ClipImageTrainProcessor

    def __init__(self, parts: ClipParts, max_txt_len: int = 77) -> None:
        if not isinstance(parts.matching, ClipText):
            raise CheckpointError(f"{parts.name} is of the family {parts.family}, no CLIP: load it by its architecture")
        super().__init__(parts, max_txt_len)
        self.words: ClipText = parts.matching

    def checkpoint(self) -> dict[str, Tensor]:
        return openai_layout(self.network.config).to_theirs(self.network.state_dict())

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Ids [B, 77] of texts, filled up with zeros; a text that is too long is cut before its end."""
        rows = [self.words.encode(self.words.clean(text)) for text in listed_texts(texts, None, "texts")]
        ids, _ = pad_ids(rows, PADDING)
        filled = F.pad(ids, (0, self.network.config.text_positions - ids.shape[1]), value=PADDING)
        return filled.to(self.device)

    def encode_image(self, image: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to vectors [B, E] of any length."""
        return self.network.embed_images(image.to(self.device))

    def encode_text(self, text: Tensor) -> Tensor:
        """Ids, as `tokenize` gives them, to vectors [B, E] of any length; a text is read at its largest id."""
        ids = text.to(self.device)
        ends = ids.argmax(dim=1)
        return self.network.embed_texts(ids, torch.arange(ids.shape[1], device=ids.device)[None] <= ends[:, None])

    def forward(self, samples: Samples) -> ClipOutput:
        """The loss of images and their texts."""
        features = self._both(samples)
        logits = self.network.contrast(features.image_embeds, features.text_embeds)
        right = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        return ClipOutput(loss, features, self.network.log_scale.exp())

    @torch.no_grad()
    def extract_features(self, samples: Samples) -> ClipFeatures | Tensor:
        """Features of images and texts; of images or texts alone the bare vectors [B, E], of any length.

        Raises:
            OptionError: the samples have neither.
        """
        if "image" in samples and "text_input" in samples:
            return self._both(samples)
        if "image" in samples:
            return self.encode_image(samples["image"])
        return self.encode_text(self._ids(samples, None))

    @torch.no_grad()
    def zero_shot_classifier(
        self, classnames: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)
    ) -> Tensor:
        """A unit vector for each class, [E, classes]: the mean of the unit vectors of its texts.

        Args:
            templates: texts with {} where a class stands. LAVIS has OpenAI's 80 for ImageNet.
        """
        vectors = []
        for name in classnames:
            texts = [template.replace("{}", name) for template in templates]
            embeds = F.normalize(self.encode_text(self.tokenize(texts)), dim=-1)
            vectors.append(F.normalize(embeds.mean(dim=0), dim=-1))
        return torch.stack(vectors, dim=1)

    @torch.no_grad()
    def predict(self, samples: Samples, classifier: Tensor) -> dict[str, Tensor]:
        """Cosines of images with classes, times 100: `predictions` [B, classes]."""
        images = F.normalize(self.encode_image(samples["image"]), dim=-1)
        return {"predictions": SCALE * images @ classifier}

    @torch.no_grad()
    def compute_sim_matrix(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Cosines of all images [N, 3, S, S] with all texts: [N, M] and [M, N]."""
        vision, words = self.encode_image(images), self.encode_text(self.tokenize(texts))
        cosines = F.normalize(vision, dim=-1) @ F.normalize(words, dim=-1).T
        return cosines, cosines.T

    def _both(self, samples: Samples) -> ClipFeatures:
        images = self.encode_image(pixels_of(samples, self.device))
        texts = self.encode_text(self._ids(samples, len(images)))
        return ClipFeatures(images, F.normalize(images, dim=-1), texts, F.normalize(texts, dim=-1))

    def _ids(self, samples: Samples, count: int | None) -> Tensor:
        return self.tokenize(listed_texts(samples.get("text_input"), count, "text_input"))
