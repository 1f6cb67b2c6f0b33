"""A Q-Former that begins again from BERT, and an image encoder at another size: how the paper's stages start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.bert import qformer_from_bert
from openblip.errors import CheckpointError, OptionError
from openblip.files import read_text

BERT_FILE, VOCABULARY_FILE = "model.safetensors", "vocab.txt"
INIT_STD = 0.02
TEMPERATURE = 0.07


def reinit_qformer(parts: ModelParts, bert: Path, seed: int) -> ModelParts:
    """The model with all between image encoder and language model as stage 1 begins it, in place.

    The text side and self-attention come from BERT, the queries' feed-forward network is a copy of the text's; all the
    rest is drawn (BLIP-2, section 3.2).

    Args:
        bert: a folder with model.safetensors and vocab.txt, such as one of bert-base-uncased.

    Raises:
        CheckpointError: a file is missing, or the BERT has other sizes than the model's Q-Former.
        OptionError: the model's Q-Former has no text side.
    """
    if parts.matching is None:
        raise OptionError(f"{parts.name} has a Q-Former without a text side: start from a model that can match")
    for name in (BERT_FILE, VOCABULARY_FILE):
        if not (bert / name).is_file():
            raise CheckpointError(
                f"{bert / name} is missing: fresh_qformer is a folder with {BERT_FILE} and {VOCABULARY_FILE}"
            )
    torch.manual_seed(seed)
    network = parts.network
    for part in (network.vision_norm, network.qformer, network.image_projection, network.text_projection):
        part.apply(_draw)
    network.itm_head.apply(_draw)
    with torch.no_grad():
        network.qformer.queries.normal_(std=INIT_STD)
        network.temperature.fill_(TEMPERATURE)
    pieces = read_text(bert / VOCABULARY_FILE).splitlines()
    places = {piece: index for index, piece in enumerate(pieces)}
    words = parts.matching.tokenizer.fast
    kept = [places.get(words.id_to_token(index) or "", -1) for index in range(network.config.qformer.vocab_size)]
    config = network.config.qformer
    start = qformer_from_bert(_encoder(load_file(bert / BERT_FILE), bert), range(config.depth), kept)
    start["positions.weight"] = start["positions.weight"][: config.max_positions]
    own = network.qformer.state_dict()
    for name, tensor in start.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(f"the BERT in {bert} does not fit this Q-Former: its {name} is {list(tensor.shape)}")
    network.qformer.load_state_dict(start, strict=False)
    return parts


def resize(parts: ModelParts, image_size: int) -> ModelParts:
    """The model for square images of another size, to which the positions of its encoder are interpolated; in place.

    Raises OptionError when the encoder has no patches of which the size is a multiple.
    """
    vision = parts.network.vision
    try:
        vision.resize(image_size)
    except ValueError as error:
        raise OptionError(f"image_size cannot change {parts.name}: {error}") from error
    parts.network.config = replace(parts.network.config, vision=vision.config)
    return replace(parts, transform=replace(parts.transform, image_size=image_size))


def _encoder(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """BERT's tensors without the prefix and the old names that some files have."""
    renamed = {
        name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace(".beta", ".bias"): tensor
        for name, tensor in state.items()
    }
    if "embeddings.word_embeddings.weight" not in renamed:
        raise CheckpointError(f"{folder / BERT_FILE} holds no BERT: it has no embeddings.word_embeddings.weight")
    return renamed


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.LayerNorm):
        module.weight.fill_(1)
        module.bias.zero_()
