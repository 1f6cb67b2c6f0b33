"""How much faster a run is with features from disk: reported once, when enough steps were timed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openblip.data.feature_store import FeatureStore
from openblip.saving import write_text
from openblip.training.feature_cache.index import EncoderSpeed
from openblip.training.monitor.profile import size_of

SPEEDUP_FILE = "cache.json"
STEPS = 50
"""Enough for a median. A shorter first epoch is enough, too."""


@dataclass
class Speedup:
    """Compares steps that read features from disk with steps that would run the encoder.

    Attributes:
        stores: of each data source, by its name.
        speed: of the encoder when it computed the features; None when it was not measured.
        views: that this process takes a step.
        machine: what steps run on.
        computed: what of the model the features are of.
    """

    stores: Mapping[str, FeatureStore]
    speed: EncoderSpeed | None
    views: int
    machine: str
    computed: str = "the image encoder"
    seconds: list[float] = field(default_factory=list)
    reported: bool = False

    def step(self, seconds: float, is_last: bool) -> str | None:
        """Count a step. Returns the sentence to report, once.

        Args:
            is_last: no more steps follow in this epoch.
        """
        if self.reported:
            return None
        self.seconds.append(seconds)
        if len(self.seconds) < STEPS and not is_last:
            return None
        self.reported = True
        return self._sentence()

    def write(self, folder: Path) -> None:
        """Write the figures to a run's folder: bytes and seconds."""
        stores = {
            name: {"folder": str(store.folder), "images": len(store), "bytes": store.nbytes}
            for name, store in self.stores.items()
        }
        content: dict[str, object] = {"stores": stores, "machine": self.machine, "step seconds": self.with_features}
        if self.speed is not None:
            content |= {
                "encoder seconds a view": self.speed.seconds,
                "encoder measured on": self.speed.machine,
                "step seconds with encoder, about": self.with_encoder,
                "times as fast, about": self.with_encoder / self.with_features,
            }
        write_text(folder / SPEEDUP_FILE, json.dumps(content, indent=1) + "\n")

    @property
    def with_features(self) -> float:
        """Seconds of a step. The first one, which is slower, counts only if it is the only one."""
        return max(1e-9, statistics.median(self.seconds[1:] or self.seconds))

    @property
    def with_encoder(self) -> float:
        """Estimated seconds of a step that runs the encoder: a measured step and the time that the encoder needed."""
        return self.with_features + (0.0 if self.speed is None else self.speed.seconds * self.views)

    def _sentence(self) -> str:
        folders = {store.folder: store for store in self.stores.values()}
        size = size_of(sum(store.nbytes for store in folders.values()))
        sentence = f"features from disk ({size}): a step takes {self.with_features:.3g} s"
        if self.speed is None:
            return sentence
        ratio = self.with_encoder / self.with_features
        elsewhere = "" if self.speed.machine == self.machine else f" (the encoder was timed on {self.speed.machine})"
        return f"{sentence}, with {self.computed} about {self.with_encoder:.3g} s, {ratio:.1f} times as long{elsewhere}"
