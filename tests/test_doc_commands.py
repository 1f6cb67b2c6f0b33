"""What a reader copies out of the docs exists: commands, options, recipes and their keys, names in Python, files.

Nothing is run but what reads a command line. Blocks in Markdown are told apart by their indentation or their fence.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest
import typer
from typer.main import get_command

import openblip.cli
from openblip.analysis.set_files import load_question_set
from openblip.data.sources.open import DataSource
from openblip.errors import OpenBlipError
from openblip.evaluation.recipe import load_evaluation
from openblip.recipes import read_recipe
from openblip.training.recipe import load_recipe

REPOSITORY = Path(__file__).parents[1]
MINI = REPOSITORY / "src/openblip/weights/mini/README.md"
PAGES = sorted(
    page.relative_to(REPOSITORY).as_posix() for page in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), MINI)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GIVEN = {"openblip", "model", "photo", "image", "samples"}
"""Names in snippets that a reader has: the package, a model, an image and rows to try it on."""
CLIENTS = {"haystack", "llama_index"}
"""Programs that speak to our server by a protocol; the tests do without them."""
PLACEHOLDERS = {"RECIPE.yaml", "recipe.yaml", "own.yaml", "smollm2.yaml"}
"""Recipes that a reader makes first."""


@dataclass(frozen=True)
class Page:
    """A page, and the parts of it that are not prose."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def fenced(self, language: str) -> list[str]:
        return [dedent(block) for name, block in FENCE.findall(self.text) if name == language]

    def commands(self) -> Iterator[str]:
        """Indented lines, lines of shell fences and code within a sentence."""
        prose = FENCE.sub("", self.text)
        yield from (line.strip() for line in re.findall(r"^ {4}(?! )(.*)$", prose, re.MULTILINE))
        yield from (line for block in self.fenced("sh") for line in block.splitlines())
        yield from re.findall(r"`([^`]+)`", " ".join(re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE).split()))


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Page:
    return Page(REPOSITORY / cast(str, request.param))


def words_of(command: str) -> list[str]:
    """A command's words without comments, redirections and what stands in [brackets] for more."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return []
    for number, word in enumerate(words):
        if word in (">", "|", "&&") or word.startswith("["):
            return words[:number]
    return words


def check_openblip(words: list[str]) -> None:
    """Read the arguments as the program does, and a recipe with what replaces its keys."""
    group = cast(Any, get_command(openblip.cli.app))
    name, *arguments = words
    assert name in group.commands or name.startswith("-"), f"there is no command {name}"
    while arguments and hasattr(group.commands.get(name), "commands"):
        group = group.commands[name]
        name, *arguments = arguments
        assert name in group.commands or name.startswith("-"), f"there is no command {name}"
    if name.startswith("-") or not arguments:
        return
    try:
        with group.commands[name].make_context(name, [*arguments]) as context:
            given = dict(context.params)
    except typer.BadParameter as error:
        if not (arguments[0].startswith("-") and "Missing" in type(error).__name__):
            raise  # but `openblip ask --stream`, in a sentence, wants no more than that there is such an option
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert all(word in known for word in arguments if word.startswith("-")), f"{name} has not all of {arguments}"
        return
    if given.get("data") is not None or (name == "evaluate" and given["recipe"] is None):
        return  # a recipe is made of the data
    if name in ("train", "evaluate") and Path(given["recipe"]).name not in PLACEHOLDERS:
        load = load_recipe if name == "train" else load_evaluation
        load(REPOSITORY / given["recipe"], given["overrides"] or [])


def check_script(place: Path, options: list[str]) -> None:
    """The script is there and knows the options, up to a -- behind which another program's stand."""
    assert place.is_file(), f"there is no {place}"
    source = place.read_text(encoding="utf-8")
    for option in options[: options.index("--")] if "--" in options else options:
        if option.startswith("--"):
            assert f'"{option.partition("=")[0]}"' in source, f"{place.name} has no {option}"


def check(command: str) -> None:
    words = words_of(command)
    if words[:1] == ["torchrun"]:
        words = ["python", *words[next(at for at, word in enumerate(words) if word == "-m") :]]
    if words[:3] == ["python", "-m", "openblip"]:
        words = words[2:]
    if words[:1] == ["openblip"] and words[1:]:
        check_openblip(words[1:])
    elif words[:1] == ["make"] and words[1:]:
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets, f"there is no target {words[1]}"
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        check_script(REPOSITORY / f"{words[2].replace('.', '/')}.py", words[3:])
    elif words[:1] == ["python"] and words[1:] and words[1].endswith(".py"):
        check_script(REPOSITORY / words[1], words[2:])


@pytest.mark.parametrize(
    "command",
    [
        "openblip captoin photo.jpg",
        "openblip caption photo.jpg --beam 3",
        "openblip run captions photos/ -o a.csv",
        "openblip run caption photos/ -o a.csv --beam 3",
        "openblip ask --streams",
        "openblip finetune --data pairs.csv --epochs many",
        "openblip evaluate recipes/evaluate/mini_captions.yaml limits=3",
        "openblip train recipes/train/no.yaml",
        "torchrun --nproc-per-node=8 -m openblip train recipe.yaml --parallel fsdp",
        "make benchmarks",
        "python -m benchmarks.model_comparison mini --recipe a.yaml",
        "python benchmarks/no.py",
    ],
)
def test_faults_are_found(command: str) -> None:
    with pytest.raises((AssertionError, OpenBlipError, typer.TyperException)):
        check(command)


