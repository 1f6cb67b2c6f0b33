"""Files of weights that cannot be read: what lies in their place is refused, and libraries' errors name the file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openblip.errors import CheckpointError, printable
from openblip.files import open_file

POINTER = b"version https://git-lfs"
GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed")
"""PyTorch's words for a class that it does not unpickle."""


def refuse_stand_ins(path: Path) -> None:
    """Raises CheckpointError when there is no file of any content at `path`, or it may not be read."""
    if not path.is_file():
        problem = "is no file" if path.exists() else "is missing"
        raise CheckpointError(f"{path} {problem}: the model folder is incomplete, get it again")
    try:
        with open_file(path) as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if start == POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer: fetch the real file with `git lfs pull`")
    if not start:
        raise CheckpointError(f"{path} is empty: get the file again")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """As `naming_faults`, for a file that is opened now: what stands in for it is refused first."""
    refuse_stand_ins(path)
    with naming_faults(path):
        yield


@contextmanager
def naming_faults(path: Path) -> Iterator[None]:
    """Turns what the libraries raise about a file into a CheckpointError that names it."""
    from safetensors import SafetensorError  # a command that lists models needs no reader of weights

    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        kind = GLOBAL.search(str(error))
        detail = f" (it names {printable(kind[1])})" if kind else ""
        hint = ", or save its weights alone: torch.save(model.state_dict(), PATH)" if kind else ""
        raise CheckpointError(
            f"{path} is broken or holds more than tensors, which could run code{detail}: get the file from its source "
            f"again{hint}"
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        first = printable(str(error).partition("\n")[0].partition(". ")[0])
        raise CheckpointError(f"{path} is broken ({first}): get the file again") from error
    except Exception as error:  # bytes that are no pickle at all take the unpickler anywhere
        raise CheckpointError(f"{path} is broken, or no file of weights: get it again") from error
