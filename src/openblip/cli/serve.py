"""`openblip serve`: a model behind HTTP."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import print_line
from openblip.errors import OptionError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from openblip.models.model import Model
    from openblip.search import Index
    from openblip.serve.service import Service

EXAMPLES = """[bold]Examples[/bold]
  openblip serve
  openblip serve --model Salesforce/blip2-opt-2.7b --port 9000 --limit queue=128
  openblip serve --web --index photos.index
  openblip serve --mcp
  openblip serve --allow-url images.example.org
  openblip serve --host 0.0.0.0 --api-key-file keys.txt
  curl -F file=@photo.jpg http://127.0.0.1:8000/caption"""

OLDEST_PYTHON = (3, 11)
NEEDED = 'the server needs more packages: pip install "openblip[serve]"'


def serve(
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    host: args.Host = "127.0.0.1",
    port: args.Port = 8000,
    api_key_file: args.ApiKeyFile = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Serve other machines without keys: something in front checks who asks.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What clients call the model. Default: its own name.", show_default=False),
    ] = None,
    web: Annotated[
        bool,
        typer.Option(
            "--web",
            help="Show a page at the same address, for browsers; it takes seconds to start and 150 MB of memory, and "
            "needs the extra web. With keys, browsers ask for one as a password.",
        ),
    ] = False,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Search in this index of openblip index on the page, and show its photos (--web); and by --mcp.",
            show_default=False,
        ),
    ] = None,
    mcp: Annotated[
        bool,
        typer.Option("--mcp", help="Offer the tools of openblip mcp at /mcp, too; needs the extra mcp."),
    ] = False,
    allowed_host: args.AllowedHost = None,
    allow_url: args.AllowUrl = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a limit, such as queue=128; repeatable.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads that compute on a CPU. Default: one a core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write no line for each request.")] = False,
) -> None:
    """Serve a model over HTTP: captions, answers, matching and features; also as OpenAI's API.

    Ctrl-C and SIGTERM end it in order: what was taken is finished, and new requests are refused meanwhile.
    """
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise OptionError("the server needs Python 3.11 or newer, as FastAPI does: install OpenBLIP there")
    try:
        from openblip.serve.app import make_app
        from openblip.serve.auth import read_keys
        from openblip.serve.limits import read_limits
        from openblip.serve.listening import address_of, check_host, known_hosts, listen
        from openblip.serve.server import serve as run
        from openblip.serve.service import Service
        from openblip.web.policy import UrlPolicy
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("openblip"):
            raise
        raise OptionError(NEEDED) from None
    import openblip

    if index is not None and not (web or mcp):
        raise OptionError("--index is for the page and for tools: give --web or --mcp, too")
    if allowed_host and not mcp:
        raise OptionError("--allowed-host is for tools: give --mcp, too")
    if mcp:
        try:
            from openblip.serve.tools import mcp_app
        except ImportError as error:
            raise OptionError(str(error)) from error
    if web:
        from openblip.serve.page import import_gradio

        import_gradio()  # before a model is loaded for nothing
    if name is None and Path(model).is_dir():
        name = Path(model).resolve().name  # clients need not know where it lies
    limits = read_limits(limit or [])
    keys = [] if api_key_file is None else read_keys(api_key_file)
    urls = UrlPolicy(allow_url or ())
    check_host(host, bool(keys), no_key)
    listener = listen(host, port)
    with listener:
        loaded = openblip.load(model, device=device, dtype=dtype, adapter=adapter, tokenizer=tokenizer)
        opened = None if index is None else open_index(index, loaded)
        service = Service(loaded, limits, name=name, threads=threads, urls=urls).start()
        hosts = known_hosts(bool(keys), allowed_host or [])
        app = make_app(
            service,
            keys=keys,
            logs=not quiet,
            page=page_of(service, opened) if web else None,
            tools=mcp_app(service, index=index, allowed_hosts=hosts) if mcp else None,
        )
        address = address_of(host, listener)
        run(app, service, listener, lambda: print_line(f"{service.name}: {address}"))


def open_index(folder: Path, model: Model) -> Index:
    """The index of a page. Raises OptionError where there is none, or of another model."""
    from openblip.search import Index

    index = Index.open(folder, model=model)
    index.status()
    index.model  # noqa: B018  # raises for an index of another model
    return index


def page_of(service: Service, index: Index | None) -> Callable[[FastAPI], None]:
    """What mounts the page of a service."""
    from openblip.serve.page import mount_page
    from openblip.serve.page_work import PageWork

    return partial(mount_page, work=PageWork(service, index))