def test_commands(page: Page) -> None:
    wrong = []
    for command in page.commands():
        try:
            check(command)
        except Exception as error:
            wrong.append(f"{command}: {error}")
    assert not wrong, "\n".join(wrong)


def all_commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command with its name, and those of groups."""
    for name, command in group.commands.items():
        yield name, command
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", each) for inner, each in all_commands(command))


def known_options() -> set[str]:
    """Options of every command, and of every script in benchmarks/."""
    group = cast(Any, get_command(openblip.cli.app))
    parameters = [parameter for _, command in all_commands(group) for parameter in command.params]
    options = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    for script in REPOSITORY.glob("benchmarks/*.py"):
        options |= set(re.findall(r'"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    return options | {"--help", "--version"}


def test_options_in_sentences(page: Page) -> None:
    """An option that a sentence names without its command is one of some command."""
    named = re.findall(r"`(--[\w-]+)", " ".join(FENCE.sub("", page.text).split()))
    assert set(named) - known_options() == set()


def test_an_option_of_no_command_is_found() -> None:
    assert {"--num-beams", "--seen"} <= known_options()
    assert "--beams" not in known_options()


def test_examples_of_help() -> None:
    group = cast(Any, get_command(openblip.cli.app))
    checked = 0
    for name, command in all_commands(group):
        examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  openblip ")]
        assert examples, f"openblip {name} --help has no examples"
        for example in examples:
            check(example)
            checked += 1
    assert checked > 40


def test_python(page: Page) -> None:
    """Blocks compile; every module of ours that they import is there with the names they take of it."""
    for block in page.fenced("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                names: list[tuple[str, list[str]]] = [(name.name, []) for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "", [name.name for name in node.names])]
            else:
                continue
            for module, wanted in names:
                if module.partition(".")[0] != "openblip":
                    library = module.partition(".")[0]
                    assert library in CLIENTS or find_spec(library), module
                    continue
                found = importlib.import_module(module)
                for name in wanted:
                    assert hasattr(found, name), f"{module} has no {name}"


def test_names_in_python(page: Page) -> None:
    """Whatever a block uses was imported or made in it, in a block before it, or is what a reader has."""
    known = GIVEN | set(dir(builtins))
    for block in page.fenced("python"):
        nodes = list(ast.walk(ast.parse(block)))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {(name.asname or name.name).partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
        unknown = {node.id for node in names} - known
        assert not unknown, f"{sorted(unknown)} in\n{block}"


def test_dotted_names(page: Page) -> None:
    for dotted in re.findall(r"`(openblip(?:\.\w+)+)[`(]", page.text):
        parts = dotted.split(".")
        found: Any = openblip
        for at, name in enumerate(parts[1:], 2):
            module = ".".join(parts[:at])
            found = getattr(found, name, None) or (importlib.import_module(module) if find_spec(module) else None)
            assert found is not None, f"{dotted}: there is no {name}"


def test_recipes(page: Page, tmp_path: Path) -> None:
    """YAML that a reader would write is a recipe, the data of one, or a set of questions."""
    for block in page.fenced("yaml"):
        path = tmp_path / "recipe.yaml"
        path.write_text(block, encoding="utf-8")
        if block.startswith("base:"):
            for shipped in REPOSITORY.glob("recipes/evaluate/*.yaml"):
                shutil.copy(shipped, tmp_path)
            load_evaluation(path)
        elif re.search(r"^task:", block, re.MULTILINE):
            load_evaluation(path)
        elif re.search(r"^stage:", block, re.MULTILINE):
            load_recipe(path)
        elif block.startswith("apiVersion:"):
            continue  # of Kubernetes: see test_cluster_recipes.py
        elif re.search(r"^questions:", block, re.MULTILINE):
            assert load_question_set(path).questions
        else:
            entry = re.match(r"data:\n  - (.*(?:\n   .*)*)", block)
            assert entry, block
            path.write_text(dedent(" " * 4 + entry[1]), encoding="utf-8")
            assert read_recipe(DataSource, path, [], "data", "train").name


def test_files(page: Page) -> None:
    """Links lead somewhere, and what is named by its place in the repository is there."""
    text = page.text
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", FENCE.sub("", text)):
        if "://" not in target:
            assert (page.path.parent / target).exists(), target
    for place in re.findall(r"(?<![\w/.-])((?:recipes|benchmarks|tests|examples|docs|src)/[\w./*-]*\w)", text):
        assert list(REPOSITORY.glob(place)), place
    for place in re.findall(r"`((?:train|evaluate|mini)/[\w.*-]+\.yaml|[\w.*]+_[\w.*]+\.yaml)`", text):
        assert list(REPOSITORY.glob(f"recipes/**/{place}")), place
