"""LAVIS' BLIPs that put a text into a class, read with one image or with two.

Where LAVIS fails, these do not: predictions need no labels, and `blip_classification` learns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.lavis.blip import read_file
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.blip import CLASS_BIAS, ROOTS
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.files import open_weights
from openblip.checkpoints.tensors.wrappers import Peeled
from openblip.errors import OptionError, given_path
from openblip.integrations.lavis.blip import BlipModel
from openblip.integrations.lavis.models import listed_texts, pixels_of
from openblip.integrations.lavis.outputs import Loss, Samples
from openblip.nn.blip import BlipNetwork
from openblip.text import MatchingText
from openblip.training.class_losses import RAMP_EPOCHS, class_copies, class_loss, copied_class_logits
from openblip.training.losses import TextBatch
from openblip.training.momentum import Copies
from openblip.training.momentum_losses import soft_share

LONGEST_STATEMENT = 40
NEW = re.compile(r"^class_head\.|\.merge\.")
"""Names of what a file of pre-training has not."""


class ClassSamples(Samples, total=False):
    """What LAVIS' classifiers take besides.

    Attributes:
        image0, image1: pixels of both images of a text [B, 3, S, S] each (NLVR2).
        label: [B], the number of the right class.
    """

    image0: Tensor
    image1: Tensor
    label: Tensor


class Predictions(TypedDict):
    """Logits of classes [B, classes], and the labels of the samples, None if they have none."""

    predictions: Tensor
    targets: Tensor | None


@dataclass(frozen=True)
class BlipOutputWithLogits:
    """A loss with the logits [B, classes] that it was computed of; `logits_m` are those of the momentum copies."""

    loss: Tensor
    logits: Tensor
    logits_m: Tensor | None = None


class BlipClassifier(BlipModel):
    """What both have in common."""

    images = 1

    @classmethod
    def _reads(cls, parts: ModelParts[BlipNetwork]) -> bool:
        encoder = parts.network.config.encoder
        return parts.network.config.num_classes is not None and encoder is not None and encoder.images == cls.images

    def load_from_pretrained(self, url_or_filename: str | Path) -> None:
        """Take the weights of a file of pre-training, to train: its attention to one image is that to both of two.

        The head, and the layers that merge two images, stay as they are where the file has none. Positions of images of
        another size are interpolated.

        Raises:
            CheckpointError: the file is missing, broken or does not fit.
        """
        file = given_path("the file", url_or_filename)
        if CLASS_BIAS in Peeled(open_weights(file), ROOTS).shapes:
            super().load_from_pretrained(file)
            return
        config, weight = self.network.config, next(self.parameters())
        assert config.encoder is not None and config.num_classes is not None
        plain = replace(config, encoder=replace(config.encoder, images=1), num_classes=None)
        found = read_file(plain, file, ReadOptions(weight.dtype, weight.device))
        if found.config.vision.image_size != config.vision.image_size:
            found.vision.resize(config.vision.image_size)
        pair = found.with_class_head(config.num_classes, self.images).state_dict()
        self.network.load_state_dict(
            {name: own if NEW.search(name) else pair[name] for name, own in self.network.state_dict().items()}
        )

    def _texts(self, samples: ClassSamples, count: int) -> TextBatch:
        ids, mask = self.text.batch(listed_texts(samples.get("text_input"), count, "text_input"))
        return TextBatch(ids.to(self.device), mask.to(self.device))

    @property
    def text(self) -> MatchingText:
        return MatchingText(self.words, self.max_txt_len)

    def _labels(self, samples: ClassSamples, count: int) -> Tensor:
        if "label" not in samples:
            raise OptionError('the samples have no "label": give the number of the right class for each text')
        labels = torch.as_tensor(samples["label"], device=self.device)
        classes = self.network.config.num_classes or 0
        if labels.shape != (count,) or bool(((labels < 0) | (labels >= classes)).any()):
            raise OptionError(f'"label" is {labels.tolist()}: give each of {count} texts a number below {classes}')
        return labels


class BlipNLVR(BlipClassifier):
    """LAVIS' `blip_nlvr`: whether a text is true of two images."""

    task = "judge statements about two images"
    images = 2

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int | None = None) -> None:
        super().__init__(parts, 0)
        encoder = self.network.config.encoder
        assert encoder is not None
        self.max_txt_len = max_txt_len or encoder.max_positions

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return BlipNLVR._reads(parts)

    def forward(self, samples: ClassSamples, is_train: bool = True) -> Loss | Predictions:
        """The loss, or with `is_train=False` what `predict` returns."""
        logits = self._logits(samples)
        if not is_train:
            return {"predictions": logits, "targets": samples.get("label")}
        return {"loss": F.cross_entropy(logits, self._labels(samples, len(logits)))}

    @torch.no_grad()
    def predict(self, samples: ClassSamples) -> Predictions:
        """Logits of both classes, "False" first."""
        return {"predictions": self._logits(samples), "targets": samples.get("label")}

    def _logits(self, samples: ClassSamples) -> Tensor:
        if "image0" not in samples or "image1" not in samples:
            raise OptionError(
                'the samples need "image0" and "image1": give pixels [B, 3, S, S] of both images of a text'
            )
        pixels = [samples["image0"].to(self.device), samples["image1"].to(self.device)]
        if pixels[0].shape != pixels[1].shape:
            shapes = " and ".join(str(list(each.shape)) for each in pixels)
            raise OptionError(f'"image0" and "image1" are {shapes}: give two images for each text')
        features = self.network.image_features(torch.cat(pixels)).chunk(2)
        text = self._texts(samples, len(pixels[0]))
        return self.network.class_logits(text.ids, text.mask, *features)


