"""A name is a file in its folder, or an entry point; there is no list to edit.

The method `cdas` is the one concrete method class that `steerlab/methods/cdas.py` defines. A package of somebody else's
adds one with an entry point in the group `steerlab.methods` (or `steerlab.readers`, `steerlab.exports`, `steerlab.verify`,
`steerlab.judges`, `steerlab.suites`), under the name that users type. A judge or a suite may also be a Python file of the user's
own, named by its path. Edits and controls have no name to type: they are known once they are imported, which `bring` does for
entry points of the groups `steerlab.edits` and `steerlab.controls`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, nearest

if TYPE_CHECKING:
    from os import PathLike

    from .contrast import Contrast

# folder -> the base class that its files specialise
FOLDERS = {
    "methods": "Method",
    "data.readers": "Reader",
    "exports": "Format",
    "verify": "Target",
    "judges": "Judge",
    "suites": "Suite",
}

GROUPS = (*FOLDERS, "edits", "controls")  # of entry points


@cache
def names(folder: str = "methods") -> tuple[str, ...]:
    """Every name that can be loaded from a folder, third parties' included, sorted."""
    own = (module for module in _modules(folder) if _own(folder, module) is not None)
    return tuple(sorted({*own, *_entries(folder)}))


@cache
def load(name: str, folder: str = "methods") -> type[Any]:
    """The class behind a name, or in a file that ends in `.py`. Raises `ConfigError` with the nearest name that exists."""
    if name.endswith(".py"):
        return _in_file(name, folder)
    name = name.replace("-", "_")
    entries = _entries(folder)
    if name in entries:
        try:
            return entries[name].load()
        except Exception as problem:
            raise ConfigError(
                f"{name!r} comes from the package {entries[name].value!r}, which can't be imported: {problem}"
            ) from problem
    found = _own(folder, name) if name in _modules(folder) else None
    if found is None:
        raise ConfigError(f"there is no {_noun(folder)} called {name!r}. {nearest(name, names(folder))}")
    return found


@cache
def bring() -> None:
    """Import every package that has an entry point, so that what it defines is known; one that can't be is passed over."""
    for folder in GROUPS:
        for entry in _entries(folder).values():
            with suppress(Exception):  # whoever asks for it by name is told why it fails
                entry.load()


def name_of(cls: type[Any], folder: str = "methods") -> str:
    """The name under which a class is loaded."""
    module = cls.__module__
    if module.startswith(f"steerlab.{folder}."):
        return module.rsplit(".", 1)[-1]
    for name, entry in _entries(folder).items():
        if entry.value == f"{module}:{cls.__qualname__}":
            return name
    return f"{module}:{cls.__qualname__}"


def read_contrast(path: str | PathLike[str], *, layout: str | None, concept: str | None) -> Contrast:
    """`Contrast.read`: the readers are plug-ins, so that this module needs none of them by name."""
    return importlib.import_module("steerlab.data").read(path, layout=layout, concept=concept)


def brought(path: str | PathLike[str]) -> str | PathLike[str]:
    """A path as it is; a name on the hub (`hf://owner/name`) as the path of the file, fetched."""
    if not str(path).startswith("hf:/"):
        return path
    return importlib.import_module("steerlab.hub").fetched(path)


def _noun(folder: str) -> str:
    nouns = {
        "methods": "method",
        "data.readers": "layout",
        "exports": "format",
        "verify": "engine",
        "judges": "judge",
        "suites": "suite",
    }
    return nouns.get(folder, folder)


@cache
def _modules(folder: str) -> tuple[str, ...]:
    package = importlib.import_module(f"steerlab.{folder}")
    return tuple(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def _entries(folder: str) -> dict[str, EntryPoint]:
    return {e.name.replace("-", "_"): e for e in entry_points(group=f"steerlab.{folder.rsplit('.', 1)[-1]}")}


@cache
def _own(folder: str, name: str) -> type[Any] | None:
    """The concrete class that the file `name` defines, where it defines one (a base or a helper file has none).

    Where it defines several, the one that is called after it (`RuleJudge` in `judges/rule.py`).
    """
    module = importlib.import_module(f"steerlab.{folder}.{name}")
    return _defined(module, folder, name)


def _in_file(path: str, folder: str) -> type[Any]:
    """The class that a user's own file defines."""
    spec = importlib.util.spec_from_file_location(f"steerlab_own_{abs(hash(path))}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[module.__name__]
        raise ConfigError(f"{path} can't be imported: {type(problem).__name__}: {problem}") from problem
    found = _defined(module, folder, PurePath(path).stem)
    if found is None:
        raise ConfigError(
            f"{path} defines no {_noun(folder)}; expected a subclass of {FOLDERS[folder]} that can be made."
        )
    return found


def _defined(module: ModuleType, folder: str, name: str) -> type[Any] | None:
    base = getattr(importlib.import_module(f"steerlab.{folder}.base"), FOLDERS[folder])
    mine = [
        c
        for c in vars(module).values()
        if inspect.isclass(c)
        and issubclass(c, base)
        and c.__module__ == module.__name__
        and not inspect.isabstract(c)
        and not c.__name__.startswith("_")
    ]
    if len(mine) > 1:
        called = f"{name.replace('_', '')}{FOLDERS[folder]}".lower()
        named = [c for c in mine if c.__name__.lower() == called]
        if len(named) != 1:
            raise ConfigError(
                f"{module.__name__} defines {len(mine)} {_noun(folder)}s; a file defines one, or calls one after itself."
            )
        mine = named
    return mine[0] if mine else None
