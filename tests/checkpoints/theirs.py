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
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.4 if parameter.ndim > 1 else 0.1))
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1] = 0  # as in every official model
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight += 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Theirs(model.eval(), processor, folder)
