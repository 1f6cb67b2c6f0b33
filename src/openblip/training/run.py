"""Run a training recipe, and write the trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.openblip.new_folder import require_writable
from openblip.data.image_files import OnBadImage
from openblip.data.pairs import ImageText
from openblip.data.sources.open import tar_paths
from openblip.errors import OpenBlipError, OptionError
from openblip.recipes import alone_in
from openblip.training.feature_cache.build import FeatureCache, without_unreadable
from openblip.training.feature_cache.encoder_stub import EncoderStub, drop_encoder
from openblip.training.feature_cache.speedup import Speedup
from openblip.training.init.start import start_model, with_weights
from openblip.training.input.batches import BatchPlan
from openblip.training.input.loader import BatchLoader, FeatureLoader, ImageLoader, TextLoader
from openblip.training.input.streaming import InMemoryImages, RowSource, StreamedTars, StreamLoader
from openblip.training.loop.evaluate import Evaluator
from openblip.training.loop.precision import Arithmetic
from openblip.training.loop.run_identity import require_same_start
from openblip.training.loop.trainer import Trainer, freeze_all_but, set_drop_path, set_dropout
from openblip.training.lora.adapters import adapter_modules, adapts_vision, save_adapter
from openblip.training.monitor.profile import machine_name
from openblip.training.monitor.skipped import write_skipped
from openblip.training.parallel.processes import World
from openblip.training.recipe import (
    Parallel,
    Precision,
    Recipe,
    caches_features,
    problems_of,
)
from openblip.training.tasks.table import learner_of, objective_of
from openblip.training.tasks.task import Runtime, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(recipe: Recipe) -> Path:
    """Run a recipe, or continue a run that was stopped; returns the model folder.

    Processes started by torchrun or accelerate launch share the work.

    Raises:
        OptionError: the recipe has a contradiction, or a value out of range.
        OpenBlipError: data, parts or the checkpoint in the output folder do not fit the recipe.
    """
    for problem in problems_of(recipe):
        raise OptionError(problem)
    if recipe.init is not None and Path(recipe.init).resolve() == Path(recipe.output).resolve():
        raise OptionError(f"output is {recipe.output}, the model that the run starts from: give another folder")
    require_writable(Path(recipe.output), "output")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    accelerator = make_accelerator(recipe)
    world = World.current()
    check_world(recipe, world)
    runtime = Runtime(Arithmetic.of(accelerator.device, recipe.precision, recipe.qformer_precision), world)
    if not world.rank:
        runtime.arithmetic.tell_emulation()
    objective = objective_of(recipe.stage)
    images = [[] if source.stream else objective.load(source, Path(recipe.data_root), None) for source in recipe.data]
    evaluator = Evaluator(recipe, images, accelerator.device) if recipe.evaluation.data and not world.rank else None
    usable = [[image for image in group if objective.usable(image)] for group in images]
    feature_cache = FeatureCache(recipe, usable, runtime) if caches_features(recipe) else None
    # The encoder is not loaded if no image has to be encoded.
    is_cached = feature_cache is not None and feature_cache.is_complete()
    needs_encoder = objective.sees and (recipe.train_vision or not is_cached)
    parts = start_model(recipe, images, encoder=needs_encoder)
    if next(parts.network.vision.parameters()).is_meta:
        drop_encoder(parts.network)
    learner = learner_of(recipe.stage, parts.family, parts.name)
    if not (any(usable) or any(source.stream for source in recipe.data)):
        raise OptionError(
            f"the data has no {objective.needs}, from which stage {recipe.stage.value} learns: give other data"
        )
    # Errors call it by the name that the user gave; the model that is saved is made anew.
    parts = replace(parts, name=parts.name if recipe.init is None else str(recipe.init))
    task = learner.task(parts, recipe, [image for group in usable for image in group], runtime)
    task.to(accelerator.device)
    trained = trained_parts(recipe, task)
    _require_floats(recipe, trained)
    freeze_all_but(parts.network, trained)
    if recipe.dropout is not None:
        set_dropout(trained, recipe.dropout)
    if recipe.drop_path is not None:
        set_drop_path(parts.network.vision, recipe.drop_path)
    parts.network.vision.gradient_checkpointing = recipe.gradient_checkpointing
    runtime.arithmetic.shrink(task.large_parts())
    output = Path(recipe.output)
    with alone_in(output) if world.rank == 0 else nullcontext():
        loader = _make_loader(recipe, parts, task, usable, feature_cache, accelerator.wait_for_everyone)
        speedup = None
        if isinstance(loader, FeatureLoader) and feature_cache is not None:
            if not recipe.train_vision:
                drop_encoder(parts.network)
            speedup = speedup_of(recipe, feature_cache)
        trainer = Trainer(recipe, task, loader, accelerator.prepare_model, evaluator, speedup)
        learnt, identity = trainer.run(), trainer.state.identity
        # The model that was trained makes room for the one that is saved.
        del parts, task, loader, trained, trainer
        if world.rank == 0:
            require_same_start(recipe, identity)
            # Frozen parts are saved as they were in the files, whatever type they were computed in.
            save_trained(recipe, with_weights(start_model(recipe, images, recipe.lora is None), learnt), output)
        accelerator.wait_for_everyone()
    return output


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Finds the device, and the other processes. Raises OpenBlipError when accelerate is not installed."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError:
        raise OpenBlipError('training needs more packages: pip install "openblip[train]"') from None
    if recipe.device not in (None, "cpu", "cuda"):
        raise OptionError(f"device is {recipe.device!r}: use cpu or cuda; CUDA_VISIBLE_DEVICES says which GPUs")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("device is cuda, but this PyTorch sees no GPU: use device=cpu")
    return Accelerator(
        cpu=recipe.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no",  # the tasks know which part computes in which type
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def check_world(recipe: Recipe, world: World) -> None:
    """Raises OptionError for settings that several processes do not support."""
    if world.size == 1:
        return
    if recipe.batch_size % world.size:
        raise OptionError(
            f"a batch of {recipe.batch_size} images cannot be shared by {world.size} processes: "
            f"make batch_size a multiple of {world.size}"
        )
    if recipe.parallel is Parallel.FSDP and recipe.self_critical:
        raise OptionError(
            "self_critical does not go with parallel=fsdp, as processes write captions of different lengths and would "
            "wait for one another's weights: use parallel=ddp"
        )
    if recipe.parallel is Parallel.FSDP and objective_of(recipe.stage).keeps_copies:
        raise OptionError(
            f"stage {recipe.stage.value} keeps copies of whole weights, which parallel=fsdp divides: use parallel=ddp"
        )
    if recipe.parallel is Parallel.FSDP and recipe.precision is Precision.FP16:
        raise OptionError("parallel=fsdp does not go with precision=fp16: use bf16 or float32")


def trained_parts(recipe: Recipe, task: Task) -> list[nn.Module | nn.Parameter]:
    """The parts that learn: those of the stage, or only adapters."""
    if recipe.lora is None:
        return task.trained()
    return [*adapter_modules(task.network)]


def _require_floats(recipe: Recipe, trained: Sequence[nn.Module | nn.Parameter]) -> None:
    """Raises OptionError for weights in 8 or 4 bits, which cannot learn."""
    weights = [value for part in trained for value in (part.parameters() if isinstance(part, nn.Module) else [part])]
    if not all(value.is_floating_point() for value in weights):
        raise OptionError(f"{recipe.init} is quantized, and such weights cannot learn: start from what it was made of")


def save_trained(recipe: Recipe, parts: ModelParts[Any, Any], folder: Path) -> None:
    """Write the trained model; if it has adapters, only the adapters."""
    if recipe.lora is None:
        save_native(parts, folder, recipe.storage.value)
    else:
        save_adapter(parts, folder, recipe.init)


def speedup_of(recipe: Recipe, feature_cache: FeatureCache) -> Speedup:
    """Measures how much faster features on disk make the run."""
    runtime = feature_cache.runtime
    stores = {source.name: store for source, store in zip(recipe.data, feature_cache.stores, strict=True)}
    views = recipe.batch_size * recipe.accumulate // runtime.world.size
    computed = "the blocks below" if recipe.vision_blocks else "the image encoder"
    return Speedup(stores, feature_cache.speed, views, machine_name(runtime.device), computed)


def encoder_for(
    parts: ModelParts[Any, Any], precision: Precision, vision_blocks: int = 0
) -> Callable[[Tensor], Tensor]:
    """The frozen part of the image encoder as a function of pixels, prepared for many images.

    Args:
        vision_blocks: number of last blocks that are not frozen.
    """
    encoder = parts.network.vision.prepared(torch.bfloat16 if precision is Precision.BF16 else torch.float32)
    first = next(encoder.parameters())

    def encode(pixels: Tensor) -> Tensor:
        pixels = pixels.to(first, memory_format=torch.channels_last)
        features: Tensor = encoder.below(pixels, vision_blocks) if vision_blocks else encoder(pixels)
        return features.float()

    return encode


def _make_loader(
    recipe: Recipe,
    parts: ModelParts[Any, Any],
    task: Task,
    images: Sequence[Sequence[ImageText]],
    feature_cache: FeatureCache | None,
    wait: Callable[[], None],
) -> BatchLoader:
    world = task.runtime.world

    def plan(chosen: Sequence[Sequence[ImageText]]) -> BatchPlan:
        return BatchPlan(recipe.data, chosen, recipe.batch_size, recipe.seed, world)

    if not task.needs_views:
        return TextLoader(plan(images))
    if any(source.stream for source in recipe.data):
        return _make_stream(recipe, parts, images, world)
    if feature_cache is None or (recipe.lora is not None and adapts_vision(parts.network)):
        return ImageLoader(plan(images), recipe.data, parts.transform, recipe.on_bad_image is OnBadImage.SKIP)
    if not isinstance(parts.network.vision, EncoderStub):
        feature_cache.complete(parts, lambda: encoder_for(parts, recipe.precision, recipe.vision_blocks), wait)
    kept, bad = without_unreadable(recipe, images, feature_cache.stores)
    if world.rank == 0:
        write_skipped(Path(recipe.output), bad)
        if bad:
            Console(stderr=True).print(
                f"{len(bad)} image{'s' * (len(bad) != 1)} cannot be read, and are left out: see skipped.csv"
            )
    return FeatureLoader(plan(kept), feature_cache.stores)


def _make_stream(
    recipe: Recipe, parts: ModelParts[Any, Any], images: Sequence[Sequence[ImageText]], world: World
) -> StreamLoader:
    root = Path(recipe.data_root)
    row_sources: list[RowSource] = []
    for source, group in zip(recipe.data, images, strict=True):
        if not source.stream and not group:
            raise OptionError(f"the data source {source.name!r} has no image that this stage can use: leave it out")
        row_sources.append(
            StreamedTars(source, tar_paths(source, root)) if source.stream else InMemoryImages(source, group)
        )
    return StreamLoader(recipe, row_sources, parts.transform, objective_of(recipe.stage).usable, world)
