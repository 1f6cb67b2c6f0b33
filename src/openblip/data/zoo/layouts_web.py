"""Layouts of images from the web: tables of addresses, folders of classes, tars."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from openblip.data.sample import Sample
from openblip.data.sources.cells import encodable
from openblip.data.sources.folders import read_folder
from openblip.data.sources.json_rows import reading
from openblip.data.sources.paths import expand_pattern
from openblip.data.sources.tars import read_tars
from openblip.data.zoo.annotation_files import read_lines, read_object
from openblip.data.zoo.layouts import Shared
from openblip.errors import OpenBlipError
from openblip.images.sources import is_address


def read_conceptual(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """Google's TSV of captions and addresses (CC3M) or addresses and captions (CC12M), without a header.

    Images are called as LAVIS' script calls them: the row's number and the CRC-32 of its address.
    """
    shared = Shared(image_root)
    samples = []
    for path in files:
        with reading(path), path.open(encoding="utf-8", errors="replace", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)):
                if len(row) != 2 or is_address(row[0]) == is_address(row[1]):
                    raise OpenBlipError(
                        f"{path}, line {number + 1}, is not a caption and an address with a tab between"
                    )
                address, caption = row if is_address(row[0]) else reversed(row)
                name = f"{number}_{zlib.crc32(address.encode())}.jpg"
                samples.append(Sample((shared(name),), name.removesuffix(".jpg"), captions=(caption,)))
    return samples


def read_sbu(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """SBU's `sbu-captions-all.json` (two lists side by side), or its two text files of addresses and captions.

    Images are called as at their addresses.
    """
    if len(files) == 1:
        content = read_object(files[0], "image_urls", "captions")
        addresses, captions = content.fields["image_urls"], content.fields["captions"]
        if not all(isinstance(text, str) for text in (*addresses, *captions)):
            raise OpenBlipError(f"{files[0]} has addresses or captions that are no texts: get it again")
    else:
        addresses, captions = map(read_lines, files)
    if len(addresses) != len(captions):
        raise OpenBlipError(f"{files[0]} has {len(addresses)} addresses for {len(captions)} captions: get it again")
    names = [PurePosixPath(urlsplit(address).path).name for address in addresses]
    return [
        Sample((image_root / name,), encodable(PurePosixPath(name).stem), captions=(encodable(caption.strip()),))
        for name, caption in zip(names, captions, strict=True)
    ]


def read_classes(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """ImageNet: `<split>/<class>/*.JPEG`; the label is the class's folder."""
    return read_folder(image_root / split if (image_root / split).is_dir() else image_root)


def read_laion(files: Sequence[Path], image_root: Path, split: str) -> list[Sample]:
    """LAION: a tar, a folder of tars, or a pattern of them. Millions of rows are better streamed (`stream`)."""
    return read_tars(tars_of(image_root))


def tars_of(place: Path) -> list[Path]:
    """The tars at a path, which may be a pattern. Raises OpenBlipError when there is none."""
    if place.is_dir():
        found = sorted(place.rglob("*.tar"))
        if not found:
            raise OpenBlipError(f"there is no tar in {place}: check the folder")
        return found
    return [place] if place.exists() else expand_pattern(str(place), Path())
