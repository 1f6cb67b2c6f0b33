"""Tensors from files, one at a time, into a network that has no memory yet: cast, moved or quantized on their way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openblip.checkpoints.read_options import DEFAULT_OPTIONS, ReadOptions
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Network
from openblip.nn.memory import give_back
from openblip.nn.quant.swap import Quantized, quantized_layers, swap_layers
from openblip.nn.threads import on_threads, part_elements

if TYPE_CHECKING:
    from openblip.checkpoints.lora.fit import AdapterFit

WEIGHT = "weight"
VARIANCE = "running_var"
NOT_FINITE = "holds numbers that are infinite or none (NaN): get the file again, or the checkpoint of before"
SMALL_ELEMENTS = 2**17
"""Tensors of no more than so many numbers are checked together with others."""
VISION = "vision."
"""Names of the image encoder's tensors begin so."""


class Placer:
    """Fills a network that was built on the meta device.

    At no time does more than one tensor exist twice.

    Attributes:
        wanted: names and shapes of the network's tensors, in its order, as they are in floating point.
        to_put: those of them that are not left out.
    """

    def __init__(
        self,
        network: Blip2Network,
        source: Path,
        options: ReadOptions = DEFAULT_OPTIONS,
        describe: Callable[[str], str] | None = None,
    ) -> None:
        """
        Args:
            source: the file or folder that errors name.
            options: `bits` None is 0 here: how tensors are stored is known to their reader.
            describe: what errors call a tensor of `wanted`: its file and its name there.

        Raises CheckpointError when the adapter does not fit.
        """
        self.network, self.source, self.options = network, source, options
        self.device = options.device
        self.describe = describe or (lambda name: f"{source}: {name}")
        empty = network.state_dict()
        self.wanted = {name: tuple(tensor.shape) for name, tensor in empty.items()}
        self.to_put = {name: shape for name, shape in self.wanted.items() if not options.leaves_out(name)}
        self._counted = {name for name, tensor in empty.items() if not tensor.is_floating_point()}
        self._adapter: AdapterFit | None = None
        if options.adapter is not None:
            from openblip.checkpoints.lora import fit  # few loads need it, and it takes time to import

            self._adapter = fit.AdapterFit(options.adapter, network, self.wanted)
        if options.bits:
            swap_layers(network, options.bits)
        self._layers = quantized_layers(network)
        self._state: dict[str, Tensor] = {}
        self._unchecked: list[tuple[str, Tensor, Tensor]] = []
        self._unchecked_elements = 0

    def layer(self, name: str) -> Quantized | None:
        """The quantized layer whose weight this is."""
        owner, _, leaf = name.rpartition(".")
        return self._layers.get(owner) if leaf == WEIGHT else None

    def changes(self, name: str) -> bool:
        """Whether an adapter is merged into this tensor."""
        return self._adapter is not None and name in self._adapter.changed

    def put(self, name: str, *pieces: Tensor, is_new: bool = False) -> None:
        """Give the network one of `wanted`, whole or in pieces along its first dimension, which may be thrown away
        afterwards.

        Args:
            is_new: the one piece is finite, and lies in memory that nobody else has: it is taken itself where it is of
                the right type.

        Raises CheckpointError when it is of another kind than the network's, as codes without their scales are, or
        is not finite, as it is stored or once it is cast.
        """
        for tensor in pieces:
            if not tensor.is_floating_point() and name not in self._counted:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise CheckpointError(
                    f"{self.describe(name)} is {kind}, not a number with a fraction: get the file again"
                )
        if self.changes(name):
            pieces = (self._merged(name, _joined(pieces)),)
        layer = self.layer(name)
        if layer is not None:
            try:
                layer.take(*(piece.to(self.device) for piece in pieces))
            except ValueError as error:
                raise CheckpointError(f"{self.describe(name)} cannot be quantized, {error}") from error
            return
        if name in self._counted:
            self._state[name] = _joined(pieces).to(self.device, copy=True).contiguous()
            return
        dtype = self.options.dtype_of(name)
        first = pieces[0]
        if is_new and first.dtype == dtype and first.device == self.device and not self.changes(name):
            self._state[name] = first
        elif self.device.type == "cpu" and len(pieces) == 1 and first.numel() <= SMALL_ELEMENTS:
            self._check_later(name, first.to(dtype, copy=True).contiguous(), first)
        else:
            tensor, total = copied(pieces, dtype, self.device)
            if not math.isfinite(total):
                self._check(name, tensor, pieces)
            self._state[name] = tensor
        if name.endswith(VARIANCE) and bool((self._state[name] < 0).any()):
            raise CheckpointError(f"{self.describe(name)} holds variances below 0: get the file again")

    def _check_later(self, name: str, tensor: Tensor, source: Tensor) -> None:
        """Give the network a tensor that is looked at together with others, while they are in the processor's cache:
        each by itself would cost more than its copy.
        """
        self._state[name] = tensor
        self._unchecked.append((name, tensor, source))
        self._unchecked_elements += tensor.numel()
        if self._unchecked_elements > SMALL_ELEMENTS:
            self._check_waiting()

    def _check_waiting(self) -> None:
        waiting, self._unchecked, self._unchecked_elements = self._unchecked, [], 0
        # A sum is finite only if all numbers are.
        if waiting and not math.isfinite(torch.cat([tensor.flatten() for _, tensor, _ in waiting]).float().sum()):
            for name, tensor, source in waiting:
                self._check(name, tensor, [source])

    def _check(self, name: str, tensor: Tensor, pieces: Sequence[Tensor]) -> None:
        if not tensor.isfinite().all():
            self._refuse(name, pieces, tensor.dtype)

    def _refuse(self, name: str, pieces: Sequence[Tensor], dtype: torch.dtype) -> None:
        wide = [piece.double() for piece in pieces if piece.numel()]
        if not all(bool(piece.isfinite().all()) for piece in wide):
            raise CheckpointError(f"{self.describe(name)} {NOT_FINITE}")
        largest = max(float(piece.abs().max()) for piece in wide)
        kind = str(dtype).removeprefix("torch.")
        others = " or ".join(other for other in ("bfloat16", "float32") if other != kind)
        raise CheckpointError(
            f"{self.describe(name)} holds numbers up to {largest:.3g}, which {kind} has no room for: "
            f"load the model as {others}"
        )

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self._adapter is None else self._adapter.merged(name, tensor)

    def finish(self) -> Blip2Network:
        """The network with all its tensors but those left out, in evaluation mode.

        Raises CheckpointError when one is missing or not finite.
        """
        self._check_waiting()
        self.network.load_state_dict(self._state, assign=True, strict=False)
        for name, tensor in self.network.state_dict().items():
            if tensor.is_meta and not self.options.leaves_out(name):
                raise CheckpointError(f"{self.source} lacks {name}: get the file again")
        give_back()
        return self.network.eval()


def copied(pieces: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, float]:
    """Pieces, joined along their first dimension and cast, in memory of their own; and the sum of all numbers.

    The sum is finite only if they all are. It is taken of what has just been written, while it is in the processor's
    cache: memory is not gone through twice.
    """
    first, most = pieces[0], part_elements(device, sum(piece.numel() for piece in pieces))
    if device.type != "cpu" or (len(pieces) == 1 and first.numel() <= most):
        tensor = _joined(pieces).to(device, dtype, copy=True).contiguous()
        return tensor, float(tensor.sum())
    tensor = torch.empty(sum(map(len, pieces)), *first.shape[1:], dtype=dtype)

    def work(taken: Iterator[tuple[Tensor, Tensor]]) -> float:
        sums = [filled.copy_(part).sum() for filled, part in taken]
        return float(torch.stack(sums).float().sum()) if sums else 0.0

    sources = [part for piece in pieces for part in torch.split(piece.reshape(-1), most)]
    places = torch.split(tensor.view(-1), [len(part) for part in sources])
    return tensor, sum(on_threads(work, list(zip(places, sources, strict=True)), device))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
