"""Options of reading are checked once, where they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openblip.checkpoints.read_options import DEFAULT_OPTIONS, ReadOptions
from openblip.errors import OptionError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": torch.int8}, "weights cannot be torch.int8"),
        ({"bits": 5}, "bits is 5: give 8, 4, 0 or None"),
        ({"left_out": "vision."}, "left_out is 'vision.': give a tuple"),
        ({"in_float32": ["qformer."]}, "in_float32 is .*: give a tuple"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ReadOptions(**options)


def test_names_begin_as_they_say() -> None:
    options = ReadOptions(torch.bfloat16, in_float32=("qformer.",), left_out=("vision.",))
    assert options.dtype_of("qformer.norm.weight") == torch.float32
    assert options.dtype_of("decoder.norm.weight") == torch.bfloat16
    assert options.leaves_out("vision.positions") and not options.leaves_out("vision_norm.weight")
    assert not DEFAULT_OPTIONS.leaves_out("vision.positions")
    assert ReadOptions(left_out=("",)).leaves_out("vision.positions")
