"""What an input of the command line means: a table, a list of paths, tars, a folder, a pattern, or an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.csv_records import CsvFile
from openblip.data.sources.paths import counted_names, expand_pattern
from openblip.data.sources.records import known_columns
from openblip.errors import OptionError
from openblip.images.sources import IMAGE_SUFFIXES, find_images, has_marks, is_address
from openblip.jobs import object_storage
from openblip.jobs.paths import is_excluded
from openblip.jobs.rows import IMAGE, Table
from openblip.jobs.tar_table import TarTable
from openblip.jobs.text_tables import CsvTable, JsonTable, ListTable

JSON_LINES = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".csv", ".tsv", ".parquet"}) | JSON_LINES
ARCHIVES = frozenset({".parquet", ".tar"})
"""Of these, a pattern may give several files."""
LISTS = frozenset({".txt", ".lst", ".list"})
REFUSED = {
    ".json": "give JSON lines (.jsonl), an object a line",
    ".gz": "unpack it with gunzip first",
    ".tgz": "unpack it with gunzip first",
    ".zip": "unpack it first, and give the folder",
}


def find_rows(
    text: str,
    spool: Path,
    *,
    exclude: Sequence[str] = (),
    column: str | None = None,
    data_root: Path | str | None = None,
) -> tuple[Table, list[str] | None]:
    """The rows that an input of the command line means.

    Args:
        text: a table, a list of paths, a tar, a pattern of Parquet tables or tars, a folder, a pattern, or an image.
        spool: where the list of a folder's or a pattern's images will be written.
        exclude: patterns of names, or of paths below the folder, that are left out.
        column: the column of images of a table; by default the first with one of the usual names.
        data_root: what relative paths of a table or a list are relative to; by default its own folder.

    Returns:
        The rows, and the images to write to `spool`, if it has to be written.

    Raises:
        OpenBlipError: there is no such input, or no column of images in it.
    """
    if object_storage.is_stored(text):
        return _stored_rows(text, spool, exclude, column, data_root)
    path = Path(text)
    suffix = path.suffix.lower()
    is_pattern = not is_address(text) and not path.exists() and (has_marks(text) or "{" in text)
    if column is not None and suffix not in TABLES:
        raise OptionError(f"--image-column is for tables: {text} is none")
    if suffix in ARCHIVES and (is_pattern or path.is_file()):
        return _archives(expand_pattern(text, Path()), suffix, exclude, column, data_root), None
    is_file = not is_address(text) and path.is_file()
    if not is_file or suffix not in TABLES | LISTS:
        return ListTable((spool,), None, IMAGE), _listed(text, exclude)
    return _text_table(path.absolute(), data_root or path.absolute().parent, exclude, column), None


def _text_table(path: Path, folder: Path | str, exclude: Sequence[str], column: str | None) -> Table:
    suffix = path.suffix.lower()
    if exclude:
        raise OptionError(f"--exclude is for folders, patterns and tars: {path} is a file")
    if suffix in LISTS:
        return ListTable((path,), folder, IMAGE)
    if suffix in JSON_LINES:  # rows may have different fields; the scan knows all of them
        return JsonTable((path,), folder, column or "")
    return CsvTable((path,), folder, image_column(path, CsvFile(path).columns, column))


def _stored_rows(
    text: str, spool: Path, exclude: Sequence[str], column: str | None, data_root: Path | str | None
) -> tuple[Table, list[str] | None]:
    """As `find_rows`, of an address in object storage."""
    suffix = PurePosixPath(text).suffix.lower()
    if column is not None and suffix not in TABLES:
        raise OptionError(f"--image-column is for tables: {text} is none")
    folder = data_root if data_root is not None else text.rpartition("/")[0]
    if suffix in ARCHIVES:
        files = [object_storage.StoredFile.now_at(name) for name in object_storage.pattern_of(counted_names(text))]
        return _archives(files, suffix, exclude, column, folder), None
    if suffix in TABLES | LISTS:
        return _text_table(object_storage.StoredFile.now_at(text), folder, exclude, column), None
    if suffix in REFUSED:
        raise OptionError(f"{text} cannot be read by run: {REFUSED[suffix]}")
    found = [name for name in object_storage.find(text) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise OptionError(f"there is no image at {text}: check the address")
    root = "" if has_marks(text) else text.rstrip("/") + "/"
    images = [name for name in found if not is_excluded(name.removeprefix(root), "", exclude)]
    if not images:
        raise OptionError(f"--exclude leaves no image of {text}: exclude less")
    return ListTable((spool,), None, IMAGE), images


def _archives(
    paths: Sequence[Path], suffix: str, exclude: Sequence[str], column: str | None, data_root: Path | str | None
) -> Table:
    gone = next((path for path in paths if not path.is_file()), None)
    if gone is not None:
        raise OptionError(f"there is no file {gone}: check the pattern")
    if suffix == ".tar":
        return TarTable(tuple(paths), None, IMAGE, tuple(exclude))
    if exclude:
        raise OptionError(f"--exclude is for folders, patterns and tars: {paths[0]} is a table")
    from openblip.jobs.parquet_table import find_parquet

    return find_parquet(paths, column, data_root)


def _listed(text: str, exclude: Sequence[str]) -> list[str]:
    """The images of a folder or a pattern, or an image itself."""
    path = Path(text)
    suffix = path.suffix.lower()
    if not is_address(text) and path.is_file() and suffix in REFUSED:
        raise OptionError(f"{text} cannot be read by run: {REFUSED[suffix]}")
    if not is_address(text) and not path.exists() and not has_marks(text) and suffix in TABLES | LISTS | ARCHIVES:
        raise OptionError(f"there is no file {text}: check the path")
    root = text if path.is_dir() else ""
    images = [image for image in find_images([text], recursive=True) if not is_excluded(image, root, exclude)]
    if not images:
        raise OptionError(f"--exclude leaves no image of {text}: exclude less")
    return images


def image_column(path: Path, names: Sequence[str], column: str | None) -> str:
    """The column of images. Raises OptionError if there is none, or not this one."""
    if column is not None and column not in names:
        raise OptionError(f"{path} has no column {column}: it has {shown_columns(names)}")
    found = column or known_columns(names).get(IMAGE)
    if found is None:
        raise OptionError(f"{path} has no column of images: name it with --image-column; it has {shown_columns(names)}")
    return found
