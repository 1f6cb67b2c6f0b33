"""A server of the Model Context Protocol: assistants and editors caption images, ask about them, match and search them.

`openblip mcp` runs it by itself; a program with a web server of its own takes `build_server` and `http_app`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

try:
    import anyio
    import anyio.to_thread
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp_types import ToolAnnotations
    from pydantic import Field, ValidationError
    from starlette.routing import Route

    from openblip.integrations.mcp_results import (
        Analysis,
        Answer,
        Answers,
        Captions,
        Matches,
        Page,
        PageAnswer,
        Photo,
        Photos,
        ScoredText,
        TextMatch,
    )
except ImportError as error:
    raise ImportError('the MCP server needs the MCP SDK: pip install "openblip[mcp]"') from error

from openblip import __version__
from openblip.errors import OpenBlipError
from openblip.images.references import ImageReferences, name_of
from openblip.models.shared import SharedModel

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

    from openblip.analysis.results import AnalyzedPage
    from openblip.models.model import Model
    from openblip.search import Index

Result = TypeVar("Result")
READERS = 4
"""Images that are fetched and decoded at once, each up to the limits of one image."""
MAX_BODY_BYTES = 40 * 2**20
"""Of an HTTP request: a photo of 20 MB is 27 MB as base64."""
MAX_PAGES, MAX_TEXTS, MAX_QUESTIONS, MAX_CAPTIONS, MAX_FOUND = 50, 100, 20, 8, 100
MAX_CHARACTERS = 2_000
LEFT = "openblip.left"
"""Where an HTTP request keeps the event that its connection has ended."""
READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, destructive_hint=False)

Image = Annotated[str, Field(description="A path, an http(s) or data: URL, or the image file as base64.", min_length=1)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class Engine(Protocol):
    """Who has the model: it does what it is given with the model, one after the other, and not in the event loop."""

    def __call__(self, work: Callable[[Model], Result], /) -> Awaitable[Result]:
        """What `work` returns or raises."""

    def each(self, work: Callable[[Model], Iterator[Result]], /) -> Awaitable[list[Result]]:
        """All that `work` yields, or what it raises; between any two, others have the model."""


def in_turn(shared: SharedModel) -> Engine:
    """An engine of a shared model: a thread works for one call at a time; calls that are cancelled while they wait are
    not begun.
    """
    return _InTurn(shared)


class _InTurn:
    def __init__(self, shared: SharedModel) -> None:
        self.shared = shared
        self.turn = anyio.CapacityLimiter(1)

    async def __call__(self, work: Callable[[Model], Result], /) -> Result:
        def run() -> Result:
            with self.shared.use() as model:
                return work(model)

        return await anyio.to_thread.run_sync(run, limiter=self.turn)

    async def each(self, work: Callable[[Model], Iterator[Result]], /) -> list[Result]:
        results = await self(work)
        found: list[Result] = []
        while more := await self(partial(next_of, results)):
            found += more
        return found


def next_of(results: Iterator[Result], _: Model) -> list[Result]:
    """The next result in a list, or an empty one at the end: as work for an engine."""
    return list(islice(results, 1))


@dataclass
class _Tools:
    """The tools, as functions. Their signatures are what clients see."""

    engine: Engine
    images: ImageReferences
    index: Path | None
    readers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(READERS))
    opened: Index | None = None

    async def caption(
        self,
        image: Image,
        prompt: Annotated[Text, Field(description="How the caption begins; empty for the model's own way.")] = "",
        count: Annotated[int, Field(description="How many captions.", ge=1, le=MAX_CAPTIONS)] = 1,
    ) -> Captions:
        """Describe an image in one sentence, or in several different ones."""

        def work(opened: PILImage.Image, model: Model) -> Captions:
            found = model.caption(opened, prompt=prompt or None, num_captions=count, details=True)
            return Captions(
                image=name_of(image), captions=[ScoredText(text=one.text, score=one.score) for one in found]
            )

        return await self._with_image(image, work)

    async def ask(
        self,
        image: Image,
        questions: Annotated[
            list[Text],
            Field(description="Questions about what the image shows.", min_length=1, max_length=MAX_QUESTIONS),
        ],
    ) -> Answers:
        """Answer questions about an image, each by itself."""

        def work(opened: PILImage.Image, model: Model) -> Answers:
            found = zip(questions, model.ask(opened, questions, details=True), strict=True)
            answers = [Answer(question=question, answer=one.text, score=one.score) for question, one in found]
            return Answers(image=name_of(image), answers=answers)

        return await self._with_image(image, work)

    async def match(
        self,
        image: Image,
        texts: Annotated[
            list[Text], Field(description="Texts that may fit the image.", min_length=1, max_length=MAX_TEXTS)
        ],
    ) -> Matches:
        """Say how well each of several texts fits an image, best first."""

        def work(opened: PILImage.Image, model: Model) -> Matches:
            found = [
                TextMatch(text=one.text, probability=one.itm, cosine=one.itc) for one in model.match(opened, texts)
            ]
            found.sort(key=lambda one: one.cosine if one.probability is None else one.probability, reverse=True)
            return Matches(image=name_of(image), matches=found)

        return await self._with_image(image, work)

    async def search(
        self,
        text: Annotated[Text, Field(description="What the photos should show; or give an image.")] = "",
        image: Annotated[str, Field(description="An image that they should be like, instead of a text.")] = "",
        top: Annotated[int, Field(description="How many photos at most.", ge=1, le=MAX_FOUND)] = 10,
    ) -> Photos:
        """Find photos in the index by a text, or by a photo that they should be like."""
        if bool(text.strip()) == bool(image):
            raise ToolError("give a text or an image to look for, one of both")
        query = await self._reading(partial(self.images.load, image)) if image else None

        def work(model: Model) -> Photos:
            found = self._index(model).search(text if query is None else None, image=query, top=top)
            photos = [Photo(path=self._shown(one.path), probability=one.itm, cosine=one.itc) for one in found]
            return Photos(photos=photos)

        return await self._told(self.engine(work))

    async def analyze(
        self,
        document: Annotated[
            str, Field(description="A PDF, a TIFF or an image: path, URL or the file as base64.", min_length=1)
        ],
        question_set: Annotated[
            str, Field(description="What is asked of each page: document, product, xray, ct or mri.")
        ] = "document",
        questions: Annotated[
            list[Text] | None,
            Field(description="Questions of your own instead of a set.", min_length=1, max_length=MAX_QUESTIONS),
        ] = None,
        pages: Annotated[str, Field(description="Pages such as 1-3,7; empty for all.", max_length=200)] = "",
    ) -> Analysis:
        """Ask a set of questions about each page of a document."""
        from openblip.analysis.analyze import analyze_pages
        from openblip.analysis.pages import plan_pages
        from openblip.analysis.question_sets import ask_about, built_in_sets

        if questions is None and question_set not in built_in_sets():
            raise ToolError(f"there is no set {question_set!r}: give {', '.join(built_in_sets())}, or questions")
        content = await self._reading(partial(self.images.read, document))

        asked = built_in_sets()[question_set] if questions is None else ask_about(questions)

        def work(model: Model) -> Iterator[AnalyzedPage]:
            plan = plan_pages([content], pages or None, None)
            if len(plan) > MAX_PAGES:
                raise ToolError(f"these are {len(plan)} pages, more than {MAX_PAGES}: say which ones with pages")
            return analyze_pages(model, plan, asked, batch_size=1)

        found = [
            Page(
                page=one.page,
                caption=one.caption,
                answers=[
                    PageAnswer(question=each.question, answer=each.answer, probability=each.probability)
                    for each in one.answers
                ],
                error=None if one.error is None else one.error.problem,
            )
            for one in await self._told(self.engine.each(work))
        ]
        if all(one.error is not None for one in found):
            raise ToolError(f"{name_of(document)}: {found[0].error}")
        return Analysis(document=name_of(document), pages=found, warning=asked.warning)

    async def _with_image(self, image: str, work: Callable[[PILImage.Image, Model], Result]) -> Result:
        opened = await self._reading(partial(self.images.load, image))
        return await self._told(self.engine(partial(work, opened)))

    async def _reading(self, work: Callable[[], Result]) -> Result:
        return await self._told(anyio.to_thread.run_sync(work, limiter=self.readers))

    async def _told(self, work: Awaitable[Result]) -> Result:
        """What was wrong with what the client gave goes to the client, in one sentence."""
        try:
            return await work
        except OpenBlipError as error:
            raise ToolError(str(error)) from error

    def _index(self, model: Model) -> Index:
        """The index, with the model that is loaded already if it is the one that the index was made with."""
        from openblip.search import Index

        if self.opened is None:
            assert self.index is not None
            opened = Index.open(self.index)
            if opened.status().model == model.name:
                opened = Index.open(self.index, model=model)
            self.opened = opened
        return self.opened

    def _shown(self, path: str) -> str:
        """As the client may name it again: in the folder of images, or the name alone where no path is taken."""
        if not self.images.paths:
            return Path(path).name
        root = self.images.root
        place = Path(path)
        return str(place.relative_to(root)) if root is not None and Path(root) in place.parents else path


class _Server(MCPServer[Any]):
    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        """As the SDK's, but it ends when the client's connection does; wrong arguments are told in a sentence."""
        request = None if context is None else context.request_context.request
        left = None if request is None else request.scope.get(LEFT)
        if left is None:
            return await self._call(name, arguments, context)
        result: Any = None
        problem: Exception | None = ToolError("the client left")
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await left.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                result, problem = await self._call(name, arguments, context), None
            except Exception as error:  # not to be one of a group
                problem = error
            group.cancel_scope.cancel()
        if problem is not None:
            raise problem
        return result

    async def _call(self, name: str, arguments: dict[str, Any], context: Any) -> Any:
        # Values of arguments, which may be photos, are in no message.
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                problems = (f"{'.'.join(map(str, one['loc'])) or 'they'}: {one['msg']}" for one in cause.errors()[:3])
                raise ToolError(f"the arguments of {name} are wrong ({'; '.join(problems)}): see its schema") from cause
            if isinstance(cause, ToolError):
                raise cause from None
            raise


def build_server(
    engine: Engine, images: ImageReferences | None = None, *, index: str | Path | None = None
) -> MCPServer[Any]:
    """The server with its tools: caption, ask, match and analyze, and search if there is an index.

    Args:
        engine: who has the model; `in_turn(SharedModel("mini"))`, or a server's own.
        images: what clients may name as an image; by default nothing but what the call brings along.
        index: a folder that `openblip index` made.

    Raises:
        OptionError: there is no index in the folder.
    """
    if index is not None:
        from openblip.search import Index

        Index.open(index).status()
    tools = _Tools(
        engine, ImageReferences(paths=False) if images is None else images, None if index is None else Path(index)
    )
    with _own_logging():
        server = _Server(
            "openblip",
            title="OpenBLIP",
            version=__version__,
            instructions="Describes images, answers questions about them, compares them with texts, and finds photos.",
        )
    offered: list[Callable[..., Any]] = [tools.caption, tools.ask, tools.match, tools.analyze]
    for tool in offered if index is None else [*offered, tools.search]:
        server.add_tool(tool, annotations=READS)
    return server


def http_app(
    server: MCPServer[Any],
    *,
    path: str = "/mcp",
    allowed_hosts: Sequence[str] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """The server as an ASGI application of streamable HTTP with one route, without sessions.

    To have it in another application, extend that one's routes by those of this one, and enter this one's
    `router.lifespan_context(app)` in its lifespan; a mount would answer each call with a redirect first.

    Args:
        path: of the route.
        allowed_hosts: Host headers that are answered, such as "tools.example.org" or "127.0.0.1:*"; None for any, where
            a key keeps others out: a web page could lead its visitors' browsers to a server on their machine.
        max_body_bytes: of a request.
    """
    hosts = [] if allowed_hosts is None else [*allowed_hosts]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=allowed_hosts is not None,
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")],
    )
    app = server.streamable_http_app(
        streamable_http_path=path,
        stateless_http=True,  # and answers as events: with plain JSON, a client that leaves would go unnoticed
        max_request_body_size=max_body_bytes,
        transport_security=security,
    )
    for route in app.routes:
        if isinstance(route, Route):
            route.app = _Connection(route.app)
    return app


class _Connection:
    """The application of a route whose calls can tell that their client's connection has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = scope[LEFT] = anyio.Event()
        try:
            await self.app(scope, receive, send)
        finally:
            left.set()


@contextmanager
def _own_logging() -> Iterator[None]:
    """The SDK puts a handler of its own on the root logger, which is the program's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
