"""How far an evaluation is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and how many there are in all."""


def silent(done: int, total: int) -> None:
    """Nobody watches."""
