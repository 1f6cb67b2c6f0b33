"""The rooms of the package import downwards only, and asking for help loads nothing heavy.

A new room fails here until someone says what it may import.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "openblip"

MODEL_ROOMS = {"checkpoints", "devices", "errors", "files", "generation", "images", "nn", "saving", "text"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "saving": {"errors"},
    "web": {"errors"},
    "nn": set(),
    "results": {"display", "errors"},
    "display": {"errors", "images"},
    "images": {"errors", "files", "web"},
    "text": {"errors"},
    "devices": {"errors", "nn"},
    "fetch": {"errors", "web"},
    "generation": {"errors", "nn"},
    "checkpoints": {"errors", "fetch", "files", "generation", "images", "nn", "saving", "text"},
    "machine": {"checkpoints", "devices", "nn"},
    "matching": {"errors", "images", "nn", "results", "text"},
    "models": MODEL_ROOMS | {"matching", "results"},
    "verification": {"checkpoints", "errors", "images", "models"},
    "data": {"errors", "fetch", "files", "images", "saving", "text"},
    "recipes": {"errors", "files", "saving"},
    "training": MODEL_ROOMS | {"", "data", "evaluation", "models", "recipes"},
    "evaluation": {
        "",
        "checkpoints",
        "data",
        "errors",
        "fetch",
        "files",
        "generation",
        "images",
        "matching",
        "models",
        "nn",
        "recipes",
        "results",
        "saving",
        "text",
    },
    "jobs": {"", "data", "errors", "generation", "images", "models", "saving"},
    "search": {"", "errors", "files", "images", "models", "saving"},
    "analysis": {"", "errors", "files", "generation", "images", "jobs", "models", "saving"},
    "integrations": MODEL_ROOMS | {"", "analysis", "data", "models", "results", "search", "training", "web"},
    "serve": {
        *("", "devices", "errors", "files", "generation", "images", "jobs", "matching", "models", "results", "search"),
        *("integrations", "text", "web"),
    },
    "cli": {
        "",
        "analysis",
        "checkpoints",
        "data",
        "errors",
        "evaluation",
        "files",
        "generation",
        "images",
        "integrations",
        "jobs",
        "machine",
        "models",
        "recipes",
        "results",
        "saving",
        "search",
        "serve",
        "training",
        "verification",
        "web",
    },
    "__main__": {"cli"},
    "": set(),  # the package's own __init__: its names are looked up when they are first used
}
"""Which other rooms each room may import. A room is a folder or a lone module right under the package."""

DATA = {"weights", "word_lists"}
"""Folders of files that are no modules."""
LIBRARIES_OF_NN = {"torch"}
OPTIONAL_LIBRARIES = {
    "av": {"openblip.images.video_decode"},
    "gradio": {"openblip.serve.page"},
    "peft": {"openblip.training.lora.adapters"},
    "lancedb": {"openblip.search.store"},
    "pyarrow": {
        "openblip.data.sources.parquet",
        "openblip.jobs.arrow_cells",
        "openblip.jobs.object_storage",
        "openblip.jobs.parquet_output",
        "openblip.jobs.parquet_table",
        "openblip.search.store",
    },
    "ray": {"openblip.jobs.cluster"},
    "pypdfium2": {"openblip.images.pdf"},
    "transformers": {"openblip.checkpoints.language_models"},
}
"""What the core does without, and the modules that may import it, in functions, when it is asked for."""
FAMILIES = ("blip", "clip")
"""Families that came after the seam; BLIP-2's parts are what others are made of."""
OWN_MODULES = {
    *("checkpoints.open_clip", "nn.resnet_clip", "training.class_losses", "training.init.class_head"),
    *("training.momentum", "training.momentum_losses", "training.tasks.contrast", "training.tasks.pairs"),
    "training.tasks.statements",
}
"""A family's own modules that do not bear its name, without the package's."""
TABLES = {
    *("checkpoints.families", "checkpoints.layouts", "checkpoints.lora.names", "checkpoints.registry"),
    "checkpoints.loading",  # folders of open_clip, which are CLIP's alone
    *("models.families", "training.tasks.table"),
    *(
        "integrations.lavis",
        "integrations.lavis.loading",
        "integrations.transformers",
        "integrations.transformers.auto",
    ),
    "nn.attention_map",  # the layer whose attention a heatmap shows, by network
}
"""Modules that list families, one row each; docs/families.md names them."""
HEAVY_LIBRARIES = {"torch", "numpy", "PIL", *OPTIONAL_LIBRARIES}


