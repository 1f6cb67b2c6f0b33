"""Random language models of several families, written by transformers, small enough for every test run."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, processors
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from openblip.checkpoints.language_models import LoadedLanguage, load_language_model
from openblip.checkpoints.model_parts import LanguageSource
from openblip.training.init.vocabulary import train_decoder_tokenizer

WIDTH = 24
SENTENCES = ["a dog runs on the beach", "two children play with a red ball", "Question: what is it? Answer: a ball"]
START, PAD, STOP = 0, 1, 2
IDS = {"bos_token_id": START, "pad_token_id": PAD, "eos_token_id": STOP}

CAUSAL = ("llama", "gpt2", "gemma2", "bloom", "opt")
"""Rotary positions and shared keys; learnt positions; capped scores and sliding windows; no positions; an offset."""
SEQ2SEQ = ("bart", "t5")
"""Positions and a text that begins with two tokens; distances and a head of its own."""


def vocabulary(template: str | None) -> Tokenizer:
    """Byte-level BPE with <s> 0, <pad> 1, </s> 2."""
    words = train_decoder_tokenizer(SENTENCES, 300)
    if template is not None:
        words.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", START), ("</s>", STOP)]
        )
    return words


def sizes(kind: str, rows: int) -> PretrainedConfig:
    # With a tied head, a small random model repeats what it reads.
    ids = {**IDS, "tie_word_embeddings": False}
    layered = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": WIDTH, "vocab_size": rows, **ids}
    rotary = {**layered, "intermediate_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 96}
    if kind == "llama":
        return transformers.LlamaConfig(**rotary)
    if kind == "gemma2":
        return transformers.Gemma2Config(**rotary, head_dim=6, sliding_window=5, query_pre_attn_scalar=6)
    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=rows, n_positions=96, n_embd=WIDTH, n_layer=2, n_head=4, **ids)
    if kind == "bloom":
        return transformers.BloomConfig(vocab_size=rows, hidden_size=WIDTH, n_layer=2, n_head=4, **ids)
    if kind == "opt":
        return transformers.OPTConfig(**layered, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=96)
    if kind == "bart":
        halves = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        return transformers.BartConfig(
            vocab_size=rows,
            d_model=WIDTH,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=96,
            scale_embedding=True,
            forced_eos_token_id=None,
            decoder_start_token_id=STOP,
            **halves,
            **IDS,
        )
    if kind == "t5":
        return transformers.T5Config(
            vocab_size=rows,
            d_model=WIDTH,
            d_kv=6,
            d_ff=32,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=PAD,
            pad_token_id=PAD,
            eos_token_id=STOP,
        )
    raise ValueError(kind)


TEMPLATES = {"llama": "<s> $A", "bart": "<s> $A </s>", "t5": "$A </s>", "opt": "</s> $A"}


def write_language_model(kind: str, folder: Path, seed: int = 0, std: float = 0.5) -> Path:
    """A model and its tokenizer, with weights so large that what it says depends on what it reads.

    Args:
        std: of matrices; one that is to be steered while it stays frozen has to be less wild.
    """
    torch.manual_seed(seed)
    words = vocabulary(TEMPLATES.get(kind))
    config = sizes(kind, words.get_vocab_size())
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    if kind == "t5":
        # transformers 5 ties it whatever the config says.
        model.lm_head.weight = torch.nn.Parameter(torch.empty(words.get_vocab_size(), WIDTH))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2 if "embed" in name or "shared" in name else std)
        else:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.1)
    model.save_pretrained(folder)
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    return folder


def both(folder: Path) -> tuple[PreTrainedModel, LoadedLanguage]:
    """The model as transformers loads it, and as ours borrows it."""
    ours = load_language_model(LanguageSource(str(folder)))
    kind = (
        transformers.AutoModelForSeq2SeqLM if ours.model.config.encodes_prompts else transformers.AutoModelForCausalLM
    )
    return kind.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False), ours
