"""Contrast data in files: reading every layout, checking a set, and making one from a concept.

>>> from steerlab import data
>>> contrast = data.read("formal.jsonl")                                      # doctest: +SKIP
>>> data.check(contrast).findings                                             # doctest: +SKIP

Readers are plug-ins: one file per layout in `readers/`, or an entry point in the group `steerlab.readers`.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import NamedTuple

from .. import plugins
from ..contrast import Contrast
from ..errors import DataError
from .check import CheckOptions, CheckReport, Finding, check
from .examples import Concept
from .make import Made, MakeReport, make
from .readers.base import Reader
from .readers.jsonl import write
from .requests import MakeOptions
from .rows import Found, absent, look

__all__ = [
    "CheckOptions", "CheckReport", "Concept", "Finding", "Layout", "Made", "MakeOptions", "MakeReport", "Reader",
    "check", "concepts", "layouts", "make", "read", "write",
]  # fmt: skip

_FOLDER = "data.readers"


class Layout(NamedTuple):
    """A layout that can be read: its name, what it is for, and what a file of it looks like."""

    name: str
    what: str
    expects: str


def read(path: str | PathLike[str], *, layout: str | None = None, concept: str | None = None) -> Contrast:
    """Contrast data from a file or folder; the layout is recognised by content, or named.

    `concept` picks one by id or text where a file holds several, and names it where the file doesn't. Raises
    `DataError` that says what was found (file, row), what was expected and what to do; `ConfigError` for a layout that
    doesn't exist.
    """
    found = look(fspath(path))
    return _reader(found, layout).read(found, concept=concept)


def concepts(path: str | PathLike[str], *, layout: str | None = None) -> tuple[Concept, ...]:
    """The concepts that a file or folder holds; none where its layout doesn't name them. Raises `DataError`."""
    found = look(fspath(path))
    return _reader(found, layout).concepts(found)


def layouts() -> tuple[Layout, ...]:
    """Every layout that can be read, third parties' included."""
    known = [(name, plugins.load(name, _FOLDER)) for name in plugins.names(_FOLDER)]
    return tuple(Layout(name, reader.what, reader.expects) for name, reader in known)


def _reader(found: Found, layout: str | None) -> Reader:
    """The reader of the named layout, or the only one that recognises the path."""
    if layout is not None:
        reader: Reader = plugins.load(layout, _FOLDER)()
        if found.kind == "missing" and not reader.recognises(found):
            raise absent(found)
        return reader
    readers: dict[str, Reader] = {name: plugins.load(name, _FOLDER)() for name in plugins.names(_FOLDER)}
    fitting = {name: reader for name, reader in readers.items() if reader.recognises(found)}
    specific = {name: reader for name, reader in fitting.items() if not reader.general}
    chosen = specific or fitting
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    if chosen:
        raise DataError(
            f"{found.given} could be of the layouts {' and '.join(sorted(chosen))}; say which (layout=..., --layout)."
        )
    if found.kind == "missing":
        raise absent(found)
    told = "; ".join(f"{name}: {reader.expects}" for name, reader in readers.items())
    if found.kind == "folder":
        inside = [name for name in found.files if (found.path / name).is_dir()]
        more = f" Name one of its folders ({', '.join(inside[:8])}), or a file." if inside else " Name a file in it."
        raise DataError(f"{found.given} is {found.told()}, and no layout reads that.{more} Layouts: {told}.")
    raise DataError(f"{found.given} is {found.told()}, and no layout reads that. Layouts: {told}.")
