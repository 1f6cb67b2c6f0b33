"""What a family's network has to offer so that images and texts can be compared: the seam below `Matcher`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.images.encoded_image import CachedEncoder, EncodedImage
from openblip.text import Tokenizer


class Words(Protocol):
    """Turns texts into the ids that a text side reads."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def clean(self, text: str) -> str:
        """A text as texts were written in training."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a cleaned text, those that begin and end it included, cut at the longest."""
        ...


class ImageBatch(Protocol):
    """Encoded images, as a network compares them; each property is computed once, when it is first asked for."""

    @property
    def features(self) -> Tensor:
        """What the image encoder gave, [I, N, image width]."""
        ...

    @property
    def embeds(self) -> Tensor:
        """Unit vectors [I, Q, shared width], float32."""
        ...

    @property
    def memory(self) -> Any:
        """What ITM reads of the images. `take` of it gives that of some of them."""
        ...


class PairNetwork(Protocol):
    """Reads an image and a text together (ITM)."""

    def remember(self, features: Tensor) -> Any:
        """Features [I, N, image width] to what ITM reads of the images."""
        ...

    def itm_logits(self, ids: Tensor, mask: Tensor, memory: Any) -> Tensor:
        """Whether texts and images belong together: [B, 2], index 1 is yes.

        Args:
            ids, mask: of B texts [B, L]; B is a multiple of the images in `memory`, and each has as many in a row.
        """
        ...


class Comparison(Protocol):
    """A family's network, as far as it compares images and texts.

    Attributes:
        vectors: unit vectors of one image, Q; the best of them counts.
        averages_texts: a class that is described by several texts is the mean of their vectors, as for CLIP; otherwise
            its cosine is the mean of theirs.
        pairs: reads images and texts together (ITM); None for a network that cannot.
        match_map: where it looks (Grad-CAM, see `openblip.nn.attention_map`): ids and mask of a text [1, L], features
            [1, N, image width] and the layer, None for the usual one, to [patches]. None for a network that does not
            tell.
    """

    @property
    def vectors(self) -> int: ...
    @property
    def shared_width(self) -> int: ...
    @property
    def averages_texts(self) -> bool: ...
    @property
    def pairs(self) -> PairNetwork | None: ...
    @property
    def match_map(self) -> Callable[[Tensor, Tensor, Tensor, int | None], Tensor] | None: ...
    @property
    def device(self) -> torch.device: ...

    @property
    def temperature(self) -> Tensor:
        """What cosines are divided by before a softmax."""
        ...

    def batch(self, encoder: CachedEncoder, images: Sequence[EncodedImage]) -> ImageBatch: ...

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors [B, shared width], float32, of texts [B, L]."""
        ...