class BlipClassification(BlipClassifier):
    """LAVIS' `blip_classification`: the class of a text that is read with an image (SNLI-VE).

    Attributes:
        alpha: the largest share of the momentum copies' soft targets; 0 for none.
        copies: the momentum copies, which begin as the network is when the first loss is computed.
    """

    task = "judge statements about one image"

    def __init__(
        self,
        parts: ModelParts[BlipNetwork],
        max_txt_len: int = LONGEST_STATEMENT,
        alpha: float = 0.4,
        momentum: float = 0.995,
    ) -> None:
        super().__init__(parts, max_txt_len)
        self.alpha, self.momentum = alpha, momentum
        self.copies: Copies | None = None

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return BlipClassification._reads(parts)

    def forward(self, samples: ClassSamples, is_train: bool = True) -> BlipOutputWithLogits | Predictions:
        """The loss, or with `is_train=False` what `predict` returns."""
        if not is_train:
            return {"predictions": self._logits(samples), "targets": samples.get("label")}
        pixels = pixels_of(samples, self.device)
        text, labels = self._texts(samples, len(pixels)), self._labels(samples, len(pixels))
        logits = self.network.class_logits(text.ids, text.mask, self.network.image_features(pixels))
        soft_logits = None
        if self.alpha:
            if self.copies is None:
                self.copies = class_copies(self.network, self.momentum)
            self.copies.update(self.network)
            soft_logits = copied_class_logits(self.copies, self.network, pixels, text)
        epochs = samples.get("epoch", 0) + samples.get("iters", 0) / samples.get("num_iters_per_epoch", 1)
        soft = soft_share(self.alpha, epochs, RAMP_EPOCHS)
        return BlipOutputWithLogits(class_loss(logits, labels, soft_logits, soft), logits, soft_logits)

    @torch.no_grad()
    def predict(self, samples: ClassSamples) -> Predictions:
        """Logits of the classes, of SNLI-VE "contradiction", "neutral" and "entailment"."""
        return {"predictions": self._logits(samples), "targets": samples.get("label")}

    def _logits(self, samples: ClassSamples) -> Tensor:
        features = self.image_features(samples)
        text = self._texts(samples, len(features))
        return self.network.class_logits(text.ids, text.mask, features)
