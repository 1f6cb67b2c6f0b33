"""The errors a user can meet; each message is one sentence that says what to do."""

from __future__ import annotations


class OpenBlipError(Exception):
    """Anything that is wrong with what the user gave: files, names, options, data."""


class ImageError(OpenBlipError):
    """An image that cannot be used.

    Attributes:
        source: the path, URL or description of the image, as shown to the user.
    """

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source
        self.problem = problem

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.source, self.problem)


class CheckpointError(OpenBlipError):
    """A model folder or file that is missing, broken or does not fit the architecture."""


class DownloadError(OpenBlipError):
    """Files of a model that cannot be fetched: no network, not there, not allowed, no room, damaged."""


class OptionError(OpenBlipError, ValueError):
    """An argument outside its allowed range, or arguments that exclude each other."""
