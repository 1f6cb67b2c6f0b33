"""Takes the place of the image encoder in a run that reads all its features from disk."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.errors import OpenBlipError
from openblip.nn.blip2 import Blip2Network


class EncoderStub(nn.Module):
    """A module without weights: it can be moved, frozen and shared among processes, but it encodes nothing."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Raises OpenBlipError."""
        raise OpenBlipError(
            "the image encoder is not loaded, since the features of all images are on disk, but an image needs it: "
            "please report this, and train with cache=null meanwhile"
        )


def drop_encoder(network: Blip2Network) -> None:
    """Free the memory of the image encoder, which the run does not need."""
    network.add_module("vision", EncoderStub())
