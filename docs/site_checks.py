"""What Sphinx does not check by itself. A Sphinx extension: its warnings fail the build, as every warning does.

- Every public name has a docstring and a place in the reference.
- A name of another package in a signature or docstring exists there, as far as that package is installed.
- The finished pages load nothing from another host.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils.nodes import Element, Node, TextElement, document, system_message
    from docutils.parsers.rst.states import Inliner
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PACKAGE = "openblip"

SHORT_NAMES = {
    "Tensor": "torch.Tensor",
    "Image": "PIL.Image",
    "Path": "pathlib.Path",
    "Unpack": "typing_extensions.Unpack",
    "Ability": "openblip.models.abilities.Ability",
    "GenerationDefaults": "openblip.checkpoints.model_parts.GenerationDefaults",
    "ImagePairs": "openblip.models.judge_methods.ImagePairs",
    "Judge": "openblip.matching.judge.Judge",
    "Matcher": "openblip.matching.matcher.Matcher",
    "PromptTemplates": "openblip.text.PromptTemplates",
    "Writer": "openblip.models.writer.Writer",
}
"""What the first word of a name stands for in annotations whose imports only type checkers see."""

OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
STYLE_OUTSIDE = re.compile(r"""(?:@import\s+|url\()\s*["']?(?:https?:)?//[^)\s]+""", re.IGNORECASE)


class LoadedElsewhere(HTMLParser):
    """Finds what makes a browser ask another host as soon as a page opens; links that a reader follows do not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        loaded = [values.get(name, "") for name in ("src", "srcset", "poster", "data")]
        if tag == "link" and values.get("rel") != "canonical":
            loaded.append(values.get("href", ""))
        self.found += [value for value in loaded if OUTSIDE.match(value)]


def public_names() -> dict[str, object]:
    """What users may rely on, under full names: all of `openblip.__all__`, and public members of its classes."""
    package = importlib.import_module(PACKAGE)
    found: dict[str, object] = {}
    for name in package.__all__:
        thing = getattr(package, name)
        if isinstance(thing, str):  # the version
            continue
        found[f"{PACKAGE}.{name}"] = thing
        if inspect.isclass(thing):
            found |= {f"{PACKAGE}.{name}.{member}": value for member, value in public_members(thing).items()}
    return found


def public_members(owner: type) -> dict[str, object]:
    """Methods and properties. Plain attributes are described in their class's docstring."""
    ours = [kind for kind in owner.__mro__ if kind.__module__.partition(".")[0] == PACKAGE]
    return {
        name: value
        for kind in reversed(ours)
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and (isinstance(value, property | staticmethod | classmethod) or inspect.isroutine(value))
    }


def left_out(names: dict[str, object], documented: set[str]) -> list[str]:
    """One sentence for each name that has no docstring or no place in the reference."""
    sentences = []
    for name, thing in names.items():
        text = thing.__doc__ if isinstance(thing, property) else inspect.getdoc(thing)
        if not text:
            sentences.append(f"{name} has no docstring: write one")
        elif name not in documented:
            sentences.append(f"{name} is public but not in the reference: add it to a page in docs/reference")
    return sentences


def outside_requests(folder: Path) -> list[str]:
    """One sentence for each place in built pages and style sheets that loads something from another host."""
    sentences = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            parser = LoadedElsewhere()
            parser.feed("" if path.suffix == ".css" else text)
            for address in parser.found + STYLE_OUTSIDE.findall(text):
                sentences.append(f"{path.relative_to(folder)} loads something from another host: {address}")
    return sentences


def exists(name: str) -> bool:
    """Whether a dotted name leads to a builtin, or to something in a module that can be imported."""
    if hasattr(builtins, name):
        return True
    first, *rest = name.split(".")
    parts = [*SHORT_NAMES.get(first, first).split("."), *rest]
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def _check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    from sphinx.util import logging

    for sentence in left_out(public_names(), set(env.domains.python_domain.objects)):
        logging.getLogger(__name__).warning(sentence)


def _check_requests(app: Sphinx, error: Exception | None) -> None:
    from sphinx.util import logging

    if error is None and app.builder.format == "html":
        for sentence in outside_requests(Path(app.outdir)):
            logging.getLogger(__name__).warning(sentence)


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: TextElement) -> Element | None:
    """Find names that annotations give without their module; None makes Sphinx report a broken reference."""
    if node.get("refdomain") != "py":
        return None
    node["refspecific"] = True  # any documented name that ends so
    python = env.domains.python_domain
    place = node.get("refdoc", env.docname)
    found = python.resolve_xref(env, place, app.builder, "obj", node["reftarget"], node, text)
    if found is not None:
        return found
    target = node["reftarget"]
    # `code` in a docstring is not always a name; what begins with the package's own is meant as one.
    is_code = node["reftype"] == "obj"
    return text if target.partition(".")[0] != PACKAGE and (is_code or exists(target)) else None


def _name_or_code(
    role: str, raw: str, text: str, line: int, inliner: Inliner, options: Any = None, content: Any = ()
) -> tuple[list[Node], list[system_message]]:
    """`text` between single backticks: a cross-reference where it may be a name, code where it cannot be one."""
    from docutils import nodes
    from sphinx.domains.python import PyXRefRole

    if not re.fullmatch(r"\w+(\.\w+)*", text):
        return [nodes.literal(raw, text)], []
    return PyXRefRole()("py:obj", raw, text, line, inliner, options or {}, content)


def _join_names(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes "width, height: in pixels" under Attributes for a variable `height` of type `width,`."""
    for at, line in enumerate(lines):
        if found := re.match(r"(\s*)(\w+(?:, \w+)+)(: .*)", line):
            lines[at] = found[1] + found[2].replace(", ", ",") + found[3]


def _space_names(app: Sphinx, tree: document) -> None:
    """Give the names that `_join_names` joined their spaces back."""
    from sphinx.addnodes import literal_strong

    for node in list(tree.findall(literal_strong)):
        if node.astext() == ",":
            node.replace_self(literal_strong("", ", "))


def setup(app: Sphinx) -> dict[str, bool]:
    from sphinx.domains.python import PyObject

    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.add_role("name-or-code", _name_or_code)
    app.connect("autodoc-process-docstring", _join_names, priority=100)  # before napoleon
    app.connect("doctree-read", _space_names)
    app.connect("env-check-consistency", _check_reference)
    app.connect("missing-reference", _resolve)
    app.connect("build-finished", _check_requests)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
