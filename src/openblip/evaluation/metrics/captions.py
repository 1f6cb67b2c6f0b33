"""Caption metrics as the COCO caption challenge computes them (Chen et al. 2015, https://arxiv.org/abs/1504.00325)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from openblip.errors import OpenBlipError, OptionError
from openblip.evaluation.metrics import java
from openblip.evaluation.metrics.ptb_words import split_words
from openblip.text import text_list


@dataclass(frozen=True)
class CaptionScores:
    """Corpus scores; 1.0 is 100 %.

    Attributes:
        bleu: BLEU-1 to BLEU-4 (Papineni et al. 2002).
        cider: CIDEr-D (Vedantam et al. 2015); people score below 1 on most data sets, models may score above 1.
        official: whether Java's PTB tokenizer was used, as for published numbers.
        rouge_l: ROUGE-L (Lin 2004).
        meteor, spice: METEOR 1.5 and SPICE 1.0; None if they were not computed.
        each: "bleu_4", "rouge_l", "cider", "meteor" and "spice" of each image, in the order of the captions.
        notes: sentences that say why a score is missing or unofficial.
    """

    bleu: tuple[float, float, float, float]
    cider: float
    official: bool
    rouge_l: float
    meteor: float | None = None
    spice: float | None = None
    each: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> dict[str, float]:
        """The names and values of the computed scores."""
        found = {f"bleu_{order}": value for order, value in enumerate(self.bleu, start=1)}
        found |= {"meteor": self.meteor, "rouge_l": self.rouge_l, "cider": self.cider, "spice": self.spice}  # type: ignore[dict-item]
        return {name: value for name, value in found.items() if value is not None}


def score_captions(
    captions: Mapping[str, str],
    references: Mapping[str, str | Iterable[str]],
    official: bool | None = None,
    *,
    meteor: bool | None = False,
    spice: bool | None = False,
) -> CaptionScores:
    """Score one caption of each image against its references.

    Args:
        references: of each image, one text or any iterable of texts.
        official: split words with Java's PTB tokenizer; None: if Java is installed. Otherwise,
            `openblip.evaluation.metrics.ptb_words` splits them, and the scores are called unofficial.
        meteor, spice: also compute these, in Java; None: if that is possible, and otherwise `notes` says why not.

    Raises:
        OpenBlipError: pycocoevalcap is not installed, or something that True requires is missing.
        OptionError: captions and references are of different images, or an image has no reference or several captions.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise OpenBlipError(java.INSTALL_HINT) from None
    for name, value in (("captions", captions), ("references", references)):
        if not isinstance(value, Mapping):
            raise OptionError(f"{name} are a {type(value).__name__}: give a dict, from an image's name to its texts")
    if set(captions) != set(references) or not captions:
        raise OptionError("captions and references must name the same images, and at least one")
    lone = {name: text_list(text, f"the captions of {name}") for name, text in captions.items()}
    several = next((name for name, texts in lone.items() if len(texts) != 1), None)
    if several is not None:
        raise OptionError(f"{several} has {len(lone[several])} captions: give the one that is to be scored")
    captions = {name: texts[0] for name, texts in lone.items()}
    truths = {name: text_list(those, f"the references of {name}") for name, those in references.items()}
    bare = next((name for name, those in truths.items() if not those), None)
    if bare is not None:
        raise OptionError(f"{bare} has no reference caption: leave it out")
    if official and not java.has_java():
        raise OpenBlipError("the official tokenizer needs Java: install a Java runtime, or use official=False")
    names = list(captions)
    notes: list[str] = []
    try:
        split_by_java = java.has_java() if official is None else official
        candidates, truth = _split(names, captions, truths, split_by_java)
    except OpenBlipError as error:
        if official:
            raise
        notes.append(f"The official tokenizer cannot be used: {error}.")
        split_by_java = False
        candidates, truth = _split(names, captions, truths, split_by_java)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints its progress
        bleu, each_bleu = Bleu(4).compute_score(truth, candidates)
        cider, each_cider = Cider().compute_score(truth, candidates)
        rouge, each_rouge = Rouge().compute_score(truth, candidates)
    each: dict[str, Sequence[float]] = {
        "bleu_4": [float(value) for value in each_bleu[3]],
        "rouge_l": [float(value) for value in each_rouge],
        "cider": [float(value) for value in each_cider],
    }
    if not split_by_java:
        notes.append(_UNOFFICIAL)
    if len(names) == 1:
        notes.append("CIDEr weighs words by how rare they are among the images: of one image it is always 0.")
    whole: dict[str, float | None] = {"meteor": None, "spice": None}
    words = [candidates[name][0] for name in names], [truth[name] for name in names]
    for metric, compute, wanted in (("meteor", java.meteor, meteor), ("spice", java.spice, spice)):
        if wanted is not False:
            try:
                whole[metric], each[metric] = compute(*words)
            except OpenBlipError as error:
                if wanted:
                    raise
                notes.append(f"{metric.upper()} is left out: {error}.")
    return CaptionScores(
        (bleu[0], bleu[1], bleu[2], bleu[3]),
        float(cider),
        split_by_java,
        float(rouge),
        **whole,
        each=each,
        notes=tuple(notes),
    )


_UNOFFICIAL = (
    "Unofficial: without Java the words were split by a tokenizer that is nearly, but not always, the same as that of "
    "published numbers."
)


def _split(
    names: Sequence[str], captions: Mapping[str, str], references: Mapping[str, Sequence[str]], official: bool
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Words of the captions, and of their references, joined by spaces."""
    texts = [text for name in names for text in (captions[name], *references[name])]
    split = iter(java.ptb_words(texts) if official else [" ".join(split_words(text)) for text in texts])
    candidates, truth = {}, {}
    for name in names:
        candidates[name] = [next(split)]
        truth[name] = [next(split) for _ in references[name]]
    return candidates, truth
