"""A model that several users in one process share: loaded when the first of them needs it, used by one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.models.load import load

if TYPE_CHECKING:
    from openblip.models.model import Model


class SharedModel:
    """A model, or what `openblip.load` takes for one.

    Attributes:
        name: as it was given.
    """

    def __init__(
        self, model: Model | str | Path, device: str | None = None, dtype: str | None = None, adapter: str | None = None
    ) -> None:
        self.name = str(model) if isinstance(model, str | Path) else model.name
        self._loaded = None if isinstance(model, str | Path) else model
        self._options = device, dtype, adapter
        self._turn = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[Model]:
        """The model, for one thread at a time. Raises as `openblip.load`, and tries again the next time."""
        with self._turn:
            if self._loaded is None:
                device, dtype, adapter = self._options
                self._loaded = load(self.name, device=device, dtype=dtype, adapter=adapter)
            yield self._loaded


@cache
def shared(name: str, device: str | None = None, dtype: str | None = None, adapter: str | None = None) -> SharedModel:
    """The one model of this name and these settings in this process."""
    return SharedModel(name, device, dtype, adapter)
