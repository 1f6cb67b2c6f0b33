"""T5 against transformers on the same random weights, against LAVIS' recordings, and its cache against one pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.hf_language_model import ExternalConfig
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.t5 import T5
from openblip.nn.t5_attention import RelativeBias
from openblip.nn.vit import VitConfig
from openblip.training.losses import IGNORED, TextBatch, stage2_t5_loss
from tests.pairs.gaps import difference
from tests.pairs.lavis import load_t5, recorded, t5_gaps
from tests.pairs.lavis_names import t5_from_lavis, t5_to_transformers
from tests.pairs.names import from_blip2, t5_names
from tests.pairs.t5 import BATCHES, SMALL, VARIANTS, build, detached, gaps, padding_mask, random_ids

TOLERANCE = 1e-5
RECORDED = 2e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch", "length", "answer", "padding"), BATCHES)
def test_outputs_and_gradients_equal_transformers(
    variant: str, batch: int, length: int, answer: int, padding: str | None
) -> None:
    forward, gradient = gaps(variant, batch, length, answer, padding)
    assert forward <= TOLERANCE
    assert gradient <= TOLERANCE


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 11), (16, 20), (64, 300), (32, 1024), (6, 40)])
def test_every_distance_has_the_bias_of_transformers(bidirectional: bool, buckets: int, reach: int) -> None:
    distances = torch.arange(-1500, 1501)
    bias = RelativeBias(replace(SMALL, relative_buckets=buckets, relative_reach=reach), bidirectional)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, reach)
    assert torch.equal(bias.buckets(distances), expected)
    whole = bias(0, 9)
    assert torch.equal(whole[:, :, 4:7, :7], bias(4, 3))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padding", [None, "left", "right"])
@torch.no_grad()
def test_reading_in_chunks_equals_one_pass(variant: str, padding: str | None) -> None:
    ours, _ = build(variant)
    mask = None if padding is None else padding_mask(padding, 12)
    memory = ours.remember(ours.encode(ours.embed(random_ids(3, 12)), mask), mask)
    embeds = ours.embed(random_ids(3, 19, seed=2))
    whole = ours(embeds, memory)
    for chunks in ([1] * 19, [6, 1, 1, 11], [18, 1], [1, 18]):
        cache = ours.new_cache(batch=3, capacity=20)
        cache.keys.fill_(float("nan"))  # what was never written must never be read
        cache.values.fill_(float("nan"))
        parts = [ours(part, memory, cache) for part in embeds.split(chunks, dim=1)]
        assert difference(torch.cat(parts, dim=1), whole) <= TOLERANCE
        assert cache.length == 19
    with pytest.raises(ValueError, match="cache holds 20"):
        ours(embeds[:, :2], memory, cache)


@torch.no_grad()
def test_padding_does_not_change_a_row_and_an_empty_row_is_finite() -> None:
    ours, _ = build("flan-t5")
    embeds = ours.embed(random_ids(3, 14))
    for padding in ("left", "right"):
        mask = padding_mask(padding, 14)
        encoded = ours.encode(embeds, mask)
        for row in range(3):
            alone = ours.encode(embeds[row, mask[row]][None])[0]
            assert difference(encoded[row, mask[row]], alone) <= TOLERANCE
    nothing = torch.zeros(3, 14, dtype=torch.bool)
    assert torch.isfinite(ours.encode(embeds, nothing)).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padding", [None, "left"])
@torch.no_grad()
def test_texts_that_share_their_prompt_equal_texts_read_alone(variant: str, padding: str | None) -> None:
    """Two prompts go on as three texts each, which change places; then one prompt is dropped."""
    ours, _ = build(variant)
    mask = None if padding is None else padding_mask(padding, 11)[:2]
    memory = ours.remember(ours.encode(ours.embed(random_ids(2, 11)), mask), mask)
    texts = random_ids(6, 15, seed=2)
    cache = ours.new_cache(2, 1 + 3 * 15)
    cache.keys.fill_(float("nan"))  # what was never written must never be read
    cache.values.fill_(float("nan"))
    start = ours.embed(torch.full((2, 1), ours.config.start_id))
    ours(start, memory, cache)
    told: list[list[int]] = [[ours.config.start_id] for _ in range(6)]
    generator = torch.Generator().manual_seed(3)
    address = cache.keys.data_ptr()
    for step in range(15):
        # Prompts are dropped at the end; the rows that are left are numbered anew.
        if step == 13:
            cache.take_rows(torch.tensor([1]))
            memory, told, texts = memory.take(torch.tensor([1])), told[3:], texts[3:]
        parents = torch.randint(3, (len(told) // 3, 3), generator=generator) if step else torch.arange(3).repeat(2, 1)
        tokens = texts[:, step].view(-1, 3)
        hidden = ours.decode_step(ours.embed(tokens), memory, cache, parents)
        told = [
            [*told[3 * row + int(parents[row, text])], int(tokens[row, text])]
            for row in range(len(tokens))
            for text in range(3)
        ]
        rows = torch.arange(len(tokens)).repeat_interleave(3)
        alone = ours(ours.embed(torch.tensor(told)), memory.take(rows))[:, -1]
        assert difference(hidden.flatten(0, 1), alone) <= TOLERANCE
        assert step > 12 or cache.keys.data_ptr() == address


def test_dropout_is_of_training_alone() -> None:
    ours = T5(replace(SMALL, dropout=0.3))
    prompts, labels = ours.embed(random_ids(2, 5)), random_ids(2, 4)
    assert not torch.equal(ours.hidden_before(prompts, None, labels), ours.hidden_before(prompts, None, labels))
    ours.eval()
    assert torch.equal(ours.hidden_before(prompts, None, labels), ours.hidden_before(prompts, None, labels))


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_go_there_and_back(variant: str) -> None:
    ours, theirs = build(variant)
    config, expected, state = ours.config, ours.state_dict(), detached(theirs)
    beside = {
        "qformer.encoder.layer.0.x": torch.ones(2),
        "Qformer.bert.x": torch.ones(2),
        "t5_proj.weight": torch.ones(2),
    }
    strays = {
        "encoder.embed_tokens.weight": state["shared.weight"],
        "decoder.embed_tokens.weight": state["shared.weight"],
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 3),
    }
    bare = {name: tensor for name, tensor in state.items() if "embed_tokens" not in name}
    once = {k: v for k, v in bare.items() if not (config.tied_head and k == "lm_head.weight")}
    layouts = [
        t5_from_lavis({f"t5_model.{k}": v for k, v in {**bare, **strays}.items()} | beside, config),
        from_blip2({f"language_model.{k}": v for k, v in bare.items()} | beside, expected, "t5."),
        t5_from_lavis(t5_names({**bare, **strays}), config),
        t5_from_lavis(t5_names(once), config),
        # LAVIS' official files have these two of the three alone
        t5_from_lavis(t5_names({k: v for k, v in {**once, **strays}.items() if k != "shared.weight"}), config),
    ]
    for layout in layouts:
        assert layout.keys() == expected.keys()
        assert all(torch.equal(layout[name], tensor) for name, tensor in expected.items())
    back = t5_to_transformers(expected)
    assert back.keys() == once.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in once.items())


def test_an_own_head_is_never_tied() -> None:
    ours, theirs = build("flan-t5")
    state = {name: tensor for name, tensor in detached(theirs).items() if name != "lm_head.weight"}
    headless = t5_from_lavis(t5_names(state), SMALL)
    assert "head.weight" not in headless
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        ours.load_state_dict(headless)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight and shared\.weight differ"):
        t5_from_lavis(t5_names(detached(theirs)), replace(SMALL, tied_head=True))


def test_names_that_do_not_fit_are_refused() -> None:
    _, theirs = build("flan-t5")
    state = {f"t5_model.{name}": tensor for name, tensor in detached(theirs).items()}
    with pytest.raises(CheckpointError, match="another file"):
        t5_from_lavis({"ln_vision.weight": torch.ones(2)}, SMALL)
    with pytest.raises(CheckpointError, match=r"block\.0\.layer\.0\.gate"):
        t5_from_lavis({**state, "t5_model.encoder.block.0.layer.0.gate.weight": torch.ones(2)}, SMALL)
    with pytest.raises(CheckpointError, match="differ"):
        t5_from_lavis({**state, "t5_model.decoder.embed_tokens.weight": torch.ones(61, 36)}, SMALL)
    for part, words in (
        ("encoder.block.1.layer.0.SelfAttention.q", r"encoder\.layers\.1\.self_attention\.q"),
        ("decoder.block.1.layer.1.EncDecAttention.v", r"decoder\.layers\.1\.cross_attention\.v"),
        ("decoder.block.0.layer.2.DenseReluDense.wi_1", r"decoder\.layers\.0\.ffn\.value"),
    ):
        rest = {name: tensor for name, tensor in state.items() if name != f"t5_model.{part}.weight"}
        with pytest.raises(CheckpointError, match=f"without {words}"):
            t5_from_lavis(rest, SMALL)
    with pytest.raises(ValueError, match="'swish' is not one of gelu, gelu_new, relu"):
        replace(SMALL, activation="swish")


def test_a_blip2_has_one_language_model() -> None:
    vision = VitConfig(image_size=28, patch_size=14, width=16, depth=1, num_heads=2, mlp_width=16)
    qformer = QFormerConfig(16, num_queries=2, width=8, depth=1, num_heads=1, ffn_width=8, vocab_size=0)
    opt = OptConfig(vocab_size=9, width=12, depth=1, num_heads=1, ffn_width=8)
    network = Blip2Network(Blip2Config(vision, qformer, language=SMALL))
    assert network.language_model is network.t5
    assert network.visual_prompt(torch.ones(1, 5, 16)).shape == (1, 2, SMALL.width)
    other = Blip2Network(Blip2Config(vision, qformer, opt))
    assert other.language_model is other.decoder
    with pytest.raises(ValueError, match="not the one that the config says is external"):
        Blip2Network(Blip2Config(vision, qformer, ExternalConfig(vocab_size=9, token_width=12, max_positions=None)))


def test_stage2_loss_and_logits_equal_lavis() -> None:
    for name, gap in t5_gaps().items():
        assert gap <= RECORDED, name


def test_the_visual_prompt_learns_through_a_frozen_t5() -> None:
    network, expected = load_t5(), recorded("t5")
    text = TextBatch(expected["input_ids"], expected["input_mask"].bool())
    labels = expected["output_ids"].masked_fill(~expected["output_mask"].bool(), IGNORED)
    stage2_t5_loss(network, expected["query_output"], text, labels).backward()
    gradient = network.prompt_projection.weight.grad
    assert gradient is not None and gradient.abs().max() > 1e-3
    assert all(parameter.grad is None for parameter in network.t5.parameters())
