"""Momentum copies of a BLIP's encoders, and queues of what they made of earlier batches.

They make soft targets for the contrast of images and texts, and many more texts and images to tell them from than one
batch has (ALBEF, Li et al. 2021, https://arxiv.org/abs/2107.07651, section 3.2; BLIP does the same).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from openblip.nn.blip import BlipNetwork
from openblip.training.parallel.processes import ALONE, World

VISION, COPIED = "vision.", ("encoder.", "image_projection.", "text_projection.")
READS_IMAGES = ".cross_attention."
"""Texts are embedded alone: of this, no copy is needed."""
NO_IMAGE = -100
"""Stands in the queue where no image has been yet, as in LAVIS."""


class Copies:
    """Slow copies of parameters.

    They are tensors, which the network's own modules are run with (`torch.func.functional_call`).

    Attributes:
        weights: the copies, by the network's names.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, device: torch.device | None = None
    ) -> None:
        """Copies start as the parameters are.

        Args:
            decay: what a copy keeps of itself in each step.
            device: where tensors are kept; None: where the parameters are.
        """
        self.decay = decay
        self.weights = {name: weight.detach().to(device, copy=True) for name, weight in parameters.items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the copies towards the network."""
        parameters = dict(network.named_parameters())
        for name, weight in self.weights.items():
            weight.lerp_(parameters[name].detach(), 1 - self.decay)


class Momentum(Copies):
    """Slow copies of what embeds images and texts, and the latest embeddings that they made.

    Attributes:
        images, texts: queues [Q, shared width] of unit vectors; `ids` [Q] are those of the images.
        place: [1] int64, where the next batch is written.
    """

    def __init__(
        self,
        network: BlipNetwork,
        queue_size: int,
        decay: float,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        vision: bool = True,
        adapters: bool = False,
    ) -> None:
        """Copies start as the network is, queues with random vectors.

        Args:
            decay: what a copy keeps of itself in each step.
            vision: whether the image encoder learns; a frozen one needs no copy.
            adapters: whether nothing but adapters learns, which alone are copied then.
            device: where tensors are kept; None: where the network is.
            generator: on the CPU, of the vectors.
        """
        width = network.config.shared_width
        if width is None:
            raise ValueError("a BLIP without a shared space has nothing to queue")
        self.copied, self.adapters = (VISION, *COPIED) if vision else COPIED, adapters
        device = network.temperature.device if device is None else device
        super().__init__(self._parameters(network), decay, device)
        rows = torch.randn(2, queue_size, width, generator=generator).to(device)
        self.images, self.texts = F.normalize(rows, dim=-1).unbind(0)
        self.ids = torch.full((queue_size,), NO_IMAGE, dtype=torch.int64, device=rows.device)
        self.place = torch.zeros(1, dtype=torch.int64, device=rows.device)

    def state(self) -> dict[str, Tensor]:
        """All tensors by name: the copies' are the network's, the queues' those of the attributes."""
        return {**self.weights, "images": self.images, "texts": self.texts, "ids": self.ids, "place": self.place}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take on tensors of the names of `state`, if all are there and fit; returns whether they do."""
        state = self.state()
        fits = all(name in tensors and tensors[name].shape == own.shape for name, own in state.items())
        if fits:
            for name, own in state.items():
                own.copy_(tensors[name])
        return fits

    @torch.no_grad()
    def embed(
        self, network: BlipNetwork, features: Tensor, pixels: Tensor | None, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, shared width] of images and of texts [B, L], float32, by the copies.

        Args:
            features: [B, N, image width], by the network's own image encoder, which the copy of a frozen one equals.
            pixels: [B, 3, S, S], where the encoder learns.
        """
        weights = {f"network.{name}": weight for name, weight in self.weights.items()}
        image, text = functional_call(_Embedding(network), weights, (features, pixels, ids, mask))
        return image.float(), text.float()

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, ids: Tensor | None, world: World = ALONE) -> None:
        """Write a batch [b, shared width] of each process over the oldest rows, in the order of ranks.

        Args:
            ids: [b] of the images; None where nobody reads them.
        """
        size = len(self.ids)
        if not size:
            return
        rows = world.gather(images), world.gather(texts)
        count = len(rows[0])
        places = (self.place + torch.arange(count, device=self.place.device)) % size
        for queue, new in zip((self.images, self.texts), rows, strict=True):
            queue.index_copy_(0, places, new)
        if ids is not None:
            self.ids.index_copy_(0, places, world.gather(ids))
        self.place.copy_((self.place + count) % size)

    def _parameters(self, network: BlipNetwork) -> dict[str, nn.Parameter]:
        """The parameters that have copies, by name."""
        return {
            name: parameter
            for name, parameter in network.named_parameters()
            if name.startswith(self.copied)
            and READS_IMAGES not in name
            and (parameter.requires_grad or not self.adapters)
        }


class _Embedding(nn.Module):
    """What the copies compute, as `functional_call` runs it."""

    def __init__(self, network: BlipNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, pixels: Tensor | None, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        image = features[:, 0] if pixels is None else network.vision.class_vector(pixels)
        return network.project_images(image), network.embed_texts(ids, mask)
