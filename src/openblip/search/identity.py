"""Whether two models give vectors that can be compared: by what they make of one text and one image.

Names do not say it. One folder may hold other weights than last week, and one model has many names; int8 and bfloat16
change its vectors by less than a thousandth.
"""

from __future__ import annotations

from typing import Any

from openblip.errors import OpenBlipError
from openblip.search.store import Note

TEXT = "a photo of a dog on a beach"
SIZE = 224
LEAST = 0.98
"""Mean cosine of the vectors of one model, in whatever type it computes."""


def probe(model: Any) -> list[list[float]]:
    """The vectors of the text and of the image, one after the other, rounded to what half precision holds."""
    vectors = [model.embed_texts(TEXT)[None], model.embed_images(_image())]
    return [[round(number, 4) for number in vector] for part in vectors for vector in part.tolist()]


def note_of(model: Any, loading: dict[str, Any]) -> Note:
    """What an index keeps of the model that it is made with."""
    probes = probe(model)
    return Note(loading, len(probes) - 1, len(probes[0]), probes)


def check_same(note: Note, model: Any, folder: object) -> None:
    """Raises OpenBlipError, which names both, if the model is not the one that the index was made with."""
    import torch

    then, now = torch.tensor(note.probes), torch.tensor(probe(model))
    if then.shape == now.shape:
        cosines = torch.nn.functional.cosine_similarity(then, now, dim=-1)
        if min(cosines[0].item(), cosines[1:].mean().item()) >= LEAST:
            return
    other = "its weights have changed since" if note.model == model.name else "their vectors cannot be compared"
    raise OpenBlipError(
        f"the index {folder} was made with the model {note.model}, and this is {model.name}; {other}: give --model "
        f"{note.loading['name']}, or make another index"
    )


def _image() -> Any:
    """Colours that change slowly, and stripes."""
    import numpy as np

    place = np.arange(SIZE, dtype=np.float64)
    across, down = np.meshgrid(place, place)
    stripes = 127.5 + 127.5 * np.sin((across + down) / 9)
    return np.stack([across * 255 / SIZE, down * 255 / SIZE, stripes], axis=-1).astype(np.uint8)
