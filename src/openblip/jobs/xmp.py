"""Descriptions and subjects in XMP files, with every other byte of a file as it was.

A file is not written anew from a tree, which would lose comments, prefixes and the order of things: the parser says
where the two properties lie, and these bytes alone are replaced. Source: XMP specification, parts 1 and 3 (ISO 16684).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers.expat import ExpatError, ParserCreate
from xml.sax.saxutils import escape, quoteattr

from openblip.errors import OpenBlipError

RDF, DC, XML = (
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "http://purl.org/dc/elements/1.1/",
    "http://www.w3.org/XML/1998/namespace",
)
DEFAULT = "x-default"
MAX_BYTES = 64 << 20
NEW = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
 </rdf:RDF>
</x:xmpmeta>
"""
_SEPARATOR = "\n"
_TAG = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class _Property:
    """A property of the photo: its bytes, and its items, each with its language."""

    start: int
    end: int = 0
    items: list[tuple[str, str]] = field(default_factory=list)
    scope: Mapping[str, str] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Xmp:
    """What an XMP file says of its photo.

    Attributes:
        description: by language; subjects: keywords in their order.
        places: where they are in the file.
    """

    content: bytes
    description: Mapping[str, str]
    subjects: tuple[str, ...]
    places: _Places

    def with_properties(self, description: str | None, subjects: Sequence[str] | None) -> bytes:
        """The file with another description (in the language that all see) or other subjects; None: as they are."""
        found = self.places
        edits: list[tuple[int, int, str]] = []
        new = ""
        if description is not None and description != default_of(self.description):
            texts = {name: text for name, text in self.description.items() if name != DEFAULT}
            items = [(DEFAULT, description), *texts.items()]
            new += _edited(found.description, "description", "Alt", items, edits)
        if subjects is not None and tuple(subjects) != self.subjects:
            new += _edited(found.subject, "subject", "Bag", [("", one) for one in subjects], edits)
        if new:
            spaces = f" xmlns:dc={quoteattr(DC)}"
            if found.scope.get("rdf") != RDF:
                spaces += f" xmlns:rdf={quoteattr(RDF)}"
            block = f" <rdf:Description rdf:about={quoteattr(found.about)}{spaces}>\n{new}  </rdf:Description>\n "
            start, end, tag = found.insert
            edits.append((start, end, f">\n{block}</{tag}>" if tag else block))
        content = self.content
        for start, end, text in sorted(edits, reverse=True):
            content = content[:start] + text.encode() + content[end:]
        return content


@dataclass
class _Places:
    """Where the properties are.

    Attributes:
        insert: the bytes that give way to a new one; with the name of the element around it, if that is empty so far.
        scope: the addresses of prefixes there.
        about: what all descriptions are about.
    """

    insert: tuple[int, int, str] = (-1, -1, "")
    scope: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    description: _Property | None = None
    subject: _Property | None = None


def read_xmp(content: bytes, path: Path) -> Xmp:
    """What a file says.

    Raises:
        OpenBlipError: it is no XMP in UTF-8, or writes a property in a way that cannot be changed.
    """
    if len(content) > MAX_BYTES:
        raise OpenBlipError(f"{path} is larger than any XMP file: move it, or delete it")
    reader = _Reader(content)
    try:
        reader.parser.Parse(content, True)
    except (ExpatError, ValueError, LookupError) as error:
        raise OpenBlipError(f"{path} is no XMP file in UTF-8 ({error}): mend it, move it, or delete it") from None
    places = reader.places
    if places.insert[0] < 0:
        raise OpenBlipError(f"{path} is no XMP file (it has no rdf:RDF): mend it, move it, or delete it")
    description: dict[str, str] = {}
    for language, text in [] if places.description is None else places.description.items:
        description.setdefault(language or DEFAULT, text)
    subjects = () if places.subject is None else tuple(text for _, text in places.subject.items)
    return Xmp(content, description, subjects, places)


def default_of(description: Mapping[str, str]) -> str:
    """The text of the language that all see, or of the first."""
    return description.get(DEFAULT, next(iter(description.values()), ""))


def xml_text(text: str) -> str:
    """A text without the characters that XML has no place for."""
    return _NO_XML.sub(" ", text)


