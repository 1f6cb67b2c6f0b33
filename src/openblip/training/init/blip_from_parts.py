"""Build a BLIP for pre-training as its authors do: a ViT from DeiT, text encoder and decoder from BERT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.blip_models import GENERATION, PROMPTS
from openblip.checkpoints.json_files import build, read_json
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import PLAIN_BERT
from openblip.checkpoints.names.engine import Layout, Part
from openblip.checkpoints.names.vit import TIMM
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.bert import BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.vit import VitConfig
from openblip.text import PromptTemplates
from openblip.training.init.pretrained import POSITIONS, Bert, read_bert, read_floats
from openblip.training.init.reinit import draw
from openblip.training.recipe_keys import NewBlip

VIT = Layout("ViT of DeiT or timm", [Part("", "", TIMM)])
BERT = Layout("BERT", [Part("", "", PLAIN_BERT)])
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
"""Attention heads of a ViT of DeiT or timm (tiny, small, base, large), by its width: files do not hold them."""
READS_IMAGES, READS_TEXT, HEAD = ".cross_attention.", ".self_attention.", "head."
CONFIG_FILE = "config.json"
EXACT_GELU = "gelu"


def build_blip(new: NewBlip, name: str, seed: int) -> ModelParts[BlipNetwork, Any]:
    """Build the model in the sizes of the files; other weights are initialized as in LAVIS.

    As in LAVIS, BERT's token type embeddings are dropped, and the decoder's own self-attention starts as a copy of the
    encoder's. [DEC] and [ENC] are new tokens.

    Raises:
        CheckpointError: a file is missing, broken, or of another model.
    """
    vision_file, bert_folder = Path(new.vision).expanduser(), Path(new.bert).expanduser()
    seen = _read_vit(vision_file)
    vision = _vision_config(seen, vision_file)
    bert = read_bert(bert_folder, "new_blip.bert")
    text = _text_config(bert, vision.width)
    words = len(bert.pieces)
    config = BlipConfig(
        vision, text, text, new.shared_width, itm=True, shares_text=True, decode_id=words, encode_id=words + 1
    )
    torch.manual_seed(seed)
    network = BlipNetwork(config)
    network.encoder.apply(draw)
    network.decoder.apply(draw)
    _take(network.vision, seen, vision_file, ())
    state = _bert_state(bert, network.encoder.words.weight.detach())
    head = {name: tensor for name, tensor in state.items() if name.startswith(HEAD)}
    rest = {name: tensor for name, tensor in state.items() if name not in head}
    _take(network.encoder, rest, bert_folder, (READS_IMAGES,))
    own = {name: tensor for name, tensor in rest.items() if READS_TEXT in name}
    _take(network.decoder, own | head, bert_folder, () if head else (HEAD,))
    return assemble(
        name,
        network.eval(),
        ImageTransform(vision.image_size),
        bert_folder,
        PromptTemplates(**PROMPTS),
        read_defaults(GENERATION, bert_folder),
    )


def _read_vit(path: Path) -> dict[str, Tensor]:
    """Weights of an image encoder by our names, without its classifier."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: new_blip.vision is the weights file of a ViT of DeiT or timm")
    try:
        return VIT.to_ours(read_floats(path))
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error


def _vision_config(state: Mapping[str, Tensor], path: Path) -> VitConfig:
    """The configuration of a ViT, from its tensors."""
    wanted = {"positions": 3, "patch_embed.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    for name, dimensions in wanted.items():
        if name not in state or state[name].ndim != dimensions:
            raise CheckpointError(f"{path} is not a ViT of DeiT or timm: {name} is missing or has other dimensions")
    positions, width = state["positions"].shape[1:]
    grid, patch = math.isqrt(max(0, positions - 1)), state["patch_embed.weight"].shape[-1]
    if width not in HEADS or not grid or grid * grid != positions - 1:
        widths = ", ".join(map(str, HEADS))
        raise CheckpointError(
            f"{path} has {positions} positions of width {width}: give a ViT with one class token, a square grid of "
            f"patches and a width of {widths}"
        )
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    mlp = state["blocks.0.mlp.fc1.weight"].shape[0]
    return VitConfig(grid * patch, patch, width, len(blocks), HEADS[width], mlp, final_norm=True)


def _text_config(bert: Bert, image_width: int) -> BertConfig:
    """The configuration of a BERT with cross-attention and two more tokens."""
    path = bert.folder / CONFIG_FILE
    content = read_json(path)
    activation = content.get("hidden_act", EXACT_GELU)
    if activation != EXACT_GELU:
        raise CheckpointError(f"{path} has hidden_act {activation!r}: give a BERT with gelu")
    if "num_attention_heads" not in content:
        raise CheckpointError(f"{path} is not the configuration of a BERT: it has no num_attention_heads")
    sizes = {
        "vocab_size": len(bert.pieces) + 2,
        "width": bert.width,
        "depth": bert.depth,
        "num_heads": content["num_attention_heads"],
        "ffn_width": bert.ffn_width,
        "image_width": image_width,
        "max_positions": len(bert.state[POSITIONS]),
        "layer_norm_eps": content.get("layer_norm_eps", BertConfig.layer_norm_eps),
        "dropout": content.get("hidden_dropout_prob", BertConfig.dropout),
    }
    return build(BertConfig, sizes, path)


def _bert_state(bert: Bert, words: Tensor) -> dict[str, Tensor]:
    """BERT's weights by the names of our encoder and of our decoder's head, which some files lack.

    Args:
        words: a new word table, whose last two rows are for [DEC] and [ENC].
    """
    try:
        state = BERT.to_ours(bert.state)
    except CheckpointError as error:
        raise CheckpointError(f"{bert.folder}: {error}") from error
    known = len(bert.pieces)
    state["words.weight"] = torch.cat([state["words.weight"][:known], words[known:]])
    if "head.bias" in state:
        state["head.bias"] = torch.cat([state["head.bias"][:known], words.new_zeros(2)])
    return state


@torch.no_grad()
def _take(module: nn.Module, state: Mapping[str, Tensor], path: Path, new: tuple[str, ...]) -> None:
    """Copy weights into a module; its parameters with one of `new` in their names may be missing, and stay."""
    own = dict(module.named_parameters())
    for name in own:
        if name not in state and not any(word in name for word in new):
            raise CheckpointError(f"{path} is incomplete: {name} is missing; get it again")
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            wanted = list(own[name].shape) if name in own else "not there"
            raise CheckpointError(f"{path} does not fit BLIP: {name} has shape {list(tensor.shape)}, expected {wanted}")
        own[name].copy_(tensor)
