"""A model's name or folder -> the model, whichever files it lies in; another language model behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from openblip.checkpoints.families import patch_size_of
from openblip.checkpoints.lora.notes import is_adapter
from openblip.checkpoints.model_parts import LanguageSource, ModelParts
from openblip.checkpoints.openblip.folder import empty_network, load_native
from openblip.checkpoints.read_options import DEFAULT_OPTIONS, ReadOptions
from openblip.checkpoints.registry import did_you_mean, find_model, folder_kind, folder_of, transformers_family
from openblip.errors import CheckpointError, DownloadError, OptionError, given_path

if TYPE_CHECKING:
    from openblip.checkpoints.layouts import Layouts


def load_parts(name: str | Path, options: ReadOptions = DEFAULT_OPTIONS) -> ModelParts:
    """Read a model; what is missing of an official one is downloaded first.

    Args:
        name: "mini", a folder, a name of `openblip models`, or a repository of the hub. A folder of that name wins.
            Where there is an adapter instead of a model, the model that it was trained on is read, with the adapter.
        options: by default weights are float32 on the CPU, or quantized as they are stored.

    Raises:
        CheckpointError: no such model, or a file is missing, broken or does not fit.
        DownloadError: files cannot be had.
        OptionError: a checkpoint for a model that is not LAVIS', an adapter for an adapter, or a tokenizer for a model
            that transformers did not write.
    """
    if not isinstance(name, str | Path):
        raise OptionError(f"the model is {name!r}: give its name, or its folder as a path")
    if not str(name).strip():
        raise CheckpointError("the model's name is empty: `openblip models` lists names, or give a folder")
    parts = _find_and_read(name, options)
    side, patch = parts.transform.image_size, patch_size_of(parts.network.config)
    if side % patch:
        raise CheckpointError(f"{name}: image_size is {side}, not a multiple of its patch size {patch}: get it again")
    if options.adapter is not None:
        parts = replace(parts, name=f"{parts.name} + {options.adapter.name}")
    return parts


def _find_and_read(name: str | Path, options: ReadOptions) -> ModelParts:
    folder = folder_of(name)
    if folder is not None:
        _refuse_checkpoint(str(name), options)
        if not folder.is_dir():
            raise CheckpointError(f"the model {name} belongs in {folder}, which is not there: install it again")
        return _read_folder(folder, options)
    checkpoint = None if options.checkpoint is None else options.checkpoint.expanduser()
    if checkpoint is not None and not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} is no file: give the path of a .pth that LAVIS saved")
    try:
        path = Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # too long, not allowed, or the home of nobody
        raise CheckpointError(f"{name} cannot be looked at ({error}): give another path") from error
    if is_file:
        raise CheckpointError(
            f"{path} is a file: give a model's folder, or a LAVIS model's name with checkpoint={str(path)!r}"
        )
    if is_folder:
        _refuse_checkpoint(str(path), options)
        return _read_folder(path, options)
    # A model that lies on this machine needs nothing of the hub, which takes time to import.
    from openblip.checkpoints.hub.download import REPOSITORY_NAME, download
    from openblip.checkpoints.hub.progress import download_progress

    model = find_model(str(name))
    if isinstance(name, Path) or (model is None and not REPOSITORY_NAME.fullmatch(name)):
        raise CheckpointError(f"{name} is neither a model folder nor a known model: {did_you_mean(str(name))}")
    if model is None or model.origin == "transformers":
        _refuse_checkpoint(name, options)
    if model is not None and not model.has_weights and checkpoint is None:
        raise CheckpointError(
            f"nobody has published weights of {name}: give your own file with checkpoint=, or train another model of "
            f"the family {model.family} on your data with `openblip finetune`"
        )
    with download_progress() as progress:
        found = download(name, progress=progress)
    if model is not None and model.origin == "lavis":
        _refuse_tokenizer(name, options)
        return _layouts(model.family).read_lavis(model, found, options)
    return _read_folder(found[0].path, options)


def _read_folder(folder: Path, options: ReadOptions) -> ModelParts:
    if is_adapter(folder):
        return _read_with_adapter(folder, options)
    try:
        return _read_model(folder, options)
    except CheckpointError as error:
        if str(folder) in str(error):
            raise
        raise CheckpointError(f"{folder}: {error}") from error  # of a vocabulary, which does not know where it lies


def _read_model(folder: Path, options: ReadOptions) -> ModelParts:
    kind = folder_kind(folder)
    if kind == "transformers":
        return _layouts(transformers_family(folder)).read_transformers(folder, options)
    if kind == "open_clip":
        from openblip.checkpoints.open_clip import load_open_clip

        found: ModelParts[Any, Any] = load_open_clip(folder, options)
        return found
    _refuse_tokenizer(str(folder), options)
    return load_native(folder, options)


def _layouts(family: str) -> Layouts:
    # Readers of other projects' files take time to import, and a folder of ours needs none of them.
    from openblip.checkpoints.layouts import layouts_of

    return layouts_of(family)


def _read_with_adapter(folder: Path, options: ReadOptions) -> ModelParts:
    """The model that an adapter was trained on, with the adapter."""
    from openblip.checkpoints.lora.files import read_adapter
    from openblip.checkpoints.lora.fit import base_of

    if options.adapter is not None:
        raise OptionError(f"{folder} holds an adapter itself: merge it with `openblip merge` to put another on it")
    adapter = read_adapter(folder)
    base = base_of(adapter)
    try:
        parts = _find_and_read(base, replace(options, adapter=adapter))
    except (CheckpointError, DownloadError) as error:
        raise type(error)(f"the model under the adapter {folder} cannot be read: {error}") from error
    return replace(parts, name=f"{parts.name} + {adapter.name}")


def _refuse_tokenizer(name: str, options: ReadOptions) -> None:
    if options.tokenizer is not None:
        raise OptionError(f"{name} has its own words: a tokenizer goes with a folder that transformers wrote")


def _refuse_checkpoint(name: str, options: ReadOptions) -> None:
    if options.checkpoint is not None:
        raise OptionError(
            f"{name} is a whole model: a checkpoint goes with a LAVIS name, as blip2_opt/pretrain_opt2.7b"
        )


def find_tokenizer(place: str | Path) -> Path:
    """The folder that a vocabulary is read from, for `ReadOptions`; a repository of the hub is downloaded first.

    Args:
        place: a folder, a file in it, or a model by its name.

    Raises:
        CheckpointError: an empty name, or neither is there.
        DownloadError: its files cannot be had.
    """
    if (own := folder_of(place)) is not None:
        return own
    folder = given_path("the tokenizer", place)
    if folder.is_dir():
        return folder
    if folder.is_file():
        return folder.parent
    from openblip.checkpoints.hub.download import REPOSITORY_NAME, download_words
    from openblip.checkpoints.hub.progress import download_progress

    if not REPOSITORY_NAME.fullmatch(str(place)):
        raise CheckpointError(f"the tokenizer {place} is not there: give a model's folder, or its name on the hub")
    with download_progress() as progress:
        return download_words(str(place), progress)


def with_language_model(parts: ModelParts, place: str | Path, revision: str | None = None) -> ModelParts:
    """The model with another language model behind its Q-Former, to be trained in stage 2.

    The projection to its visual prompt is a new one; the rest is a copy of `parts` without its own language model.
    The language model is external: it is loaded through transformers, never trained or copied, and has to stay where
    it is.

    Args:
        place: a folder that transformers wrote, or a repository of the hub: any AutoModelForCausalLM or
            AutoModelForSeq2SeqLM.
        revision: branch, tag or commit of the repository.

    Raises:
        OpenBlipError: transformers is not installed.
        CheckpointError, DownloadError: see `load_language_model`.
    """
    from openblip.checkpoints.language_models import load_language_model

    old = parts.network
    like = old.vision_norm.weight
    language = load_language_model(LanguageSource(str(place), revision), like.dtype, like.device)
    config = replace(old.config, language=language.model.config)
    network = empty_network(config, Path(place), language.model)
    kept = network.state_dict()
    state = {name: tensor.clone() for name, tensor in old.state_dict().items() if name in kept}
    projection = nn.Linear(config.qformer.width, language.model.config.token_width).to(like)
    state |= {f"prompt_projection.{name}": tensor for name, tensor in projection.state_dict().items()}
    network.load_state_dict(state, assign=True)
    network.start_prompt_projection()
    defaults = replace(parts.defaults, stop_token=language.stop_token)
    return replace(
        parts, network=network.eval(), tokenizer=language.tokenizer, defaults=defaults, external=language.source
    )
