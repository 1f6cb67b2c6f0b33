"""What is written for LAVIS has exactly its names and shapes, and reads back bit for bit."""

from __future__ import annotations

import pytest
import torch

from openblip.checkpoints import blip2_models
from openblip.checkpoints.hub.sources import WebFile
from openblip.checkpoints.lavis.write import to_lavis
from openblip.checkpoints.model_entry import VISION, ModelEntry
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Network
from tests.checkpoints.official import FILES, shapes_of
from tests.pairs.lavis import recorded_config, recorded_weights
from tests.pairs.lavis_names import blip2_from_lavis

OFFICIAL = [
    (model, source.name)
    for model in blip2_models.OFFICIAL
    for source in model.files[:1]
    if isinstance(source, WebFile) and source.name in FILES
]


@pytest.mark.parametrize(("model", "file"), OFFICIAL, ids=[file for _, file in OFFICIAL])
def test_real_sizes_have_the_official_keys(model: ModelEntry, file: str) -> None:
    config = model.config()
    tuned = VISION in model.files[0].supplies
    with torch.device("meta"):
        network = Blip2Network(config)
        written = to_lavis(network.state_dict(), config)
    tensors = written.whole() if tuned else written.checkpoint
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes_of(file)
    if model.vision is not None and model.vision.name == "eva_vit_g" and not tuned:
        assert {name: tuple(tensor.shape) for name, tensor in written.vision.items()} == shapes_of("eva_vit_g.pth")


def test_most_official_files_are_covered() -> None:
    assert len(OFFICIAL) >= 8


@pytest.mark.parametrize("stage", [1, 2])
def test_round_trip(stage: int) -> None:
    config, theirs = recorded_config(stage), recorded_weights(stage)
    state = blip2_from_lavis(theirs, config)
    written = to_lavis(state, config)
    prefixed = {f"opt_model.{name}": tensor for name, tensor in written.language.items()}
    again = written.whole() | prefixed
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())
    back = blip2_from_lavis(again, config)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_another_image_encoder_has_no_place(tiny_parts: object) -> None:
    from openblip.checkpoints.model_parts import ModelParts

    assert isinstance(tiny_parts, ModelParts)
    with pytest.raises(CheckpointError, match="another image encoder"):
        to_lavis(tiny_parts.network.state_dict(), tiny_parts.network.config)
