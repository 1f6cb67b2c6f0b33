"""Losses and gradients behind external language models are transformers' own; all ways of joining texts agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.nn.language_model import LanguageModel, join_texts
from openblip.nn.opt import Opt, OptConfig
from openblip.training.losses import IGNORED, TextBatch, answer_loss, decoder_loss, read_behind
from tests.language_models import CAUSAL, SEQ2SEQ, both, write_language_model

PROMPTS = ([0, 9, 8, 7], [0], [0, 30, 31])
ANSWERS = ([40, 41, 2], [50, 51, 52, 53, 2], [2])
VISUAL = 3


def rectangle(rows: tuple[list[int], ...], filler: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])


def our_loss(model: LanguageModel, visual: Tensor) -> Tensor:
    labels, present = rectangle(ANSWERS, 1)
    return answer_loss(model, visual, TextBatch(*rectangle(PROMPTS, 1)), labels.masked_fill(~present, IGNORED))


def visual_prompts(width: int) -> Tensor:
    return torch.randn(3, VISUAL, width, generator=torch.Generator().manual_seed(2)).requires_grad_(True)


@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_loss_and_gradient_equal_transformers(kind: str, tmp_path: Path) -> None:
    theirs, language = both(write_language_model(kind, tmp_path))
    config = language.model.config
    visual = visual_prompts(config.token_width)
    found = our_loss(language.model, visual)
    (gradient,) = torch.autograd.grad(found, visual)
    words = theirs.get_input_embeddings()
    if config.encodes_prompts:
        ids, seen = rectangle(PROMPTS, 1)
        start = list(config.start_ids)
        said, _ = rectangle(tuple([*start, *answer[:-1]] for answer in ANSWERS), 1)
        labels, _ = rectangle(tuple([IGNORED] * (len(start) - 1) + answer for answer in ANSWERS), IGNORED)
        embeds = torch.cat([visual, words(ids)], dim=1)
        extra = {"decoder_input_ids": said}
    else:
        ids, seen = rectangle(tuple(prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)), 1)
        given = tuple([IGNORED] * (VISUAL + len(prompt)) for prompt in PROMPTS)
        labels, _ = rectangle(tuple(row + answer for row, answer in zip(given, ANSWERS, strict=True)), IGNORED)
        embeds = torch.cat([visual, words(ids)], dim=1)
        extra = {}
    mask = torch.cat([seen.new_ones(3, VISUAL), seen], dim=1).long()
    expected = theirs(inputs_embeds=embeds, attention_mask=mask, labels=labels, **extra).loss
    (expected_gradient,) = torch.autograd.grad(expected, visual)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    assert gradient.abs().amax(dim=(1, 2)).min() > 1e-4


def test_our_decoder_gives_the_loss_of_the_text_in_one_piece() -> None:
    torch.manual_seed(0)
    decoder = Opt(OptConfig(60, 32, 2, 4, 64, max_positions=40)).requires_grad_(False)
    visual = visual_prompts(32)
    ids, mask = rectangle(tuple(prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)), 1)
    given = torch.tensor([len(prompt) for prompt in PROMPTS])[:, None]
    labels = ids.masked_fill((torch.arange(ids.shape[1]) < given) | ~mask, IGNORED)
    expected = decoder_loss(decoder, read_behind(decoder, visual, TextBatch(ids, mask)), labels)
    found = our_loss(decoder, visual)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    gradients = [torch.autograd.grad(loss, visual)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-6)


def test_texts_stand_right_behind_their_prompts_wherever_padding_was() -> None:
    marked = torch.arange(1.0, 13).view(2, 6, 1)
    mask = torch.tensor([[False, True, False, True, True, False], [True, True, False, False, False, False]])
    told, present = -torch.arange(1.0, 5).view(2, 2, 1), torch.tensor([[True, False], [True, True]])
    embeds, seen, places = join_texts(marked, mask, told, present)
    assert [row[kept].tolist() for row, kept in zip(embeds[:, :, 0], seen, strict=True)] == [
        [2, 4, 5, -1],
        [7, 8, -3, -4],
    ]
    assert embeds.shape == (2, 4, 1) and seen.all()
    assert embeds[0, places[0, :2], 0].tolist() == [5, -1]
    assert embeds[1, places[1], 0].tolist() == [8, -3, -4]
