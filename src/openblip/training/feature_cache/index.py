"""An index of image encoders by their files: which features are theirs, and how long they take.

One file beside the stores of features. It may be deleted: an encoder that is not in it is loaded once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openblip import __version__
from openblip.checkpoints.origin import origin_of
from openblip.data.feature_store import ViewPlan
from openblip.training.recipe_keys import Recipe

ENCODERS_FILE = "encoders.json"


@dataclass(frozen=True)
class EncoderSpeed:
    """How fast an encoder was when features were computed.

    Attributes:
        seconds: for one view, in one process.
        machine: what it ran on.
    """

    seconds: float
    machine: str


class EncoderIndex:
    """What earlier runs with the same cache folder measured. A broken or missing file counts as an empty one.

    Make one before the model is read: its entries are of the files as they are at that time.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.path = folder / ENCODERS_FILE
        self.recipe = recipe
        self.origin = None if recipe.init is None else origin_of(recipe.init)

    def fingerprint(self, plan: ViewPlan) -> str | None:
        """The fingerprint of the recipe's encoder, if an earlier run has computed it from the same files."""
        key = self._key(plan)
        found = self._read("fingerprints").get(key) if key is not None else None
        return found if isinstance(found, str) else None

    def remember(self, plan: ViewPlan, fingerprint: str) -> None:
        key = self._key(plan)
        if key is not None and self.fingerprint(plan) != fingerprint:
            self._write("fingerprints", key, fingerprint)

    def speed(self, fingerprints: Sequence[str]) -> EncoderSpeed | None:
        """The speed of the first of these encoders for which it is known."""
        speeds = self._read("speeds")
        for fingerprint in fingerprints:
            with suppress(KeyError, TypeError, ValueError):
                found = speeds[fingerprint]
                return EncoderSpeed(float(found["seconds"]), str(found["machine"]))
        return None

    def remember_speed(self, fingerprint: str, speed: EncoderSpeed) -> None:
        self._write("speeds", fingerprint, asdict(speed))

    def _read(self, section: str) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))[section]
        except (OSError, ValueError, LookupError, RecursionError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, section: str, key: str, value: object) -> None:
        content = {name: self._read(name) for name in ("fingerprints", "speeds")}
        content[section][key] = value
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.draft")
        # If it cannot be written, the next run loads the encoder again.
        with suppress(OSError):
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draft.replace(self.path)

    def _key(self, plan: ViewPlan) -> str | None:
        """A digest of everything that a fingerprint depends on; None if the encoder's files are unknown."""
        if self.origin is None:
            return None
        # Another version of this program may read the same files in another way.
        settings = [self.recipe.image_size, self.recipe.precision.value, self.recipe.vision_blocks]
        identity = [__version__, self.origin, *settings, plan.identity]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
