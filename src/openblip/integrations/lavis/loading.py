"""LAVIS' ways to a model: `load_model`, `load_model_and_preprocess`, `model_zoo`, `registry`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.registry import all_models
from openblip.devices import choose_placement
from openblip.errors import CheckpointError, OptionError
from openblip.images.transform import ImageTransform
from openblip.integrations.lavis.blip import BlipCaption, BlipVQA
from openblip.integrations.lavis.blip_classes import BlipClassification, BlipNLVR
from openblip.integrations.lavis.blip_matching import BlipFeatureExtractor, BlipITM
from openblip.integrations.lavis.blip_pairs import BlipPretrain, BlipRetrieval
from openblip.integrations.lavis.clip import Clip
from openblip.integrations.lavis.datasets import dataset_zoo
from openblip.integrations.lavis.models import Blip2ITM, Blip2OPT, Blip2Qformer, Blip2T5, LavisModel
from openblip.integrations.lavis.processors import (
    Blip2ImageTrainProcessor,
    BlipCaptionProcessor,
    BlipImageEvalProcessor,
    BlipImageTrainProcessor,
    BlipQuestionProcessor,
    ClipImageEvalProcessor,
    ClipImageTrainProcessor,
    ImageProcessor,
    TextProcessor,
)
from openblip.integrations.lavis.runner import RUNNERS, TASKS, BaseTask, RunnerBase, run_section

MODELS: dict[str, type[LavisModel]] = {
    "blip2_opt": Blip2OPT,
    "blip2_t5": Blip2T5,
    "blip2": Blip2Qformer,
    "blip2_feature_extractor": Blip2Qformer,
    "blip2_image_text_matching": Blip2ITM,
    "blip_caption": BlipCaption,
    "blip_vqa": BlipVQA,
    "blip_image_text_matching": BlipITM,
    "blip_retrieval": BlipRetrieval,
    "blip_pretrain": BlipPretrain,
    "blip_feature_extractor": BlipFeatureExtractor,
    "blip_nlvr": BlipNLVR,
    "blip_classification": BlipClassification,
    "clip": Clip,
    "clip_feature_extractor": Clip,
}
IMAGE_PROCESSORS: dict[str, type[BlipImageEvalProcessor] | type[Blip2ImageTrainProcessor]] = {
    "blip_image_eval": BlipImageEvalProcessor,
    "clip_image_eval": ClipImageEvalProcessor,
    "blip_image_train": BlipImageTrainProcessor,
    "blip2_image_train": Blip2ImageTrainProcessor,
    "clip_image_train": ClipImageTrainProcessor,
}
TEXT_PROCESSORS: dict[str, type[BlipCaptionProcessor] | type[BlipQuestionProcessor]] = {
    "blip_caption": BlipCaptionProcessor,
    "blip_question": BlipQuestionProcessor,
}

Found = TypeVar("Found")
ImageProcessors = dict[str, ImageProcessor]
TextProcessors = dict[str, TextProcessor]


def load_model(
    name: str,
    model_type: str | Path,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> LavisModel:
    """A model by LAVIS' architecture and type; what is missing of it is downloaded.

    Args:
        name: as `model_zoo` lists them: "blip_caption", "blip2_opt", ...
        model_type: as `model_zoo` lists them; or a folder, of OpenBLIP or of transformers.
        is_eval: evaluation mode; otherwise all but the frozen parts are in training mode.
        device: on a GPU, weights are in the type that it computes fast.
        checkpoint: a `.pth` that LAVIS saved, read instead of the official one.

    Raises:
        CheckpointError: no such model, or its files are broken.
        DownloadError: its files cannot be had.
    """
    kind = _known(name, MODELS, "architecture")
    placement = choose_placement(str(device), None)
    folder = Path(model_type)
    source: str | Path = folder if folder.is_dir() else f"{name}/{model_type}"
    own = None if checkpoint is None else Path(checkpoint)
    parts = load_parts(source, ReadOptions(placement.dtype, placement.device, checkpoint=own))
    model = kind(parts)
    model.to(device=placement.device, dtype=placement.dtype)
    return model.train(not is_eval)


def load_model_and_preprocess(
    name: str, model_type: str | Path, is_eval: bool = False, device: str | torch.device = "cpu"
) -> tuple[LavisModel, ImageProcessors, TextProcessors]:
    """As `load_model`, with image and text processors under "eval" and "train", as LAVIS' recipes have them."""
    model = load_model(name, model_type, is_eval, device)
    return model, _image_processors(model), model.text_processors()


