"""What an evaluation between epochs gives, and so by which name the best weights may be chosen."""

from __future__ import annotations

from openblip.evaluation.metrics.recall import DEPTHS

CAPTIONS = (*(f"bleu_{order}" for order in range(1, 5)), "rouge_l", "cider")
"""METEOR and SPICE need Java, which takes longer to start than a small evaluation."""
ANSWERS = ("accuracy", "exact")
ACCURACY_OF_KIND = "accuracy ({})"
"""The accuracy of the questions of one kind."""
RECALLS = (
    *(
        f"{way}_{what}"
        for way in ("text_to_image", "image_to_text")
        for what in (*(f"at_{depth}" for depth in DEPTHS), "mean")
    ),
    "mean",
)


def is_possible(metric: str, matching: bool) -> bool:
    """Whether some data could give it. What the data at hand give is known once they are read.

    Args:
        matching: the run learns to match, rather than to write.
    """
    if matching:
        return metric in RECALLS
    before, _ = ACCURACY_OF_KIND.split("{}")
    return metric in (*CAPTIONS, *ANSWERS) or metric.startswith(before)
