"""What must hold of the training losses whatever the weights; nn/test_lavis_reference.py has their values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import VitConfig
from openblip.training.losses import (
    IGNORED,
    LABEL_SMOOTHING,
    HardNegatives,
    Pairing,
    Stage1Loss,
    TextBatch,
    contrastive_loss,
    draw_negatives,
    matching_loss,
    next_token_loss,
    read_behind,
    same_image,
    self_critical_loss,
    stage1_loss,
    stage2_loss,
)

WORDS = 31
DEC = 30
NEGATIVES = HardNegatives(images=torch.tensor([2, 0, 1]), texts=torch.tensor([1, 2, 0]))


@pytest.fixture
def network() -> Blip2Network:
    config = Blip2Config(
        VitConfig(14, 14, width=12, depth=1, num_heads=2, mlp_width=12),
        QFormerConfig(
            12,
            num_queries=3,
            width=24,
            depth=3,
            num_heads=2,
            ffn_width=32,
            vocab_size=WORDS,
            max_positions=20,
        ),
        OptConfig(WORDS, width=16, depth=2, num_heads=2, ffn_width=32, max_positions=40),
        shared_width=8,
    )
    built = Blip2Network(config)
    generator = torch.Generator().manual_seed(0)
    for module in built.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.4, generator=generator)
    nn.init.normal_(built.qformer.queries, generator=generator)
    return built.eval()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(batch: int = 3, length: int = 7) -> TextBatch:
    """Full in the first row, each next one two tokens shorter; random ids at padding, too."""
    ids = torch.randint(1, DEC, (batch, length), generator=torch.Generator().manual_seed(2))
    return TextBatch(ids, torch.arange(length)[None] < (length - 2 * torch.arange(batch))[:, None])


def wider(text: TextBatch, columns: int) -> TextBatch:
    more = texts(len(text.ids), columns).ids
    return TextBatch(torch.cat([text.ids, more], 1), F.pad(text.mask, (0, columns), value=False))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> bool:
    return ours.shape == theirs.shape and (ours - theirs).abs().max().item() <= tolerance


# -- hard negatives


@pytest.mark.parametrize("image_ids", [None, [0, 1, 0, 2, 1, 0], [3, 3, 3, 3, 3, 5]])
def test_negatives_never_share_the_image(image_ids: list[int] | None) -> None:
    ids = torch.tensor(image_ids if image_ids is not None else list(range(6)))
    similarity = random(6, 6) + 50 * (ids[:, None] == ids[None])  # right answers tower above all others
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = draw_negatives(similarity, similarity.T, same_image(ids, similarity), generator)
        assert not (ids[drawn.images] == ids).any()
        assert not (ids[drawn.texts] == ids).any()


@pytest.mark.parametrize("towering", [0.0, 100.0])
@pytest.mark.parametrize("image_ids", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 3]])
def test_negatives_follow_the_softmax_of_the_strangers(towering: float, image_ids: list[int]) -> None:
    """However far the right answers lead, even if the strangers' shares of a softmax over all underflow."""
    ids = torch.tensor(image_ids)
    same = ids[:, None] == ids[None]
    similarity = 1.5 * random(5, 5) + towering * same
    generator = torch.Generator().manual_seed(0)
    count = 3000
    draws = [draw_negatives(similarity, similarity.T, same, generator) for _ in range(count)]
    for scores, chosen in (
        (similarity.T, torch.stack([draw.images for draw in draws])),
        (similarity, torch.stack([draw.texts for draw in draws])),
    ):
        expected = scores.masked_fill(same, float("-inf")).softmax(dim=1) * count
        observed = F.one_hot(chosen, 5).sum(0)
        # chi-square over 4 or 3 strangers a row; 27 is passed once in 100,000 times
        statistic = ((observed - expected).square() / expected.clamp(min=1e-9)).masked_fill(same, 0).sum(1)
        assert statistic.max() < 27
        assert expected.max(dim=1).values.min() > 1.3 * count / 4  # far from uniform


def test_negatives_depend_on_the_generator_alone() -> None:
    similarity = random(8, 8)

    def draw(seed: int) -> list[int]:
        same = same_image(None, similarity)
        drawn = draw_negatives(similarity, similarity.T, same, torch.Generator().manual_seed(seed))
        return [*drawn.images.tolist(), *drawn.texts.tolist()]

    first = draw(5)
    torch.rand(3)
    assert draw(5) == first
    assert len({tuple(draw(seed)) for seed in range(10)}) > 5


