"""What a run has learnt so far, in one file: weights, optimizer, EMA, and how far it is."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.tensors.pickles import unpickle
from openblip.checkpoints.tensors.writing import write_pickled
from openblip.errors import CheckpointError, OpenBlipError
from openblip.saving import replacing
from openblip.training.loop.ema import Ema
from openblip.training.loop.run_identity import FILE, Change, changes, differences
from openblip.training.parallel.fsdp import part_like, whole
from openblip.training.parallel.processes import World

CHECKPOINT_FILE = "checkpoint.pt"
BEST_FILE = "best.pt"
VERSION = 4
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
AFTER_BEST = "use the last weights instead of the best"


class OtherRunError(OpenBlipError):
    """A file that a run with other settings wrote.

    Attributes:
        changes: what was set otherwise then.
    """

    def __init__(self, path: Path, found: Sequence[str], otherwise: str, changes: Sequence[Change] = ()) -> None:
        text = f"{path} is of another run, which differs in {', '.join(found)}: delete it, or {otherwise}"
        if changes:
            text += f", or go on with its settings: {'; '.join(map(str, changes))}"
        super().__init__(text)
        self.path, self.found, self.otherwise, self.changes = path, found, otherwise, changes

    def renamed(self, names: Mapping[str, str]) -> OtherRunError:
        """The same by other names of the keys; keys without one follow from those that have one, if there are any."""
        named = [replace(change, key=names[change.key]) for change in self.changes if change.key in names]
        found = [change.key for change in named] or self.found
        return OtherRunError(self.path, found, self.otherwise, named or self.changes)


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
    """All that changes in a run. Parameters are those that learn: what is frozen is in the model it started from.

    Attributes:
        others: what changes without being learnt, see `openblip.training.tasks.task.Task.state`.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    total_steps: int
    world: World
    identity: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)
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
            "others": {name: whole(tensor).cpu() for name, tensor in self.others.items()},
            "scaler": self.scaler.state_dict(),
            "average": None if self.ema is None else self.ema.whole(),
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
        content = _read(path, "start the run from the beginning")
        self._require_own(content, path)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(part_like(content["parameters"][name], parameter))
                # Cloned: what was read is on disk still, in a file that is to be replaced.
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else part_like(value.clone(), parameter)
                    for key, value in content["optimizer"][name].items()
                }
            for name, tensor in self.others.items():
                tensor.copy_(part_like(content["others"][name], tensor))
        if self.ema is not None and content["average"] is not None:
            self.ema.load(content["average"])
        self.scaler.load_state_dict(content["scaler"])
        self.position = Position(**content["position"])
        return True

    def save_best(self, learnt: Mapping[str, Tensor], folder: Path) -> None:
        """Keep what was learnt as the best so far. Raises OpenBlipError when the disk is full; the old is kept."""
        write_whole({"version": VERSION, "identity": dict(self.identity), "weights": dict(learnt)}, folder / BEST_FILE)

    def best(self, folder: Path) -> dict[str, Tensor] | None:
        """What was kept as the best, still on disk; None when it is not there.

        Raises OpenBlipError when it is broken or of another run.
        """
        path = folder / BEST_FILE
        if not path.is_file():
            return None
        content = _read(path, AFTER_BEST)
        if content.get("version") != VERSION:
            raise OtherRunError(path, ["the version of OpenBLIP"], AFTER_BEST)
        then = _mapping(content.get("identity"))
        wrong = differences(then, self.identity)
        if wrong or not _alike(content.get("weights"), self.parameters):
            raise OtherRunError(path, wrong or ["what learns"], AFTER_BEST, changes(then, self.identity))
        return dict(content["weights"])

    def _require_own(self, content: Mapping[str, Any], path: Path) -> None:
        """Raises OpenBlipError when something keeps this run from going on from a checkpoint."""
        otherwise = "give this run another output folder"
        if content.get("version") != VERSION:
            raise OtherRunError(path, ["the version of OpenBLIP"], otherwise)
        then = _mapping(content.get("identity"))
        found = differences(then, self.identity)
        files = [name.removeprefix(FILE) for name in found if name.startswith(FILE)]
        if found and len(files) == len(found):
            raise OpenBlipError(
                f"what the run in {path.parent} started from has changed since: {', '.join(files)}. Put back what was "
                f"there, name the files that it started from, or delete {path} to start the run from the beginning"
            )
        if found:
            names = [name.removeprefix(FILE) for name in found]
            raise OtherRunError(path, names, otherwise, changes(then, self.identity))
        if content.get("total_steps") != self.total_steps or not _alike(content.get("parameters"), self.parameters):
            raise OtherRunError(path, ["its steps or what learns"], otherwise)
        whole = (
            _has_moments(content.get("optimizer"), self.parameters)
            and _alike(content.get("others", {}), self.others)
            and (self.ema is None or _alike(content.get("average"), self.parameters))
            and isinstance(content.get("scaler"), dict)
            and _is_position(content.get("position"), self.total_steps)
        )
        if not whole:
            raise OpenBlipError(_unreadable(path, "it is not whole", "start the run from the beginning"))

    def learnt(self) -> dict[str, Tensor]:
        """The weights to use, on the CPU: averaged where the run averages. Every process has to call."""
        if self.ema is not None:
            return self.ema.whole()
        return {name: whole(parameter).cpu().clone() for name, parameter in self.parameters.items()}

    def _moments(self, parameter: nn.Parameter) -> dict[str, Any]:
        return {key: whole(value).cpu() for key, value in self.optimizer.state[parameter].items()}


