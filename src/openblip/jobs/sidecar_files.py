"""The file beside a photo that has its caption: where it is, and what becomes of one that is there already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from openblip.errors import OpenBlipError
from openblip.jobs.xmp import MAX_BYTES, NEW, default_of, read_xmp, xml_text
from openblip.saving import replacing

SidecarKind: TypeAlias = Literal["txt", "xmp"]
Existing: TypeAlias = Literal["skip", "overwrite", "append", "prepend"]
"""What is done where there is a text already."""


@dataclass(frozen=True)
class SidecarText:
    """What is said of a photo.

    Attributes:
        text: a description; "" if there are tags alone.
    """

    text: str
    tags: tuple[str, ...] = ()

    @property
    def pieces(self) -> list[str]:
        """The description and the tags, each on one line and once."""
        found = [" ".join(piece.split()) for piece in (self.text, *self.tags)]
        return list(dict.fromkeys(piece for piece in found if piece.strip(" ,")))


def sidecar_of(image: str, kind: SidecarKind) -> Path:
    """Where the sidecar of an image file is.

    photo.txt is what trainers of image generators read. Of XMP, photo.jpg.xmp is the name of darktable and digiKam, and
    photo.xmp Adobe's, which those read too: a file of this name is used where there is no other.
    """
    path = Path(image)
    if kind == "txt":
        return path.with_suffix(".txt")
    full, short = path.with_name(path.name + ".xmp"), path.with_suffix(".xmp")
    return short if short.exists() and not full.exists() else full


def has_text(path: Path, kind: SidecarKind, has_tags: bool) -> bool:
    """Whether a sidecar has a text already: of XMP a description, or subjects if tags alone are to be written."""
    if kind == "txt":
        return path.exists()
    if not path.is_file():
        return False
    try:
        found = read_xmp(_read(path), path)
    except OpenBlipError:
        return False  # which writing says
    return bool(found.subjects if has_tags else default_of(found.description).strip())


def write_sidecar(path: Path, kind: SidecarKind, existing: Existing, new: SidecarText) -> None:
    """Put a text into a sidecar, whole or not at all; what says the same already is left alone.

    To do it twice is to do it once. A sidecar that is there keeps its permissions; a link keeps pointing to it.

    Raises:
        OpenBlipError: the sidecar that is there is no text in UTF-8, or no XMP.
        OSError: it cannot be written; `filename` is set.
    """
    path = path.resolve() if path.is_symlink() else path
    old = _read(path) if path.exists() else None
    make = _text_file if kind == "txt" else _xmp_file
    content = make(path, old, existing, new)
    if content == old:
        return
    mode = None if old is None else path.stat().st_mode & 0o7777
    with replacing(path) as draft:
        draft.write_bytes(content)
        if mode is not None:
            draft.chmod(mode)


def _text_file(path: Path, old: bytes | None, existing: Existing, new: SidecarText) -> bytes:
    whole = ", ".join(new.pieces)
    if old is None or existing == "overwrite":
        return (whole + "\n").encode("utf-8", "replace")
    if existing == "skip":
        return old
    try:
        text = old.decode()
    except UnicodeDecodeError:
        raise OpenBlipError(f"{path} is no text in UTF-8: save it as such, or move it") from None
    there = f", {_normalized(text)}, "
    added = ", ".join(piece for piece in new.pieces if f", {_normalized(piece)}, " not in there)
    if not added:
        return old
    bare = text.lstrip("\ufeff")
    mark, body = text[: len(text) - len(bare)], bare.strip()
    if not body:
        return (mark + added + "\n").encode("utf-8", "replace")
    at = bare.index(body)
    before, behind = bare[:at], bare[at + len(body) :]
    joined = f"{body}, {added}" if existing == "append" else f"{added}, {body}"
    return (mark + before + joined + behind).encode("utf-8", "replace")


def _normalized(text: str) -> str:
    """Tags with one comma and space between them."""
    return ", ".join(filter(None, (" ".join(piece.split()) for piece in re.split("[,\n]", text.lstrip("\ufeff")))))


def _xmp_file(path: Path, old: bytes | None, existing: Existing, new: SidecarText) -> bytes:
    found = read_xmp(NEW.encode() if old is None else old, path)
    text = " ".join(xml_text(new.text).split())
    before = default_of(found.description)
    description: str | None = text or None
    if description is not None and before.strip() and existing != "overwrite":
        if existing == "skip" or text in (line.strip() for line in before.splitlines()):
            description = None
        else:
            description = f"{before}\n{text}" if existing == "append" else f"{text}\n{before}"
    tags = list(dict.fromkeys(filter(None, (" ".join(xml_text(tag).split()) for tag in new.tags))))
    subjects: Sequence[str] | None = tags or None
    if subjects is not None and found.subjects and existing != "overwrite":
        added = [tag for tag in tags if tag not in found.subjects]
        if existing == "skip":
            subjects = None
        else:
            subjects = [*found.subjects, *added] if existing == "append" else [*added, *found.subjects]
    return found.with_properties(description, subjects)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OpenBlipError(f"{path} cannot be read ({error.strerror}): check it, or move it") from None
    if len(content) > MAX_BYTES:
        raise OpenBlipError(f"{path} is too large to be text about a photo: move it, or delete it")
    return content
