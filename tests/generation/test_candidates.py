"""Given texts are ranked by what the model says of each when it reads it whole, whichever others are read beside it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.generation.candidates import rank_candidates
from openblip.generation.cuda_graphs import Graphs
from openblip.nn.language_model import LanguageModel
from tests.generation.test_cuda_graphs import random_model, repeated
from tests.language_models import both, write_language_model

KINDS = ("decoder", "t5", "captured decoder", "captured t5", "llama", "bart")
LENGTHS = (1, 4, 2, 2, 6, 1, 3, 2, 5)


def language_model(kind: str, folder: Path) -> LanguageModel:
    if kind in ("llama", "bart"):
        loaded: LanguageModel = both(write_language_model(kind, folder))[1].model
        return loaded
    own = random_model(random.Random(4), kind.split()[-1]).float().eval().requires_grad_(False)
    return Graphs(own, repeated) if kind.startswith("captured") else own


@torch.inference_mode()
def read_whole(model: LanguageModel, prompt: Tensor, text: list[int]) -> float:
    hidden = model.hidden_before(prompt[None], None, torch.tensor([text]))
    log_probs = model.logits(hidden).float().log_softmax(dim=2)
    own = log_probs.gather(2, torch.tensor([text])[..., None])[..., 0]
    smoothing = model.config.label_smoothing
    return float(((1 - smoothing) * own + smoothing * log_probs.mean(dim=2)).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_all_lengths_score_as_alone(kind: str, tmp_path: Path) -> None:
    model = language_model(kind, tmp_path / "model")
    chance = torch.Generator().manual_seed(5)
    prompts = [torch.randn(length, model.config.token_width, generator=chance) for length in (3, 7)]
    texts = [torch.randint(3, 30, (length,), generator=chance).tolist() for length in LENGTHS]
    # All are read; of each prompt some, which end at other steps.
    for first in (len(texts), 4):
        for prompt, found in zip(prompts, rank_candidates(model, prompts, texts, first=first), strict=True):
            assert len(found) == first
            assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
            for one in found:
                assert one.score == pytest.approx(read_whole(model, prompt, texts[one.index]), abs=1e-4, rel=1e-4)
