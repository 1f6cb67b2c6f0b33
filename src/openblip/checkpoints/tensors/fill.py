"""A network from one file or folder of weights, by a plan of where its tensors lie in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from openblip.checkpoints.names.engine import Plan
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.assign import Placer
from openblip.checkpoints.tensors.files import LET_GO_BYTES, refuse_misfits


class NamedTensors(Protocol):
    """A file or folder of weights."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def read(self, name: str) -> Tensor: ...
    def let_go(self) -> None: ...


def fill(
    network: Any, weights: NamedTensors, plan: Plan, path: Path, options: ReadOptions, fresh: Mapping[str, Tensor]
) -> Any:
    """The network, in evaluation mode, with its tensors, each read, cast or quantized, and put in its place by itself.

    Args:
        network: on the meta device.
        path: the file or folder that errors name.
        fresh: what tensors start as that the file lacks.

    Raises:
        CheckpointError: tensors are missing, of another shape or broken.
    """

    def describe(name: str) -> str:
        return f"{path}: {plan.rows[name][0].name if name in plan.rows else name}"

    placer = Placer(network, path, options, describe)
    misfits = [f"{name} is missing" for name in placer.wanted if name not in plan.rows and name not in fresh]
    misfits += [f"{name} is unknown" for name in plan.rows if name not in placer.wanted]
    for name, shape in placer.wanted.items():
        rows = plan.rows.get(name, ())
        for row in rows:
            part = row.stored_shape(shape, len(rows))
            if weights.shapes[row.name] != part:
                misfits.append(f"{row.name} is {list(weights.shapes[row.name])}, not {list(part)}")
    refuse_misfits(path, misfits)
    read = 0
    for name in placer.to_put:
        pieces = plan.pieces(name, weights.read) if name in plan.rows else [fresh[name]]
        placer.put(name, *pieces)
        read += sum(piece.nbytes for piece in pieces)
        if read > LET_GO_BYTES:
            read = 0
            weights.let_go()
    return placer.finish()
