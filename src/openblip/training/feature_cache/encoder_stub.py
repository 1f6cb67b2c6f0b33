"""What stands for an image encoder of which all that a run needs is on disk."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.errors import OpenBlipError
from openblip.nn.blip2 import Blip2Network


class EncoderStub(nn.Module):
    """No weights; it can be moved, frozen and shared among processes as any other module, and not looked through."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Raises OpenBlipError."""
        raise OpenBlipError(
            "the image encoder is not loaded, since features of all images are on disk, and yet an image is to be "
            "looked at: please report this, and train with cache=null meanwhile"
        )


def drop_encoder(network: Blip2Network) -> None:
    """Make room: the network goes on without its image encoder."""
    network.add_module("vision", EncoderStub())
