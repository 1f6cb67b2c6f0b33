"""What `openblip.load` says to what is no model."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import openblip
from openblip import errors
from openblip.checkpoints import loading
from openblip.errors import CheckpointError, OpenBlipError, OptionError


def test_every_error_can_be_caught_by_its_public_name() -> None:
    known = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OpenBlipError)}
    assert known <= set(openblip.__all__)
    assert all(getattr(openblip, name) is getattr(errors, name) for name in known)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (None, OptionError, "the model is None: give its name"),
        (b"mini", OptionError, "the model is b'mini'"),
        (5, OptionError, "the model is 5"),
        ("", CheckpointError, "name is empty"),
        (" ", CheckpointError, "name is empty"),
        ("./nowhere", CheckpointError, r"\./nowhere is neither a model folder"),
        ("C:\\models\\blip2", CheckpointError, "is neither a model folder"),
        ("x" * 5000, CheckpointError, "cannot be looked at|is neither a model folder"),
        ("a\0b", CheckpointError, "is neither a model folder|cannot be looked at"),
        (Path("mini"), CheckpointError, "mini is neither a model folder"),
    ],
)
def test_what_is_no_name(
    name: object, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        openblip.load(name)  # type: ignore[arg-type]


def test_a_checkpoint_is_looked_for_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "download", lambda *_, **__: pytest.fail("15 GB for nothing"))
    with pytest.raises(CheckpointError, match=r"nowhere\.pth is no file"):
        openblip.load("blip2_opt/pretrain_opt2.7b", checkpoint=tmp_path / "nowhere.pth")
