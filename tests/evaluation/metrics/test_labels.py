"""Accuracy of labels by hand."""

from __future__ import annotations

import pytest

from openblip.errors import OptionError
from openblip.evaluation.metrics.accuracy import label_accuracy


def test_shares() -> None:
    found = label_accuracy(["True", "false ", "True", "maybe"], ["True", "False", "False", "True"])
    assert found == {"accuracy": 0.5, "balanced accuracy": 0.5, "accuracy (False)": 0.5, "accuracy (True)": 0.5}


def test_the_commonest_label_is_no_skill() -> None:
    right = ["dog"] * 9 + ["cat"]
    found = label_accuracy(["dog"] * 10, right)
    assert (found["accuracy"], found["balanced accuracy"]) == (0.9, 0.5)


def test_many_labels_make_no_table() -> None:
    right = [str(number) for number in range(50)]
    assert label_accuracy(right, right) == {"accuracy": 1, "balanced accuracy": 1}


def test_counts_must_agree() -> None:
    with pytest.raises(OptionError, match="1 labels for 2 rows"):
        label_accuracy(["a"], ["a", "b"])
    with pytest.raises(OptionError, match="0 labels"):
        label_accuracy([], [])
