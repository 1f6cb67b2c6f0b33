"""OPT of transformers' and our decoder with the same random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from openblip.nn.opt import Opt, OptConfig
from tests.pairs.gaps import difference, random
from tests.pairs.lavis_names import decoder_from_lavis
from tests.pairs.names import opt_names

LENGTH = 23
SMALL = OptConfig(vocab_size=61, width=36, depth=3, num_heads=3, ffn_width=50, max_positions=LENGTH)
VARIANTS = {
    "opt": SMALL,
    "opt-350m": replace(SMALL, embed_width=20, pre_norm=False, final_norm=False),
    "wide embeddings": replace(SMALL, embed_width=44),
    "no final norm": replace(SMALL, final_norm=False),
}
# What each row of a batch begins with and ends with: (padding on the left, padding on the right).
PADDINGS = {
    "none": [(0, 0)] * 3,
    "left": [(0, 0), (5, 0), (1, 0)],
    "right": [(3, 0), (0, 7), (2, 4)],
}
BATCHES = [(1, 1, None), (2, 7, None), (3, LENGTH, "none"), (3, 13, "left"), (3, LENGTH, "right")]
"""Texts, their length and their padding."""


def build(variant: str) -> tuple[Opt, OPTForCausalLM]:
    return build_of(VARIANTS[variant])


def build_of(config: OptConfig) -> tuple[Opt, OPTForCausalLM]:
    theirs = OPTForCausalLM(
        OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            ffn_dim=config.ffn_width,
            max_position_embeddings=config.max_positions,
            word_embed_proj_dim=config.token_width,
            do_layer_norm_before=config.pre_norm,
            _remove_final_layer_norm=not config.final_norm,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            attn_implementation="eager",
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            scale = 0.5 if parameter.ndim < 2 else parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    with torch.device("meta"):
        ours = Opt(config)
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(decoder_from_lavis(opt_names(state)), assign=True)
    return ours.eval().requires_grad_(True), theirs


def random_ids(batch: int, length: int) -> Tensor:
    # transformers keeps the padding token, id 1, from learning even where it is visible
    return torch.randint(2, SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def padding_mask(rows: Sequence[tuple[int, int]], length: int) -> Tensor:
    """[B, length] bool."""
    places = torch.arange(length)
    return torch.stack([(places >= left) & (places < length - right) for left, right in rows])


def gaps(variant: str, batch: int, length: int, padding: str | None) -> tuple[float, float]:
    """Largest differences of logits and of gradients."""
    ours, theirs = build(variant)
    ids = random_ids(batch, length)
    mask = None if padding is None else padding_mask(PADDINGS[padding], length)
    visible = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    logits = ours.logits(ours(ours.embed(ids), mask))[visible]
    expected = theirs(input_ids=ids, attention_mask=None if mask is None else mask.long()).logits[visible]
    assert expected.std() > 0.1
    weights = random(*logits.shape, seed=2) / logits.numel() ** 0.5
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    renamed = decoder_from_lavis(opt_names({k: v for k, v in gradients.items() if v is not None}))
    named = dict(ours.named_parameters())
    assert renamed.keys() == named.keys()
    if length > 1:
        assert all(gradient.abs().max() > 1e-4 for gradient in renamed.values())
    worst = 0.0
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        worst = max(worst, difference(parameter.grad, renamed[name]))
    return difference(logits, expected), worst
