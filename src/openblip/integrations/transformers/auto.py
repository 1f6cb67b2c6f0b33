"""transformers' classes that stand for those of any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from openblip.checkpoints.json_files import read_json, read_json_if_there
from openblip.checkpoints.openblip.file_names import CONFIG_FILE
from openblip.checkpoints.registry import folder_kind, transformers_family
from openblip.checkpoints.transformers.config import IMAGE_FILE, PROCESSOR_FILE
from openblip.errors import CheckpointError
from openblip.integrations.transformers.blip import BlipForConditionalGeneration, BlipForQuestionAnswering
from openblip.integrations.transformers.clip import CLIPProcessor
from openblip.integrations.transformers.conditional_generation import Blip2ForConditionalGeneration
from openblip.integrations.transformers.folders import find_folder
from openblip.integrations.transformers.options import LoadOptions
from openblip.integrations.transformers.processor import Blip2Processor, BlipProcessor

PROCESSORS: dict[str, Any] = {"blip2": Blip2Processor, "blip": BlipProcessor, "clip": CLIPProcessor}
WRITERS: dict[str, Any] = {"blip2": Blip2ForConditionalGeneration, "blip": BlipForConditionalGeneration}
ANSWERERS: dict[str, Any] = {"blip2": Blip2ForConditionalGeneration, "blip": BlipForQuestionAnswering}


class AutoProcessor:
    """transformers' way to the processor of any model."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        token: str | bool | None = None,
        **others: Any,
    ) -> Any:
        """The processor of a model, by its name or folder; see that of its class."""
        name = pretrained_model_name_or_path
        folder = find_folder(name, revision, cache_dir, local_files_only, subfolder, token)
        return _chosen(PROCESSORS, folder, name).from_pretrained(folder, **others)


class AutoModelForImageTextToText:
    """transformers' way to the model that writes, of any folder."""

    kinds = WRITERS

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Unpack[LoadOptions]) -> Any:
        """The model of a name or folder; see that of its class."""
        name = pretrained_model_name_or_path
        folder = find_folder(
            name,
            options.get("revision"),
            options.get("cache_dir"),
            options.get("local_files_only", False),
            options.get("subfolder", ""),
            options.get("token") or options.get("use_auth_token"),
        )
        return _chosen(cls.kinds, folder, name).from_pretrained(name, **options)


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """Its older name."""


class AutoModelForVisualQuestionAnswering(AutoModelForImageTextToText):
    """transformers' way to the model that answers, of any folder."""

    kinds = ANSWERERS


def _chosen(kinds: dict[str, Any], folder: Path, name: str | Path) -> Any:
    family = _family(folder)
    if family not in kinds:
        raise CheckpointError(f"{name} is of the family {family}: this takes {' and '.join(kinds)}, use its own class")
    return kinds[family]


def _family(folder: Path) -> str:
    if (folder / CONFIG_FILE).exists():
        if folder_kind(folder) == "transformers":
            return transformers_family(folder)
        return str(read_json(folder / CONFIG_FILE).get("family", "blip2"))
    # What a processor's `save_pretrained` wrote, without a model.
    for file in (PROCESSOR_FILE, IMAGE_FILE):
        kind = read_json_if_there(folder / file).get("processor_class")
        for family, processor in PROCESSORS.items():
            if kind == processor.__name__:
                return family
    return "blip2"