@pytest.mark.parametrize("image_ids", [None, [7, 7, 7]])
def test_where_there_is_no_stranger_each_gets_itself(image_ids: list[int] | None) -> None:
    count = 1 if image_ids is None else 3
    similarity = random(count, count)
    same = same_image(None if image_ids is None else torch.tensor(image_ids), similarity)
    drawn = draw_negatives(similarity, similarity.T, same)
    assert drawn.images.tolist() == drawn.texts.tolist() == list(range(count))


# -- contrast


def test_contrast_with_own_images_is_smoothed_cross_entropy() -> None:
    image_to_text, text_to_image = 3 * random(6, 6), 3 * random(6, 6, seed=2)
    targets = torch.arange(6)
    both = [
        F.cross_entropy(scores, targets, label_smoothing=LABEL_SMOOTHING) for scores in (image_to_text, text_to_image)
    ]
    plain = contrastive_loss(image_to_text, text_to_image, same_image(None, image_to_text))
    assert close(plain, (both[0] + both[1]) / 2)
    assert close(contrastive_loss(image_to_text, text_to_image, same_image(10 - targets, targets)), plain)


def test_captions_of_one_image_share_the_target() -> None:
    """By hand: 0.45 + 0.1 / 3 for each of two right answers, 0.1 / 3 for the wrong one."""
    similarity = 2 * random(3, 3)
    shared, small = 0.45 + 0.1 / 3, 0.1 / 3
    targets = torch.tensor([[shared, shared, small], [shared, shared, small], [small, small, 0.9 + small]])
    expected = sum(-(targets * scores.log_softmax(1)).sum(1).mean() / 2 for scores in (similarity, similarity.T))
    assert isinstance(expected, Tensor)
    assert close(contrastive_loss(similarity, similarity.T, same_image(torch.tensor([4, 4, 9]), similarity)), expected)


def test_temperature_learns_from_contrast(network: Blip2Network) -> None:
    def contrast() -> Tensor:
        return stage1_loss(network, random(3, 5, 12), texts(), DEC, Pairing(negatives=NEGATIVES)).itc

    contrast().backward()
    gradient = network.temperature.grad
    step = 2e-4
    with torch.no_grad():
        network.temperature += step
        above = contrast()
        network.temperature -= 2 * step
        below = contrast()
    slope = (above - below) / (2 * step)
    assert gradient is not None and slope.abs() > 0.5
    assert close(gradient, slope, 0.02 * slope.abs().item())


# -- the whole of stage 1


def stage1(network: Blip2Network, text: TextBatch) -> Stage1Loss:
    features = random(len(text.ids), 5, 12)
    return stage1_loss(network, features, text, DEC, Pairing(negatives=NEGATIVES))


@torch.no_grad()
def test_padding_changes_no_stage1_loss(network: Blip2Network) -> None:
    text = texts()
    narrow, wide = stage1(network, text), stage1(network, wider(text, 5))
    # What stands at padding does not matter either.
    other = stage1(network, replace(text, ids=torch.where(text.mask, text.ids, 3)))
    for part in ("itc", "itm", "itg", "total"):
        assert close(getattr(wide, part), getattr(narrow, part)), part
        assert close(getattr(other, part), getattr(narrow, part)), part


@torch.no_grad()
def test_matching_is_the_mean_over_pairs(network: Blip2Network) -> None:
    text, features = texts(), random(3, 5, 12)
    pairs = [(own, own, 1) for own in range(3)]
    pairs += [(int(image), own, 0) for own, image in enumerate(NEGATIVES.images)]
    pairs += [(own, int(other), 0) for own, other in enumerate(NEGATIVES.texts)]
    losses = []
    for image, caption, label in pairs:
        length = int(text.mask[caption].sum())
        logits = network.itm_logits(text.ids[[caption], :length], None, features[[image]])
        losses.append(F.cross_entropy(logits, torch.tensor([label])))
    expected = torch.stack(losses).mean()
    assert close(matching_loss(network, features, network.qformer.remember(features), text, NEGATIVES), expected)


