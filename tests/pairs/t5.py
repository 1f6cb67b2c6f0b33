"""T5 of transformers' and ours with the same random weights."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5Config as TheirConfig
from transformers import T5ForConditionalGeneration

from openblip.nn.t5 import T5, T5Config
from openblip.training.losses import IGNORED
from tests.pairs.gaps import difference, random
from tests.pairs.lavis_names import t5_from_lavis
from tests.pairs.names import t5_names

SMALL = T5Config(vocab_size=61, width=36, depth=3, decoder_depth=2, num_heads=3, head_width=8, ffn_width=50, start_id=0)
VARIANTS = {
    "flan-t5": SMALL,
    "as LAVIS runs it": replace(SMALL, activation="gelu", head_width=16, depth=1, decoder_depth=3),
    "t5 1.0": replace(SMALL, activation="relu", gated=False, tied_head=True, head_width=12),
    "short reach": replace(SMALL, relative_buckets=8, relative_reach=11, num_heads=5, head_width=4),
}
# What each row of a batch of prompts begins and ends with: (padding on the left, padding on the right).
PADDINGS = {
    "none": [(0, 0)] * 3,
    "left": [(0, 0), (5, 0), (1, 0)],
    "right": [(3, 0), (0, 6), (2, 4)],
}
BATCHES = [(1, 1, 1, None), (2, 7, 3, None), (3, 13, 9, "left"), (3, 23, 6, "right"), (3, 40, 33, "none")]
"""Prompts, their length, the length of answers, and the prompts' padding."""


def build(variant: str) -> tuple[T5, T5ForConditionalGeneration]:
    config = VARIANTS[variant]
    their_config = TheirConfig(
        vocab_size=config.vocab_size,
        d_model=config.width,
        d_kv=config.head_width,
        d_ff=config.ffn_width,
        num_layers=config.depth,
        num_decoder_layers=config.decoder_depth,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.relative_buckets,
        relative_attention_max_distance=config.relative_reach,
        feed_forward_proj="gated-gelu" if config.gated else "relu",
        tie_word_embeddings=config.tied_head,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    their_config.dense_act_fn = config.activation
    theirs = T5ForConditionalGeneration(their_config).eval()
    if not config.tied_head:
        # transformers 5 ties it whatever the config says.
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(theirs.lm_head.weight))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            scale = parameter.shape[-1] ** -0.5
            if parameter.ndim < 2 or "relative" in name:
                scale = 0.5
            elif name == "shared.weight":
                scale = 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    with torch.device("meta"):
        ours = T5(config)
    ours.load_state_dict(t5_from_lavis(t5_names(detached(theirs)), config), assign=True)
    return ours.eval().requires_grad_(True), theirs


def detached(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def random_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(2, SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding_mask(padding: str, length: int) -> Tensor:
    """[3, length] bool."""
    places = torch.arange(length)
    return torch.stack([(places >= left) & (places < length - right) for left, right in PADDINGS[padding]])


def gaps(variant: str, batch: int, length: int, answer: int, padding: str | None) -> tuple[float, float]:
    """Largest differences of encoder, logits and loss, and of gradients, the visual prompt's among them."""
    ours, theirs = build(variant)
    mask = None if padding is None else padding_mask(padding, length)
    labels = random_ids(batch, answer, seed=2)
    if batch > 1:
        labels[1, answer // 2 :] = IGNORED
    # A visual prompt in front of the words: both of them learn.
    visual = random(batch, 3, SMALL.width, seed=3).requires_grad_()
    ids = random_ids(batch, length)
    prompts = torch.cat([visual, ours.embed(ids)], dim=1)[:, :length]
    logits = ours.logits(ours.hidden_before(prompts, mask, labels))
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    their_visual = visual.detach().clone().requires_grad_()
    their_prompts = torch.cat([their_visual, theirs.shared(ids)], dim=1)[:, :length]
    expected = theirs(inputs_embeds=their_prompts, attention_mask=None if mask is None else mask.long(), labels=labels)
    assert expected.logits.std() > 0.1
    forward = max(
        difference(ours.encode(prompts, mask), expected.encoder_last_hidden_state),
        difference(logits, expected.logits),
        difference(loss, expected.loss),
    )
    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    renamed = t5_from_lavis(t5_names({k: v for k, v in gradients.items() if v is not None}), ours.config)
    named = dict(ours.named_parameters())
    assert renamed.keys() == named.keys()
    if length > 1:
        assert all(gradient.abs().max() > 1e-4 for gradient in renamed.values())
    worst = difference(visual.grad, their_visual.grad)
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        worst = max(worst, difference(parameter.grad, renamed[name]))
    return forward, worst
