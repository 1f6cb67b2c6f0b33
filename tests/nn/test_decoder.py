"""The decoder against transformers' OPT on the same random weights, and its cache against one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from openblip.checkpoints.decoder_names import decoder_from_lavis, decoder_from_transformers
from openblip.errors import CheckpointError
from openblip.nn.decoder import Decoder, DecoderConfig

TOLERANCE = 1e-5
LENGTH = 23
SMALL = DecoderConfig(vocab_size=61, width=36, depth=3, num_heads=3, ffn_width=50, max_positions=LENGTH)
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


def build(variant: str) -> tuple[Decoder, OPTForCausalLM]:
    config = VARIANTS[variant]
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
            attn_implementation="eager",
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            scale = 0.5 if parameter.ndim < 2 else parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return loaded(config, theirs), theirs


def loaded(config: DecoderConfig, theirs: OPTForCausalLM) -> Decoder:
    with torch.device("meta"):
        ours = Decoder(config)
    ours.load_state_dict(
        decoder_from_transformers({k: v.detach() for k, v in theirs.state_dict().items()}), assign=True
    )
    return ours.eval().requires_grad_(True)


def random_ids(batch: int, length: int) -> Tensor:
    # transformers keeps the padding token, id 1, from learning even where it is visible
    return torch.randint(2, SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def padding_mask(rows: Sequence[tuple[int, int]], length: int) -> Tensor:
    """[B, length] bool."""
    places = torch.arange(length)
    return torch.stack([(places >= left) & (places < length - right) for left, right in rows])


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("batch", "length", "padding"),
    [(1, 1, None), (2, 7, None), (3, LENGTH, "none"), (3, 13, "left"), (3, LENGTH, "right")],
)
def test_outputs_and_gradients_equal_transformers(variant: str, batch: int, length: int, padding: str | None) -> None:
    ours, theirs = build(variant)
    ids = random_ids(batch, length)
    mask = None if padding is None else padding_mask(PADDINGS[padding], length)
    visible = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    logits = ours.logits(ours(ours.embed(ids), mask))[visible]
    expected = theirs(input_ids=ids, attention_mask=None if mask is None else mask.long()).logits[visible]
    assert expected.std() > 0.1
    assert difference(logits, expected) <= TOLERANCE

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) / logits.numel() ** 0.5
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    renamed = decoder_from_transformers({k: v for k, v in gradients.items() if v is not None})
    named = dict(ours.named_parameters())
    assert renamed.keys() == named.keys()
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert difference(parameter.grad, renamed[name]) <= TOLERANCE, name
    if length > 1:
        assert all(gradient.abs().max() > 1e-4 for gradient in renamed.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("chunks", [[1] * 11, [6, 1, 1, 1, 1, 1], [4, 6, 1], [10, 1], [1, 10]])
@torch.no_grad()
def test_reading_in_chunks_equals_one_pass(variant: str, padding: str | None, chunks: list[int]) -> None:
    ours, _ = build(variant)
    embeds = ours.embed(random_ids(3, 11))
    mask = None if padding is None else padding_mask(PADDINGS[padding], 11)
    whole = ours(embeds, mask)
    assert torch.isfinite(whole).all()  # at padding, too, which sees nothing but itself
    cache = ours.new_cache(batch=3, capacity=15)
    cache.keys.fill_(float("nan"))  # what was never written must never be read
    cache.values.fill_(float("nan"))
    masks = [None] * len(chunks) if mask is None else mask.split(chunks, dim=1)
    parts = [ours(part, part_mask, cache) for part, part_mask in zip(embeds.split(chunks, dim=1), masks, strict=True)]
    visible = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask
    assert difference(torch.cat(parts, dim=1)[visible], whole[visible]) <= TOLERANCE
    assert cache.length == 11
    assert cache.tokens.tolist() == visible.sum(1).tolist()


@torch.no_grad()
def test_padding_in_the_middle_is_as_if_it_were_not_there() -> None:
    """A visual prompt, a prompt padded on the left behind it, then one token at a time without a mask."""
    ours, _ = build("opt")
    prompt, text, answer = ours.embed(random_ids(2, 14)).split([4, 6, 4], dim=1)
    paddings = [2, 5]
    cache = ours.new_cache(2, 14)
    ours(prompt, None, cache)
    ours(text, padding_mask([(left, 0) for left in paddings], 6), cache)
    steps = torch.cat([ours(answer[:, [i]], None, cache) for i in range(4)], dim=1)
    for row, left in enumerate(paddings):
        alone = torch.cat([prompt[row], text[row, left:], answer[row]])[None]
        assert difference(steps[[row]], ours(alone)[:, -4:]) <= TOLERANCE


@torch.no_grad()
def test_rows_of_a_cache_can_be_repeated_permuted_and_dropped() -> None:
    ours, _ = build("opt")
    prefix, more, last = ours.embed(random_ids(4, 9)).split([4, 3, 2], dim=1)
    mask = padding_mask([(0, 0), (2, 0)], 4)
    cache = ours.new_cache(2, 9)
    ours(prefix[:2], mask, cache)
    cache.take_rows(torch.tensor([0, 0, 1, 1]))  # two beams an image
    ours(more, None, cache)
    beams = torch.tensor([1, 0, 3, 3])
    cache.reorder(beams, start=4)
    cache.take_rows(torch.tensor([0, 2, 3]))
    kept, images = beams[[0, 2, 3]], torch.tensor([0, 1, 1])
    continued = ours(last[:3], None, cache)
    visible = torch.cat([mask[images], torch.ones(3, 5, dtype=torch.bool)], dim=1)
    whole = ours(torch.cat([prefix[images], more[kept], last[:3]], dim=1), visible)
    assert difference(continued, whole[:, -2:]) <= TOLERANCE


@torch.no_grad()
def test_left_padding_does_not_change_a_row() -> None:
    ours, _ = build("opt-350m")
    embeds = ours.embed(random_ids(1, 9))
    padded = torch.cat([ours.embed(random_ids(1, 4)), embeds], dim=1)
    assert difference(ours(padded, padding_mask([(4, 0)], 13))[:, 4:], ours(embeds)) <= TOLERANCE


@torch.no_grad()
def test_too_many_tokens_leave_the_cache_as_it_was() -> None:
    ours, _ = build("opt")
    embeds = ours.embed(random_ids(1, LENGTH + 1))
    with pytest.raises(ValueError, match=f"{LENGTH} positions"):
        ours(embeds)
    for capacity, more, words in ((6, 2, "cache holds 6"), (LENGTH + 5, 19, f"{LENGTH} positions")):
        cache = ours.new_cache(1, capacity)
        first = ours(embeds[:, :5], None, cache)
        with pytest.raises(ValueError, match=words):
            ours(embeds[:, 5 : 5 + more], None, cache)
        assert cache.length == 5 and cache.tokens.tolist() == [5]
        continued = torch.cat([first, ours(embeds[:, 5:6], None, cache)], dim=1)
        assert difference(continued, ours(embeds[:, :6])) <= TOLERANCE


def test_names_of_all_layouts() -> None:
    ours, theirs = build("opt-350m")
    theirs_state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    expected = ours.state_dict()
    beside = {"qformer.layernorm.weight": torch.ones(2), "Qformer.bert.x": torch.ones(2)}
    tied = "lm_head.weight"
    layouts = [
        decoder_from_lavis({f"opt_model.{k}": v for k, v in theirs_state.items()} | beside),
        decoder_from_transformers({f"language_model.{k}": v for k, v in theirs_state.items()} | beside),
        # facebook's first OPT folders, without the tied output table
        decoder_from_transformers({k.removeprefix("model."): v for k, v in theirs_state.items() if k != tied}),
        decoder_from_transformers({k: v for k, v in theirs_state.items() if k != "model.decoder.embed_tokens.weight"}),
    ]
    for state in layouts:
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_names_that_do_not_fit_are_refused() -> None:
    _, theirs = build("opt")
    state = {f"opt_model.{name}": tensor.detach() for name, tensor in theirs.state_dict().items()}
    with pytest.raises(CheckpointError, match="another file"):
        decoder_from_lavis({"ln_vision.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"layers\.0\.gate"):
        decoder_from_lavis({**state, "opt_model.model.decoder.layers.0.gate.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match="differ"):
        decoder_from_lavis({**state, "opt_model.lm_head.weight": state["opt_model.lm_head.weight"] + 1e-3})
    missing = "opt_model.model.decoder.layers.1.self_attn.q_proj.bias"
    with pytest.raises(CheckpointError, match=r"layers\.1\.q\.bias"):
        decoder_from_lavis({name: tensor for name, tensor in state.items() if name != missing})
