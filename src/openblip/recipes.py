"""Recipes: YAML files that say everything about a run, every key of which is checked.

Files are read with OmegaConf, so `key=value` overrides work with dots (`optimizer.lr=1e-4`) and one value may refer to
another (`${seed}`). A recipe may build on another one (`base: other.yaml`) and give only the keys that differ.
OmegaConf's resolvers (`${oc.env:HOME}`) are refused: a recipe from elsewhere would put what they read into reports and
logs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from openblip.errors import OpenBlipError, OptionError, printable
from openblip.files import read_text
from openblip.saving import NO_ROOM

LOCK_FILE = ".lock"
BASE = "base"
"""Key of a recipe that names the one it builds on, relative to itself."""
MOST_VALUES = 10_000
KEY = re.compile(r"\w+(\.\w+|\[\w+\])*", re.ASCII)
SHOWN_CHARACTERS, LONGEST_REASON = 80, 300
"""Of an override, and of what is wrong with it, in a message."""
MISSING = re.compile(r"missing mandatory value: (\S+)")
REQUIRED = re.compile(r"field '(.*)' is not Optional")
PLAIN_FOR_KEYS = re.compile(r"Invalid type assigned: \w+ is not a subclass of \w+|Cannot assign \w+ to Dict\[")
IN_WORDS = tuple(
    (re.compile(pattern, re.DOTALL), words)
    for pattern, words in (
        (r"Value '(.*)' of type '\w+' could not be converted to Integer", r"\1 is no whole number"),
        (r"Value '(.*)' of type '\w+' could not be converted to Float", r"\1 is no number"),
        (r"Value '(.*)' is not a valid bool \(type \w+\)", r"\1 is neither true nor false"),
        (r"Cannot convert 'list\w*' to string: '.*'", "it is one text, not a list"),
        (r"Cannot convert 'dict\w*' to string: '.*'", "it is one text, not a mapping"),
        (r"Invalid value assigned: \w+ is not a ListConfig.*", "it is a list: write [VALUE, VALUE]"),
        (
            r"(?:Cannot merge incompatible container types|Merge error: .*)",
            "a list or a mapping stands where the other belongs",
        ),
        (r"Incompatible value 'None' for field of type '\w+'", "it may not be null"),
        (r"Key '(.*)' not in '\w+'(?:\. Did you mean: '(\w+)'\?)?", lambda found: _unknown(*found.groups())),
    )
)
"""What OmegaConf says, and how recipes call it."""
NO_CHOICE = re.compile(r"is not a valid input for <enum '\w+'>")
CHOICES = re.compile(r"expected one of \[[A-Z0-9_, ]+\]")
ABSENT = re.compile(r"because '(\S+)' is None")
REFERENCE = re.compile(r"\$\{\s*\.*\w[\w-]*(\.[\w-]+|\[[\w-]+\])*\s*\}")
"""`${seed}`, `${data.images}`, `${.lr}`, `${data[0].path}`; no colon, and nothing nested."""

Schema = TypeVar("Schema")


def _unknown(key: str, near: str | None) -> str:
    return f"Key '{key}' is unknown" + (f": did you mean {near}?" if near else ": --dry-run prints all keys")


def read_recipe(schema: type[Schema], path: Path, overrides: Sequence[str], purpose: str, extra: str) -> Schema:
    """Read a YAML recipe and its bases into a dataclass and apply `key=value` overrides.

    Args:
        purpose, extra: what needs which extra of the package, for the message when OmegaConf is missing.

    Raises:
        OpenBlipError: omegaconf is not installed, a file is missing, or a key or value is wrong.
    """
    try:
        from omegaconf import OmegaConf
    except ImportError:
        raise OpenBlipError(f'{purpose} needs more packages: pip install "openblip[{extra}]"') from None
    if not path.exists():
        raise OpenBlipError(f"no recipe at {path}: see the files in recipes/")
    merged: Any = OmegaConf.structured(schema)
    for file, content in _with_bases(path):
        with _naming(file):
            _check_shapes(schema, OmegaConf.to_container(content, resolve=False), "", file)
            merged = OmegaConf.merge(merged, content)
    for override in overrides:
        _override(merged, override, path)
    _check_shapes(schema, OmegaConf.to_container(merged, resolve=False), "", path)
    with _naming(path):
        return cast(Schema, _with_homes(OmegaConf.to_object(merged), ""))


def change_recipe(recipe: Schema, place: Path, overrides: Sequence[str], purpose: str, extra: str) -> Schema:
    """A recipe that was made of the data at `place`, with overrides applied. Arguments and errors as `read_recipe`."""
    try:
        from omegaconf import OmegaConf
    except ImportError:
        raise OpenBlipError(f'{purpose} needs more packages: pip install "openblip[{extra}]"') from None
    merged: Any = OmegaConf.structured(recipe)
    for override in overrides:
        _override(merged, override, place)
    _check_shapes(type(recipe), OmegaConf.to_container(merged, resolve=False), "", place)
    with _naming(place):
        return cast(Schema, _with_homes(OmegaConf.to_object(merged), ""))


def _check_shapes(schema: type[Any], content: Any, above: str, file: Path) -> None:
    """Raises OpenBlipError for a single value where keys or a list belong, or the other way round, and for null.

    OmegaConf refuses them, too, but names no key of a file.
    """
    for key, kind in get_type_hints(schema).items():
        if key not in content:
            continue
        value, name = content[key], f"{above}{key}"
        if isinstance(value, str) and ("${" in value or value == "???"):
            continue  # what it stands for, or that it is missing, OmegaConf says
        kinds = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
        if value is None and kinds == [kind] and kind is not Any:
            raise OpenBlipError(f"{file}: {name} may not be null: write a value, or leave it out")
        if value is None or len(kinds) != 1:
            continue
        origin, listed = get_origin(kinds[0]) or kinds[0], isinstance(value, list)
        if origin is list and not listed:
            raise OpenBlipError(f"{file}: {name} is a list: begin each of its entries with a dash")
        if origin is list and is_dataclass(get_args(kinds[0])[0]):
            for place, entry in enumerate(value):
                _check_section(get_args(kinds[0])[0], entry, f"{name}.{place}", file)
        elif origin is list:
            _check_plain(get_args(kinds[0])[0], dict(enumerate(value)), name, file)
        elif is_dataclass(origin) or origin is dict:
            _check_section(origin, value, name, file)
            if origin is dict:
                _check_plain(get_args(kinds[0])[1], value, name, file)
        elif origin is not Any and isinstance(value, dict | list):
            raise OpenBlipError(f"{file}: {name} is {'a list' if listed else 'a mapping'}: write one value")


def _check_section(schema: Any, value: object, name: str, file: Path) -> None:
    """As `_check_shapes` for something that has keys of its own."""
    if not isinstance(value, dict):
        raise OpenBlipError(f"{file}: {name} has keys of its own: write them as {{KEY: VALUE}}")
    if is_dataclass(schema):
        _check_shapes(cast(type[Any], schema), value, f"{name}.", file)


def _check_plain(kind: Any, values: Mapping[Any, object], name: str, file: Path) -> None:
    """As `_check_shapes` for entries of a list, or values of a mapping, that are texts or numbers."""
    for key, value in values.items():
        if kind is not Any and (value is None or isinstance(value, dict | list)):
            what = "null" if value is None else "a list" if isinstance(value, list) else "a mapping"
            raise OpenBlipError(f"{file}: {name}.{key} is {what}: write one value")


def _with_bases(path: Path) -> list[tuple[Path, Any]]:
    """The files of a recipe with their contents: its last base first, the recipe itself at the end.

    Raises:
        OpenBlipError: a file cannot be read, or a base is missing, outside of the recipe's folder, or builds on the
            recipe that names it.
    """
    from omegaconf import OmegaConf

    folder = os.path.realpath(path.parent)
    files: list[tuple[Path, Any]] = []
    read: set[str] = set()
    while True:
        with _naming(path):
            _check_nodes(path)
            content: Any = OmegaConf.load(path)
            if not OmegaConf.is_dict(content):
                raise OpenBlipError(f"{path} is no recipe: it has to hold keys and values, as the files in recipes/ do")
            files.insert(0, (path, content))
            read.add(os.path.realpath(path))
            values = cast(dict[str, Any], OmegaConf.to_container(content, resolve=False))
            if BASE not in values:
                return files
            del content[BASE]
            path = _base_of(path, values[BASE], folder)
            if os.path.realpath(path) in read:
                raise OpenBlipError(f"{files[0][0]}: its base {path.name} builds on this recipe: name another base")


def _base_of(path: Path, name: object, folder: str) -> Path:
    """Where the base of the recipe at `path` is. Raises OpenBlipError when that is no file in `folder`, or below."""
    shown = printable(str(name), 60)
    if not isinstance(name, str) or not name.strip() or "\0" in name or "${" in name:
        raise OpenBlipError(f"{path}: its base is {shown!r}: write the name of a recipe, as in base: other.yaml")
    base = path.parent / name
    if not Path(os.path.realpath(base)).is_relative_to(folder):
        raise OpenBlipError(f"{path}: its base {shown} is outside of {folder}: copy it into that folder")
    if not base.exists():
        raise OpenBlipError(f"{path}: its base {shown} does not exist: name a recipe in {folder}")
    return base


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raises OpenBlipError with the name of the recipe for what its libraries raise."""
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except UnicodeDecodeError as error:
        raise OpenBlipError(f"{path} is not UTF-8 ({error}): save it again as that") from error
    except RecursionError as error:
        raise OpenBlipError(f"{path}: something is nested too deeply: write it flat") from error
    except OpenBlipError:
        raise
    except OSError as error:
        raise OpenBlipError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        raise OpenBlipError(f"{path}: {_cut(_reason(error, path))}") from error


