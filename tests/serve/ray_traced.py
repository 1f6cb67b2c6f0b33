"""The recipe for Ray Serve with notes of who took which request, for test_ray.py: a file that Ray imports alone."""

import os
from pathlib import Path

import ray_serve
from starlette.types import ASGIApp, Receive, Scope, Send


class Traced(ray_serve.Replica):
    """A replica that notes each request in a file of its process, before it does anything else."""

    def __serve_build_asgi_app__(self) -> ASGIApp:
        inner = super().__serve_build_asgi_app__()
        notes = Path(os.environ["TAKEN_BY"])

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "POST":
                name = dict(scope["headers"])[b"x-request-id"].decode()
                with (notes / str(os.getpid())).open("a", encoding="utf-8") as file:
                    file.write(f"{name}\n")
            await inner(scope, receive, send)

        return noted


def app(settings: ray_serve.Settings) -> ray_serve.serve.Application:
    return ray_serve.on_ray(Traced, settings)
