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
    """Share of answers equal to the truth: under "all", and under each kind where kinds are given.

    Raises:
        OptionError: not one answer a question.
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
    """Share of right labels: "accuracy" of all, "accuracy (LABEL)" among the rows that have it, and their mean.

    The mean over labels, "balanced accuracy", is what guessing the commonest one cannot raise.

    Raises:
        OptionError: not one given label a right one, or none at all.
    """
    predicted, right = text_list(predicted, "the labels"), text_list(right, "the right labels")
    if len(predicted) != len(right) or not right:
        raise OptionError(f"{len(predicted)} labels for {len(right)} rows: give one for each")
    total = Counter(right)
    hits = Counter(truth for label, truth in zip(predicted, right, strict=True) if _same(label, truth))
    shares = {label: hits[label] / count for label, count in sorted(total.items())}
    found = {"accuracy": sum(hits.values()) / len(right), "balanced accuracy": sum(shares.values()) / len(shares)}
    few = 10  # a thousand classes of ImageNet are no table
    return found | ({f"accuracy ({label})": share for label, share in shares.items()} if len(shares) <= few else {})


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
