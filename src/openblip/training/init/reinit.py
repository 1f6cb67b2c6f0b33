"""A Q-Former that begins again from BERT, and an image encoder at another size: how the paper's stages start."""

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
            raise CheckpointError(f"the BERT in {bert} does not fit this Q-Former: its {name} is {list(tensor.shape)}")
    network.qformer.load_state_dict(state, strict=False)
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


@torch.no_grad()
def draw(module: nn.Module) -> None:
    """Give one layer the weights that BERT's layers begin with: for `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.LayerNorm):
        module.weight.fill_(1)
        module.bias.zero_()
