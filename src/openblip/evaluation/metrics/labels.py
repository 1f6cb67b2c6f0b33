"""Accuracy of labels: classes of pictures (ImageNet), true or false (NLVR2), entailment (SNLI-VE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from openblip.errors import OptionError
from openblip.text import text_list


def label_accuracy(given: str | Iterable[str], right: str | Iterable[str]) -> dict[str, float]:
    """Share of right labels: "accuracy" of all, "accuracy (LABEL)" among the rows that have it, and their mean.

    The mean over labels, "balanced accuracy", is what guessing the commonest one cannot raise.

    Raises:
        OptionError: not one given label a right one, or none at all.
    """
    given, right = text_list(given, "the labels"), text_list(right, "the right labels")
    if len(given) != len(right) or not right:
        raise OptionError(f"{len(given)} labels for {len(right)} rows: give one for each")
    total = Counter(right)
    hits = Counter(truth for said, truth in zip(given, right, strict=True) if _same(said, truth))
    shares = {label: hits[label] / count for label, count in sorted(total.items())}
    found = {"accuracy": sum(hits.values()) / len(right), "balanced accuracy": sum(shares.values()) / len(shares)}
    few = 10  # a thousand classes of ImageNet are no table
    return found | ({f"accuracy ({label})": share for label, share in shares.items()} if len(shares) <= few else {})


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
