"""Small BLIPs of transformers in folders that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from openblip.checkpoints.transformers.blip import save_blip_folder
from openblip.integrations import transformers as ours
from tests.models.blip_models import small_parts

NAMES = {
    "caption": "BlipForConditionalGeneration",
    "answer": "BlipForQuestionAnswering",
    "match": "BlipForImageTextRetrieval",
}


@dataclass(frozen=True)
class Pair:
    """One model of both libraries, loaded from the same folder."""

    task: str
    folder: Path
    ours: Any
    theirs: Any
    processor: Any

    @property
    def our_class(self) -> Any:
        return getattr(ours, NAMES[self.task])

    @property
    def their_class(self) -> Any:
        return getattr(transformers, NAMES[self.task])


def write_pair(task: str, folder: Path, **text: Any) -> Pair:
    """`text` are settings of its text_config."""
    save_blip_folder(small_parts(task, folder), folder / "first")
    kind = getattr(transformers, NAMES[task])
    model = kind.from_pretrained(folder / "first")
    for name, value in text.items():
        setattr(model.config.text_config, name, value)
    place = folder / "theirs"
    model.save_pretrained(place)
    processor: Any = transformers.BlipProcessor.from_pretrained(folder / "first")
    processor.save_pretrained(place)
    return Pair(
        task, place, getattr(ours, NAMES[task]).from_pretrained(place), kind.from_pretrained(place).eval(), processor
    )
