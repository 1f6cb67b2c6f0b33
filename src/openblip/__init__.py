"""BLIP-2 for captions, answers, image-text matching and features.

>>> import openblip
>>> model = openblip.load()
>>> model.caption("photo.jpg")
"""

from __future__ import annotations

import importlib

# Importing `typing` for its own name would take longer than all else here; type checkers know this one, too.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from openblip.analysis.analyze import analyze as analyze
    from openblip.analysis.analyze import analyze_many as analyze_many
    from openblip.analysis.question_sets import Question as Question
    from openblip.analysis.question_sets import QuestionSet as QuestionSet
    from openblip.analysis.results import Analysis as Analysis
    from openblip.analysis.results import AnalyzedPage as AnalyzedPage
    from openblip.analysis.results import PageAnswer as PageAnswer
    from openblip.checkpoints.families import Family as Family
    from openblip.checkpoints.model_entry import ModelEntry as ModelEntry
    from openblip.checkpoints.registry import list_models as list_models
    from openblip.errors import CheckpointError as CheckpointError
    from openblip.errors import DownloadError as DownloadError
    from openblip.errors import ImageError as ImageError
    from openblip.errors import OpenBlipError as OpenBlipError
    from openblip.errors import OptionError as OptionError
    from openblip.generation.options import GenerationOptions as GenerationOptions
    from openblip.images.decode import load_image as load_image
    from openblip.images.encoded_image import EncodedImage as EncodedImage
    from openblip.images.heatmap import draw_heatmap as draw_heatmap
    from openblip.images.sources import find_images as find_images
    from openblip.matching.similarity import similarity as similarity
    from openblip.models.abilities import Components as Components
    from openblip.models.chat import Chat as Chat
    from openblip.models.decode_session import DecodeSession as DecodeSession
    from openblip.models.families import register_family as register_family
    from openblip.models.load import load as load
    from openblip.models.model import Model as Model
    from openblip.results import Answered as Answered
    from openblip.results import Captioned as Captioned
    from openblip.results import Classified as Classified
    from openblip.results import ClassifiedImage as ClassifiedImage
    from openblip.results import DecodeEvent as DecodeEvent
    from openblip.results import Embedded as Embedded
    from openblip.results import GeneratedText as GeneratedText
    from openblip.results import Judged as Judged
    from openblip.results import Judgement as Judgement
    from openblip.results import Match as Match
    from openblip.results import Matched as Matched
    from openblip.results import Ranked as Ranked
    from openblip.results import RankedAnswer as RankedAnswer
    from openblip.results import Rankings as Rankings
    from openblip.results import Scores as Scores
    from openblip.web.policy import UrlPolicy as UrlPolicy

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "openblip.analysis.results",
    "AnalyzedPage": "openblip.analysis.results",
    "PageAnswer": "openblip.analysis.results",
    "Question": "openblip.analysis.question_sets",
    "QuestionSet": "openblip.analysis.question_sets",
    "analyze": "openblip.analysis.analyze",
    "analyze_many": "openblip.analysis.analyze",
    "Answered": "openblip.results",
    "Captioned": "openblip.results",
    "Chat": "openblip.models.chat",
    "CheckpointError": "openblip.errors",
    "Classified": "openblip.results",
    "RankedAnswer": "openblip.results",
    "ClassifiedImage": "openblip.results",
    "Components": "openblip.models.abilities",
    "DecodeEvent": "openblip.results",
    "DecodeSession": "openblip.models.decode_session",
    "DownloadError": "openblip.errors",
    "Embedded": "openblip.results",
    "EncodedImage": "openblip.images.encoded_image",
    "Family": "openblip.checkpoints.families",
    "GeneratedText": "openblip.results",
    "GenerationOptions": "openblip.generation.options",
    "ImageError": "openblip.errors",
    "Judged": "openblip.results",
    "Judgement": "openblip.results",
    "Match": "openblip.results",
    "Matched": "openblip.results",
    "Model": "openblip.models.model",
    "ModelEntry": "openblip.checkpoints.model_entry",
    "OpenBlipError": "openblip.errors",
    "OptionError": "openblip.errors",
    "Ranked": "openblip.results",
    "Rankings": "openblip.results",
    "Scores": "openblip.results",
    "UrlPolicy": "openblip.web.policy",
    "find_images": "openblip.images.sources",
    "list_models": "openblip.checkpoints.registry",
    "load": "openblip.models.load",
    "load_image": "openblip.images.decode",
    "draw_heatmap": "openblip.images.heatmap",
    "register_family": "openblip.models.families",
    "similarity": "openblip.matching.similarity",
}

__all__ = [
    "Analysis",
    "AnalyzedPage",
    "Answered",
    "Captioned",
    "Chat",
    "CheckpointError",
    "Classified",
    "RankedAnswer",
    "ClassifiedImage",
    "Components",
    "DecodeEvent",
    "DecodeSession",
    "DownloadError",
    "Embedded",
    "EncodedImage",
    "Family",
    "GeneratedText",
    "GenerationOptions",
    "ImageError",
    "Judged",
    "Judgement",
    "Match",
    "Matched",
    "Model",
    "ModelEntry",
    "OpenBlipError",
    "OptionError",
    "PageAnswer",
    "Question",
    "QuestionSet",
    "Ranked",
    "Rankings",
    "Scores",
    "UrlPolicy",
    "__version__",
    "analyze",
    "analyze_many",
    "find_images",
    "list_models",
    "load",
    "load_image",
    "draw_heatmap",
    "register_family",
    "similarity",
]


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import; nobody should wait for it who only asks for the version.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'openblip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
