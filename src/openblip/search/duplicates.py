"""Groups of photos that show the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openblip.search.found import Found
from openblip.search.store import Entry

if TYPE_CHECKING:
    from torch import Tensor


def group(entries: Sequence[Entry], blocks: Sequence[Tensor], least: float) -> list[list[Found]]:
    """Files of the same content, and photos whose vectors are nearly equal: groups of two at least, largest first.

    Args:
        blocks: vectors of the entries, in their order; none for contents alone.
        least: mean cosine of two photos' vectors.

    Returns:
        In each group the photos in the order of the index, each with its likeness to the first of them: 1 for the same
        content; a photo that is in it because of another one may have less than `least`.
    """
    from openblip.search import scan

    parents = list(range(len(entries)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parents[high] = low

    first_of: dict[bytes, int] = {}
    for place, entry in enumerate(entries):
        join(first_of.setdefault(entry.sha256, place), place)
    # Of equal contents one is compared: a thousand copies have half a million pairs.
    unique = sorted(first_of.values())
    if blocks:
        for one, other, _ in scan.alike(scan.picked(blocks, unique), least):
            join(unique[one], unique[other])
    groups: dict[int, list[int]] = {}
    for place in range(len(entries)):
        groups.setdefault(root(place), []).append(place)
    several = sorted((places for places in groups.values() if len(places) > 1), key=len, reverse=True)
    return [_told(entries, blocks, places) for places in several]


def _told(entries: Sequence[Entry], blocks: Sequence[Tensor], places: Sequence[int]) -> list[Found]:
    import torch

    from openblip.search import scan

    same = [entries[place].sha256 == entries[places[0]].sha256 for place in places]
    cosines = [1.0] * len(places)
    if not all(same):
        vectors = torch.cat(scan.picked(blocks, places))
        likeness = (vectors[:1].float() * vectors.float()).sum(dim=-1).mean(dim=-1).clamp(max=1).tolist()
        cosines = [1.0 if equal else cosine for equal, cosine in zip(same, likeness, strict=True)]
    return [Found(entries[place].path, cosine, cosine) for place, cosine in zip(places, cosines, strict=True)]