def _override(recipe: Any, override: str, path: Path) -> None:
    """Put a `key=value` into a recipe. Raises OptionError when there is no such key, or the value does not fit it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, value = override.partition("=")
    shown = repr(override if len(override) <= SHOWN_CHARACTERS else override[:SHOWN_CHARACTERS] + "…")
    if not equals or not KEY.fullmatch(key):
        raise OptionError(f"{shown} is no override: write key=value, as in batch_size=8 or optimizer.lr=1e-4")
    if key == BASE:
        raise OptionError(f"{shown}: a recipe names its base in its file: write base: {value} there")
    try:
        parsed = _value(value)
        _refuse_resolvers(parsed, key)
        OmegaConf.update(recipe, key, parsed)
    except RecursionError as error:
        raise OptionError(f"{path}: {shown}: something is nested too deeply: write it flat") from error
    except (OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        reason = _reason(error, path)
        if "invalid literal for int" in reason or "is not an int" in reason:
            reason = f"{key} goes through a list, whose entries have numbers, as in data.0.name=photos"
        raise OptionError(f"{path}: {shown}: {_cut(reason)}") from error


def _cut(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "…"


def _reason(error: Exception, path: Path) -> str:
    """What is wrong, with the key's name in front of it where the message does not say it."""
    reason, _, place = " ".join(str(error).split()).partition(" full_key:")
    for source in (path, "<unicode string>"):
        reason = reason.replace(f'in "{source}", ', "in ")
    key = place.split(" ")[1] if place.startswith(" ") and "=" not in place.split(" ")[1] else ""
    lacking = MISSING.search(reason)
    if lacking:
        return f"{key or lacking[1]} is missing: every recipe has to say it"
    absent = ABSENT.search(reason)
    if absent:
        return f"{reason}: begin it with {absent[1]}={{...}}"
    required = REQUIRED.search(reason)
    if required:
        return f"{key or required[1] or 'what a key refers to'} may not be null: write a value, or leave it out"
    if PLAIN_FOR_KEYS.search(reason):
        return f"{key} has keys of its own: write {key}.KEY=VALUE, or a mapping of keys and values"
    for pattern, words in IN_WORDS:
        reason = pattern.sub(words, reason)
    # As recipes write them, not as the code calls them.
    reason = NO_CHOICE.sub("is none of its choices, which are names", reason)
    reason = CHOICES.sub(lambda found: found[0].lower(), reason)
    return reason if not key or f"'{key}'" in reason else f"{key}: {reason}"


