"""The families of models: how each is composed. Another one joins by `register_family`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from openblip.checkpoints.families import Family, add_family
from openblip.devices import Placement
from openblip.images.encoded_image import ImageCache
from openblip.models.abilities import Components
from openblip.models.blip2 import compose_blip2

Composer: TypeAlias = Callable[[Any, Placement, ImageCache], Components]
"""Takes the `ModelParts` of the family's network, where it runs, and the cache of encoded images."""


def _compose_blip(parts: Any, placement: Placement, cache: ImageCache) -> Components:
    from openblip.models.blip import compose_blip

    return compose_blip(parts, placement, cache)


def _compose_clip(parts: Any, placement: Placement, cache: ImageCache) -> Components:
    from openblip.models.clip import compose_clip

    return compose_clip(parts, placement, cache)


# As in `openblip.checkpoints.families`, what belongs to other families is not imported before one of them is loaded.
_COMPOSERS: dict[str, Composer] = {"blip2": compose_blip2, "blip": _compose_blip, "clip": _compose_clip}


def register_family(family: Family, compose: Composer) -> None:
    """Let a family of models be listed, loaded, saved and used as BLIP-2 is.

    Args:
        family: its name, its sizes, how its network is built of them, and its models that have names.
        compose: what it makes of the network.

    Raises:
        OptionError: there is a family of this name, or a model of one of its models' names.
    """
    add_family(family)
    _COMPOSERS[family.name] = compose


def composer_of(family: str) -> Composer:
    return _COMPOSERS[family]
