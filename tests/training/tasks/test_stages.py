"""What is done to a batch before its loss."""

from __future__ import annotations

import torch
from torch import nn

from openblip.training.loop.trainer import set_dropout
from openblip.training.tasks.stages import keep_patches


def test_patches_that_are_kept_are_whole_and_their_images_own() -> None:
    features = torch.arange(3 * 9 * 2).view(3, 9, 2).float()
    kept = keep_patches(features, 0.5)
    assert kept.shape == (3, 4, 2)
    for image, rows in zip(features, kept, strict=True):
        owned = {tuple(row) for row in image.tolist()}
        found = [tuple(row) for row in rows.tolist()]
        assert set(found) <= owned and len(set(found)) == 4
    draws = {tuple(keep_patches(features, 0.5)[0, :, 0].tolist()) for _ in range(20)}
    assert len(draws) > 1
    assert keep_patches(features, 1.0) is features
    assert keep_patches(features, 0.01).shape == (3, 1, 2)


def test_a_runs_dropout_reaches_every_layer_of_what_learns() -> None:
    from openblip.nn.opt import Opt, OptConfig

    decoder = Opt(OptConfig(11, width=8, depth=2, num_heads=2, ffn_width=8, max_positions=9)).train()
    embeds = torch.ones(1, 3, 8)
    assert torch.equal(decoder(embeds), decoder(embeds))
    set_dropout([decoder, nn.Parameter(torch.zeros(1))], 0.5)
    assert all(module.dropout == 0.5 for module in decoder.modules() if hasattr(module, "dropout"))
    assert not torch.equal(decoder(embeds), decoder(embeds))
    assert torch.equal(decoder.eval()(embeds), decoder(embeds))
