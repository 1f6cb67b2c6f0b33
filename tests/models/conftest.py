from __future__ import annotations

import pytest

from openblip.devices import choose_placement
from openblip.models.load import model_of
from openblip.models.model import Model
from tests.models.blip_models import Make, small_parts


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Small BLIPs, each made once a file."""
    made: dict[str, Model] = {}

    def model(task: str) -> Model:
        if task not in made:
            parts = small_parts(task, tmp_path_factory.mktemp(task))
            made[task] = model_of(parts, choose_placement("cpu", "float32"))
        return made[task]

    return model
