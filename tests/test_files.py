"""Whatever names a file may name a pipe, a device or a file of the kernel: none of them is waited for or read."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import openblip
from openblip.checkpoints.hub.repositories import is_complete
from openblip.checkpoints.lora.files import read_adapter
from openblip.checkpoints.tools.inspect import inspect
from openblip.data.sources.json_rows import load_json, read_values
from openblip.data.sources.tar_headers import BrokenTarError, read_members
from openblip.errors import OpenBlipError
from openblip.evaluation.recipe import load_evaluation
from openblip.files import NotAFileError, open_file, read_bytes, read_text
from openblip.images.decode import load_image
from openblip.training.recipe import load_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")

KINDS = ["pipe", "socket", "zero", "null", "kernel", "link to a pipe"]


def made(kind: str, path: Path) -> Path:
    """Something at `path` that is no ordinary file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        place = Path(os.path.relpath(path)) if len(str(path)) > 100 else path
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(place))
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    else:
        path.symlink_to({"zero": "/dev/zero", "null": "/dev/null", "kernel": "/proc/self/status"}[kind])
        if not path.exists():
            pytest.skip(f"{path.resolve()} is not there")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_only_ordinary_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = made(kind, tmp_path / "file")
    for read in (open_file, read_bytes, read_text):
        with pytest.raises(NotAFileError, match="not an ordinary file") as raised:
            read(path)
        assert raised.value.filename == str(path)


def test_ordinary_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("eins\r\nzwei\rdreiß\n".encode())
    assert read_text(tmp_path / "a.txt") == (tmp_path / "a.txt").read_text(encoding="utf-8") == "eins\nzwei\ndreiß\n"
    (tmp_path / "link").symlink_to("a.txt")
    with open_file(tmp_path / "link") as file:
        assert file.read(4) == b"eins"
        assert not stat.S_IMODE(os.get_inheritable(file.fileno()))
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "nothing")


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "image": ("photo.jpg", load_image),
    "training recipe": ("r.yaml", load_recipe),
    "evaluation recipe": ("r.yaml", load_evaluation),
    "rows": ("rows.jsonl", lambda path: list(read_values(path))),
    "annotations": ("all.json", load_json),
    "tar": ("photos.tar", lambda path: list(read_members(path))),
    "config": ("config.json", lambda path: openblip.load(path.parent)),
    "weights": ("model.safetensors", lambda path: openblip.load(path.parent)),
    "words": ("decoder_tokenizer.json", lambda path: openblip.load(path.parent)),
    "text words": ("qformer_tokenizer.json", lambda path: openblip.load(path.parent)),
    "inspected config": ("config.json", lambda path: inspect(path.parent)),
    "inspected weights": ("model.safetensors", lambda path: inspect(path)),
    "adapter config": ("adapter_config.json", lambda path: read_adapter(path.parent)),
    "adapter": ("adapter_model.safetensors", lambda path: read_adapter(path.parent)),
    "pickled adapter": ("adapter_model.bin", lambda path: read_adapter(path.parent)),
}


@pytest.mark.parametrize("kind", ["pipe", "zero", "kernel"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_them_in_one_sentence(
    reader: str, kind: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    name, read = READERS[reader]
    (folder / name).unlink(missing_ok=True)
    path = made(kind, folder / name)
    with pytest.raises((OpenBlipError, BrokenTarError)) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    if name == "config.json":
        assert not is_complete(folder) or kind == "kernel"
