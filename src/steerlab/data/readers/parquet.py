"""Parquet tables with the same columns as a CSV (needs the extra `data`)."""

from __future__ import annotations

from typing import ClassVar

from ...contrast import Contrast
from ..examples import Concept
from ..rows import Found
from ..tables import EXPECTED, concepts_in, read_table
from .base import Reader


class Parquet(Reader):
    """A Parquet file."""

    what = "a Parquet table (pip install 'steerlab[data]')"
    expects = f"the columns {EXPECTED}"
    general: ClassVar[bool] = True

    def recognises(self, found: Found) -> bool:
        """Any Parquet file."""
        return found.kind == "parquet"

    def concepts(self, found: Found) -> tuple[Concept, ...]:
        """The values of the column `concept`, where there is one."""
        return concepts_in(found)

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """Pairs or labelled rows, by the columns' names."""
        return read_table(found, concept)
