"""The tools of the Model Context Protocol beside the other endpoints: the same model, queue and limits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from openblip.errors import OptionError
from openblip.images.decode import loaded
from openblip.images.references import ImageReferences, name_of
from openblip.integrations.mcp import build_server, http_app, next_of
from openblip.serve.errors import Refusal
from openblip.serve.limits import MEGABYTE, Limits
from openblip.serve.model_jobs import Call
from openblip.serve.service import Service
from openblip.serve.uploads import Upload, check_upload

if TYPE_CHECKING:
    from PIL.Image import Image
    from starlette.applications import Starlette

    from openblip.models.model import Model

Result = TypeVar("Result")
PATH = "/mcp"


@dataclass(frozen=True)
class Images(ImageReferences):
    """What clients may name as an image: no file of this machine, and nothing beyond the server's limits."""

    limits: Limits = field(default_factory=Limits)

    def load(self, text: str) -> Image:
        name, data = name_of(text), self.read(text)
        try:
            check_upload(Upload(name, data), self.limits)
        except Refusal as refusal:
            raise OptionError(refusal.detail) from refusal
        with loaded(io.BytesIO(data), name) as image:
            return image


def mcp_app(service: Service, *, index: Path | None = None, allowed_hosts: Sequence[str] | None = None) -> Starlette:
    """The tools of a service, as `make_app` takes them.

    Args:
        index: a folder that `openblip index` made, to search in.
        allowed_hosts: Host headers that are answered; None for any.

    Raises:
        OptionError: there is no index in the folder.
    """
    limits = service.limits
    images = Images(paths=False, urls=service.urls, max_bytes=limits.file_bytes, limits=limits)
    server = build_server(_Engine(service), images, index=index)
    body = int(limits.json_mb * MEGABYTE)
    return http_app(server, path=PATH, allowed_hosts=allowed_hosts, max_body_bytes=body)


class _Engine:
    """The engine of a service for tools: what they ask waits in its queue, and is passed over if it is given up."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, work: Callable[[Model], Result], /) -> Result:
        """Raises OptionError, which says why, where the service refuses."""
        with _told(), self.service.visit(None, 1) as visit:
            result: Result
            (result,) = await visit.run(Call(work), [None])
        return result

    async def each(self, work: Callable[[Model], Iterator[Result]], /) -> list[Result]:
        """As one call, whose pieces wait in the queue each by itself."""
        with _told(), self.service.visit(None, 1) as visit:
            results: Iterator[Result]
            (results,) = await visit.run(Call(work), [None])
            found: list[Result] = []
            while True:
                more: list[Result]
                (more,) = await visit.run(Call(partial(next_of, results)), [None])
                if not more:
                    return found
                found += more


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise OptionError(refusal.detail) from refusal
