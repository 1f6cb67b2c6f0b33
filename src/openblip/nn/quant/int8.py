"""Linear layers and word tables with 8-bit weights: a quarter of the memory, and on the CPU several times the speed.

A weight is a whole number from -127 to 127 times its row's scale; inputs are quantized the same way, row by row, as
they come (https://arxiv.org/abs/2208.07339, section 2, without its outliers). The product of the whole numbers is
exact, so the error of a layer is that of rounding its weights and its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.quant.int8_packing import LEVELS, TINY, TO_WHOLE, Ordered, Rows, input_levels, put_in_order
from openblip.nn.quant.linear import HALF_TYPES, linear
from openblip.nn.threads import in_row_parts, on_threads, row_parts

PACKING = Lock()
PACK_AFTER = 512
"""What a layer has to have lost before it is packed: about what packing costs. A program that makes one caption never
packs, one that makes many does so while it makes the first few."""
LOSS_OF_ONE, LOSS_OF_FEW = 3, 12
"""What plain weights lose by a product of one row, and of up to `FEW_ROWS`."""
FEW_ROWS = 32
ROWS_A_LOSS = 7
"""Of more rows than those, so many lose 1."""
TWICE = 2**25
"""Numbers of a word table that may be there twice: 34 MB."""
ROWS_OF_AN_IMAGE = 100
"""What is packed for its first product is packed for many rows from here on: prompts have fewer, images more."""
GPU_ROWS, GPU_MULTIPLE = 32, 8
"""A GPU's product of whole numbers wants more than 16 rows, and sizes of matrices that are a multiple."""


def quantize_weight(*pieces: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] of any floating type to int8 [out, in] and the scale of each row [out], float32.

    Args:
        pieces: of the matrix, from top to bottom.

    Raises:
        ValueError: a weight is not finite.
    """
    height, width, device = sum(map(len, pieces)), pieces[0].shape[1], pieces[0].device
    codes = torch.empty(height, width, dtype=torch.int8, device=device)
    scales = torch.empty(height, 1, dtype=torch.float32, device=device)
    parts = row_parts(pieces)
    heights = [len(part) for part in parts]

    def work(taken: Iterator[tuple[Tensor, Tensor, Tensor]]) -> None:
        # One place for all parts: memory that is new each time costs more than the arithmetic. And few steps for each
        # part: starting one costs a hundredth of all.
        rooms = {rows: _Room(rows, width, device) for rows in set(heights)}
        levels = torch.full((1,), float(LEVELS), device=device)
        for part, whole, scale in taken:
            room = rooms[len(part)]
            # Before the cast: the numbers come into the cache in what is the smaller type.
            highest = room.largest(part) if part.dtype in HALF_TYPES else None
            room.values.copy_(part)
            torch.div(room.largest(room.values) if highest is None else highest, levels, out=scale).clamp_(min=TINY)
            # The quotient is rounded before the sum is. The sum's last byte is the whole number.
            torch.addcdiv(room.added, room.values, scale, out=room.values)
            whole.copy_(room.whole)

    on_threads(work, list(zip(parts, torch.split(codes, heights), torch.split(scales, heights), strict=True)), device)
    if not scales.isfinite().all():
        raise ValueError("a weight is infinite or no number")
    return codes, scales[:, 0]


class _Room:
    """Where parts of a matrix of so many rows are quantized, one after the other.

    Attributes:
        values: float32 [rows, width]; whole: the same bits as int32.
        added: `TO_WHOLE` for each of them.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.values = torch.empty(rows, width, device=device)
        self.whole = self.values.view(torch.int32)
        # Whole rows of it are in memory: operations on a lone number, repeated, are not vectorized.
        self.added = torch.full((1, width), TO_WHOLE, device=device).expand(rows, width)
        self._bits = {torch.int32: torch.empty(rows, width, dtype=torch.int32, device=device)}
        self._bits[torch.int16] = self._bits[torch.int32].view(-1).view(torch.int16)[: rows * width].view(rows, width)

    def largest(self, part: Tensor) -> Tensor:
        """The largest magnitude in each row [rows, 1] of float32 or a half type; NaN or infinite if a number is.

        The bits of floating-point numbers without their signs, read as whole numbers, are in the order of the numbers.
        Whole numbers are compared faster, on CPUs without AVX several times so.
        """
        kind = torch.int32 if part.dtype == torch.float32 else torch.int16
        bits = torch.bitwise_and(part.view(kind), torch.iinfo(kind).max, out=self._bits[kind])
        return bits.amax(dim=1, keepdim=True).view(part.dtype)


