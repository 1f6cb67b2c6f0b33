"""Small CLIP models of transformers, with the vocabularies and folders that belong to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE = 32
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
TEXTS = [
    "a photo of a dog",
    "two children play with a ball on the beach",
    "it's the dog's 2nd house, and we're there",
    "A Red BUS!",
    "",
    "a photo of a cat, a photo of a cat, " * 12,
]
START, END = "<|startoftext|>", "<|endoftext|>"


@cache
def clip_merges() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """A vocabulary and merges in CLIP's order: bytes, bytes that end words, merges, the two marks."""
    fast = FastTokenizer(models.BPE(end_of_word_suffix="</w>"))
    fast.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", show_progress=False)
    fast.train_from_iterator(TEXTS * 3, trainer)
    merges = tuple((first, second) for first, second in json.loads(fast.to_str())["model"]["merges"])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), START, END]
    return {word: index for index, word in enumerate(words)}, merges


def clip_tokenizer() -> CLIPTokenizer:
    vocabulary, merges = clip_merges()
    return CLIPTokenizer(vocabulary, list(merges), model_max_length=77)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TheirClip:
    model: CLIPModel
    processor: CLIPProcessor
    folder: Path


def write_clip(folder: Path, **vision: Any) -> TheirClip:
    """A tiny CLIPModel in float32 with random weights, saved with its processor."""
    torch.manual_seed(7)
    words = clip_tokenizer()
    count = len(words)
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": count,
            "hidden_size": 48,
            "intermediate_size": 96,
            "max_position_embeddings": 77,
            "bos_token_id": count - 2,
            "eos_token_id": count - 1,
            "pad_token_id": count - 1,
        },
        vision_config={**shared, "hidden_size": 64, "intermediate_size": 128, "image_size": SIDE, "patch_size": 8}
        | vision,
        projection_dim=40,
    )
    model = CLIPModel(config)
    model.eval()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data.normal_(std=0.2).add_(0.02)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = CLIPProcessor(images, words)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return TheirClip(model, processor, folder)