class _Reader:
    """Finds the places. There is no handler for external entities: they are never read; a DOCTYPE is refused."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.places = _Places()
        self.parser = ParserCreate(namespace_separator=_SEPARATOR)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartNamespaceDeclHandler = self._declare
        self.parser.EndNamespaceDeclHandler = self._undeclare
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.XmlDeclHandler = self._check_encoding
        self._path: list[str] = []
        self._scopes: dict[str, list[str]] = {}
        self._open: _Property | None = None
        self._language = ""
        self._rdf = -1  # its depth

    def _refuse(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE")

    def _check_encoding(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if (encoding or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
            raise ValueError(f"it is in {encoding}")

    def _declare(self, prefix: str | None, address: str | None) -> None:
        self._scopes.setdefault(prefix or "", []).append(address or "")

    def _undeclare(self, prefix: str | None) -> None:
        self._scopes[prefix or ""].pop()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        depth = len(self._path)
        self._path.append(name)
        at = self.parser.CurrentByteIndex
        if name == _name(RDF, "RDF") and self._rdf < 0 and depth < 3:
            self._rdf = depth
            self.places.scope = self._scope()
            end = self._tag_end(at)
            if self._is_empty(end):
                tag = re.split(rb"[\s/>]", self.content[at + 1 : end], maxsplit=1)[0].decode()
                self.places.insert = (end - 2, end, tag)
        elif self._rdf >= 0 and depth == self._rdf + 1 and name == _name(RDF, "Description"):
            self.places.about = self.places.about or attributes.get(_name(RDF, "about"), attributes.get("about", ""))
            if not attributes.keys().isdisjoint((_name(DC, "description"), _name(DC, "subject"))):
                raise ValueError("its description or subject is an attribute")
        elif self._rdf >= 0 and depth == self._rdf + 2 and self._path[depth - 1] == _name(RDF, "Description"):
            if name in (_name(DC, "description"), _name(DC, "subject")):
                end = self._tag_end(at)
                self._open = _Property(at, end if self._is_empty(end) else 0, scope=self._scope())
        elif self._open is not None and name == _name(RDF, "li"):
            self._language = attributes.get(_name(XML, "lang"), "")
        if self._open is not None:
            self._open.text = ""

    def _characters(self, text: str) -> None:
        if self._open is not None:
            self._open.text += text

    def _end(self, name: str) -> None:
        depth = len(self._path) - 1
        self._path.pop()
        at = self.parser.CurrentByteIndex
        found = self._open
        if found is not None and depth == self._rdf + 2:
            if not found.items and found.text.strip():  # a plain text, where a list belongs
                found.items.append(("", found.text.strip()))
            found.end = found.end or self._tag_end(at)
            attribute = "description" if name == _name(DC, "description") else "subject"
            if getattr(self.places, attribute) is not None:
                raise ValueError(f"it has two of dc:{attribute}")
            setattr(self.places, attribute, found)
            self._open = None
        elif found is not None and name == _name(RDF, "li"):
            found.items.append((self._language, found.text))
            found.text = ""
        elif depth == self._rdf and name == _name(RDF, "RDF") and not self.places.insert[2]:
            self.places.insert = (at, at, "")

    def _scope(self) -> dict[str, str]:
        return {prefix: addresses[-1] for prefix, addresses in self._scopes.items() if addresses}

    def _tag_end(self, at: int) -> int:
        """Where a tag ends; its attributes may have > in them."""
        found = _TAG.match(self.content, at)
        if found is None:
            raise ValueError("a tag has no end")
        return found.end()

    def _is_empty(self, end: int) -> bool:
        return self.content[end - 2 : end] == b"/>"


def _name(space: str, local: str) -> str:
    return f"{space}{_SEPARATOR}{local}"


def _edited(
    old: _Property | None,
    name: str,
    container: str,
    items: Sequence[tuple[str, str]],
    edits: list[tuple[int, int, str]],
) -> str:
    """A property's XML: as an edit where it is there already, or returned."""
    inside = old is None or (old.scope.get("dc"), old.scope.get("rdf")) == (DC, RDF)
    spaces = "" if inside else f" xmlns:dc={quoteattr(DC)} xmlns:rdf={quoteattr(RDF)}"
    lines = "".join(
        f"     <rdf:li{f' xml:lang={quoteattr(language)}' if language else ''}>{escape(xml_text(text))}</rdf:li>\n"
        for language, text in items
    )
    element = f"<dc:{name}{spaces}>\n    <rdf:{container}>\n{lines}    </rdf:{container}>\n   </dc:{name}>"
    if old is None:
        return f"   {element}\n"
    edits.append((old.start, old.end, element))
    return ""
