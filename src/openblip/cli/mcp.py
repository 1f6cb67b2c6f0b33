"""`openblip mcp`: the model's abilities as tools of the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import say
from openblip.errors import OpenBlipError, OptionError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

EXAMPLES = """[bold]Examples[/bold]
  openblip mcp
  openblip mcp --root photos/ --db photos.index
  openblip mcp --http --port 8765
  openblip mcp --http --host 0.0.0.0 --api-key-file keys.txt --allow-url images.example.org

[bold]Tools[/bold]
  caption, ask, match, analyze, and search with --db."""


def mcp(
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Read images from this folder alone. Default: any file over standard input, none over HTTP.",
            show_default=False,
        ),
    ] = None,
    db: Annotated[
        Path | None,
        typer.Option("--db", metavar="FOLDER", help="The index to search, by `openblip index`.", show_default=False),
    ] = None,
    allow_url: args.AllowUrl = None,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    http: Annotated[
        bool,
        typer.Option(
            "--http", help="Serve streamable HTTP instead of standard input.", rich_help_panel=args.HTTP_PANEL
        ),
    ] = False,
    host: args.Host = "127.0.0.1",
    port: args.Port = 8765,
    api_key_file: args.ApiKeyFile = None,
    allowed_host: args.AllowedHost = None,
    max_body: Annotated[
        int,
        typer.Option(
            metavar="MB", min=1, help="The largest request; base64 takes a third more.", rich_help_panel=args.HTTP_PANEL
        ),
    ] = 40,
) -> None:
    """Serve the model to assistants and editors as tools of the Model Context Protocol (MCP)."""
    if not http and (api_key_file or allowed_host):
        raise OptionError("--api-key-file and --allowed-host are about HTTP: give --http, too")
    if http:
        from openblip.serve.listening import check_host

        check_host(host, api_key_file is not None)
    try:
        import openblip.integrations.mcp as tools
    except ImportError as error:
        raise OpenBlipError(str(error)) from error
    from openblip.images.references import ImageReferences
    from openblip.models.shared import SharedModel
    from openblip.serve.auth import read_keys
    from openblip.web.policy import UrlPolicy

    images = ImageReferences(root, paths=not http or root is not None, urls=UrlPolicy(allow_url or ()))
    keys = None if api_key_file is None else read_keys(api_key_file)
    server = tools.build_server(tools.in_turn(SharedModel(model, device, dtype, adapter)), images, index=db)
    if http:
        _serve(server, host, port, keys, allowed_host or [], max_body * 2**20)
    else:
        import anyio

        anyio.run(server.run_stdio_async)


def _serve(
    server: MCPServer, host: str, port: int, keys: list[bytes] | None, allowed_hosts: list[str], max_body_bytes: int
) -> None:
    import uvicorn

    from openblip.integrations.mcp import http_app
    from openblip.serve.auth import Keys
    from openblip.serve.listening import address_of, known_hosts, listen

    app = http_app(server, allowed_hosts=known_hosts(keys is not None, allowed_hosts), max_body_bytes=max_body_bytes)
    config = uvicorn.Config(app if keys is None else Keys(app, keys), log_level="warning", access_log=False)
    with listen(host, port) as listening:
        say(f"MCP at {address_of(host, listening)}/mcp")
        uvicorn.Server(config).run(sockets=[listening])
