"""Read texts from cells of tables and from JSON: one text, a list, objects with texts, or a list written as text.

CSV has no lists, so pandas writes the repr of a Python list (`['gull', 'bird']`) or of a NumPy array (`['gull'
'bird']`). Without parsing it, a model would be trained and scored on this repr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from openblip.errors import OpenBlipError

TEXT_KEYS = ("answer", "text", "caption", "raw")
"""Keys of a text in an object, most likely first: VQA's answers, our own captions, Karpathy's sentences."""
DEEPEST = 4
"""Greatest depth of objects in objects."""
SHOWN_COLUMNS = 12
SHOWN_CHARACTERS = 40

_LIST_OR_OBJECT = re.compile(r"""\[\s*(?:b?['"]|\{\s*['"]|(?:array|np\.\w+|numpy\.\w+)\()|\{\s*['"]|array\(\s*\[""")
"""How written lists and objects begin. "[laughs] what is this" and "{name} waves" are captions."""
_TUPLE = re.compile(r"""\(\s*['"]""")
_TOKEN = re.compile(
    r"""(?P<space>\s*)(?:(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<mark>[,:()\[\]{}])|(?P<word>[^\s,:()\[\]{}'"]+))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\n": ""}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|True|False")
_NOTHING = frozenset(("None", "nan", "NaN", "NaT", "<NA>", "null"))
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def is_empty(value: object) -> bool:
    """Whether a cell is empty: null, NaN (as pandas writes it) or white space."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, float) and value != value)


def to_text(value: object, place: str, name: str) -> str:
    """The one text of a cell; "" if the cell is empty.

    Args:
        place, name: where the cell is, and the name of its column, for the message.

    Raises:
        OpenBlipError: the cell holds several texts, or no text.
    """
    found = to_texts(value, place, name)
    if len(found) > 1:
        raise OpenBlipError(f"{place} has {len(found)} texts for {name}: it takes one")
    return found[0] if found else ""


def to_texts(value: object, place: str, name: str) -> tuple[str, ...]:
    """All texts of a cell, stripped; numbers count as texts. Arguments as for `to_text`.

    Raises:
        OpenBlipError: the cell holds anything but texts, lists of texts, and objects with one of `TEXT_KEYS`.
    """
    if isinstance(value, str):
        value = _parsed(value.strip(), place, name)
        if isinstance(value, str):
            return (encodable(value),) if value else ()
    if type(value) is list and all(type(each) is str for each in value):  # the usual case, and fast
        return tuple(encodable(text) for each in value if (text := each.strip()))
    return tuple(_flat(value, place, name))


def to_id(value: object, place: str, name: str) -> str:
    """A name or a number as text. 7.0 becomes "7": pandas makes it of 7 if another row is empty. Arguments as for
    `to_text`.

    Raises:
        OpenBlipError: the cell holds anything else.
    """
    if isinstance(value, str):
        return encodable(value.strip())
    if isinstance(value, list | tuple | dict):
        raise OpenBlipError(f"{place} has {type(value).__name__} for {name}: it takes a number or a text")
    return to_text(int(value) if isinstance(value, float) and value.is_integer() else value, place, name)


def encodable(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which JSON may contain and no tokenizer accepts."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def shown_columns(columns: Iterable[object]) -> str:
    """The names of columns in one line, for messages."""
    names = [str(name) for name in columns]
    # What is no real header may hold anything, even line breaks.
    shown = ", ".join(encodable(" ".join(name.split())[:SHOWN_CHARACTERS]) for name in names[:SHOWN_COLUMNS])
    return shown + (" …" if len(names) > SHOWN_COLUMNS else "") if names else "none"


def _flat(value: object, place: str, name: str, in_list: bool = False, depth: int = 0) -> Iterator[str]:
    if is_empty(value):
        return
    if isinstance(value, str):
        yield encodable(value.strip())
    elif isinstance(value, bytes):
        try:
            yield value.decode().strip()
        except UnicodeDecodeError:
            raise _refused(f"{len(value)} bytes that are not UTF-8", place, name) from None
    elif isinstance(value, int | float | Decimal | date | time | timedelta):
        yield str(value)
    elif isinstance(value, dict) and depth < DEEPEST:
        key = next((key for key in TEXT_KEYS if not is_empty(value.get(key))), None)
        if key is not None:
            yield from _flat(value[key], place, name, depth=depth + 1)
        elif not any(key in value for key in TEXT_KEYS):
            raise _refused(f"an object of {shown_columns(value)}", place, name)
    elif isinstance(value, list | tuple) and not in_list:
        for each in value:
            yield from _flat(each, place, name, in_list=True, depth=depth)
    else:
        what = {"dict": "objects in objects", "list": "lists in a list", "tuple": "lists in a list"}
        kind = type(value).__name__
        raise _refused(what.get(kind, f"a value of type {kind}"), place, name)


def _refused(what: str, place: str, name: str) -> OpenBlipError:
    keys = f"{', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}"
    return OpenBlipError(
        f"{place} has {what} for {name}: give a text, a list of texts or objects with {keys}, or rename that column"
    )


def _parsed(text: str, place: str, name: str) -> Any:
    """The value of a text that is a written list or object; any other text unchanged."""
    if not text.startswith(("[", "{", "(", "array(")):
        return text
    try:
        return json.loads(text)
    except RecursionError:
        raise _refused("lists in lists", place, name) from None
    except ValueError:  # it is no JSON
        pass
    is_certain = _LIST_OR_OBJECT.match(text) is not None
    if not is_certain and not text.startswith("[") and not _TUPLE.match(text):
        return text
    try:
        return _Written(text).whole()
    except ValueError:
        if is_certain:
            raise _refused("a list or an object that is cut short or not of texts", place, name) from None
        return text


class _Written:
    """Parses lists, tuples, sets and dictionaries of texts and numbers as Python and NumPy print them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def whole(self) -> Any:
        """Raises ValueError if the text is anything else."""
        found = self._value(self._next(), 2 * DEEPEST)
        if self._text[self._place :].strip():
            raise ValueError("there is more")
        return found

    def _next(self) -> re.Match[str]:
        found = _TOKEN.match(self._text, self._place)
        if found is None:
            raise ValueError("it is cut short")
        self._place = found.end()
        return found

    def _value(self, token: re.Match[str], depth: int) -> Any:
        if not depth:
            raise ValueError("it is nested too deeply")
        if token["text"]:
            return _ESCAPE.sub(_unescaped, token["text"][1:-1])
        if token["mark"] in ("[", "(", "{"):
            return self._items(_CLOSING[token["mark"]], depth)
        word = token["word"]
        if word and self._text.startswith("(", self._place):  # array([...], dtype=object), np.str_('...')
            self._place += 1
            inside = self._items(")", depth)
            return inside[0] if isinstance(inside, list) and inside else None
        if word in _NOTHING:
            return None
        if not word or not _NUMBER.fullmatch(word):
            raise ValueError("it has words without quotes")
        return word

    def _items(self, end: str, depth: int) -> list[Any] | dict[str, Any]:
        items: list[Any] = []
        fields: dict[str, Any] = {}
        may_follow = True
        while (token := self._next())["mark"] != end:
            if token["mark"] == ",":
                may_follow = True
                continue
            if not may_follow and not token["space"]:
                raise ValueError("two values have nothing between them")
            may_follow = False
            if token["word"] and token["word"].startswith("dtype="):
                if token["word"] == "dtype=":
                    self._next()
                continue
            value = self._value(token, depth - 1)
            following = _TOKEN.match(self._text, self._place)
            if end != "}" or following is None or following["mark"] != ":":
                items.append(value)
            elif isinstance(value, str):
                self._place = following.end()
                fields[value] = self._value(self._next(), depth - 1)
            else:
                raise ValueError("a key is no text")
        return fields or items


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number <= 0x10FFFF else "\ufffd"
    return _ESCAPED.get(code, code)
