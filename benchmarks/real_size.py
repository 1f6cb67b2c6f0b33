"""A folder of blip2-opt-2.7b or blip2-flan-t5-xl as transformers writes it, at full size, with random weights.

    python benchmarks/real_size.py opt DST      7.5 GB
    python benchmarks/real_size.py t5 DST       7.9 GB
    python benchmarks/real_size.py small DST    0.6 GB: ViT-B/16, a Q-Former of 12 layers, OPT-125m
    python benchmarks/real_size.py small-t5 DST 0.7 GB: the same with FLAN-T5 small
    python benchmarks/real_size.py tiny DST     0.1 GB: two layers of everything, to try the benchmarks themselves

Speed and memory do not depend on what the weights say; words are numbers, as the vocabulary is made up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
)

OPT_WORDS, T5_WORDS = 50265, 32100
OPT_STOP = 50118
LINE_END = "Ċ"
SIZES = ("opt", "t5", "small", "small-t5", "tiny")
STD = 0.02
DRAWN = 2**22 - 3
"""Numbers that are drawn. A prime, or rows would repeat exactly, and beams that say different words score the same."""


def config_of(size: str, depth: int | None = None) -> Blip2Config:
    """The sizes of a model; `depth` layers of each part instead of all, if it is given."""
    opt = {"model_type": "opt", "vocab_size": 50304, "eos_token_id": OPT_STOP, "dropout": 0.0}
    t5 = {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_kv": 64,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    language = {
        "opt": {
            **opt,
            "hidden_size": 2560,
            "word_embed_proj_dim": 2560,
            "num_hidden_layers": 32,
            "ffn_dim": 10240,
            "num_attention_heads": 32,
        },
        "small": {**opt, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12},
        "tiny": {**opt, "hidden_size": 128, "num_hidden_layers": 2, "ffn_dim": 512, "num_attention_heads": 2},
        "t5": {**t5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
        "small-t5": {**t5, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    }[size]
    real, layers = size in ("opt", "t5"), 2 if size == "tiny" else 12
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": layers,
        "patch_size": 16,
        "num_attention_heads": 12,
        "image_size": 224,
    }
    qformer = {"vocab_size": 30523, "num_hidden_layers": layers}
    vision = {} if real else vision
    if depth is not None:
        for part in (vision, qformer, language):
            part["num_layers" if part.get("model_type") == "t5" else "num_hidden_layers"] = depth
    return Blip2Config(
        vision_config=vision,
        qformer_config={**qformer, "encoder_hidden_size": 1408 if real else 768},
        text_config=language,
        num_query_tokens=32,
        image_token_index=T5_WORDS if "t5" in size else OPT_WORDS,
    )


@torch.no_grad()
def build(size: str, dtype: torch.dtype = torch.float16, depth: int | None = None) -> Blip2ForConditionalGeneration:
    """Random weights, drawn once and repeated: drawing billions takes minutes."""
    config = config_of(size, depth)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model = model.to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer)) if "position_ids" in name else buffer.zero_()
    model.tie_weights()
    drawn = (torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)) * STD).to(dtype)
    for name, parameter in model.named_parameters():
        flat = parameter.view(-1)
        if "norm" in name.lower() and name.endswith("weight"):
            flat.fill_(1)
            continue
        source = drawn.to(flat.dtype)
        for part in flat.split(len(source)):
            part.copy_(source[: len(part)])
    made: Blip2ForConditionalGeneration = model.eval()
    return made


def vocabulary(size: str) -> Tokenizer:
    special = ["<pad>", "</s>", "<unk>"] if "t5" in size else ["<s>", "<pad>", "</s>", "<unk>"]
    words = {word: index for index, word in enumerate(special)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        if letter != LINE_END or "t5" in size:
            words[letter] = len(words)
    if "t5" not in size:
        words[LINE_END] = OPT_STOP
    taken = set(words.values())
    words |= {f"w{index}": index for index in range(T5_WORDS if "t5" in size else OPT_WORDS) if index not in taken}
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    # As the real ones: OPT's texts begin with </s>, T5's end with it.
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>" if "t5" in size else "</s> $A", special_tokens=[("</s>", words["</s>"])]
    )
    return made


def write(size: str, folder: Path, depth: int | None = None) -> None:
    if (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file():
        return
    build(size, depth=depth).save_pretrained(folder, max_shard_size="20GB")
    fast = vocabulary(size)
    words = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=fast,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        **({} if "t5" in size else {"bos_token": "</s>"}),
    )
    images = BlipImageProcessor(size={"height": 224, "width": 224})
    Blip2Processor(images, words, num_query_tokens=32).save_pretrained(folder)  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write(options.size, options.folder)


if __name__ == "__main__":
    main()