def _read(path: Path, then: str) -> Mapping[str, Any]:
    """What a file of ours holds: tensors, which stay on disk until they are looked at, and plain values.

    Raises OpenBlipError when it is broken, or could run code; `then` says what deleting it brings about.
    """
    try:
        return _mapping(unpickle(path))
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{path} ").partition(": ")[0]
        raise OpenBlipError(_unreadable(path, f"it {reason}", then)) from error


def _unreadable(path: Path, reason: str, then: str) -> str:
    return f"{path} cannot be read, {reason}: put back the file that the run wrote, or delete it to {then}"


def _mapping(content: object) -> Mapping[str, Any]:
    return content if isinstance(content, dict) else {}


def _alike(found: object, parameters: Mapping[str, Tensor]) -> bool:
    """Whether these are tensors of such names, shapes and types."""
    tensors = _mapping(found)
    return tensors.keys() == parameters.keys() and all(
        isinstance(tensors[name], Tensor)
        and tensors[name].shape == parameter.shape
        and tensors[name].dtype == parameter.dtype
        for name, parameter in parameters.items()
    )


def _has_moments(found: object, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether these are AdamW's: two tensors like each parameter, and a number. There are none before a first step."""
    moments = _mapping(found)
    if moments.keys() != parameters.keys():
        return False
    for name, parameter in parameters.items():
        own = _mapping(moments[name])
        if not all(isinstance(value, Tensor) and value.shape in (parameter.shape, ()) for value in own.values()):
            return False
        if own and own.keys() != MOMENTS:
            return False
    return True


def _is_position(found: object, total_steps: int) -> bool:
    values = _mapping(found)
    if values.keys() != {part.name for part in fields(Position)}:
        return False
    counts = [values[name] for name in ("epoch", "step", "total", "best_epoch")]
    return all(isinstance(count, int) and 0 <= count <= total_steps for count in counts) and isinstance(
        values["best"], float | None
    )


def write_whole(content: object, path: Path) -> None:
    """Write with torch.save so that a kill leaves the old file or the new one.

    Raises OpenBlipError when the disk is full; the old file is kept.
    """
    size = 0
    try:
        with replacing(path) as draft:
            try:
                write_pickled(content, draft)
            finally:
                size = draft.stat().st_size if draft.exists() else 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = f"the disk is full after {size / 1e6:.0f} MB" if full else error.strerror or str(error)
        raise OpenBlipError(
            f"{path} cannot be written, {reason}: make room and start the same recipe again, which goes on from the "
            "checkpoint before"
        ) from error
