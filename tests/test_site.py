"""The documentation site is strict: what it would leave out or break is an error. `make docs` builds the real one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def extension() -> Any:
    """docs/site_checks.py, which is no part of a package."""
    spec = spec_from_file_location("site_checks", DOCS / "site_checks.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site_checks = extension()


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md"))
    documented = set(re.findall(r"^\.\. auto\w+:: (openblip\.[\w.]+)", pages, re.MULTILINE))
    names = site_checks.public_names()
    # `:members:` brings a class's methods along.
    members = {name for name in names if name.rpartition(".")[0] in documented}
    assert site_checks.left_out(names, documented | members) == []


def test_what_the_reference_leaves_out_is_named() -> None:
    def described() -> None:
        """It does nothing."""

    def bare() -> None: ...

    class Thing:
        @property
        def side(self) -> int:
            return 1

    names = {"a.described": described, "a.bare": bare, "a.Thing.side": Thing.side}
    assert [sentence.partition(":")[0] for sentence in site_checks.left_out(names, {"a.bare", "a.Thing.side"})] == [
        "a.described is public but not in the reference",
        "a.bare has no docstring",
        "a.Thing.side has no docstring",
    ]


@pytest.mark.parametrize(
    ("page", "outside"),
    [
        ('<script src="https://example.org/a.js"></script>', True),
        ('<script async src="//example.org/a.js"></script>', True),
        ("<img alt='a' src='http://example.org/a.png'>", True),
        ('<link rel="stylesheet" href="https://example.org/a.css">', True),
        ('<link href="https://example.org" rel="preconnect">', True),
        ("<style>@import 'https://example.org/a.css';</style>", True),
        ("<style>a { src: url(https://example.org/a.woff2) }</style>", True),
        ('<a href="https://example.org">a link</a>', False),
        ('<link rel="canonical" href="https://example.org/page">', False),
        ('<img src="_images/a.png"><script src="../_static/a.js"></script>', False),
        ("<style>a { background: url(data:image/svg+xml;base64,AA) }</style>", False),
    ],
)
def test_what_a_page_loads_from_another_host_is_found(page: str, outside: bool, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    assert bool(site_checks.outside_requests(tmp_path)) is outside


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("str", True),
        ("Tensor", True),
        ("Image.Image", True),
        ("collections.abc.Iterator", True),
        ("pathlib.Path", True),
        ("Tensors", False),
        ("Image.Picture", False),
        ("collections.abc.Iterators", False),
        ("openblip.no_such_name", False),
    ],
)
def test_a_name_of_another_package_is_looked_up(name: str, there: bool) -> None:
    assert site_checks.exists(name) is there


FAULTY = """# A page with faults

[a page that is not there](nowhere.md), [a heading that is not there](other.md#nowhere),
{py:obj}`openblip.no_such_name`.

![a photo on another host](https://example.org/photo.png)

```{toctree}
:glob:

other
reference/*
```
"""


def test_every_fault_fails_the_build(tmp_path: Path) -> None:
    """One build with a fault of each kind: each is told by itself, and the exit status is not 0."""
    pytest.importorskip("sphinx")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "*.png", "__pycache__"))
    shutil.copytree(DOCS / "reference", tmp_path / "docs/reference", dirs_exist_ok=True)
    (tmp_path / "docs/reference/errors.md").unlink()
    (tmp_path / "docs/index.md").write_text(FAULTY, encoding="utf-8")
    (tmp_path / "docs/other.md").write_text("# Another page\n", encoding="utf-8")
    (tmp_path / "docs/alone.md").write_text("# A page that no other leads to\n", encoding="utf-8")
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--builder", "html"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(tmp_path / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 1, built.stderr
    for fault in [
        "cross-reference target not found: 'nowhere.md'",
        "local id not found in doc 'other': 'nowhere'",
        "openblip.no_such_name",
        "openblip.OptionError is public but not in the reference",
        "document isn't included in any toctree",
        "loads something from another host",
    ]:
        assert fault in built.stderr, f"{fault} is not in\n{built.stderr}"
