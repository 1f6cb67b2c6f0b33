"""What an input of the command line means: a table, a list of paths, a folder, a pattern, or an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.csv_records import CsvFile
from openblip.data.sources.records import known_columns
from openblip.errors import OptionError
from openblip.images.sources import find_images, is_address
from openblip.jobs.rows import IMAGE, Table
from openblip.jobs.text_tables import CsvTable, JsonTable, ListTable

CSV = frozenset({".csv", ".tsv"})
JSON_LINES = frozenset({".jsonl", ".ndjson"})
LISTS = frozenset({".txt", ".lst", ".list"})


def find_rows(
    text: str, spool: Path, *, exclude: Sequence[str] = (), column: str | None = None, data_root: Path | None = None
) -> tuple[Table, list[str] | None]:
    """The rows that an input of the command line means.

    Args:
        text: a table, a list of paths, a folder, a pattern, or an image.
        spool: where the list of a folder's or a pattern's images will be written.
        exclude: patterns of names, or of paths below the folder, that are left out.
        column: the column of images of a table; by default the first with one of the usual names.
        data_root: what relative paths of a table or a list are relative to; by default its own folder.

    Returns:
        The rows, and the images to write to `spool`, if it has to be written.

    Raises:
        OpenBlipError: there is no such input, or no column of images in it.
    """
    path = Path(text)
    suffix = path.suffix.lower()
    is_file = not is_address(text) and path.is_file()
    if column is not None and suffix not in CSV | JSON_LINES:
        raise OptionError(f"--image-column is for tables: {text} is none")
    if not is_file or suffix not in CSV | JSON_LINES | LISTS:
        if is_file and suffix in (".json", ".parquet", ".tar"):
            raise OptionError(f"{text} cannot be read by run: give a CSV, TSV or JSONL file, a list, or a folder")
        if not is_address(text) and not path.exists() and suffix in CSV | JSON_LINES | LISTS:
            raise OptionError(f"there is no file {text}: check the path")
        root = text if path.is_dir() else ""
        images = [image for image in find_images([text], recursive=True) if not is_excluded(image, root, exclude)]
        if not images:
            raise OptionError(f"--exclude leaves no image of {text}: exclude less")
        return ListTable(spool, None, IMAGE), images
    if exclude:
        raise OptionError(f"--exclude is for folders and patterns: {text} is a file")
    folder = data_root or path.absolute().parent
    path = path.absolute()
    if suffix in LISTS:
        return ListTable(path, folder, IMAGE), None
    if suffix in JSON_LINES:  # rows may have different fields; the scan knows all of them
        return JsonTable(path, folder, column or ""), None
    return CsvTable(path, folder, image_column(path, CsvFile(path).columns, column)), None


def image_column(path: Path, names: Sequence[str], column: str | None) -> str:
    """The column of images. Raises OptionError if there is none, or not this one."""
    if column is not None and column not in names:
        raise OptionError(f"{path} has no column {column}: it has {shown_columns(names)}")
    found = column or known_columns(names).get(IMAGE)
    if found is None:
        raise OptionError(f"{path} has no column of images: name it with --image-column; it has {shown_columns(names)}")
    return found


def is_excluded(image: str, root: str, exclude: Sequence[str]) -> bool:
    """Whether one of the patterns is of the image's name, of a folder in its path, or of its path below `root`."""
    if is_address(image):
        return any(fnmatch(image, pattern) for pattern in exclude)
    path = PurePath(os.path.relpath(image, root) if root else image)
    shown = path.as_posix()
    # "drafts" means a folder of that name wherever it is, "2019/*.png" a path below the input.
    return any(
        fnmatch(shown, pattern.rstrip("/")) or any(fnmatch(part, pattern.rstrip("/")) for part in path.parts)
        for pattern in exclude
    )
