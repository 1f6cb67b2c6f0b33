"""What features on disk save a run, told once enough of its steps were timed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openblip.data.feature_store import FeatureStore
from openblip.saving import write_text
from openblip.training.feature_cache.index import EncoderPace
from openblip.training.monitor.profile import size_of

GAIN_FILE = "cache.json"
STEPS = 50
"""Enough for a median; a first epoch that is shorter has to do."""


@dataclass
class Gain:
    """Times steps that take features from disk, against steps that would run the encoder.

    Attributes:
        stores: of each data source, by its name.
        pace: of the encoder when it made the features; None when nobody has measured it.
        views: that this process sees a step.
        machine: what steps run on.
        computed: what of the model the features are of.
    """

    stores: Mapping[str, FeatureStore]
    pace: EncoderPace | None
    views: int
    machine: str
    computed: str = "the image encoder"
    seconds: list[float] = field(default_factory=list)
    told: bool = False

    def step(self, seconds: float, is_last: bool) -> str | None:
        """Count a step; what is to be said, once.

        Args:
            is_last: no more steps follow in this epoch.
        """
        if self.told:
            return None
        self.seconds.append(seconds)
        if len(self.seconds) < STEPS and not is_last:
            return None
        self.told = True
        return self._sentence()

    def write(self, folder: Path) -> None:
        """Leave the figures in a run's folder: bytes and seconds."""
        stores = {
            name: {"folder": str(store.folder), "pictures": len(store), "bytes": store.nbytes}
            for name, store in self.stores.items()
        }
        content: dict[str, object] = {"stores": stores, "machine": self.machine, "step seconds": self.with_features}
        if self.pace is not None:
            content |= {
                "encoder seconds a view": self.pace.seconds,
                "encoder measured on": self.pace.machine,
                "step seconds with encoder, about": self.with_encoder,
                "times as fast, about": self.with_encoder / self.with_features,
            }
        write_text(folder / GAIN_FILE, json.dumps(content, indent=1) + "\n")

    @property
    def with_features(self) -> float:
        """Seconds of a step; the first, which finds nothing prepared, counts where it is alone."""
        return max(1e-9, statistics.median(self.seconds[1:] or self.seconds))

    @property
    def with_encoder(self) -> float:
        """About the seconds of a step that runs the encoder: the measured ones and what the encoder took."""
        return self.with_features + (0.0 if self.pace is None else self.pace.seconds * self.views)

    def _sentence(self) -> str:
        folders = {store.folder: store for store in self.stores.values()}
        size = size_of(sum(store.nbytes for store in folders.values()))
        said = f"features from disk ({size}): a step takes {self.with_features:.3g} s"
        if self.pace is None:
            return said
        ratio = self.with_encoder / self.with_features
        elsewhere = "" if self.pace.machine == self.machine else f" (the encoder was timed on {self.pace.machine})"
        return f"{said}, with {self.computed} about {self.with_encoder:.3g} s, {ratio:.1f} times as long{elsewhere}"
