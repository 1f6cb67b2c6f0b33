"""BLIP-2 for captions, answers, image-text matching and features.

>>> import openblip
>>> model = openblip.load()
>>> model.caption("photo.jpg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openblip.checkpoints.registry import ModelInfo as ModelInfo
    from openblip.checkpoints.registry import list_models as list_models
    from openblip.errors import CheckpointError as CheckpointError
    from openblip.errors import DownloadError as DownloadError
    from openblip.errors import ImageError as ImageError
    from openblip.errors import OpenBlipError as OpenBlipError
    from openblip.errors import OptionError as OptionError
    from openblip.models.blip2 import Blip2 as Blip2
    from openblip.models.blip2 import load as load
    from openblip.models.chat import Chat as Chat
    from openblip.results import Captioned as Captioned
    from openblip.results import GeneratedText as GeneratedText
    from openblip.results import Match as Match
    from openblip.results import Matched as Matched
    from openblip.results import Ranked as Ranked
    from openblip.results import Rankings as Rankings
    from openblip.results import Scores as Scores

__version__ = "0.1.0"

_HOMES = {
    "Blip2": "openblip.models.blip2",
    "Captioned": "openblip.results",
    "Chat": "openblip.models.chat",
    "CheckpointError": "openblip.errors",
    "DownloadError": "openblip.errors",
    "GeneratedText": "openblip.results",
    "ImageError": "openblip.errors",
    "Match": "openblip.results",
    "Matched": "openblip.results",
    "ModelInfo": "openblip.checkpoints.registry",
    "OpenBlipError": "openblip.errors",
    "OptionError": "openblip.errors",
    "Ranked": "openblip.results",
    "Rankings": "openblip.results",
    "Scores": "openblip.results",
    "list_models": "openblip.checkpoints.registry",
    "load": "openblip.models.blip2",
}

__all__ = [
    "Blip2",
    "Captioned",
    "Chat",
    "CheckpointError",
    "DownloadError",
    "GeneratedText",
    "ImageError",
    "Match",
    "Matched",
    "ModelInfo",
    "OpenBlipError",
    "OptionError",
    "Ranked",
    "Rankings",
    "Scores",
    "__version__",
    "list_models",
    "load",
]


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import; nobody should wait for it who only asks for the version.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'openblip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
