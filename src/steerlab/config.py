"""Dataclass <-> dict <-> YAML: a frozen dataclass of settings is its own configuration and its own flags.

An unknown key raises with the nearest legal one; a value of the wrong type raises with what was expected. Nothing is
dropped in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

from .errors import ConfigError, SteerlabError, nearest

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, where: str = "", lines: Mapping[str, int] | None = None) -> T:
    """The dataclass with these values. Raises `ConfigError` for an unknown key or a value of the wrong type.

    Values are converted the way YAML and flags need it (an int for a float, a list for a tuple, text for a number).
    `lines` are those of the file `where`, so that the error names the one to mend.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    legal = [f.name for f in dataclasses.fields(cast("Any", cls)) if f.init]
    place = f" in {where}" if where else ""

    def at(key: str) -> str:
        line = (lines or {}).get(key, (lines or {}).get(key.replace("_", "-")))
        return place if line is None else f"{place}, line {line}"

    given = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in given:
        if key not in legal:
            raise ConfigError(f"{cls.__name__} has no setting {key!r}{at(key)}. {nearest(key, legal)}")
    types = _types(cls)
    checked: dict[str, Any] = {}
    for key, value in given.items():
        try:
            checked[key] = TypeAdapter(types[key], config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
        except ValidationError as problem:
            told = "; ".join(e["msg"][0].lower() + e["msg"][1:] for e in problem.errors()[:2])
            raise ConfigError(f"{cls.__name__}.{key}{at(key)} is {value!r}: {told}.") from problem
    missing = [
        f.name
        for f in dataclasses.fields(cast("Any", cls))
        if f.init
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in checked
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}{place}.")
    try:
        return cls(**checked)
    except SteerlabError:
        raise
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{cls.__name__}{place}: {problem}") from problem


def to_dict(settings: object) -> dict[str, Any]:
    """The settings as plain data."""
    from .artefact import plain

    return {f.name: plain(getattr(settings, f.name)) for f in dataclasses.fields(cast("Any", settings)) if f.init}


def read_yaml(path: str | PathLike[str]) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises `ConfigError` with the line where it can't be read."""
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as problem:
        beside = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        raise ConfigError(f"there is no file {path}. {nearest(path.name, (p.name for p in beside))}") from problem
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{path} is not UTF-8 text ({problem.reason} at byte {problem.start}); save it as UTF-8."
        ) from problem
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line} is not valid YAML: {getattr(problem, 'problem', problem)}.") from problem
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}; expected settings as 'key: value' lines.")
    return cast("dict[str, Any]", found)


def key_lines(path: str | PathLike[str]) -> dict[tuple[str, ...], int]:
    """The line of every key of a YAML file that `read_yaml` reads, by the keys that lead to it.

    Raises `ConfigError` for a key that stands twice in one mapping: YAML would keep the last one, and say nothing.
    """
    import yaml

    found: dict[tuple[str, ...], int] = {}

    def walk(node: Any, above: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in cast("list[tuple[Any, Any]]", node.value):
            name, line = (*above, str(key.value)), key.start_mark.line + 1
            if name in found:
                raise ConfigError(
                    f"{path}, line {line} names {key.value!r} again, which stands on line {found[name]}; give it another name,"
                    " or remove one."
                )
            found[name] = line
            walk(value, name)

    walk(yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ())
    return found


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain data as YAML, keys in their order."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


@cache
def _types(cls: type[Any]) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls, include_extras=True)
