"""Caption metrics as the COCO caption challenge computes them (Chen et al. 2015, https://arxiv.org/abs/1504.00325)."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openblip.errors import OpenBlipError, OptionError

PUNCTUATION = re.compile(r"[^a-z0-9'\- ]+")


@dataclass(frozen=True)
class CaptionScores:
    """Corpus scores, 1.0 being 100 %.

    Attributes:
        bleu: BLEU-1 to BLEU-4 (Papineni et al. 2002).
        cider: CIDEr-D (Vedantam et al. 2015); a human scores below 1 on most sets, models may exceed it.
        official: whether Java's PTB tokeniser split the words, as in published numbers.
    """

    bleu: tuple[float, float, float, float]
    cider: float
    official: bool


def score_captions(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], official: bool | None = None
) -> CaptionScores:
    """Score one caption an image against the references of the same images.

    Args:
        official: split words with Java's PTB tokeniser; None uses it where Java is installed. Without it
            a simpler tokeniser moves scores in the third decimal.

    Raises:
        OpenBlipError: pycocoevalcap is not installed, or Java is missing though official was asked for.
        OptionError: the two do not name the same images.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError:
        raise OpenBlipError('caption metrics need more packages: pip install "openblip[eval]"') from None
    if set(captions) != set(references) or not captions:
        raise OptionError("captions and references must name the same images, and at least one")
    has_java = shutil.which("java") is not None
    if official and not has_java:
        raise OpenBlipError("the official tokeniser needs Java: install a Java runtime, or use official=False")
    official = has_java if official is None else official
    names = list(captions)
    truth = {name: [{"caption": text} for text in references[name]] for name in names}
    said = {name: [{"caption": captions[name]}] for name in names}
    if official:
        tokenizer = PTBTokenizer()
        truth_words, said_words = tokenizer.tokenize(truth), tokenizer.tokenize(said)
    else:
        truth_words = {name: [simple_words(row["caption"]) for row in rows] for name, rows in truth.items()}
        said_words = {name: [simple_words(row["caption"]) for row in rows] for name, rows in said.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints its progress
        bleu, _ = Bleu(4).compute_score(truth_words, said_words)
        cider, _ = Cider().compute_score(truth_words, said_words)
    return CaptionScores((bleu[0], bleu[1], bleu[2], bleu[3]), float(cider), official)


def simple_words(text: str) -> str:
    """Lower-case words without punctuation, near to what the PTB tokeniser leaves."""
    return " ".join(PUNCTUATION.sub(" ", text.lower()).split())