@dataclass(frozen=True)
class Import:
    """One module imports another, or a name in it, at its top or in a function."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted names and files of a package's modules."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


@cache
def imports_of(package: Path) -> list[Import]:
    """Every import in a package, also those that only type checkers follow, but for the package's own `__init__`."""
    modules = modules_of(package)
    found = []
    for module, path in modules.items():
        home = module if path.name == "__init__.py" else module.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if module == package.name:
            # Its names are looked up when they are first used: what type checkers read there is no import.
            tree.body = [node for node in tree.body if not _is_for_checkers(node)]
        for name, line in _imports(tree, home):
            # "from a.b import c" may mean the module a.b.c or something in a.b.
            parent = name.rpartition(".")[0]
            found.append(Import(module, parent if name not in modules and parent in modules else name, line))
    return found


def _is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(tree: ast.AST, home: str) -> Iterator[tuple[str, int]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, node.lineno
        yield from _imports(node, home)


def room_of(module: str) -> str:
    return (module.split(".")[1:] or [""])[0]


def rooms_of(package: Path) -> set[str]:
    return {room_of(module) for module in modules_of(package)}


def faults(package: Path, may_import: Mapping[str, set[str]]) -> list[str]:
    """Rooms without a layer, and imports from one room into another that its layer does not allow."""
    wrong = [f"room {room!r} has no layer" for room in sorted(rooms_of(package) - may_import.keys())]
    for found in imports_of(package):
        importer, imported = room_of(found.importer), room_of(found.imported)
        if found.imported.split(".")[0] != package.name or importer == imported:
            continue
        if imported not in may_import.get(importer, set()):
            wrong.append(str(found))
    return wrong


def ring_in(package: Path) -> list[str]:
    """Modules that import each other in a ring, in functions too: they cannot be understood apart."""
    graph: dict[str, set[str]] = {module: set() for module in modules_of(package)}
    for found in imports_of(package):
        if found.imported in graph and found.imported != found.importer:
            graph[found.importer].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def libraries_of(package: Path, room: str | None = None) -> set[str]:
    """Libraries that a package, or one room of it, imports beside Python's own."""
    names = {
        found.imported.split(".")[0] for found in imports_of(package) if room is None or room_of(found.importer) == room
    }
    return names - sys.stdlib_module_names - {package.name}


def of_family(module: str) -> bool:
    """Whether a module is a family's own."""
    last = module.rpartition(".")[2].split("_")[0]
    return last in FAMILIES or module.partition(".")[2] in OWN_MODULES


def knows_families(package: Path) -> set[str]:
    """Modules that import a family's own ones without being a family's, without the package's name."""
    return {
        found.importer.partition(".")[2]
        for found in imports_of(package)
        if of_family(found.imported) and not of_family(found.importer)
    }


def empty_rooms(package: Path) -> list[str]:
    """Folders whose modules define nothing, and folders of none."""
    return sorted(
        str(folder.relative_to(package))
        for folder in package.rglob("*")
        if folder.is_dir() and folder.name != "__pycache__" and not DATA & set(folder.parts)
        if not any(_defines_something(path) for path in folder.rglob("*.py"))
    )


def _defines_something(path: Path) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return any(isinstance(node, kinds) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def loaded_by(program: str) -> set[str]:
    """Heavy libraries that are loaded when a program in a fresh Python is through."""
    ending = f"import sys; print(*({HEAVY_LIBRARIES!r} & set(sys.modules)), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{ending}"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return HEAVY_LIBRARIES & set(done.stdout.splitlines())


def test_rooms_import_downwards_only() -> None:
    assert faults(PACKAGE, MAY_IMPORT) == []


def test_layers_are_those_of_rooms_that_exist_and_have_an_order() -> None:
    assert MAY_IMPORT.keys() == rooms_of(PACKAGE)
    assert set().union(*MAY_IMPORT.values()) <= MAY_IMPORT.keys()
    TopologicalSorter(MAY_IMPORT).prepare()


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert ring_in(PACKAGE) == []


def test_the_architecture_imports_pytorch_alone() -> None:
    assert libraries_of(PACKAGE, "nn") == LIBRARIES_OF_NN


@pytest.mark.parametrize("library", OPTIONAL_LIBRARIES)
def test_what_the_core_does_without_is_imported_in_one_place(library: str) -> None:
    importers = {found.importer for found in imports_of(PACKAGE) if found.imported.split(".")[0] == library}
    assert importers == OPTIONAL_LIBRARIES[library]


def test_what_the_core_does_without_is_not_imported_before_it_is_asked_for() -> None:
    modules = ", ".join(sorted(set().union(*OPTIONAL_LIBRARIES.values())))
    loaded = loaded_by(f"import openblip.models.blip2, openblip.training.run, {modules}")
    assert "torch" in loaded and not loaded & OPTIONAL_LIBRARIES.keys()


def test_no_room_is_empty() -> None:
    assert empty_rooms(PACKAGE) == []


HELP = """
import runpy, sys
sys.argv = ["openblip", "--help"]
try:
    runpy.run_module("openblip", run_name="__main__")
except SystemExit as left:
    assert not left.code
"""


@pytest.mark.parametrize("program", ["import openblip", HELP], ids=["import", "help"])
def test_a_newcomer_does_not_wait_for_heavy_libraries(program: str) -> None:
    assert loaded_by(program) == set()


def test_heavy_libraries_are_noticed() -> None:
    assert "PIL" in loaded_by("import openblip, PIL")


# The checks on a package that is at fault.

LAYERS = {"": set(), "low": set(), "high": {"low"}}


def write_package(root: Path, **changes: str) -> Path:
    """A sound package of two rooms, high on low; `changes` replace or add modules (high__top is high/top.py)."""
    modules = {
        "__init__": "",
        "low__first": "import json\nimport torch\nSIZE = 1\n",
        "high____init__": "",
        "high__top": "from house.low import first\nfrom . import side\nHEIGHT = first.SIZE\n",
        "high__side": "import numpy\nWIDTH = 2\n",
    }
    package = root / "house"
    for name, source in (modules | changes).items():
        path = package / (name.replace("__", "/", 1) + ".py" if name != "__init__" else "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


def test_families_are_known_to_tables_alone() -> None:
    assert knows_families(PACKAGE) == TABLES
    page = (PACKAGE.parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    files = {module: str(modules_of(PACKAGE)[f"openblip.{module}"].relative_to(PACKAGE)) for module in TABLES}
    assert [module for module, file in files.items() if f"`{file}`" not in page] == []


@pytest.mark.parametrize(("module", "known"), [("high__blip_text", set()), ("high__table", {"high.table"})])
def test_who_knows_a_family_is_found(tmp_path: Path, module: str, known: set[str]) -> None:
    package = write_package(tmp_path, low__blip="WIDTH = 1", **{module: "from house.low import blip"})
    assert knows_families(package) == known


def test_a_sound_package_has_no_fault(tmp_path: Path) -> None:
    only_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.high import top\n"
    package = write_package(tmp_path, __init__=only_types)
    assert faults(package, LAYERS) == []
    assert ring_in(package) == []
    assert empty_rooms(package) == []
    assert libraries_of(package) == {"numpy", "torch"}
    assert libraries_of(package, "low") == {"torch"}


@pytest.mark.parametrize(
    "source",
    [
        "import house.high.top",
        "from house.high.top import HEIGHT",
        "from house.high import top",
        "from house import high",
        "from ..high.top import HEIGHT",
        "from .. import high",
        "def late():\n    from house.high import top",
        "if True:\n    import house.high",
        "try:\n    import house.high\nexcept ImportError:\n    pass",
        "import importlib\nTOP = importlib.import_module('house.high.top')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import json\nelse:\n    import house.high",
        "import house",
        "import house.nowhere",
    ],
)
def test_an_import_upwards_is_a_fault(tmp_path: Path, source: str) -> None:
    package = write_package(tmp_path, low__second=source)
    assert len(faults(package, LAYERS)) == 1
    assert "house.low.second" in faults(package, LAYERS)[0]


@pytest.mark.parametrize("module", ["attic", "attic__box"])
def test_a_room_without_a_layer_is_a_fault(tmp_path: Path, module: str) -> None:
    assert faults(write_package(tmp_path, **{module: "AGE = 3"}), LAYERS) == ["room 'attic' has no layer"]


@pytest.mark.parametrize("back", ["from house.high import top", "def late():\n    from .top import HEIGHT"])
def test_a_ring_is_a_fault(tmp_path: Path, back: str) -> None:
    assert set(ring_in(write_package(tmp_path, high__side=back))) == {"house.high.top", "house.high.side"}


@pytest.mark.parametrize(
    "source",
    ["import transformers", "def late():\n    from transformers.models import x", "__import__('transformers')"],
)
def test_a_forbidden_library_is_a_fault(tmp_path: Path, source: str) -> None:
    assert libraries_of(write_package(tmp_path, low__second=source), "low") == {"torch", "transformers"}


def test_an_empty_room_is_a_fault(tmp_path: Path) -> None:
    package = write_package(tmp_path, attic____init__='"""Room for later."""\n')
    (package / "cellar").mkdir()
    assert empty_rooms(package) == ["attic", "cellar"]
