"""What a run has learnt so far, in one file: weights, optimizer, average, and how far it is."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.errors import OpenBlipError
from openblip.training.averaging import Average
from openblip.training.distributed import World
from openblip.training.sharding import part_like, whole

CHECKPOINT_FILE = "checkpoint.pt"
VERSION = 3


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: steps of the optimizer that are done of `epoch`; total: in all.
        best: the best evaluation so far, and `best_epoch`, after which it was; None before the first.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    best: float | None = None
    best_epoch: int = 0


@dataclass
class TrainingState:
    """All that changes in a run. Parameters are those that learn: what is frozen is in the model it started from."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    total_steps: int
    world: World
    identity: Mapping[str, str] = field(default_factory=dict)
    position: Position = field(default_factory=Position)

    def save(self, folder: Path) -> None:
        """Write the file; a kill leaves the old one or the new one. Every process has to call.

        Raises OpenBlipError when the disk is full; the old one is kept.
        """
        content = {
            "version": VERSION,
            "identity": dict(self.identity),
            "parameters": {name: whole(parameter).cpu() for name, parameter in self.parameters.items()},
            "optimizer": {name: self._moments(parameter) for name, parameter in self.parameters.items()},
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.whole(),
            "position": asdict(self.position),
            "total_steps": self.total_steps,
        }
        if self.world.rank:
            return
        write_whole(content, folder / CHECKPOINT_FILE)

    def load(self, folder: Path) -> bool:
        """Go on from the file, if there is one. Raises OpenBlipError when it is broken or of another run."""
        path = folder / CHECKPOINT_FILE
        if not path.is_file():
            return False
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            same = (
                content["version"] == VERSION
                and content["total_steps"] == self.total_steps
                and set(content["parameters"]) == set(self.parameters)
            )
            changed = [key for key, value in self.identity.items() if same and content["identity"].get(key) != value]
        except Exception as error:  # torch.load raises whatever a broken file brings about
            raise OpenBlipError(
                f"{path} cannot be read ({type(error).__name__}): delete it to start the run from the beginning"
            ) from error
        if not same:
            raise OpenBlipError(f"{path} is of another run: delete it, or give this run another output folder")
        if changed:
            raise OpenBlipError(
                f"{path} is of another run, which differs in {', '.join(changed)}: "
                "delete it, or give this run another output folder"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(part_like(content["parameters"][name], parameter))
                self.optimizer.state[parameter] = {
                    key: part_like(value, parameter) if value.ndim else value
                    for key, value in content["optimizer"][name].items()
                }
        if self.average is not None and content["average"] is not None:
            self.average.take(content["average"])
        self.scaler.load_state_dict(content["scaler"])
        self.position = Position(**content["position"])
        return True

    def learnt(self) -> dict[str, Tensor]:
        """The weights to use, on the CPU: averaged where the run averages. Every process has to call."""
        if self.average is not None:
            return self.average.whole()
        return {name: whole(parameter).cpu().clone() for name, parameter in self.parameters.items()}

    def _moments(self, parameter: nn.Parameter) -> dict[str, Any]:
        return {key: whole(value).cpu() for key, value in self.optimizer.state[parameter].items()}


def write_whole(content: object, path: Path) -> None:
    """Write with torch.save so that a kill leaves the old file or the new one.

    Raises OpenBlipError when the disk is full; the old file is kept.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        with draft.open("wb") as file:
            torch.save(content, file)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        size = draft.stat().st_size if draft.exists() else 0
        draft.unlink(missing_ok=True)
        # What writes archives tells of a full disk by a RuntimeError of its own.
        full = isinstance(error, RuntimeError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = f"the disk is full after {size / 1e6:.0f} MB" if full else str(error)
        raise OpenBlipError(
            f"{path} cannot be written, {reason}: make room and start the same recipe again, which goes on from the "
            "checkpoint before"
        ) from error