def _refuse_resolvers(value: object, place: str) -> None:
    """Raises OptionError when a text, or one in what is given, refers to anything but other values of the recipe."""
    if isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_resolvers(part, place)
    text = value if isinstance(value, str) else ""
    start = text.find("${")
    while start >= 0:
        if REFERENCE.match(text, start) is None:
            raise OptionError(
                f"{printable(place)}: {printable(text[start:], 60)} is not read in a recipe: write the value itself, "
                "or ${key} for that of another key"
            )
        start = text.find("${", start + 2)


def _check_nodes(path: Path) -> None:
    """Raises OpenBlipError for resolvers, and for aliases that unfold to more than any recipe needs; they cost nothing
    until they do.
    """
    import yaml

    root = yaml.compose(read_text(path, encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in above:
            raise OpenBlipError(f"{path}: an alias stands within what it stands for: write the values out")
        if id(node) not in sizes:
            if isinstance(node, yaml.ScalarNode):
                _refuse_resolvers(node.value, f"{path}, line {node.start_mark.line + 1}")
            above.add(id(node))
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(size, parts)))
            above.discard(id(node))
        return sizes[id(node)]

    if root is not None and size(root) > MOST_VALUES:
        raise OpenBlipError(f"{path}: its aliases unfold to more than {MOST_VALUES:,} values: write out what is needed")


