"""What an index answers with."""

from __future__ import annotations

from dataclasses import dataclass, field

from openblip.errors import ImageError


@dataclass(frozen=True)
class Found:
    """A photo of the index.

    Attributes:
        path: of the file, absolute.
        score: what `min_score` is compared with: `itm` of a photo that was read together with the text, or else `itc`.
        itc: cosine, from -1 to 1, with the text; with a photo the mean over its vectors of the best cosine. The
            greatest cosine of what is not wanted is subtracted.
        itm: the probability, from 0 to 1, that text and photo belong together; None if it was not computed.
    """

    path: str
    score: float
    itc: float
    itm: float | None = None


@dataclass
class Changes:
    """What `Index.add` did.

    Attributes:
        new, changed: photos that were encoded: of files that the index did not have, or that have another content now.
        copied: of files that have the same content as one in the index, which was not encoded again.
        moved: of files that had another path.
        same: of files that are as they were.
        gone: photos that left the index, because their files are gone.
        errors: of files that cannot be read.
    """

    new: int = 0
    changed: int = 0
    copied: int = 0
    moved: int = 0
    same: int = 0
    gone: int = 0
    errors: list[ImageError] = field(default_factory=list)


@dataclass(frozen=True)
class Status:
    """What is in an index.

    Attributes:
        images: how many photos.
        model: the name of the model that it was made with.
        vectors, width: of each photo, Q unit vectors of so many numbers.
        nbytes: of its files.
        folders: how many photos lie in each folder, subfolders apart.
    """

    images: int
    model: str
    vectors: int
    width: int
    nbytes: int
    folders: dict[str, int]
