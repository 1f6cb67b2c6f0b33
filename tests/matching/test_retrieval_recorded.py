"""Search against LAVIS' retrieval evaluation: `OPENBLIP_LAVIS_ZOO=folder pytest -m real THIS_FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import GenerationDefaults
from openblip.data.sample import Sample
from openblip.devices import choose_placement
from openblip.evaluation.score import score_model
from openblip.evaluation.settings import RetrievalSettings, Settings, Task
from openblip.images.transform import ImageTransform, to_pixels
from openblip.models.load import model_of
from openblip.results import Ranked
from openblip.text import PromptTemplates
from tests.pairs.blip import load, need_recordings

pytestmark = pytest.mark.real
OUTSIDE = -100.0
"""LAVIS' score of what is not among a query's best."""
OWNERS = (0, 1, 1, 2, 2, 3, 4)
"""The image of each text."""


def test_scores_are_those_of_lavis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = need_recordings()
    recording = load(folder, "blip_retrieval")
    evaluation = recording.outputs["evaluation"]
    network = recording.network(encoder=recording.bert(), shared_width=recording.config["embed_dim"], itm=True)
    (tmp_path / "vocab.txt").write_text("\n".join(recording.vocabulary) + "\n", encoding="utf-8")
    parts = assemble("recorded", network, ImageTransform(32), tmp_path, PromptTemplates(), GenerationDefaults())
    model = model_of(parts, choose_placement("cpu", "float32"))
    pixels, texts = evaluation["image"], evaluation["texts"]
    # The recording has pixels, not images: each of these stands for some, by its brightness.
    images = [Image.new("RGB", (32, 32), (10 * number,) * 3) for number in range(len(pixels))]
    levels = to_pixels(images, parts.transform)[:, 0, 0, 0]
    encode = network.image_features

    def encode_recorded(batch: Tensor) -> Tensor:
        return encode(pixels[(batch[:, 0, 0, 0, None] - levels).abs().argmin(dim=1)])

    monkeypatch.setattr(network, "image_features", encode_recorded)
    found = model.rank_both(images, texts, top=None, rerank=evaluation["k_test"])
    check(found.texts, evaluation["score_i2t"], evaluation["cosine"])
    check(found.images, evaluation["score_t2i"], evaluation["cosine"].T)
    assert model.rank_both(images, texts, rerank=100).texts[0][0].score is not None  # more than there are
    samples = []
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
        own = tuple(text for text, owner in zip(texts, OWNERS, strict=True) if owner == number)
        samples.append(Sample((tmp_path / f"{number}.png",), str(number), captions=own))
    settings = Settings(Task.RETRIEVAL, retrieval=RetrievalSettings(rerank=evaluation["k_test"]), batch_size=2)
    metrics = score_model(model, samples, settings).metrics
    for name, scores, right in (
        ("image_to_text", evaluation["score_i2t"], torch.arange(5)[:, None] == torch.tensor(OWNERS)),
        ("text_to_image", evaluation["score_t2i"], torch.tensor(OWNERS)[:, None] == torch.arange(5)),
    ):
        first = right.gather(1, scores.argsort(dim=1, descending=True)[:, :1]).float().mean()
        assert metrics[f"{name}_at_1"] == pytest.approx(float(first))


def check(rankings: Sequence[Sequence[Ranked]], scores: Tensor, cosines: Tensor) -> None:
    assert len(rankings) == len(scores)
    for ranked, row, similar in zip(rankings, scores, cosines, strict=True):
        best = [one for one in ranked if one.score is not None]
        assert [one.index for one in best] == row.argsort(descending=True)[: len(best)].tolist()
        assert [one.score for one in best] == pytest.approx([float(row[one.index]) for one in best], abs=2e-5)
        assert [one.itc for one in ranked] == pytest.approx([float(similar[one.index]) for one in ranked], abs=2e-5)
        rest = ranked[len(best) :]
        assert all(float(row[one.index]) == OUTSIDE for one in rest) and len(ranked) == len(row)
