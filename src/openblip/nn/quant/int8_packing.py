"""Orders in which the CPU's libraries read 8-bit weights fastest, and their products of whole numbers.

PyTorch brings two such libraries along. FBGEMM (https://arxiv.org/abs/2101.05615) reads weights as fast as memory gives
them when there are few rows to multiply, as in decoding; oneDNN is ahead when there are many, as in an image encoder.
Both give the same numbers, bit for bit, which are also those of the product of plain weights.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.nn.memory import Gatherer

LEVELS = 127
CHANGING_ENGINE = Lock()
GATHERER = Gatherer()
PIECE = 5 * 2**20
"""Weights that FBGEMM packs at a time where that has to be quick."""
GATHER_AFTER = 64
"""Products after which weights that were packed so are put into huge pages: three captions."""
PADDED_ROWS = 4
"""oneDNN multiplies a single row faster when it is there several times."""
TINY = 1e-30
TO_WHOLE = 1.5 * 2**23
"""Numbers of this size in float32 are whole: what is added to it is rounded, half to even, and its last byte is 0."""


class Rows:
    """Inputs of layers, quantized row by row: each value is about a whole number times the step of its row.

    Args:
        x: float32 [N, in].
        levels: the largest magnitude of the whole numbers.

    Attributes:
        step: float32 [N, 1].
    """

    def __init__(self, x: Tensor, levels: int = LEVELS) -> None:
        highest, lowest = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
        self.levels, self._x = levels, x
        self.step = torch.maximum(highest, lowest.neg_()).clamp_(min=TINY).div_(levels)
        self._floats: Tensor | None = None
        self._bytes: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._x)

    def floats(self) -> Tensor:
        """The whole numbers, in float32."""
        if self._floats is None:
            self._floats = (self._x / self.step).round_()
        return self._floats

    def signed(self) -> Tensor:
        """The whole numbers, in int8."""
        return self._whole(0)

    def unsigned(self) -> Tensor:
        """The whole numbers plus `zero`, in uint8."""
        return self._whole(self.zero).view(torch.uint8)

    @property
    def zero(self) -> int:
        """What stands for zero among unsigned numbers."""
        return self.levels + 1

    def _whole(self, zero: int) -> Tensor:
        found = self._bytes.get(zero)
        if found is None:
            # The quotient is rounded before the sum is, as `floats` does it. The sum's last byte is the whole number;
            # PyTorch cuts off the others ten times as fast as it turns floats into uint8.
            start = torch.full((1, self._x.shape[1]), TO_WHOLE + zero, device=self._x.device)
            found = self._bytes[zero] = torch.addcdiv(start, self._x, self.step).view(torch.int32).to(torch.int8)
        return found


class Ordered(Protocol):
    """Weights in the order of a library.

    Attributes:
        nbytes: memory of the weights.
    """

    nbytes: int

    def product(self, rows: Rows) -> Tensor:
        """The whole numbers of rows [N, in] @ weights times their scale.

        Returns:
            [N, out] float32.
        """

    def codes(self) -> Tensor:
        """The weights as they were, int8 [out, in]."""


class ForFewRows:
    """FBGEMM's order, of weights [out, in] int8 with scales [out].

    Args:
        quickly: pack in pieces, in a third of the time and on all threads; a product of one row then takes a tenth
            longer. FBGEMM walks down the columns of a matrix, and those of a large one do not fit into a cache.

    Raises:
        AttributeError, RuntimeError: this PyTorch has none.
    """

    def __init__(self, codes: Tensor, scale: Tensor, quickly: bool = False) -> None:
        rows = max(1, PIECE // codes.shape[1]) if quickly else len(codes)
        pieces = list(zip(torch.split(codes, rows), torch.split(scale.double(), rows), strict=True))
        # Which library packs is a setting of the whole process; the warning says that tensors of this kind, which only
        # carry the weights to where they are packed, will go from PyTorch one day.
        with CHANGING_ENGINE, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            engine = torch.backends.quantized.engine
            torch.backends.quantized.engine = "fbgemm"
            try:
                if len(pieces) == 1:
                    self._pieces = [_packed_by_fbgemm(*pieces[0])]
                else:
                    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                        self._pieces = list(pool.map(lambda piece: _packed_by_fbgemm(*piece), pieces))
            finally:
                torch.backends.quantized.engine = engine
        self.nbytes = codes.numel()
        # Huge pages take two seconds a gigabyte: what is packed before it is known to be used often does without.
        self._uses_left = GATHER_AFTER if quickly else 1
        self._used()

    def _used(self) -> None:
        self._uses_left -= 1
        if self._uses_left == 0:
            GATHERER.add(self.nbytes)

    def product(self, rows: Rows) -> Tensor:
        """See `Ordered`."""
        self._used()
        whole = rows.floats()
        # It wants unsigned inputs and makes them itself, in steps of 1 from the number that means zero.
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        found: list[Tensor] = [multiply(whole, 1.0, rows.zero, piece) for piece in self._pieces]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def codes(self) -> Tensor:
        """See `Ordered`."""
        return torch.cat([torch.ops.quantized.linear_unpack(piece)[0].int_repr() for piece in self._pieces])


def _packed_by_fbgemm(codes: Tensor, scale: Tensor) -> Any:
    weight = torch._make_per_channel_quantized_tensor(codes, scale, torch.zeros(len(scale), dtype=torch.int64), 0)
    return torch.ops.quantized.linear_prepack(weight, None)


class ForManyRows:
    """oneDNN's order, of weights [out, in] int8 with scales [out].

    Raises:
        AttributeError, RuntimeError: this PyTorch has none.
    """

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self._packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
        self._scale = scale
        self._zeros = torch.zeros(1, dtype=torch.int64)
        self.nbytes = codes.numel()

    def product(self, rows: Rows) -> Tensor:
        """See `Ordered`."""
        count, unsigned = len(rows), rows.unsigned()
        if count == 1:
            unsigned = unsigned.expand(PADDED_ROWS, -1).contiguous()
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned,
            1.0,
            rows.zero,
            self._packed,
            self._scale,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return product[:count]

    def codes(self) -> Tensor:
        """See `Ordered`."""
        return self._packed.to_dense().t().contiguous()


@cache
def orders() -> tuple[type[ForFewRows | ForManyRows], ...]:
    """The orders that there are here, that for few rows first."""
    weight = torch.ones(32, 64, dtype=torch.int8)
    found: list[type[ForFewRows | ForManyRows]] = []
    for order in (ForFewRows, ForManyRows):
        try:
            order(weight, torch.ones(32)).product(Rows(torch.ones(2, 64)))
        except (AttributeError, RuntimeError):
            continue
        found.append(order)
    return tuple(found)


@cache
def input_levels() -> int | None:
    """How many levels each side of zero inputs may have for the products of whole numbers to be exact.

    CPUs without VNNI add pairs of products in 16 bits, for which inputs must be a bit shorter. None where there is no
    such product. Found out by trying, with the largest numbers there are.
    """
    for levels in (LEVELS, LEVELS // 2):
        if orders() and all(is_exact(order, levels) for order in orders()):
            return levels
    return None


def is_exact(order: type[ForFewRows | ForManyRows], levels: int) -> bool:
    """Whether an order's products are exact for the largest numbers, with inputs of so many levels."""
    packed = order(torch.full((32, 64), LEVELS, dtype=torch.int8), torch.ones(32))
    product = packed.product(Rows(torch.full((2, 64), float(levels)), levels))
    return bool((product == levels * LEVELS * 64).all())


@cache
def many_rows_have_an_order() -> bool:
    """Whether oneDNN's order is ahead of FBGEMM's for many rows.

    It is where oneDNN has VNNI, which shows in products that are exact with all levels. Where it does not, FBGEMM takes
    about the same time for many rows, and for one a fifth: 2.5 against 14 ms with AVX2, 10240 x 2560.
    """
    return ForManyRows in orders() and is_exact(ForManyRows, LEVELS)


def put_in_order(codes: Tensor, scale: Tensor, few_rows: bool) -> Ordered:
    """Weights [out, in] int8 with scales [out] float32 in the order for few or for many rows, whichever is faster."""
    order = orders()[0 if few_rows or not many_rows_have_an_order() else -1]
    if issubclass(order, ForFewRows):
        # Without VNNI every layer is packed for its first product, elsewhere only what is used often.
        return order(codes, scale, quickly=input_levels() != LEVELS)
    return order(codes, scale)
