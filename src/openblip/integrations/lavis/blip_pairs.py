"""LAVIS' BLIPs that learn from pairs of images and texts: retrieval and pre-training.

Where LAVIS fails, these do not: momentum copies begin as the network that was loaded, a queue need not be a multiple of
the batch, a loss needs no process group, `k_test` may be larger than the data set, and a pair that is among the best
both of an image and of a text is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import whole_number
from openblip.integrations.lavis.blip import LONGEST_TEXT
from openblip.integrations.lavis.blip_matching import BlipMatcher
from openblip.integrations.lavis.models import pixels_of
from openblip.integrations.lavis.outputs import BlipOutput, Samples
from openblip.nn.blip import BlipNetwork
from openblip.training.losses import Pairing, TextBatch
from openblip.training.momentum import Momentum
from openblip.training.momentum_losses import ImageBatch, pretrain_loss, retrieval_loss, soft_share

LONGEST_PRETRAINED = 30
QUEUE = 57_600
"""Embeddings that LAVIS' configurations keep of earlier batches."""
PAIRS = 64
"""Texts that are read with one image at once."""
NOT_LISTED = -100.0
"""The score of a pair that is not among the best of the first round."""


class BlipLearner(BlipMatcher):
    """What learns from pairs, with momentum copies and queues.

    Attributes:
        alpha: the largest share of the momentum copies' soft targets.
        copies: the momentum copies and the queues, which begin with the network as it is when the first loss is
            computed; may be set.
    """

    def __init__(
        self,
        parts: ModelParts[BlipNetwork],
        max_txt_len: int = LONGEST_TEXT,
        alpha: float = 0.4,
        momentum: float = 0.995,
        queue_size: int = QUEUE,
    ) -> None:
        super().__init__(parts, max_txt_len)
        self.alpha, self.momentum, self.queue_size = alpha, momentum, queue_size
        self.copies: Momentum | None = None

    def _batch_of(self, samples: Samples) -> tuple[Momentum, ImageBatch, TextBatch, float]:
        """Copies, images, texts, and the share of soft targets."""
        if self.copies is None:
            self.copies = Momentum(self.network, self.queue_size, self.momentum)
        pixels = pixels_of(samples, self.device)
        images = ImageBatch(self.network.image_features(pixels), pixels)
        text = TextBatch(*self._texts(samples.get("text_input"), len(pixels)))
        epochs = samples.get("epoch", 0) + samples.get("iters", 0) / samples.get("num_iters_per_epoch", 1)
        return self.copies, images, text, soft_share(self.alpha, epochs)


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


class BlipRetrieval(BlipLearner):
    """LAVIS' `blip_retrieval`."""

    def forward(self, samples: Samples) -> BlipOutput:
        """Contrast and matching; copies and queues move on, in evaluation mode, too, as in LAVIS.

        `image_id` tells which texts describe one image; `epoch`, `iters` and `num_iters_per_epoch` say where in a run
        the batch is: soft targets count more from step to step.
        """
        copies, images, text, soft = self._batch_of(samples)
        ids = samples.get("image_id")
        pairing = Pairing(None if ids is None else torch.as_tensor(ids, device=self.device))
        found = retrieval_loss(self.network, copies, images, text, soft, pairing)
        return BlipOutput(found.itc + found.itm, loss_itc=found.itc, loss_itm=found.itm)

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


class BlipPretrain(BlipLearner):
    """LAVIS' `blip_pretrain`."""

    task = "be pre-trained"

    def __init__(
        self,
        parts: ModelParts[BlipNetwork],
        max_txt_len: int = LONGEST_PRETRAINED,
        alpha: float = 0.4,
        momentum: float = 0.995,
        queue_size: int = QUEUE,
    ) -> None:
        super().__init__(parts, max_txt_len, alpha, momentum, queue_size)

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return parts.network.config.shares_text and BlipMatcher.fits(parts)

    def forward(self, samples: Samples) -> BlipOutput:
        """Contrast, matching and language modelling, where a text matches its own image alone.

        See `BlipRetrieval.forward`.
        """
        copies, images, text, soft = self._batch_of(samples)
        found = pretrain_loss(self.network, copies, images, text, soft, Pairing())
        return BlipOutput(found.itc + found.itm + found.lm, found.itc, found.itm, found.lm)
