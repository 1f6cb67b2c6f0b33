"""The form of the parity table: what was measured, the limits, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LIMIT = 1e-5


@dataclass(frozen=True)
class Gap:
    """One measured difference; of ids it is the number of texts that differ, of `count`."""

    name: str
    value: float
    limit: float
    count: int | None = None

    @property
    def within(self) -> bool:
        return self.value <= self.limit  # and not so when it is no number

    def __str__(self) -> str:
        if self.count is not None:
            return f"{self.name}: " + (f"all {self.count} equal" if self.within else f"{self.value:g} differ")
        return f"{self.name} {self.value:.1e}".replace("e-0", "e-") if self.value else f"{self.name} 0"

    def limit_shown(self) -> str:
        return "equal" if self.limit == 0 else f"{self.limit:.0e}".replace("e-0", "e-")


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    component: str
    reference: str
    measure: Callable[[], Sequence[Gap]]
    test: str


def worst(values: Iterable[float]) -> float:
    """The largest; a value that is no number is larger than all."""
    return max(values, key=lambda value: (value != value, value))


def table(measured: Iterable[tuple[Check, Sequence[Gap]]]) -> str:
    """In the form of docs/parity.md; what exceeds its limit is set in bold."""
    lines = ["| Component | Reference | Largest difference | Limit | Test |", "|---|---|---|---|---|"]
    for check, gaps in measured:
        shown = "; ".join(str(gap) if gap.within else f"**{gap}**" for gap in gaps)
        limits = list(dict.fromkeys(gap.limit_shown() for gap in gaps))
        lines.append(f"| {check.component} | {check.reference} | {shown} | {', '.join(limits)} | tests/{check.test} |")
    return "\n".join(lines)
