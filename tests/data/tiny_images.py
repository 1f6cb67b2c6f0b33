"""Tiny images, and the files that hold them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image


def jpeg(shade: int = 0, size: tuple[int, int] = (6, 4)) -> bytes:
    """A one-coloured JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 128, 255 - shade % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, shade: int = 0) -> Path:
    """An image at a path, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(shade))
    return path


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar by Python's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
