"""Whether two frames of a video show nearly the same.

The hash of a frame is its mean colours in a raster of 16 x 16 cells: 768 bytes, whatever the size of the video. Noise
and compression hardly move the mean of a cell, which is of thousands of pixels; whatever moves and fills a good part
of a cell, a 256th of the frame, does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

HASH_SIDE = 16
"""Cells in each direction."""
SAME_CELL = 12
"""Levels, of 255, by which no cell of two frames that look the same differs in any colour."""
SAME_MEAN = 2.0
"""Levels by which all cells of two such frames differ in the mean."""


def frame_hash(colors: np.ndarray[Any, Any]) -> bytes:
    """The hash of a frame that was scaled to the raster by the means of its areas: uint8 [16, 16, 3]."""
    return colors.tobytes()


def is_same_view(one: bytes, other: bytes) -> bool:
    """Whether two frames, by their hashes, look so much alike that a caption of one is a caption of the other."""
    import numpy as np

    cells = [np.frombuffer(values, dtype=np.uint8).astype(np.int16) for values in (one, other)]
    differences = np.abs(cells[0] - cells[1])
    return bool(differences.max() <= SAME_CELL and differences.mean() <= SAME_MEAN)
