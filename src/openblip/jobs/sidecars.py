"""A job whose output is a file beside each photo.

Its rows are those whose photos have no text yet, or all of them; which they are is decided when the job begins, and
kept with it, so that a command that goes on has the same batches. A sidecar is written when its row is in the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.errors import OpenBlipError, OptionError
from openblip.images.sources import is_address
from openblip.jobs.chosen_rows import RowSet
from openblip.jobs.journal import Journal, Record, SeenImages
from openblip.jobs.rows import Row, Table
from openblip.jobs.sidecar_files import Existing, SidecarKind, SidecarText, has_text, sidecar_of, write_sidecar
from openblip.jobs.verbs import Verb
from openblip.saving import naming

CHOSEN, WRITTEN = "chosen", "written.jsonl"
"""Files in the folder of the job: the rows that it has, and those whose sidecars are written."""
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Sidecars:
    """A file beside each photo, instead of a table.

    Attributes:
        existing: what is done where there is a text already.
    """

    kind: SidecarKind
    existing: Existing = "skip"

    def check(self, verb: Verb) -> None:
        """Raises OptionError if the verb gives no text."""
        if not _gives_text(verb):
            raise OptionError(f"run {verb.ability} gives no text for a file beside a photo: give --output FILE")

    def choose(self, table: Table, rows: Iterable[Row], wanted: range, verb: Verb) -> RowSet:
        """The rows to do, among those that are wanted.

        Raises:
            OptionError: an image has no place for a file beside it; two have the same; a folder cannot be written.
        """
        chosen, folders = RowSet(), set[Path]()
        images, places = SeenImages(), SeenImages()
        for number, row in enumerate(rows):
            if number >= wanted.stop:
                break
            if number < wanted.start:
                continue
            try:
                image = table.image_of(row)
            except OpenBlipError:
                chosen.add(number)  # an error of its row
                continue
            if not isinstance(image, str):
                raise OptionError(
                    f"{image.name} is no file of its own, so nothing can lie beside it: give --output FILE"
                )
            if is_address(image):
                raise OptionError(f"{image} is a web address, so nothing can lie beside it: give --output FILE")
            path = sidecar_of(image, self.kind)
            earlier = places.find_or_add(_digest(path), number)
            if images.find_or_add(_digest(Path(image)), number) != earlier:
                raise OptionError(
                    f"{path} would be of two images, {image} and one of the same name: rename one of them, or leave it "
                    "out with --exclude"
                )
            if Path(os.path.abspath(path)) in table.files or path.is_dir():
                raise OptionError(f"{path}, where the text of {image} belongs, is something else: move it")
            if self.existing == "skip" and (earlier != number or has_text(path, self.kind, _only_tags(verb))):
                continue
            if path.parent not in folders and path.parent.is_dir():
                if not os.access(path.parent, os.W_OK | os.X_OK):
                    raise OptionError(f"{path.parent} cannot be written: change its permissions, or give --output FILE")
                folders.add(path.parent)
            chosen.add(number)
        return chosen


def place_of(source: str, shard: tuple[int, int]) -> Path:
    """The name beside the input of the command's folder, in which what is done is kept."""
    part, parts = shard
    name = "sidecars" if parts == 1 else f"sidecars-{part}-of-{parts}"
    path = Path(source).expanduser().absolute()
    if source == "-" or is_address(source):
        return Path.cwd() / name
    if path.is_dir():
        return path / name
    if path.exists():
        return path.with_name(f"{path.name}.{name}")
    fixed = path.parts[:-1]
    place = next((number for number, one in enumerate(fixed) if _WILDCARD.search(one)), len(fixed))
    return Path(*fixed[:place]) / name


