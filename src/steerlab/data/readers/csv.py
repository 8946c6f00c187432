"""Comma-, semicolon- or tab-separated tables with a header line."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ...contrast import Contrast
from ..examples import Concept
from ..rows import Found, look_at
from ..tables import EXPECTED, concepts_in, read_table
from .base import Reader


class Csv(Reader):
    """A CSV or TSV file with a header."""

    what = "a table with a header line; the separator (comma, semicolon, tab) is told from it"
    expects = f"the columns {EXPECTED}"
    general: ClassVar[bool] = True

    def recognises(self, found: Found) -> bool:
        """Any CSV."""
        return found.kind == "csv"

    def concepts(self, found: Found) -> tuple[Concept, ...]:
        """The values of the column `concept`, where there is one."""
        return concepts_in(_as_csv(found))

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """Pairs or labelled rows, by the columns' names."""
        return read_table(_as_csv(found), concept)


def _as_csv(found: Found) -> Found:
    """A text file of any other name, when the layout was named."""
    return look_at(replace(found, kind="csv")) if found.kind == "text" else found
