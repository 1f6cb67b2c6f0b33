"""The documentation site, which `make docs` builds from the Markdown pages here and the package's docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

import openblip

sys.path.insert(0, str(Path(__file__).parent))

project = "OpenBLIP"
author = project_copyright = "The OpenBLIP authors"
version = release = openblip.__version__
html_title = f"OpenBLIP {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_pages", "site_checks"]
exclude_patterns = ["_build"]

# Every cross-reference must lead somewhere; `make docs` turns the warning into an error.
nitpicky = True
# Types from inside the package may show in a signature without being part of the reference.
nitpick_ignore_regex = [("py:class", r"openblip\.(checkpoints|devices|generation|jobs|nn|text)\..*")]
nitpick_ignore = [("py:class", "Questions")]  # an alias, which the docstring of `analyze` explains
# `name` in a docstring is code; where it is also the name of something in the reference, it becomes a link.
default_role = "name-or-code"

# Anchors for headings, as GitHub makes them, so that page.md#heading works in both places.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def show_made_defaults(*event: object) -> tuple[str, str] | None:
    """A default that is made anew for each object, which Sphinx cannot read in a signature."""
    signature, returned = event[-2:]
    if not isinstance(signature, str) or "<factory>" not in signature:
        return None
    return signature.replace("<factory>", "..."), str(returned or "")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", show_made_defaults)
