"""Small BLIP-2 models of transformers, with the processors and folders that belong to them."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.t5.modeling_t5 import T5LayerNorm

TEXTS = ["a dog runs on the beach\n", "two children play\n", "Question: what is it? Answer: a red ball\n"]
QUERIES = 4
VISION = {
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "encoder_hidden_size": 36,
    "max_position_embeddings": 40,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 320,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "ffn_dim": 48,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 72,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    # transformers' cache is too small for a decoder that is deeper than the encoder.
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "bos_token_id": 1,
}
FLAN = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@dataclass(frozen=True)
class Theirs:
    """A model of transformers, and a folder that it and its processor wrote."""

    model: PreTrainedModel
    processor: Blip2Processor
    folder: Path


def opt_words() -> FastTokenizer:
    """A byte-level BPE in OPT's manner, without a mark for images."""
    words = FastTokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    )
    words.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return words


def t5_words() -> FastTokenizer:
    """Unigrams in T5's manner, without a mark for images."""
    specials = ["<pad>", "</s>", "<unk>"]
    pieces = [
        "\u2581",
        "\u2581a",
        "\u2581the",
        "\u2581dog",
        "\u2581red",
        "\u2581Question",
        "\u2581Answer",
        "ball",
        "is",
    ]
    scores = [(piece, 0.0) for piece in specials] + [(piece, -2.0) for piece in pieces]
    scores += [(letter, -4.0) for letter in (*string.ascii_letters, *"?:.,")]
    words = FastTokenizer(models.Unigram(scores, unk_id=2))
    words.normalizer = normalizers.NFKC()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    words.decoder = decoders.Metaspace()
    words.add_special_tokens([AddedToken(name, special=True) for name in specials])
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return words


def bert_words() -> FastTokenizer:
    """A WordPiece in BERT's manner, without [DEC]."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *",.?'"]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase] + ["dog", "ball", "red", "beach", "##ing"]
    words = FastTokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    words.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:5]])
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return words


def write_writer(folder: Path) -> Theirs:
    """`Blip2ForConditionalGeneration` with OPT; texts end with a new line."""
    fast = opt_words()
    words = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    stop = fast.encode("\n", add_special_tokens=False).ids[0]
    processor = Blip2Processor(image_processor(), words, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config={**OPT, "eos_token_id": stop},
        num_query_tokens=QUERIES,
        image_token_index=len(words) - 1,
    )
    return written(Blip2ForConditionalGeneration(config), processor, folder)


def write_t5_writer(folder: Path, text_config: dict[str, object]) -> Theirs:
    """`Blip2ForConditionalGeneration` with a T5, whose output head is its own where tables are not tied."""
    words = PreTrainedTokenizerFast(tokenizer_object=t5_words(), eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    processor = Blip2Processor(image_processor(), words, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=dict(text_config),
        num_query_tokens=QUERIES,
        image_token_index=len(words) - 1,
    )
    model = Blip2ForConditionalGeneration(config)
    if text_config.get("tie_word_embeddings") is False:
        # transformers 5 ties it whatever the config says.
        head = model.language_model.lm_head
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    return written(model, processor, folder)


def write_matcher(folder: Path) -> Theirs:
    """`Blip2ForImageTextRetrieval`, one row in its word table more than its vocabulary has words."""
    fast = bert_words()
    words = PreTrainedTokenizerFast(
        tokenizer_object=fast, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]"
    )
    rows = fast.get_vocab_size() + 1
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**QFORMER, "use_qformer_text_input": True, "vocab_size": rows},
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
    )
    processor = Blip2Processor(image_processor(), words)
    return written(Blip2ForImageTextRetrieval(config), processor, folder)


def image_processor() -> BlipImageProcessor:
    return BlipImageProcessor(size={"height": 28, "width": 28})


def written(model: PreTrainedModel, processor: Blip2Processor, folder: Path) -> Theirs:
    """Weights so large that what the model says depends on what it sees, saved."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.4 if parameter.ndim > 1 else 0.1
            if name.endswith("Attention.q.weight"):
                scale /= 2  # T5's, which are not scaled by the width of a head
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1] = 0  # as in every official model
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | T5LayerNorm):
                module.weight += 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Theirs(model.eval(), processor, folder)
