"""A CLIP in one file of OpenAI, open_clip or LAVIS -> a model, and back. All three have the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openblip.checkpoints.clip_models import FAMILY
from openblip.checkpoints.families import find_family
from openblip.checkpoints.hub.sources import LocalFile, WebFile
from openblip.checkpoints.model_entry import ModelEntry
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.clip import OPENAI_ROOTS, openai_layout
from openblip.checkpoints.names.engine import Layout
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.files import open_weights
from openblip.checkpoints.tensors.fill import NamedTensors, fill
from openblip.checkpoints.tensors.wrappers import Peeled
from openblip.checkpoints.tensors.writing import save_pickled
from openblip.checkpoints.transformers.tokenizers import read_clip_words
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.clip import ClipConfig, ClipNetwork
from openblip.nn.quant.swap import quantized_layers
from openblip.text import ClipText

ClipParts = ModelParts[ClipNetwork, ClipText]


def load_clip(model: ModelEntry, found: Sequence[LocalFile], options: ReadOptions) -> ClipParts:
    """An official model from its file, or from a state dict of the same sizes.

    Raises:
        CheckpointError: the file is missing, broken or does not fit; it is named, with the tensors.
    """
    config: ClipConfig = model.config()
    official = next(file.path for file in found if isinstance(file.source, WebFile))
    path = official if options.checkpoint is None else options.checkpoint.expanduser()
    network = read_clip(config, Peeled(open_weights(path), OPENAI_ROOTS), openai_layout(config), path, options)
    words = next(file.path for file in found if not isinstance(file.source, WebFile))
    transform = ImageTransform(model.image_size, crop=True)
    text = read_clip_words(words, config.text_positions, config.text_vocab_size)
    return ModelParts(model.name, network, transform, text, None, family=FAMILY)


def read_clip(
    config: ClipConfig, weights: NamedTensors, layout: Layout, path: Path, options: ReadOptions
) -> ClipNetwork:
    """The network alone, in evaluation mode; tensors stay on disk until each is cast or quantized into its place.

    Args:
        path: the file or folder that errors name.

    Raises:
        CheckpointError: names that belong to no CLIP, or tensors that are missing or do not fit.
    """
    try:
        plan = layout.plan(weights.shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    empty = empty_network(config, path, family=find_family(FAMILY, path))
    network: ClipNetwork = fill(empty, weights, plan, path, options, {})
    return network


def save_clip(parts: ClipParts, folder: Path) -> None:
    """Write checkpoint.pth, a state dict that LAVIS, open_clip and OpenAI's code load.

    Raises:
        CheckpointError: weights are quantized.
    """
    if quantized_layers(parts.network):
        raise CheckpointError("LAVIS cannot read quantized weights: load the model in floating point")
    folder.mkdir(parents=True, exist_ok=True)
    state = openai_layout(parts.network.config).to_theirs(parts.network.state_dict())
    save_pickled({name: tensor.contiguous() for name, tensor in state.items()}, folder / "checkpoint.pth")