def _with_homes(value: Any, key: str) -> Any:
    """A recipe with the home folder in place of `~/`, which no shell replaces in a file or behind `key=`."""
    if isinstance(value, str):
        if "\0" in value:
            raise OptionError(f"{key} holds a character of the code 0: write it again")
        _refuse_resolvers(value, key)  # put together of harmless pieces
        return str(Path(value).expanduser()) if value.startswith("~/") else value
    if isinstance(value, list):
        return [_with_homes(part, f"{key}.{number}") for number, part in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            below = f"{key}.{field.name}".lstrip(".")
            setattr(value, field.name, _with_homes(getattr(value, field.name), below))
    return value


def _value(text: str) -> object:
    """What an override says: YAML, but "Question: {question} Answer:" is a text, no mapping."""
    from yaml import YAMLError, safe_load

    try:
        value = safe_load(text)
    except (YAMLError, ValueError):  # 2024-99-99 is no date
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Keeps other runs out of a folder while this one writes there; a run that is killed lets go of it.

    Raises OpenBlipError when another run is there, or the folder cannot be written, now or later.
    """
    from filelock import FileLock, Timeout

    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout:
        raise OpenBlipError(f"another run is writing to {output}: wait for it, or give another output") from None
    except OSError as error:
        raise OpenBlipError(f"output {output} cannot be written: {error.strerror or error}") from error
    try:
        yield
    except OSError as error:
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(output)
        # A broken disk (EIO) fails in reading, too, where nothing says of what.
        if not inside and (error.errno not in NO_ROOM or error.errno == errno.EIO):
            raise
        raise OpenBlipError(
            f"{error.filename or output} cannot be written ({error.strerror}): make room, or see to its "
            "permissions, and give the command again, which goes on from what was kept"
        ) from error
    finally:
        lock.release()


def write_recipe(recipe: object) -> str:
    """A recipe as YAML, which reads back to the same."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
