"""Small BLIPs with random weights and a vocabulary of BERT's kind."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openblip.checkpoints.blip_models import GENERATION, PROMPTS
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.images.transform import ImageTransform
from openblip.models.model import Model
from openblip.nn.bert import BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.vit import VitConfig
from openblip.text import PromptTemplates
from tests.pairs.shake import shake

WORDS = "a picture of photo dog cat red ball on the beach what is this how many where ? two children play with".split()
LETTERS = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
VOCABULARY = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS]))
DECODE, ENCODE = len(VOCABULARY), len(VOCABULARY) + 1
Make = Callable[[str], Model]
"""A task to a model of it."""


def write_vocabulary(folder: Path) -> Path:
    """A folder with BERT's old file of words alone; models add [DEC] and [ENC]."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def small_config(task: str, image_width: int = 192) -> BlipConfig:
    """Of a model that captions ("caption"), answers ("answer"), matches ("match"), embeds ("embed"), matches and
    captions ("pretrain"), or judges statements about two images ("pair") or one ("entail").
    """
    if task == "answer":
        image_width = 128
    vision = VitConfig(32, 8, image_width, depth=2, num_heads=4, mlp_width=256, final_norm=True)
    sizes: dict[str, Any] = {"num_heads": 4, "ffn_width": 256, "max_positions": 64, "dropout": 0.0}
    text = BertConfig(ENCODE + 1, 128, 2, image_width=image_width, **sizes)
    ids = {"decode_id": DECODE, "encode_id": ENCODE}
    if task == "caption":
        return BlipConfig(vision, decoder=text, **ids)
    if task == "answer":
        return BlipConfig(vision, text, text, answers=True, **ids)
    if task == "pretrain":
        return BlipConfig(vision, text, text, shared_width=16, itm=True, shares_text=True, **ids)
    if task == "pair":
        return BlipConfig(vision, replace(text, images=2, merge_from=1), num_classes=2, **ids)
    if task == "entail":
        return BlipConfig(vision, text, num_classes=3, **ids)
    return BlipConfig(vision, text, shared_width=16, itm=task == "match", **ids)


def small_parts(task: str, folder: Path, seed: int = 1) -> ModelParts[BlipNetwork]:
    torch.manual_seed(seed)
    network = BlipNetwork(small_config(task)).eval()
    shake(network)
    if task in ("match", "embed", "pretrain"):
        network.temperature.data.fill_(0.07)
    return assemble(
        task,
        network,
        ImageTransform(32),
        write_vocabulary(folder / "words"),
        PromptTemplates(**PROMPTS),
        read_defaults(GENERATION, folder),
    )
