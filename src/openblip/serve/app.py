"""The ASGI application of a service: endpoints, and the layers around them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from openblip import __version__
from openblip.errors import OpenBlipError
from openblip.serve.auth import Keys
from openblip.serve.bodies import Bodies
from openblip.serve.errors import body_of, refusal_of
from openblip.serve.native import native_routes, wrong_field
from openblip.serve.observed import Observed
from openblip.serve.openai import openai_routes
from openblip.serve.service import Service

FORM_LIMITS = {
    "/caption": "picture_mb",
    "/ask": "picture_mb",
    "/match": "picture_mb",
    "/classify": "picture_mb",
    "/batch_caption": "batch_mb",
    "/embed": "batch_mb",
    "/gradio_api/upload": "batch_mb",
}
"""Paths whose bodies are forms, and the limit of each in megabytes."""
JSON_LIMITS = {"/v1/chat/completions": "json_mb", "/v1/embeddings": "json_mb"}


class Problem(BaseModel):
    """What is wrong, in a sentence, and for programs: `code` is the name of a limit, or of a kind of mistake."""

    message: str
    type: str
    code: str
    param: str | None


class Refused(BaseModel):
    """A request that was not done; the id is that of the server's log."""

    error: Problem
    request_id: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refused, "description": "The body of the request came too slowly."},
    413: {"model": Refused, "description": "Something is larger than a limit."},
    415: {"model": Refused, "description": "No form, or no format of images that is taken."},
    422: {"model": Refused, "description": "Something else is wrong with the request."},
    429: {"model": Refused, "description": "The queue is full; Retry-After says when to come again."},
    503: {"model": Refused, "description": "The model had no time, or the server is being stopped."},
    504: {"model": Refused, "description": "The request took too long."},
}
"""What requests for the model may be answered, for OpenAPI."""
NO_KEY: dict[int | str, dict[str, Any]] = {
    401: {"model": Refused, "description": "There is no key, or an unknown one."}
}
UNKNOWN_MODEL: dict[int | str, dict[str, Any]] = {
    404: {"model": Refused, "description": "The server has no such model."}
}


def make_app(
    service: Service,
    *,
    keys: Sequence[bytes] = (),
    logs: bool = True,
    page: Callable[[FastAPI], None] | None = None,
    tools: Starlette | None = None,
) -> FastAPI:
    """The application of a service that was started.

    Args:
        keys: digests of those that are accepted, see `openblip.serve.auth.read_keys`; none for no keys.
        logs: write a line of JSON for each request.
        page: mounts a page at "/". A route that is added later is not found behind it. With keys, browsers ask for
            one as a password.
        tools: those of the Model Context Protocol, by `openblip.serve.tools.mcp_app`. They live as long as the
            application, whose lifespan has to be run.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        if tools is None:
            yield
            return
        async with tools.router.lifespan_context(tools):
            yield

    app = FastAPI(
        title="OpenBLIP",
        version=__version__,
        description=f"Captions, answers, matching and features of images by {service.name}.",
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    refusals = REFUSALS | (NO_KEY if keys else {})
    app.include_router(native_routes(service), responses=refusals)
    app.include_router(openai_routes(service), responses=refusals | UNKNOWN_MODEL)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "It is being stopped."}})
    async def ready() -> Response:
        """Whether it takes requests: 200, or 503 while it is being stopped."""
        return JSONResponse({"ready": service.is_ready, "model": service.name}, 200 if service.is_ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=NO_KEY if keys else None)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.page(), media_type=service.metrics.content_type)

    @app.exception_handler(HTTPException)
    @app.exception_handler(OpenBlipError)
    async def refused(request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        request.state.notes["code"] = refusal.code
        content = body_of(refusal, request.state.request_id)
        return JSONResponse(content, refusal.status_code, headers=dict(refusal.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        # Of a field that may be of two types, what is wrong with it as the one that it is.
        told = next((one for one in problems if not one["type"].endswith("_type")), problems[0])
        return await refused(request, wrong_field(told))

    limits = FORM_LIMITS | JSON_LIMITS
    if tools is not None:
        app.router.routes.extend(tools.routes)  # a mount would answer each call with a redirect first
        limits |= {route.path: "json_mb" for route in tools.routes if isinstance(route, Route)}
    if page is not None:
        page(app)
    paths = frozenset({*limits, "/health", "/ready", "/metrics", "/openapi.json", "/v1/models"})
    # The last one is the outermost.
    app.add_middleware(
        Bodies,
        limits=service.limits,
        may_come=service.admission.check,
        limit_of=limits,
        measured=service.metrics.stage_seconds.labels("body").observe,
    )
    if keys:
        app.add_middleware(Keys, keys=list(keys), login=page is not None)
    app.add_middleware(Observed, metrics=service.metrics, paths=paths, logs=logs)
    return app
