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


def build(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """The dataclass with these values. Raises `ConfigError` for an unknown key or a value of the wrong type.

    Values are converted the way YAML and flags need it (an int for a float, a list for a tuple, text for a number).
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    legal = [f.name for f in dataclasses.fields(cast("Any", cls)) if f.init]
    place = f" in {where}" if where else ""
    given = {key.replace("-", "_"): value for key, value in values.items()}
    for key in given:
        if key not in legal:
            raise ConfigError(f"{cls.__name__} has no setting {key!r}{place}. {nearest(key, legal)}")
    types = _types(cls)
    checked: dict[str, Any] = {}
    for key, value in given.items():
        try:
            checked[key] = TypeAdapter(types[key], config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
        except ValidationError as problem:
            told = "; ".join(e["msg"][0].lower() + e["msg"][1:] for e in problem.errors()[:2])
            raise ConfigError(f"{cls.__name__}.{key}{place} is {value!r}: {told}.") from problem
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


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain data as YAML, keys in their order."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


@cache
def _types(cls: type[Any]) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls, include_extras=True)
