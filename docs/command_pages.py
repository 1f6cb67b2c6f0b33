"""A Sphinx extension: the directive `commands` lists every command of `openblip` with its options, as `--help` does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

import openblip.cli


def plain(text: str) -> str:
    """Help without rich's styles, and with the characters escaped that mean something in a Markdown table."""
    return re.sub(r"([|<*_])", r"\\\1", " ".join(re.sub(r"\[/?\w+\]", "", text).split()))


def row(parameter: Any) -> str:
    """One argument or option: its names, what it takes, what it does and its default."""
    names = [name for name in parameter.opts if name.startswith("-")]
    if not getattr(parameter, "is_flag", False):
        names.append(parameter.metavar or parameter.name.upper())
    shown = getattr(parameter, "show_default", False)  # words, where there is no value: "by size"
    default = shown if isinstance(shown, str) else parameter.default
    told = f" Default: `{default}`." if isinstance(default, str | float) or type(default) is int else ""
    shown_names = " ".join(f"`{name}`" for name in names).replace("|", "\\|")
    return f"| {shown_names} | {plain(parameter.help or '')}{told} |"


def tables(parameters: list[Any]) -> Iterator[str]:
    """A Markdown table for each panel of `--help`."""
    panels: dict[str, list[str]] = {}
    for parameter in parameters:
        if parameter.name != "help":
            panel = getattr(parameter, "rich_help_panel", None) or "Arguments and options"
            panels.setdefault(panel, []).append(row(parameter))
    for panel, rows in panels.items():
        yield from (f"| | {panel} |", "|---|---|", *rows, "")


def page() -> Iterator[str]:
    """All commands, in the order of `openblip --help`."""
    group = cast(Any, get_command(openblip.cli.app))
    for name, command in group.commands.items():
        yield from section(name, command)
        for inner, each in getattr(command, "commands", {}).items():
            yield from section(f"{name} {inner}", each)


def section(name: str, command: Any) -> Iterator[str]:
    """One command: what it does, its options and examples."""
    yield from (f"## {name}", "", plain(command.help or ""), "")
    yield from tables(command.params)
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    yield from ("```sh", *examples, "```", "")


class Commands(SphinxDirective):
    def run(self) -> list[Node]:
        return self.parse_text_to_nodes("\n".join(page()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
