"""The files of an index: a LanceDB table of paths and vectors, and a note of the model that made the vectors.

Rows are appended in batches that are on the disk when `append` returns. Readers may come at any time. What LanceDB
says of distances is not used: it reports other ones after the table was compacted.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openblip.errors import OpenBlipError, OptionError, printable
from openblip.saving import LOCK, PID, held, naming, put_names_on_disk, put_on_disk, write_text

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

NOTE, TABLE = "openblip.json", "images"
FORMAT = 1
FIELDS = ["id", "path", "size", "mtime_ns", "sha256"]
VECTORS = "vectors"
FRAGMENTS = 8
"""Pieces of a table that may lie side by side before they are joined: each append makes one, and three small files."""
TRIES = 5
"""Of a reader, whose files may be joined and removed by a process that adds photos."""
DISK_ERROR = re.compile(r"\(os error (\d+)\)")
MISSING = 'LanceDB, which keeps the index, is not installed: pip install "openblip[search]"'

Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """A file in the index, as it was when it was read.

    Attributes:
        number: of the row; it grows.
        path: absolute.
        sha256: of the file's bytes.
    """

    number: int
    path: str
    size: int
    mtime_ns: int
    sha256: bytes


@dataclass(frozen=True)
class Note:
    """Which model made the vectors.

    Attributes:
        loading: keywords of `openblip.load`: name, adapter, tokenizer.
        vectors, width: of each photo.
        probes: vectors of a text and of an image that are always the same, see `openblip.search.identity`.
    """

    loading: dict[str, Any]
    vectors: int
    width: int
    probes: list[list[float]]

    @property
    def model(self) -> str:
        adapter = self.loading.get("adapter")
        return f"{self.loading['name']}{f' with {adapter}' if adapter else ''}"


class Store:
    """The folder of an index.

    Args:
        folder: need not be there yet.

    Raises:
        OptionError: it holds something else.
        OpenBlipError: LanceDB is not installed, or the note of the model cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.note: Note | None = None
        self._table: Any = None
        if importlib.util.find_spec("lancedb") is None:
            raise OpenBlipError(MISSING)
        if (folder / NOTE).exists():
            self.note = self._read_note()
        elif folder.is_dir():
            others = sorted(name for name in os.listdir(folder) if name not in (f"{TABLE}.lance", LOCK, PID))
            if others:
                raise OptionError(f"{folder} is no index, it holds {others[0]}: give another folder with --db")
        elif folder.exists():
            raise OptionError(f"{folder} is a file, not the folder of an index: give another one with --db")

    def _read_note(self) -> Note:
        path = self.folder / NOTE
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read["format"] != FORMAT:
                raise OpenBlipError(
                    f"{self.folder} is an index of another version of OpenBLIP: delete it, and index again"
                )
            probes = [[float(number) for number in probe] for probe in read["probes"]]
            note = Note(dict(read["loading"]), int(read["vectors"]), int(read["width"]), probes)
            str(note.model)
            return note
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OpenBlipError(f"{path} cannot be read ({error!r}): delete {self.folder}, and index again") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from writing.

        Raises:
            OpenBlipError: another process writes; the sentence names it.
        """
        with naming(self.folder.parent):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        with held(
            self.folder, lambda whose: f"another command is changing the index {self.folder}{whose}: wait for it"
        ):
            yield

    def create(self, note: Note) -> None:
        """An empty table for the vectors of a model."""
        import pyarrow as pa

        vector = pa.list_(pa.float16(), note.width)
        numbers = [pa.field(name, pa.int64()) for name in ("id", "size", "mtime_ns")]
        # Names of files need not be text.
        names = [pa.field("path", pa.binary()), pa.field("sha256", pa.binary())]
        schema = pa.schema([*numbers, *names, pa.field(VECTORS, pa.list_(vector))])
        with self._telling():
            self._table = self._connect().create_table(TABLE, schema=schema, mode="overwrite")
        note_of = {"format": FORMAT, "loading": note.loading, "vectors": note.vectors, "width": note.width}
        write_text(self.folder / NOTE, json.dumps(note_of | {"probes": note.probes}))
        self.note = note

    def refresh(self) -> None:
        """Look again whether there is an index, and what is in it."""
        self._table = None
        if self.note is None and (self.folder / NOTE).exists():
            self.note = self._read_note()

    def version(self) -> int:
        """Grows with every change that any process made."""
        self._table = None
        return self._read(lambda table: int(table.version))

    def count(self) -> int:
        """Of rows."""
        return self._read(lambda table: int(table.count_rows()))

    def entries(self, numbers: Sequence[int] | None = None) -> list[Entry]:
        """Rows of these numbers, or all, in the order in which they were added."""

        def read(table: Any) -> list[Entry]:
            search = table.search().select(FIELDS)
            if numbers is not None:
                search = search.where(_among(numbers))
            rows = search.to_arrow().select(FIELDS).to_pydict()
            return [
                Entry(number, os.fsdecode(path), size, mtime, sha256)
                for number, path, size, mtime, sha256 in zip(*(rows[name] for name in FIELDS), strict=True)
            ]

        return sorted(self._read(read), key=lambda entry: entry.number)

    def blocks(self) -> list[tuple[list[int], torch.Tensor]]:
        """Vectors of all rows: their numbers, and float16 [n, Q, width], piece by piece."""

        def read(table: Any) -> list[tuple[list[int], torch.Tensor]]:
            return [self._unpacked(batch) for batch in table.search().select(["id", VECTORS]).to_batches()]

        return [block for block in self._read(read) if block[0]]

    def take(self, numbers: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        """Vectors of some rows: the numbers of those that are there, and float16 [n, Q, width]."""
        import torch

        def read(table: Any) -> list[tuple[list[int], torch.Tensor]]:
            search = table.search().where(_among(numbers)).select(["id", VECTORS])
            return [self._unpacked(batch) for batch in search.to_batches()]

        note = self._noted()
        blocks = self._read(read) if numbers else []
        empty = torch.empty(0, note.vectors, note.width, dtype=torch.float16)
        found = [number for numbers, _ in blocks for number in numbers]
        return found, torch.cat([empty, *(block for _, block in blocks)])

    def _unpacked(self, batch: pa.RecordBatch) -> tuple[list[int], torch.Tensor]:
        import torch

        note = self._noted()
        numbers = batch.column("id").to_pylist()
        values = batch.column(VECTORS).flatten().flatten().to_numpy(zero_copy_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it may not be written to, which nobody does
            vectors = torch.from_numpy(values)
        return numbers, vectors.view(len(numbers), note.vectors, note.width)

    def append(self, entries: Sequence[Entry], vectors: torch.Tensor) -> None:
        """Add rows; they are on the disk when this returns.

        Args:
            vectors: [n, Q, width] of any floating-point type.
        """
        import numpy as np
        import pyarrow as pa
        import torch

        count, queries, width = vectors.shape
        flat = pa.array(vectors.to(torch.float16).contiguous().view(-1).numpy())
        each = pa.FixedSizeListArray.from_arrays(flat, width)
        ends = pa.array(np.arange(count + 1, dtype=np.int32) * queries)
        columns: dict[str, Any] = {
            "id": [entry.number for entry in entries],
            "size": [entry.size for entry in entries],
            "mtime_ns": [entry.mtime_ns for entry in entries],
            "path": [os.fsencode(entry.path) for entry in entries],
            "sha256": [entry.sha256 for entry in entries],
            VECTORS: pa.ListArray.from_arrays(ends, each),
        }
        since = time.time_ns() - 10**10
        with self._telling():
            table = self._opened()
            table.add(pa.table(columns, schema=table.schema))
        self._sync(since)

    def remove(self, numbers: Sequence[int]) -> None:
        """Drop rows."""
        since = time.time_ns() - 10**10
        for start in range(0, len(numbers), 1000):
            with self._telling():
                self._opened().delete(_among(numbers[start : start + 1000]))
        self._sync(since)

    def tidy(self, indexed_above: int) -> None:
        """Join small pieces and drop what is left of earlier states; above so many rows, keep an index of vectors.

        Another process that reads meanwhile has to try again (see `TRIES`).
        """
        since = time.time_ns() - 10**10
        with self._telling(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = self._opened()
            if table.count_rows() > indexed_above and not table.list_indices():
                from lancedb.index import IvfRq

                # 8 bits a number: with one, as is the default, half of the best images are missed.
                table.create_index(VECTORS, config=IvfRq(distance_type="cosine", num_bits=8))
            elif table.stats()["fragment_stats"]["num_fragments"] <= FRAGMENTS:
                return
            table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        self._sync(since)

    def candidates(self, query: torch.Tensor, count: int, probes: int) -> list[int] | None:
        """Numbers of rows that have vectors near one of the query's [K, width], by the index; None without one.

        Args:
            count: of rows for each vector of the query.
            probes: parts of the index that are looked through.
        """

        def read(table: Any) -> list[int] | None:
            if not table.list_indices():
                return None
            found: dict[int, None] = {}
            for vector in query.float().numpy():
                search = table.search(vector, vector_column_name=VECTORS).distance_type("cosine")
                near = search.nprobes(probes).select(["id", "_distance"]).limit(count).to_arrow()
                found |= dict.fromkeys(near.column("id").to_pylist())
            return list(found)

        return self._read(read)

    def nbytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _noted(self) -> Note:
        if self.note is None:
            raise OptionError(f"there is no index in {self.folder}: make one with openblip index PHOTOS --db")
        return self.note

    def _read(self, work: Callable[[Any], Result]) -> Result:
        self._noted()
        for _ in range(TRIES - 1):
            try:
                return work(self._opened())
            except Exception:
                # Joined and removed by another process, perhaps. What is wrong is told by the last try.
                self._table = None
                time.sleep(0.2)
        with self._telling():
            return work(self._opened())

    def _opened(self) -> Any:
        if self._table is None:
            self._table = self._connect().open_table(TABLE)
        return self._table

    def _connect(self) -> Any:
        os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of what is meant, such as a new table
        try:
            import lancedb
        except ImportError as error:
            raise OpenBlipError(MISSING) from error
        return lancedb.connect(self.folder)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors of LanceDB as sentences. A fault of its own in a damaged file is no Exception."""
        try:
            yield
        except (OpenBlipError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            self._table = None
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                number = DISK_ERROR.search(str(error))
                if number and int(number[1]) != errno.ENOENT:
                    raise OSError(int(number[1]), os.strerror(int(number[1])), str(self.folder)) from error
                raise OpenBlipError(
                    f"the index {self.folder} cannot be read or written ({printable(str(error), 160)}): if it is "
                    "damaged, delete it, and index again"
                ) from error
            raise

    def _sync(self, since: int) -> None:
        """Wait until files that were written since then (ns) are on the disk."""
        for folder, _, names in os.walk(self.folder / f"{TABLE}.lance"):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime_ns >= since:
                        put_on_disk(path)
            put_names_on_disk(Path(folder))


def _among(numbers: Sequence[int]) -> str:
    """Of rows with these numbers, in SQL."""
    return f"id in ({', '.join(str(int(number)) for number in numbers)})" if numbers else "id < 0"
