"""Rows of the user's files as items, with errors that name file and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.examples import blank, family_of
from ..data.rows import Found, look, rows
from ..errors import DataError

Cells = tuple[str, Mapping[str, Any]]  # where the row stands, and its cells


def table(path: str, needs: Sequence[str], layout: str) -> list[Cells]:
    """The rows of a file that has these columns. Raises `DataError` with what was found and what was expected."""
    found = look(path)
    if found.kind in ("missing", "folder") or (needs and not found.has(*needs)):
        lacks = f"; {', '.join(repr(c) for c in needs if c not in found.columns)} missing" if found.columns else ""
        raise DataError(f"{path} is {found.told()}{lacks}. Expected {layout}.")
    return [(f"{path}, {row.where}", row.values) for row in rows(found)]


def files(path: str, suffixes: Sequence[str]) -> list[str]:
    """The files that a path names: itself, or those of a folder that end so, sorted. Raises `DataError` where there is
    none.
    """
    found = look(path)
    if found.kind != "folder":
        return [path]
    here = [str(p) for p in sorted(Path(path).iterdir()) if p.suffix in suffixes]
    if not here:
        raise DataError(f"{path} is {_told(found)}; expected files that end in {', '.join(suffixes)}.")
    return here


def text(cells: Cells, column: str) -> str:
    """A cell with text. Raises `DataError` that names the row."""
    where, row = cells
    value = row.get(column)
    if blank(value) or not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {value!r}; expected text.")
    return value.strip()


def texts(cells: Cells, column: str) -> tuple[str, ...]:
    """A cell with a list of texts: a JSON list, or pieces with semicolons between."""
    where, row = cells
    value = row.get(column)
    if isinstance(value, str):
        value = value.split(";")
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {column!r} is {row.get(column)!r}; expected a list of texts.")
    kept = tuple(str(v).strip() for v in value if not blank(v))
    if not kept:
        raise DataError(f"{where}: {column!r} holds no text.")
    return kept


def unit(question: str) -> str:
    """The name of what all rows of one question share."""
    return family_of(question)


def _told(found: Found) -> str:
    return found.told()
