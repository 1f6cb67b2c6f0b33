"""What the repository's own files promise about an installation: one version, a whole lock, licences, credits."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import openblip

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

Pins = dict[str, str]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared_requirements() -> list[Requirement]:
    """Requirements of the core and of every extra."""
    table = project()
    texts = [*table["dependencies"], *(text for extra in table["optional-dependencies"].values() for text in extra)]
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if canonicalize_name(requirement.name) != "openblip"]


def pins_of(constraints: str, python: str) -> Pins:
    """Names and exact versions of a constraints file on one Python.

    Raises:
        ValueError: a line that is no exact version, carries a local label, or names a package twice.
    """
    pins: Pins = {}
    for line in constraints.splitlines():
        if not line.partition("#")[0].strip():
            continue
        requirement = Requirement(line)  # an option or a path is no requirement: InvalidRequirement, a ValueError
        pin = re.fullmatch(r"==([\w.]+)", str(requirement.specifier))
        if requirement.url or pin is None:
            raise ValueError(f"not an exact public version: {line}")
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            if name in pins:
                raise ValueError(f"pinned twice: {line}")
            pins[name] = pin.group(1)
    return pins


def unmet(requirements: Iterable[Requirement], pins: Pins) -> list[str]:
    """Requirements that no pin meets."""
    return [
        str(requirement)
        for requirement in requirements
        if (pin := pins.get(canonicalize_name(requirement.name))) is None
        or not requirement.specifier.contains(pin, prereleases=True)
    ]


def needed_by(requirements: Iterable[Requirement]) -> set[str]:
    """Names that requirements bring into this Python, through packages installed here."""
    names: set[str] = set()
    waiting = [(canonicalize_name(requirement.name), frozenset(requirement.extras)) for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        names.add(name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, texts):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in {"", *extras}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return names


def unlisted_licences(root: Path, patterns: Iterable[str]) -> list[str]:
    """Licences beside bundled weights that the package's metadata does not list."""
    listed = {path for pattern in patterns for path in root.glob(pattern)}
    return sorted(str(path) for path in set(root.glob("src/openblip/weights/*/LICENSE")) - listed)


def constraints() -> str:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_requirement(python: str) -> None:
    wanted = [
        one
        for one in declared_requirements()
        if one.marker is None or one.marker.evaluate({"python_version": python, "extra": ""})
    ]
    assert unmet(wanted, pins_of(constraints(), python)) == []


def test_the_lock_is_whole() -> None:
    pins = pins_of(constraints(), f"{sys.version_info.major}.{sys.version_info.minor}")
    assert needed_by(declared_requirements()) - pins.keys() == set()


def test_the_version_has_one_source() -> None:
    assert "version" not in project()
    assert "version" in project()["dynamic"]
    assert f"## [{openblip.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licences_of_bundled_weights_are_listed() -> None:
    listed = project()["license-files"]
    assert unlisted_licences(ROOT, listed) == []
    # Build tools may refuse a pattern that matches nothing.
    assert [pattern for pattern in listed if not list(ROOT.glob(pattern))] == []


def test_every_example_photo_is_credited() -> None:
    image_paths = {path.name for path in (ROOT / "examples").glob("*.jpg")}
    credits_page = (ROOT / "examples" / "CREDITS.md").read_text(encoding="utf-8")
    assert image_paths == set(re.findall(r"\d{12}\.jpg", credits_page))
    assert len(image_paths) == 10


# The checks on files that are at fault.


@pytest.mark.parametrize(
    "line",
    [
        "torch>=2.6",
        "torch==2.13.0+cpu",
        "torch",
        "torch @ https://example.org/t.whl",
        "-f wheels",
        "--index-url x",
        "six==2",
    ],
)
def test_a_line_that_locks_nothing_is_a_fault(line: str) -> None:
    with pytest.raises(ValueError, match=r"exact|twice|Expected"):
        pins_of(f"six==1\n{line}", "3.11")


def test_a_pin_is_for_its_python() -> None:
    lock = '# tested\nsix==1; python_version < "3.11"\nsix==2; python_version >= "3.11"\n'
    assert (pins_of(lock, "3.10"), pins_of(lock, "3.12")) == ({"six": "1"}, {"six": "2"})


def test_a_requirement_without_a_fitting_pin_is_a_fault() -> None:
    wanted = [Requirement("six>=2"), Requirement("Mark_Up"), Requirement("rich")]
    assert unmet(wanted, {"six": "1", "mark-up": "3"}) == ["six>=2", "rich"]


def test_what_a_requirement_brings_along_is_noticed() -> None:
    assert {"pytest", "pluggy", "iniconfig"} <= needed_by([Requirement("pytest")])


def test_a_licence_that_is_not_listed_is_a_fault(tmp_path: Path) -> None:
    licence = tmp_path / "src/openblip/weights/mini/LICENSE"
    licence.parent.mkdir(parents=True)
    licence.touch()
    assert unlisted_licences(tmp_path, ["LICENSE"]) == [str(licence)]
    assert unlisted_licences(tmp_path, ["src/openblip/weights/mini/LICENSE"]) == []
