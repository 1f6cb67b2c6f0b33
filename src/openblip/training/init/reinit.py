"""Reinitialize a Q-Former from BERT, and resize an image encoder, as the paper's stages start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.bert import qformer_from_bert
from openblip.errors import CheckpointError, OptionError
from openblip.training.init.pretrained import read_bert

INIT_STD = 0.02
TEMPERATURE = 0.07


def reinit_qformer(parts: ModelParts, bert: Path, seed: int) -> ModelParts:
    """Reinitialize everything between image encoder and language model for stage 1, in place.

    Text embeddings and self-attention come from BERT, and the queries' feed-forward network is a copy of the text's;
    the rest is random (BLIP-2, section 3.2).

    Args:
        bert: a folder with model.safetensors and vocab.txt, such as bert-base-uncased.

    Raises:
        CheckpointError: a file is missing, or the BERT differs in size from the model's Q-Former.
        OptionError: the model's Q-Former reads no text.
    """
    if parts.matching is None:
        raise OptionError(f"the Q-Former of {parts.name} reads no text: start from a model that can match")
    start = read_bert(bert, "fresh_qformer")
    network = parts.network
    config = network.config.qformer
    start.check(range(config.depth), config.max_positions)
    torch.manual_seed(seed)
    for part in (network.vision_norm, network.qformer, network.image_projection, network.text_projection):
        part.apply(draw)
    network.itm_head.apply(draw)
    with torch.no_grad():
        network.qformer.queries.normal_(std=INIT_STD)
        network.temperature.fill_(TEMPERATURE)
    places = {piece: index for index, piece in enumerate(start.pieces)}
    words = parts.matching.tokenizer.fast
    kept = [places.get(words.id_to_token(index) or "", -1) for index in range(config.vocab_size)]
    state = qformer_from_bert(start.state, range(config.depth), kept)
    state["positions.weight"] = state["positions.weight"][: config.max_positions]
    own = network.qformer.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(
                f"the BERT in {bert} does not fit this Q-Former: {name} has shape {list(tensor.shape)}"
            )
    network.qformer.load_state_dict(state, strict=False)
    return parts


def resize(parts: ModelParts, image_size: int) -> ModelParts:
    """Change the size of the model's square images in place, by interpolating the encoder's positions.

    Raises OptionError when the encoder has no patches, or the size is no multiple of theirs.
    """
    vision = parts.network.vision
    try:
        vision.resize(image_size)
    except ValueError as error:
        raise OptionError(f"image_size cannot change {parts.name}: {error}") from error
    parts.network.config = replace(parts.network.config, vision=vision.config)
    return replace(parts, transform=replace(parts.transform, image_size=image_size))


@torch.no_grad()
def draw(module: nn.Module) -> None:
    """Initialize one layer as BERT does; for `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.LayerNorm):
        module.weight.fill_(1)
        module.bias.zero_()
