"""The decoder against transformers' OPT on the same random weights, and its cache against one pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from openblip.errors import CheckpointError
from openblip.nn.opt import OptConfig
from tests.pairs.gaps import difference
from tests.pairs.lavis_names import decoder_from_lavis
from tests.pairs.names import from_blip2, opt_names
from tests.pairs.opt import (
    BATCHES,
    LENGTH,
    PADDINGS,
    SMALL,
    VARIANTS,
    build,
    build_of,
    gaps,
    padding_mask,
    random_ids,
)

TOLERANCE = 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch", "length", "padding"), BATCHES)
def test_outputs_and_gradients_equal_transformers(variant: str, batch: int, length: int, padding: str | None) -> None:
    forward, gradient = gaps(variant, batch, length, padding)
    assert forward <= TOLERANCE
    assert gradient <= TOLERANCE


@pytest.mark.parametrize("config", [replace(SMALL, dropout=0.2), replace(SMALL, attention_dropout=0.4)])
def test_dropout_in_training_falls_where_it_does_in_transformers(config: OptConfig) -> None:
    ours, theirs = build_of(config)
    ids, mask = random_ids(3, 13), padding_mask(PADDINGS["left"], 13)
    evaluated = ours.logits(ours(ours.embed(ids), mask))[mask]
    ours.train(), theirs.train()
    torch.manual_seed(4)
    logits = ours.logits(ours(ours.embed(ids), mask))[mask]
    torch.manual_seed(4)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).logits[mask]
    assert difference(logits, expected) <= TOLERANCE
    assert difference(logits, evaluated) > 0.01


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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shared", [0, 3])
@torch.no_grad()
def test_texts_that_share_their_prompt_equal_texts_read_alone(variant: str, padded: bool, shared: int) -> None:
    """Two prompts, maybe behind a prefix, go on as three texts each, which change places; then one is dropped."""
    ours, _ = build(variant)
    prefix, prompts, texts = ours.embed(random_ids(1, 3))[:, :shared], ours.embed(random_ids(2, 4)), random_ids(6, 5)
    mask = padding_mask([(0, 0), (2, 0)], 4) if padded else None
    cache = ours.new_cache(2, 4 + 3 * 5)
    cache.keys.fill_(float("nan"))  # what was never written must never be read
    cache.values.fill_(float("nan"))
    if shared:
        cache.stand_behind(ours.read_prefix(prefix[0]).cache)
    ours(prompts, mask, cache)
    told: list[list[int]] = [[] for _ in range(6)]
    parents = torch.tensor([[[0, 1, 2], [0, 1, 2]], [[1, 1, 0], [0, 2, 1]], [[2, 0, 0], [1, 1, 1]], [[0, 1, 2]] * 2])
    memory = cache.keys.data_ptr()
    for step, origins in enumerate(parents):
        tokens = texts[:, step].view(2, 3)
        hidden = ours.decode_step(ours.embed(tokens), cache, None if step == 3 else origins)
        told = [
            [*told[3 * row + int(origins[row, text])], int(tokens[row, text])] for row in range(2) for text in range(3)
        ]
        for row in range(2):
            prompt = torch.cat([prefix[0], prompts[row] if mask is None else prompts[row, mask[row]]])
            for text in range(3):
                alone = torch.cat([prompt, ours.embed(torch.tensor(told[3 * row + text]))])[None]
                assert difference(hidden[row, text], ours(alone)[0, -1]) <= TOLERANCE
    assert cache.keys.data_ptr() == memory
    cache.take_rows(torch.tensor([1]))
    hidden = ours.decode_step(ours.embed(texts[3:, 4][None]), cache, torch.tensor([[2, 2, 0]]))
    for text, parent in enumerate((2, 2, 0)):
        alone = torch.cat([prompt, ours.embed(torch.tensor([*told[3 + parent], int(texts[3 + text, 4])]))])[None]
        assert difference(hidden[0, text], ours(alone)[0, -1]) <= TOLERANCE


@torch.no_grad()
def test_a_prefix_is_read_and_never_written() -> None:
    ours, _ = build("opt")
    prefix = ours.read_prefix(ours.embed(random_ids(1, 5))[0]).cache
    before = prefix.keys.clone(), prefix.values.clone()
    cache = ours.new_cache(3, 8)
    cache.stand_behind(prefix)
    ours(ours.embed(random_ids(3, 7)), None, cache)
    ours.decode_step(ours.embed(random_ids(3, 1)), cache)
    assert torch.equal(prefix.keys, before[0]) and torch.equal(prefix.values, before[1])
    assert prefix.length == 5 and cache.length == 8
    behind = ours.new_cache(1, LENGTH)
    behind.stand_behind(prefix)
    with pytest.raises(ValueError, match=f"{LENGTH} positions"):
        ours(ours.embed(random_ids(1, LENGTH - 4)), None, behind)


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
    tied, words = "lm_head.weight", "model.decoder.embed_tokens.weight"
    layouts = [
        decoder_from_lavis({f"opt_model.{k}": v for k, v in theirs_state.items()} | beside),
        from_blip2({f"language_model.{k}": v for k, v in theirs_state.items()} | beside, expected, "decoder."),
        # facebook's first OPT folders, without the tied output table
        decoder_from_lavis(opt_names({k.removeprefix("model."): v for k, v in theirs_state.items() if k != tied})),
        decoder_from_lavis(opt_names({k: v for k, v in theirs_state.items() if k != words})),
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