def plain_product(rows: Rows, codes: Tensor, scale: Tensor) -> Tensor:
    """Whole numbers [N, in] @ weights [out, in] int8 as they are, times their scale [out]: [N, out] float32."""
    return torch._int_mm(rows.signed(), codes.t()).to(torch.float32).mul_(scale)


def scaled(y: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    """Products of whole numbers y [N, out], which may be overwritten, times the step of each row [N, 1], plus bias."""
    if bias is None:
        return y.mul_(step)
    # New memory costs more than the sum; a bias that learns needs it.
    return torch.addcmul(bias.float(), y, step, out=None if torch.is_grad_enabled() else y)


def gpu_product(rows: Rows, codes: Tensor, scale: Tensor) -> Tensor:
    """As `plain_product`, in the shapes that CUDA takes: weights are read as they are, a byte each."""
    padded = F.pad(rows.signed(), (0, 0, 0, max(0, GPU_ROWS - len(rows))))
    return torch._int_mm(padded, codes.t())[: len(rows)].to(torch.float32).mul_(scale)


@cache
def gpu_multiplies(device: torch.device) -> bool:
    """Whether this GPU has an exact product of whole numbers: tried out, once."""
    whole, codes = torch.full((1, 64), float(LEVELS)), torch.full((16, 64), LEVELS, dtype=torch.int8)
    try:
        found = gpu_product(Rows(whole.to(device)), codes.to(device), torch.ones(16, device=device))
    except RuntimeError:
        return False
    return bool((found == LEVELS * LEVELS * 64).all())


def multiplies_on_gpu(x: Tensor, outputs: int) -> bool:
    """Whether inputs [..., in] may be multiplied by weights [outputs, in] as whole numbers on the GPU they are on."""
    fits = not (outputs % GPU_MULTIPLE or x.shape[-1] % GPU_MULTIPLE)
    return x.device.type == "cuda" and fits and not _learns(x) and gpu_multiplies(x.device)


def float_product(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """rows [N, in] @ weights [out, in] int8 times their scale [out], in the rows' type: where there is no other way."""
    weight = codes.to(rows.dtype)
    if rows.dtype == torch.float16:
        # Sums of whole numbers leave its range, which ends at 65,504; a power of two costs no digit.
        weight, scale = weight.mul_(1 / (LEVELS + 1)), scale * (LEVELS + 1)
    return linear(rows, weight) * scale.to(rows.dtype)


class Losses:
    """What products of plain weights have lost, by few rows and by many, in the measure of `PACK_AFTER`."""

    def __init__(self) -> None:
        self.by_few = self.by_many = 0

    def add(self, rows: int) -> None:
        """Count a product."""
        if rows > FEW_ROWS:
            self.by_many += rows // ROWS_A_LOSS
        else:
            self.by_few += LOSS_OF_ONE if rows == 1 else LOSS_OF_FEW

    @property
    def enough(self) -> bool:
        """Whether packing has become worth it."""
        return self.by_few + self.by_many >= PACK_AFTER


class Int8Linear(nn.Module):
    """Takes the place of a linear layer.

    Attributes:
        weight: int8 [out, in]; empty once packed.
        scale: float32 [out]; bias: float32 [out] or None.
        packed: the weights in an order in which the CPU reads them fastest, that for few or that for many rows,
            whichever it has had to multiply; in place of the plain ones, None before. Results are the same, bit for
            bit.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if in_features < 2:
            # PyTorch 2.13 reads past the end of such matrices.
            raise ValueError("a layer of 8 bits has at least 2 inputs")
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.packed: Ordered | None = None
        self.losses = Losses()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def put(self, codes: Tensor, scale: Tensor) -> None:
        """Set the weights: int8 [out, in] and float32 [out]."""
        if codes.shape != (self.out_features, self.in_features) or scale.shape != (self.out_features,):
            raise ValueError(
                f"codes {list(codes.shape)} and scales {list(scale.shape)} are not those of "
                f"{self.out_features} rows of {self.in_features}"
            )
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.packed = None
        self.losses = Losses()

    def take(self, *pieces: Tensor) -> None:
        """Set the weights from those of a layer in floating point [out, in], whole or in pieces from top to bottom.

        Raises:
            ValueError: one is not finite.
        """
        self.put(*quantize_weight(*pieces))

    def pack(self, few_rows: bool | None = None) -> None:
        """Bring the weights into the CPU's order now; nothing where there is none.

        Args:
            few_rows: the order for few rows or that for many; None: by what it has had to multiply so far.
        """
        # Two threads that come here together would pack what the first has emptied.
        with PACKING:
            if self.packed is None and self.weight.device.type == "cpu" and input_levels() is not None:
                few_rows = self.losses.by_few >= self.losses.by_many if few_rows is None else few_rows
                self.packed = put_in_order(self.weight.detach(), self.scale.detach(), few_rows)
                self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)

    def unpack(self) -> None:
        """Bring the weights back into plain order."""
        with PACKING:
            if self.packed is not None:
                self.weight = nn.Parameter(self.packed.codes(), requires_grad=False)
                self.packed = None

    def codes(self) -> Tensor:
        """The weights, int8 [out, in]."""
        return self.weight if self.packed is None else self.packed.codes()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and input_levels() is None:
            return self._forward(x)  # all rows at once, as each part would bring the weights to floating point anew
        return in_row_parts(self._forward, x, max(self.in_features, self.out_features))

    def _forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        # Products of whole numbers send no gradient back to what adapters below have done.
        levels = input_levels() if x.device.type == "cpu" and not _learns(x) else None
        if levels is not None:
            y = self.multiply(Rows(rows.float(), levels))
            return y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        if multiplies_on_gpu(x, self.out_features):
            quantized = Rows(rows.float())
            y = gpu_product(quantized, self.codes(), self.scale)
        else:
            return self.dequantized(rows).view(*x.shape[:-1], self.out_features)
        return scaled(y, quantized.step, self.bias).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def multiply(self, rows: Rows) -> Tensor:
        """The layer on quantized inputs [N, in] on the CPU: [N, out] float32."""
        if self.packed is None:
            self._count(len(rows), rows.levels)
        weight = self.weight  # taken before `packed` is looked at: another thread may be packing
        packed = self.packed
        y = plain_product(rows, weight, self.scale) if packed is None else packed.product(rows)
        return scaled(y, rows.step, self.bias)

    def _count(self, rows: int, levels: int) -> None:
        """Pack once it has become worth it, or at once where plain weights cannot be multiplied exactly."""
        if levels != LEVELS:
            self.pack(few_rows=rows < ROWS_OF_AN_IMAGE)
            return
        self.losses.add(rows)
        if self.losses.enough:
            self.pack()

    def dequantized(self, rows: Tensor) -> Tensor:
        """The layer on inputs [N, in] as they are: in training, and on a device without a product of whole numbers."""
        y = float_product(rows, self.codes(), self.scale)
        return y if self.bias is None else y + self.bias.to(rows.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        self.unpack()  # what is packed would stay where it is: perhaps on another device than the rest will be
        scale = self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Casting a network means the type that it computes in, not the scales of its weights.
        self.scale = nn.Parameter(scale.to(self.scale.device), requires_grad=False)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the layer, in another process perhaps, has plain weights: packed ones cannot be copied.
        state = self.__dict__.copy()
        if self.packed is not None:
            weight = nn.Parameter(self.codes(), requires_grad=False)
            state |= {"packed": None, "_parameters": {**self._parameters, "weight": weight}}
        return state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[prefix + "weight"] = self.codes()


def project(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """What each of some linear layers gives for x [..., in]: where all have 8 bits, x is quantized once for all."""
    levels = input_levels() if x.device.type == "cpu" and not _learns(x) else None
    plain = [layer for layer in layers if type(layer) is Int8Linear and not layer._forward_hooks]
    if levels is None or len(plain) < len(layers):
        return [layer(x) for layer in layers]
    rows = Rows(x.reshape(-1, x.shape[-1]).float(), levels)
    return [layer.multiply(rows).to(x.dtype).view(*x.shape[:-1], layer.out_features) for layer in plain]


def _learns(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


class Int8WordTable(nn.Module):
    """Takes the place of a word table: int8 [words, width] and a float32 scale a word.

    Attributes:
        dtype: of the vectors that come out: what the network was cast to.
        packed: the table a second time, in the order for few rows or that for many: where plain codes have no exact
            product, as every step would turn the whole table into floats otherwise, and for small tables as soon as it
            is worth it (see `Int8Linear`), as those of BERT. None elsewhere, and before.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.dtype = torch.get_default_dtype()
        self.num_embeddings, self.embedding_dim = words, width
        self.weight = nn.Parameter(torch.empty(words, width, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(words), requires_grad=False)
        self.packed: Ordered | None = None
        self.losses = Losses()

    def put(self, codes: Tensor, scale: Tensor) -> None:
        """Set the table: int8 [words, width] and float32 [words]."""
        if codes.shape != (self.num_embeddings, self.embedding_dim) or scale.shape != (self.num_embeddings,):
            raise ValueError(f"codes {list(codes.shape)} and scales {list(scale.shape)} are not those of this table")
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.packed = None

    def take(self, *pieces: Tensor) -> None:
        """Set the table from one in floating point [words, width]. Raises ValueError: a number is not finite."""
        self.put(*quantize_weight(*pieces))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [...] to vectors [..., width]."""
        return (self.weight[ids] * self.scale[ids][..., None]).to(self.dtype)

    def scores(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `WordTable.scores`."""
        rows = hidden.reshape(-1, self.embedding_dim)
        levels = input_levels() if rows.device.type == "cpu" and not _learns(hidden) else None
        if levels is not None:
            quantized = Rows(rows.float(), levels)
            y = self._product(quantized).mul_(quantized.step)
        elif multiplies_on_gpu(hidden, self.num_embeddings):
            quantized = Rows(rows.float())
            y = gpu_product(quantized, self.weight, self.scale).mul_(quantized.step)
        else:
            y = float_product(rows, self.weight, self.scale)
        y = y if bias is None else y + bias
        return y.to(hidden.dtype).view(*hidden.shape[:-1], self.num_embeddings)

    def _product(self, rows: Rows) -> Tensor:
        packed = self.packed
        if packed is None and rows.levels == LEVELS:
            self.losses.add(len(rows))
            if self.weight.numel() > TWICE or not self.losses.enough:
                return plain_product(rows, self.weight, self.scale)
        if packed is None:
            few_rows = rows.levels != LEVELS or self.losses.by_few >= self.losses.by_many
            with PACKING:
                if self.packed is None:
                    self.packed = put_in_order(self.weight.detach(), self.scale.detach(), few_rows)
                packed = self.packed
        return packed.product(rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8WordTable:
        self.packed = None
        scale = self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = self.scale.dtype
        self.scale = nn.Parameter(scale.to(self.scale.device), requires_grad=False)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}