@torch.no_grad()
def test_generation_is_the_mean_over_words(network: Blip2Network) -> None:
    text, features = texts(), random(3, 5, 12)
    losses = []
    for row in range(3):
        ids = text.ids[[row], : int(text.mask[row].sum())].clone()
        ids[:, 0] = DEC
        seen = network.qformer.read_image(features[[row]])
        logits = network.qformer.text_logits(network.qformer.causal_text(ids, None, seen))
        losses.append(F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none", label_smoothing=LABEL_SMOOTHING))
    assert close(stage1(network, text).itg, torch.cat(losses).mean())


def test_every_part_of_stage1_learns(network: Blip2Network) -> None:
    features = random(3, 5, 12).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    stage1_loss(network, features, texts(), DEC, Pairing(generator=generator)).total.backward()
    assert features.grad is not None and features.grad.abs().max() > 0
    left_out = ("vision.", "vision_norm.", "decoder.", "prompt_projection.")
    for name, parameter in network.named_parameters():
        learns = parameter.grad is not None and parameter.grad.abs().max() > 1e-7
        # a bias of the keys shifts all scores of a query alike
        assert learns != name.startswith(left_out) or name.endswith("key.bias"), name


def test_a_batch_of_one_pair(network: Blip2Network) -> None:
    loss = stage1_loss(network, random(1, 5, 12), texts(1), DEC)
    loss.total.backward()
    assert loss.itc.item() == 0
    assert torch.isfinite(loss.total) and loss.itm > 0 and loss.itg > 0


# -- stage 2


def labels(text: TextBatch, given: int) -> Tensor:
    ids = text.ids.masked_fill(~text.mask, IGNORED)
    ids[:, :given] = IGNORED
    return ids


@torch.no_grad()
def test_padding_changes_no_stage2_loss(network: Blip2Network) -> None:
    text, features = texts(), random(3, 5, 12)
    narrow = stage2_loss(network, features, text, labels(text, 1))
    more = wider(text, 5)
    assert close(stage2_loss(network, features, more, labels(more, 1)), narrow)
    other = replace(text, ids=torch.where(text.mask, text.ids, 3))
    assert close(stage2_loss(network, features, other, labels(text, 1)), narrow)


@pytest.mark.parametrize("given", [0, 1, 2])
@torch.no_grad()
def test_stage2_is_the_mean_over_words_behind_the_prompt(network: Blip2Network, given: int) -> None:
    text, features = texts(), random(3, 5, 12)
    losses = []
    for row in range(3):
        ids = text.ids[[row], : int(text.mask[row].sum())]
        prompt = network.visual_prompt(features[[row]])
        hidden = network.decoder(torch.cat([prompt, network.decoder.embed(ids)], dim=1))
        logits = network.decoder.logits(hidden)[0, prompt.shape[1] - 1 : -1]
        losses.append(F.cross_entropy(logits[given:], ids[0, given:], reduction="none"))
    expected = torch.cat(losses).mean()
    assert close(stage2_loss(network, features, text, labels(text, given)), expected)


def test_next_token_loss_looks_one_ahead() -> None:
    logits, ids = random(2, 4, WORDS), texts(2, 4).ids
    ids[1, 3] = IGNORED
    expected = [
        -logits[row, place].log_softmax(0)[ids[row, place + 1]]
        for row, place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    ]
    assert close(next_token_loss(logits, ids), torch.stack(expected).mean())


# -- learning from rewards


def drawn_texts(network: Blip2Network) -> tuple[TextBatch, Tensor, Tensor]:
    """Two texts for each of two images, behind prompts that take gradients."""
    text = texts(batch=4, length=9)
    return text, labels(text, given=1), network.visual_prompt(random(2, 5, 12)).repeat_interleave(2, dim=0)


def log_likelihoods(network: Blip2Network, text: TextBatch, targets: Tensor, prompt: Tensor) -> Tensor:
    scores = network.decoder.logits(read_behind(network.decoder, prompt, text)).log_softmax(-1)
    told = scores.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return told.masked_fill(targets == IGNORED, 0).sum(1)


def test_self_critical_loss_is_the_policy_gradient(network: Blip2Network) -> None:
    text, targets, prompt = drawn_texts(network)
    rewards = torch.tensor([[0.9, 0.1], [0.2, 0.5]])
    loss = self_critical_loss(network.decoder, read_behind(network.decoder, prompt, text), targets, rewards)
    assert loss.item() == pytest.approx(-rewards.mean().item(), abs=1e-6)
    # each text against the other one of its image
    against = torch.tensor([0.8, -0.8, -0.3, 0.3])
    against = against / against.std()
    words = (targets != IGNORED).sum()
    expected = -(against * log_likelihoods(network, text, targets, prompt)).sum() / words
    weight = network.prompt_projection.weight
    found = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert close(found, torch.autograd.grad(expected, weight)[0])


def test_texts_that_earn_alike_teach_nothing(network: Blip2Network) -> None:
    text, targets, prompt = drawn_texts(network)
    hidden = read_behind(network.decoder, prompt, text)
    self_critical_loss(network.decoder, hidden, targets, torch.full((2, 2), 0.7)).backward()
    assert network.prompt_projection.weight.grad is not None
    assert network.prompt_projection.weight.grad.abs().max() < 1e-7