def load_preprocess(
    config: Mapping[str, Mapping[str, Mapping[str, Any] | None] | None],
) -> tuple[ImageProcessors, TextProcessors]:
    """Processors as a LAVIS config describes them: `vis_processor` and `text_processor`, each with `train` and `eval`.

    Raises:
        OptionError: a processor that BLIP-2 has no use for, or a setting it does not have.
    """
    images: ImageProcessors = {}
    texts: TextProcessors = {}
    for split, settings in (config.get("vis_processor") or {}).items():
        if settings is not None:
            images[split] = _image_processor(**settings)
    for split, settings in (config.get("text_processor") or {}).items():
        if settings is not None:
            texts[split] = _text_processor(**settings)
    return images, texts


def load_processor(name: str, cfg: Mapping[str, Any] | None = None) -> ImageProcessor | TextProcessor:
    """One processor by LAVIS' name, with the settings of `cfg`.

    Raises:
        OptionError: a processor that BLIP-2 has no use for.
    """
    settings = {**(cfg or {}), "name": name}
    return _image_processor(**settings) if name in IMAGE_PROCESSORS else _text_processor(**settings)


def _image_processor(
    name: str,
    image_size: int = 364,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    min_scale: float | None = None,
    max_scale: float = 1.0,
) -> ImageProcessor:
    kind = _known(name, IMAGE_PROCESSORS, "image processor")
    usual = ImageTransform(image_size)
    transform = ImageTransform(image_size, mean or usual.mean, std or usual.std)
    if issubclass(kind, Blip2ImageTrainProcessor):
        return kind(transform, kind.min_scale if min_scale is None else min_scale, max_scale)
    if kind is ClipImageEvalProcessor:
        return ClipImageEvalProcessor(replace(transform, crop=True))
    return BlipImageEvalProcessor(transform)


def _text_processor(name: str, prompt: str = "", max_words: int = 50) -> TextProcessor:
    kind = _known(name, TEXT_PROCESSORS, "text processor")
    return (
        BlipQuestionProcessor(max_words) if kind is BlipQuestionProcessor else BlipCaptionProcessor(prompt, max_words)
    )


def _image_processors(model: LavisModel) -> ImageProcessors:
    transform = model.parts.transform
    return {
        "train": model.image_training(transform),
        "eval": (ClipImageEvalProcessor if transform.crop else BlipImageEvalProcessor)(transform),
    }


class ModelZoo:
    """LAVIS' table of architectures and their types: print it, or go through it."""

    def __init__(self) -> None:
        self.model_zoo: dict[str, list[str]] = {name: [] for name in MODELS}
        for model in all_models():
            for name in model.names if model.origin == "lavis" else ():
                architecture, _, kind = name.partition("/")
                if architecture in MODELS:
                    self.model_zoo[architecture].append(kind)

    def __str__(self) -> str:
        line = "=" * 50
        rows = [f"{name:<30} {', '.join(kinds)}" for name, kinds in self.model_zoo.items()]
        return "\n".join([line, f"{'Architectures':<30} Types", line, *rows])

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self.model_zoo.items())

    def __len__(self) -> int:
        return sum(map(len, self.model_zoo.values()))


class Registry:
    """LAVIS' look-ups by name."""

    def get_model_class(self, name: str) -> type[LavisModel]:
        return _known(name, MODELS, "architecture")

    def get_processor_class(self, name: str) -> type[object]:
        processors: dict[str, type[object]] = {**IMAGE_PROCESSORS, **TEXT_PROCESSORS}
        return _known(name, processors, "processor")

    def get_task_class(self, name: str) -> type[BaseTask]:
        return _known(name, TASKS, "task")

    def get_runner_class(self, name: str) -> type[RunnerBase]:
        return _known(name, RUNNERS, "runner")

    def list_models(self) -> list[str]:
        return sorted(MODELS)

    def list_processors(self) -> list[str]:
        return sorted([*IMAGE_PROCESSORS, *TEXT_PROCESSORS])

    def list_tasks(self) -> list[str]:
        return sorted(TASKS)

    def list_runners(self) -> list[str]:
        return sorted(RUNNERS)

    def list_datasets(self) -> list[str]:
        return sorted(dataset_zoo.get_names())


def _known(name: str, table: Mapping[str, Found], what: str) -> Found:
    if name not in table:
        error = CheckpointError if what == "architecture" else OptionError
        raise error(f"there is no {what} {name!r} here: use {', '.join(table)}")
    return table[name]


model_zoo = ModelZoo()
registry = Registry()


def setup_task(cfg: Any) -> BaseTask:
    """The task that the run settings name. Raises OptionError for one that is not here."""
    return registry.get_task_class(str(run_section(cfg).get("task"))).setup_task(cfg)
