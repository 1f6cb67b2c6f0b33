"""Accuracy of answers by exact match, and of labels: classes of images, true or false (NLVR2), entailment (SNLI-VE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from openblip.data.sources.annotations import Questioned
from openblip.errors import OptionError
from openblip.text import text_list


def normalize_answer(answer: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".")


def exact_match(questions: Questioned | Iterable[Questioned], answers: str | Iterable[str]) -> dict[str, float]:
    """The share of right answers: of all questions ("all"), and of each kind of question.

    Raises:
        OptionError: there are not as many answers as questions.
    """
    questions = [questions] if isinstance(questions, Questioned) else list(questions)
    answers = text_list(answers, "the answers")
    if len(questions) != len(answers) or not questions:
        raise OptionError(f"{len(answers)} answers to {len(questions)} questions: give one for each")
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for question, answer in zip(questions, answers, strict=True):
        correct = normalize_answer(answer) == normalize_answer(question.answer)
        for kind in ("all", question.kind) if question.kind else ("all",):
            total[kind] += 1
            right[kind] += correct
    return {kind: right[kind] / total[kind] for kind in total}


def label_accuracy(predicted: str | Iterable[str], right: str | Iterable[str]) -> dict[str, float]:
    """The share of right labels: "accuracy" of all rows, "accuracy (LABEL)" of the rows with a label, and their mean.

    The mean, "balanced accuracy", does not rise if a model always predicts the most frequent label.

    Raises:
        OptionError: there are no labels, or not as many as rows.
    """
    predicted, right = text_list(predicted, "the labels"), text_list(right, "the right labels")
    if len(predicted) != len(right) or not right:
        raise OptionError(f"{len(predicted)} labels for {len(right)} rows: give one for each")
    total = Counter(right)
    hits = Counter(truth for label, truth in zip(predicted, right, strict=True) if _same(label, truth))
    shares = {label: hits[label] / count for label, count in sorted(total.items())}
    found = {"accuracy": sum(hits.values()) / len(right), "balanced accuracy": sum(shares.values()) / len(shares)}
    few = 10  # not for the thousand classes of ImageNet
    return found | ({f"accuracy ({label})": share for label, share in shares.items()} if len(shares) <= few else {})


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