class SidecarWriter:
    """Writes the sidecars of the rows in a journal.

    Which are written is kept, so that a command that goes on does not touch them again.

    Attributes:
        problems: of rows without a sidecar, what is wrong with them.
    """

    def __init__(self, sidecars: Sidecars, verb: Verb, table: Table, journal: Journal, path: Path) -> None:
        self.sidecars = sidecars
        self.verb = verb
        self.table = table
        self.journal = journal
        self.path = path
        self.problems: dict[int, str] = {}
        self._next = journal.start
        self._left: set[int] = set()
        """Rows before `_next` without a sidecar."""
        self._rows: Iterator[Row] | None = None
        self._load()

    def writing(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """A function to be called whenever something is new in the journal, which writes before it tells."""

        def write(done: int, total: int) -> None:
            self.catch_up()
            progress(done, total)

        return write

    def catch_up(self) -> None:
        """Write the sidecars of all rows that are new in the journal. Raises OSError, with `filename`."""
        if self._next >= self.journal.next:
            return
        if self._rows is None:
            self._rows = self.table.rows(self._next, packed=True)
        left: list[int] = []
        for number in range(self._next, self.journal.next):
            row = next(self._rows, None)
            if row is None:
                raise OpenBlipError(f"{self.table.path} changed while it was read: give the command again")
            if not self._write(number, row):
                left.append(number)
        self._note({"next": self.journal.next, "left": left})
        self._next = self.journal.next
        self._left.update(left)

    def finish(self) -> None:
        """Try those that are left, after rows with errors were tried again. Raises OSError, with `filename`."""
        self.catch_up()
        if not self._left:
            return
        first = min(self._left)
        done: list[int] = []
        for number, row in enumerate(self.table.rows(first, packed=True), start=first):
            if number in self._left and self._write(number, row):
                done.append(number)
        if done:
            self._note({"next": self._next, "done": done})
            self._left.difference_update(done)

    def _write(self, number: int, row: Row) -> bool:
        record = self.journal.record(number)
        problem = record.get("error")
        if problem is None:
            try:
                self._write_one(row, record)
            except OpenBlipError as error:
                problem = str(error)
        if problem is None:
            self.problems.pop(number, None)
        else:
            self.problems[number] = f"{self._name(row)}: {problem}"
        return problem is None

    def _write_one(self, row: Row, record: Record) -> None:
        values = self.verb.finish(record["result"], row.values, self.table.name_of(row))
        path = sidecar_of(str(self.table.image_of(row)), self.sidecars.kind)
        write_sidecar(path, self.sidecars.kind, self.sidecars.existing, _text_of(self.verb, values))

    def _name(self, row: Row) -> str:
        try:
            return self.table.name_of(row)
        except OpenBlipError:
            return row.place.rstrip(",")

    def _note(self, fields: Mapping[str, Any]) -> None:
        # Not waited for: what is lost is written again, and comes out the same.
        with naming(self.path), self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(fields).encode() + b"\n")

    def _load(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = 0
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                fields = dict(json.loads(line))
                following = min(int(fields["next"]), self.journal.next)
            except (ValueError, TypeError, LookupError):
                break
            self._next = max(self._next, following)
            self._left.update(fields.get("left", ()))
            self._left.difference_update(fields.get("done", ()))
            whole += len(line)
        if whole < len(content):
            os.truncate(self.path, whole)
        self._left = {number for number in self._left if number < self._next}


def _gives_text(verb: Verb) -> bool:
    return any(kind in ("string", "list<string>") for kind in verb.columns.values())


def _only_tags(verb: Verb) -> bool:
    return verb.has_tags or "string" not in verb.columns.values()


def _text_of(verb: Verb, values: Mapping[str, Any]) -> SidecarText:
    """Texts are the description, or tags with commas between them; words of lists are tags."""
    texts = [values[name] for name, kind in verb.columns.items() if kind == "string" and values.get(name)]
    tags = [tag for name, kind in verb.columns.items() if kind == "list<string>" for tag in values.get(name) or ()]
    if verb.has_tags:
        return SidecarText("", (*(tag.strip() for text in texts for tag in text.split(",")), *tags))
    return SidecarText(", ".join(texts), tuple(tags))


def _digest(path: Path) -> bytes:
    return hashlib.sha256(os.fsencode(os.path.normcase(os.path.abspath(path)))).digest()
