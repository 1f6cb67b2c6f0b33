"""`openblip serve`: a model behind HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import print_line
from openblip.errors import OptionError

EXAMPLES = """[bold]Examples[/bold]
  openblip serve
  openblip serve --model Salesforce/blip2-opt-2.7b --port 9000 --limit queue=128
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
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is all networks.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 is any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys that clients need, one a line.", show_default=False),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Serve other machines without keys: something in front checks who asks.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What clients call the model. Default: its own name.", show_default=False),
    ] = None,
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
        from openblip.serve.server import check_host, listen
        from openblip.serve.server import serve as run
        from openblip.serve.service import Service
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("openblip"):
            raise
        raise OptionError(NEEDED) from None
    import openblip

    if name is None and Path(model).is_dir():
        name = Path(model).resolve().name  # clients need not know where it lies
    limits = read_limits(limit or [])
    keys = [] if api_key_file is None else read_keys(api_key_file)
    check_host(host, bool(keys), no_key)
    listener = listen(host, port)
    with listener:
        loaded = openblip.load(model, device=device, dtype=dtype, adapter=adapter, tokenizer=tokenizer)
        service = Service(loaded, limits, name=name, threads=threads).start()
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        run(
            make_app(service, keys=keys, logs=not quiet),
            service,
            listener,
            lambda: print_line(f"{service.name}: {address}"),
        )
