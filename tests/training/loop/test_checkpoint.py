"""A checkpoint keeps what a task says changes without being learnt, and puts it back in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from openblip.errors import OpenBlipError
from openblip.training.loop.checkpoint import TrainingState
from openblip.training.parallel.processes import ALONE


def state_of(others: dict[str, Tensor]) -> TrainingState:
    weight = nn.Parameter(torch.zeros(2, 3))
    return TrainingState(
        {"weight": weight},
        torch.optim.AdamW([weight]),
        torch.amp.GradScaler("cpu", enabled=False),
        None,
        9,
        ALONE,
        {},
        others,
    )


def test_what_is_not_learnt_comes_back_in_place(tmp_path: Path) -> None:
    queue, place = torch.randn(4, 5), torch.tensor([3])
    state_of({"queue": queue, "place": place}).save(tmp_path)
    again = {"queue": torch.zeros(4, 5), "place": torch.tensor([0])}
    kept = again["queue"]
    assert state_of(again).load(tmp_path)
    assert torch.equal(kept, queue) and torch.equal(again["place"], place)


@pytest.mark.parametrize("others", [{}, {"queue": torch.zeros(4, 6)}, {"queue": torch.zeros(4, 5).half()}])
def test_another_state_is_refused(others: dict[str, Tensor], tmp_path: Path) -> None:
    state_of({"queue": torch.zeros(4, 5)}).save(tmp_path)
    with pytest.raises(OpenBlipError, match="cannot be read, it is not whole"):
        state_of(others).load(tmp_path)


def test_a_checkpoint_from_before_there_was_such_state_is_read(tmp_path: Path) -> None:
    state_of({}).save(tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["others"]
    torch.save(content, tmp_path / "checkpoint.pt")
    assert state_of({}).load(tmp_path)
