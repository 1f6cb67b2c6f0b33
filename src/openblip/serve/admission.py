"""Who may wait for the model: so many images, and whoever comes beyond them is told when to come again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from openblip.serve.errors import busy


class Place:
    """Room for images in the queue, which is given back once, whoever does it first."""

    def __init__(self, give: Callable[[int], None], images: int) -> None:
        self._give = give
        self._images = images
        self._lock = threading.Lock()

    def free(self) -> None:
        with self._lock:
            images, self._images = self._images, 0
        if images:
            self._give(images)

    def begin(self, images: int = 1) -> None:
        """Some of the images wait no more."""
        with self._lock:
            images = min(images, self._images)
            self._images -= images
        if images:
            self._give(images)


class Admission:
    """Counts the images that wait, from before they are decoded until the model begins with them.

    Args:
        most: images.
        seconds_an_image: what one takes of the model's time, on average.
        shown: told how many wait, whenever that changes.
    """

    def __init__(self, most: int, seconds_an_image: Callable[[], float], shown: Callable[[float], None]) -> None:
        self.most = most
        self.seconds_an_image = seconds_an_image
        self.shown = shown
        self.waiting = 0
        self.draining = False
        self._lock = threading.Lock()

    def check(self, images: int = 1) -> None:
        """Raises a Refusal where there is no room for so many images."""
        if self.draining:
            raise busy(1, "the server is being stopped: ask another one, or again later", "draining", 503)
        if self.waiting + images > self.most:
            raise busy(
                self.waiting * self.seconds_an_image(),
                f"{self.waiting} images are waiting for the model, of {self.most} that may (--limit queue=N): try "
                "again in the seconds that Retry-After says",
                "queue",
            )

    def take(self, images: int) -> Place:
        """Room for so many images. Raises a Refusal where there is none."""
        with self._lock:
            self.check(images)
            self.waiting += images
            self.shown(self.waiting)
        return Place(self._give, images)

    def _give(self, images: int) -> None:
        with self._lock:
            self.waiting -= images
            self.shown(self.waiting)
