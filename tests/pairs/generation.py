"""Language models of transformers' and ours with the same random weights, asked for the same texts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel, T5ForConditionalGeneration
from transformers import T5Config as TheirT5Config

from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.t5 import T5, T5Config
from tests.pairs.lavis_names import decoder_from_lavis, t5_from_lavis
from tests.pairs.names import opt_names, t5_names

VOCABULARY, WIDTH = 61, 32
STOPS = ((5,), (5, 9), tuple(range(5, 15)))
TRIALS = {"opt": 50, "t5": 40}


def models(kind: str, seed: int) -> tuple[PreTrainedModel, Opt | T5]:
    return opts(seed) if kind == "opt" else t5s(seed)


@cache
def opts(seed: int) -> tuple[OPTForCausalLM, Opt]:
    """The same random weights in both; large ones, so that scores differ clearly and stop tokens occur."""
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=2,
        ffn_dim=64,
        num_attention_heads=4,
        max_position_embeddings=96,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=5,
        init_std=0.25,
    )
    theirs = OPTForCausalLM(config).eval()
    ours = Opt(OptConfig(VOCABULARY, WIDTH, 2, 4, 64, max_positions=96)).eval()
    ours.load_state_dict(decoder_from_lavis(opt_names(theirs.state_dict())))
    return theirs, ours


@cache
def t5s(seed: int) -> tuple[T5ForConditionalGeneration, T5]:
    """Likewise; heads are narrower together than the model, as in FLAN-T5 small."""
    torch.manual_seed(seed)
    config = TheirT5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=5,
        decoder_start_token_id=0,
    )
    theirs = T5ForConditionalGeneration(config).eval()
    # transformers 5 ties it whatever the config says.
    theirs.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, WIDTH))
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    sizes = T5Config(VOCABULARY, WIDTH, 3, 2, 3, 8, 64, relative_buckets=8, relative_reach=12)
    ours = T5(sizes).eval()
    ours.load_state_dict(t5_from_lavis(t5_names(theirs.state_dict()), sizes))
    return theirs, ours


def random_prompts(rng: random.Random, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return [torch.randn(rng.randint(1, 9), WIDTH, generator=generator) for _ in range(count)]


def pad_left(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    embeds = torch.zeros(len(prompts), longest, WIDTH)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeds, mask


def cut(ids: list[int], stops: tuple[int, ...]) -> tuple[int, ...]:
    ends = [place for place, token in enumerate(ids) if token in stops]
    return tuple(ids[: ends[0]] if ends else ids)


def random_options(rng: random.Random, beams: int) -> GenerationOptions:
    longest = rng.randint(1, 14)
    return GenerationOptions(
        max_new_tokens=longest,
        min_new_tokens=rng.choice([0, 0, rng.randint(0, longest)]),
        num_beams=beams,
        length_penalty=rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0]),
        early_stopping=rng.random() < 0.3,
        num_return_sequences=rng.randint(1, beams),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
        no_repeat_ngram_size=rng.choice([0, 0, 1, 2, 2, 3]),
        stop_ids=rng.choice(STOPS),
    )


def run_transformers(
    model: PreTrainedModel, prompts: list[Tensor], options: GenerationOptions
) -> list[tuple[list[int], float]]:
    """Ids and beam scores, `num_return` rows a prompt."""
    embeds, mask = pad_left(prompts)
    found = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        num_beams=options.num_beams,
        num_return_sequences=options.num_return_sequences,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        eos_token_id=list(options.stop_ids),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = found.sequences_scores.tolist() if options.num_beams > 1 else [0.0] * len(found.sequences)
    # T5's texts begin with its start token.
    sequences = found.sequences[:, 1:] if model.config.is_encoder_decoder else found.sequences
    return list(zip(sequences.tolist(), scores, strict=True))


@dataclass
class Compared:
    """Texts that both generated.

    Attributes:
        unequal: where ids differ.
        score_gap: the largest difference of beam scores, relative to those beyond 1.
        stopped: how many texts ended with a stop token, and how many at their greatest length.
    """

    configurations: int = 0
    unequal: list[str] = field(default_factory=list)
    score_gap: float = 0.0
    stopped: Counter[bool] = field(default_factory=Counter)


def compare(kind: str, beams: int) -> Compared:
    """As many random configurations as `TRIALS` says, each with up to four prompts."""
    rng = random.Random(beams)
    compared = Compared()
    for trial in range(TRIALS[kind]):
        theirs, ours = models(kind, trial % 4)
        options = random_options(rng, beams)
        prompts = random_prompts(rng, rng.randint(1, 4))
        found = generate(ours, prompts, options)
        # transformers 5 takes padding for generated tokens when it penalizes repetitions behind embeddings, so
        # padded rows are penalized less than the same rows alone: there the reference runs one by one.
        apart = kind == "opt" and options.repetition_penalty != 1
        groups = [[prompt] for prompt in prompts] if apart else [prompts]
        expected = [row for group in groups for row in run_transformers(theirs, group, options)]
        flat = [text for texts in found for text in texts]
        compared.configurations += 1
        for row, (text, (ids, score)) in enumerate(zip(flat, expected, strict=True)):
            if text.ids != cut(ids, options.stop_ids):
                compared.unequal.append(f"trial {trial}, text {row}, {options}")
            if beams > 1:
                compared.score_gap = max(compared.score_gap, abs(text.score - score) / max(1.0, abs(score)))
            compared.stopped[text.stopped] += 1
    return compared
