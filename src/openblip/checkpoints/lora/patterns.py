"""Settings of adapters that differ between layers (peft's rank_pattern and alpha_pattern), in time that is bounded.

peft takes their keys for regular expressions for the end of a layer's name, behind a dot or from its beginning.
Python's `re` takes exponential time for some of those. Here each expression walks once through a name with all its ways
at once (Thompson 1968, https://doi.org/10.1145/363347.363387).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_LENGTH = 1_000
MAX_STEPS = 5_000
"""Of one expression, once its repetitions are written out."""
MAX_WORK = 5_000_000
"""Looks at one character by one step, over all layers: a few seconds."""

PLAIN = re.compile(r"(\^?)((?:[\w-]|\\?\.|\\-)+)\$?")
"""A name, perhaps with its dots escaped, perhaps anchored."""
CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]")
COUNT = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")


class LayerPatterns:
    """What layers have of a setting.

    Args:
        setting: its name, for messages.
        patterns: expressions and values; the first that fits counts.

    Raises:
        ValueError: no mapping of expressions, or one that is not understood.
    """

    def __init__(self, setting: str, patterns: object) -> None:
        if not isinstance(patterns, Mapping):
            raise ValueError(f"{setting} is no mapping of names of layers")
        self._setting = setting
        self._values = list(patterns.values())
        self._names: dict[tuple[str, bool], int] = {}
        self._expressions: list[tuple[int, _Expression]] = []
        self._work = 0
        for number, pattern in enumerate(patterns):
            plain = PLAIN.fullmatch(pattern)
            if plain is not None:
                self._names.setdefault((plain[2].replace("\\", ""), bool(plain[1])), number)
                continue
            try:
                self._expressions.append((number, _Expression(pattern)))
            except ValueError as error:
                raise ValueError(
                    f"{setting} has {pattern[:80]!r}, {error}: write names of layers, or their ends"
                ) from None

    def value(self, layer: str, usual: Any) -> Any:
        """What a layer has. Raises ValueError when that takes too long to find out."""
        ends = [layer, *(layer[place + 1 :] for place, letter in enumerate(layer) if letter == ".")]
        candidates = [self._names[end, False] for end in ends if (end, False) in self._names]
        candidates += [self._names[layer, True]] if (layer, True) in self._names else []
        first = min(candidates, default=len(self._values))
        for number, expression in self._expressions:
            if number > first:
                break
            fits, work = expression.fits_end(layer)
            self._work += work
            if self._work > MAX_WORK:
                raise ValueError(f"{self._setting} takes too long to compare with the layers: write their names")
            if fits:
                return self._values[number]
        return self._values[first] if first < len(self._values) else usual


class _Expression:
    """An expression as steps: look at a character, go one of two ways, be at the beginning or the end.

    Raises:
        ValueError: it is broken, too long, or of a kind that no name of a layer needs.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise ValueError("which is too long")
        self._text = text
        self._at = 0
        self._depth = 0
        # Looks are compiled classes of one character, ways are numbers of steps, "^" and "$" places.
        self._steps: list[re.Pattern[str] | tuple[int, int] | str] = []
        self._alternatives()
        if self._at < len(text):
            raise ValueError("which has a bracket too many")
        self._steps.append("end")

    def fits_end(self, name: str) -> tuple[bool, int]:
        """Whether the name, or what is behind one of its dots, is of this expression; and what that took."""
        now: set[int] = set()
        work = 0
        for place in range(len(name) + 1):
            starts = {0} if not place or name[place - 1] == "." else set()
            now = self._reached(now | starts, not place, place == len(name))
            work += len(now) + 1
            if place == len(name):
                return any(self._steps[step] == "end" for step in now), work
            letter = name[place]
            now = {
                step + 1 for step in now if isinstance(look := self._steps[step], re.Pattern) and look.fullmatch(letter)
            }
        return False, work

    def _reached(self, steps: set[int], at_start: bool, at_end: bool) -> set[int]:
        """With all that follows without looking at a character."""
        reached, waiting = set(steps), list(steps)
        while waiting:
            step = waiting.pop()
            what = self._steps[step]
            following: tuple[int, ...] = what if isinstance(what, tuple) else ()
            if (what == "^" and at_start) or (what == "$" and at_end):
                following = (step + 1,)
            fresh = set(following) - reached
            reached |= fresh
            waiting += fresh
        return reached

    def _alternatives(self) -> None:
        self._depth += 1
        if self._depth > 50:
            raise ValueError("which is nested too deeply")
        start = len(self._steps)
        self._sequence()
        jumps: list[int] = []
        while self._text[self._at : self._at + 1] == "|":
            self._at += 1
            self._insert(start)
            jumps.append(len(self._steps))
            self._add((0, 0))
            self._steps[start] = (start + 1, len(self._steps))
            start = len(self._steps)
            self._sequence()
        for jump in jumps:
            self._steps[jump] = (len(self._steps), len(self._steps))
        self._depth -= 1

    def _sequence(self) -> None:
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            start = len(self._steps)
            self._one()
            self._repeated(start)

    def _one(self) -> None:
        text, place = self._text, self._at
        letter = text[place]
        group, some = GROUP.match(text, place), CLASS.match(text, place)
        if letter == "(":
            if group is None:
                raise ValueError("which looks ahead or behind")
            self._at = group.end()
            self._alternatives()
            if text[self._at : self._at + 1] != ")":
                raise ValueError("which lacks a bracket")
            self._at += 1
        elif letter in "^$":
            self._at += 1
            self._add(letter)
        elif letter in "*+?{":
            raise ValueError("which repeats nothing")
        else:
            size = 2 if letter == "\\" else 1
            if some is not None:
                size = len(some[0])
            look = text[place : place + size]
            if len(look) < size or (letter == "\\" and look[1].isalnum() and look[1] not in "dDwWsS"):
                raise ValueError("which is broken or refers to itself")
            self._at += size
            try:
                self._add(re.compile(look))
            except re.error:
                raise ValueError("which is broken") from None

    def _repeated(self, start: int) -> None:
        """What follows in the text about how often the steps from `start` on are taken."""
        rest = self._text[self._at : self._at + 1]
        least, most, size = 1, 1, 0
        if rest and rest in "*+?":
            least, most, size = int(rest == "+"), 1 if rest == "?" else -1, 1
        elif (count := COUNT.match(self._text, self._at)) is not None and (count[1] or count[3]):
            least = int(count[1] or 0)
            most, size = (int(count[3]) if count[3] else -1) if count[2] else least, len(count[0])
        if not size:
            return
        self._at += size
        if self._text[self._at : self._at + 1] == "?":  # how greedily does not matter to whole names
            self._at += 1
        if self._text[self._at : self._at + 1] in ("*", "+") or 0 <= most < least:
            raise ValueError("which repeats a repetition")
        once = self._steps[start:]
        del self._steps[start:]
        for _ in range(least):
            self._copy(once, start)
        if most < 0:
            before = len(self._steps)
            self._add((before + 1, before + len(once) + 2))
            self._copy(once, start)
            self._add((before, before))
        for _ in range(max(0, most - least)):
            before = len(self._steps)
            self._add((before + 1, before + len(once) + 1))
            self._copy(once, start)

    def _copy(self, steps: list[re.Pattern[str] | tuple[int, int] | str], start: int) -> None:
        """Add steps that began at `start` at the end, their ways moved along."""
        moved = len(self._steps) - start
        for step in steps:
            self._add((step[0] + moved, step[1] + moved) if isinstance(step, tuple) else step)

    def _insert(self, start: int) -> None:
        """Make room for one step at `start`; those behind it move along."""
        behind = self._steps[start:]
        del self._steps[start:]
        self._add((0, 0))
        self._copy(behind, start)

    def _add(self, step: re.Pattern[str] | tuple[int, int] | str) -> None:
        if len(self._steps) >= MAX_STEPS:
            raise ValueError("which repeats too often")
        self._steps.append(step)
