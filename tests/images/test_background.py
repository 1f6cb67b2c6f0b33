"""Items from another thread: their order, what is raised, and that nothing runs when nobody takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from openblip.images.background import in_background


def numbers(count: int, made: list[int], closed: threading.Event) -> Iterator[int]:
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        closed.set()


def test_the_same_items_in_the_same_order_and_what_is_raised_behind_them() -> None:
    closed = threading.Event()

    def failing() -> Iterator[int]:
        yield from numbers(30, [], closed)
        raise ValueError("the end")

    with in_background(failing(), 3) as items:
        assert [next(items) for _ in range(30)] == list(range(30))
        with pytest.raises(ValueError, match="the end"):
            next(items)
    with in_background(iter([]), 1) as nothing:
        assert list(nothing) == []


def test_no_more_are_made_than_said_and_all_ends_with_the_context() -> None:
    made: list[int] = []
    closed = threading.Event()
    with in_background(numbers(1000, made, closed), 4) as items:
        assert [next(items), next(items)] == [0, 1]
        assert len(made) <= 6
    assert closed.is_set()
    assert len(made) <= 7
    with suppress(KeyboardInterrupt), in_background(numbers(1000, made, closed), 4) as items:
        next(items)
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name == "openblip ahead"]
