"""The server on a Ray cluster: Ray Serve starts replicas of it, sends requests to them and replaces those that die.

The application is the one of `openblip serve` as it is: it puts requests together, counts who waits and refuses whom it
must. So Ray neither queues nor batches (no `@serve.batch`), and a replica takes as many requests as come. Run it with

    serve run --working-dir recipes/deploy recipes/deploy/ray_serve.yaml
"""

# No `from __future__ import annotations` here: Ray would not see that `app` takes Settings, and give it a dictionary.
from typing import Any

from pydantic import BaseModel
from ray import serve
from starlette.types import ASGIApp

import openblip
from openblip.serve.app import make_app
from openblip.serve.auth import read_keys
from openblip.serve.limits import read_limits
from openblip.serve.service import Service

MOST_REQUESTS = 1_000
"""Of one replica at a time: more than its own queue takes, so that it is the one who refuses."""


class Settings(BaseModel):
    """The `args` of the application in ray_serve.yaml.

    Attributes:
        model: a name from `openblip models`, or a folder that every machine has.
        api_key_file: keys, one a line, on every machine; None where something in front checks who asks.
        limits: NAME=VALUE, as of `openblip serve --limit`.
        replicas: how many; one on each GPU, or one for so many processors.
        cpus: processors of a replica.
        gpus: 1, or 0.5 for two small models on a GPU.
    """

    model: str = "mini"
    api_key_file: str | None = None
    limits: list[str] = []
    replicas: int = 2
    cpus: int = 2
    gpus: float = 0


class Replica:
    """A model with the application around it, in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.keys = [] if settings.api_key_file is None else read_keys(settings.api_key_file)
        model = openblip.load(settings.model)
        self.service = Service(model, read_limits(settings.limits), threads=settings.cpus).start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return make_app(self.service, keys=self.keys)

    def check_health(self) -> None:
        """Ray replaces a replica of which this raises."""
        if not self.service.engine.is_alive:
            raise RuntimeError("the model's thread has ended")


def on_ray(replica: type[Any], settings: Settings) -> serve.Application:
    """Replicas of a class, as an application of Ray Serve."""
    deployment = serve.deployment(
        name="openblip",
        num_replicas=settings.replicas,
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=130,  # twice the deadline of a request, and a little more
        health_check_period_s=5,
    )(serve.ingress()(replica))
    return deployment.bind(settings)


def app(settings: Settings) -> serve.Application:
    """What `import_path` in ray_serve.yaml names."""
    return on_ray(Replica, settings)
