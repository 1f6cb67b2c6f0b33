"""A model as a folder of ours with quantized weights, for machines that should not have to quantize it again."""

from __future__ import annotations

from pathlib import Path

from openblip.checkpoints.loading import find_tokenizer, load_parts
from openblip.checkpoints.openblip.file_names import WEIGHTS_FILE
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.openblip.new_folder import new_folder
from openblip.checkpoints.read_options import ReadOptions
from openblip.errors import OptionError
from openblip.nn.quant.swap import BITS


def quantize_model(
    source: str | Path,
    folder: Path,
    bits: int,
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Path:
    """Write a model with large matrices in 8 or 4 bits; returns the file of weights.

    Weights are read one tensor at a time and quantized on the way, so memory holds the small model alone. What
    `openblip.load` makes of the folder is what it makes of the source with `dtype="int8"` or "int4".

    Args:
        source: what `openblip.load` takes.
        folder: must be empty or not exist yet.
        checkpoint, tokenizer: see `openblip.load`.

    Raises:
        OptionError: the folder is in use, or there are no such bits.
        CheckpointError: the source cannot be read.
        DownloadError: its files cannot be had.
        OpenBlipError: the folder cannot be written; nothing is left in it then.
    """
    if bits not in BITS:
        raise OptionError(f"bits is {bits}: give {' or '.join(map(str, BITS))}")
    folder = folder.expanduser()
    options = ReadOptions(
        bits=bits,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        tokenizer=None if tokenizer is None else find_tokenizer(tokenizer),
    )
    with new_folder(folder) as place:
        save_native(load_parts(source, options), place)
    return folder / WEIGHTS_FILE
