"""Some rows of a table, as a table of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openblip.jobs.rows import PackedImage, Row, Scan, Table


class RowSet:
    """Numbers of rows, in a bit each."""

    def __init__(self, bits: bytes = b"") -> None:
        self.bits = bytearray(bits)

    def __len__(self) -> int:
        return sum(byte.bit_count() for byte in self.bits)

    def __contains__(self, row: int) -> bool:
        return row >> 3 < len(self.bits) and bool(self.bits[row >> 3] >> (row & 7) & 1)

    def add(self, row: int) -> None:
        if row >> 3 >= len(self.bits):
            self.bits.extend(bytes((row >> 3) + 1 - len(self.bits)))
        self.bits[row >> 3] |= 1 << (row & 7)

    def numbers(self, start: int = 0) -> Iterator[int]:
        """The rows in order, without the first `start` of them."""
        for place, byte in enumerate(self.bits):
            count = byte.bit_count()
            if start >= count:
                start -= count
                continue
            for bit in range(8):
                if byte >> bit & 1:
                    if start:
                        start -= 1
                    else:
                        yield 8 * place + bit


@dataclass(frozen=True)
class ChosenRows(Table):
    """The rows of `table` whose numbers are in `chosen`, counted from 0 again."""

    table: Table
    chosen: RowSet

    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        numbers = self.chosen.numbers(start)
        number = next(numbers, None)
        if number is None:
            return
        for at, row in enumerate(self.table.rows(number, packed=packed), start=number):
            if at == number:
                yield row
                number = next(numbers, None)
                if number is None:
                    return

    def scan(self) -> Scan:
        return self.table.scan()

    def image_of(self, row: Row) -> str | PackedImage:
        return self.table.image_of(row)

    def name_of(self, row: Row) -> str:
        return self.table.name_of(row)
