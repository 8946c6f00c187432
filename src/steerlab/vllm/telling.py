"""What is told of a request beside its text: read-outs, and what its gate decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..controls import Gate
from ..engines.readout import readouts
from .admission import Asked, Files, Tell


@dataclass
class Telling:
    """How a request's findings are put into words.

    `reads` has each steering that is read by name, and how many numbers a token it has; `gates` the site and the strength of
    each intervention behind a gate. `told` tokens have been told of.
    """

    when: Tell
    reads: tuple[tuple[str, int], ...]
    gates: tuple[tuple[str, float], ...]
    told: int = 0

    @classmethod
    def of(cls, asked: Asked, files: Files) -> Telling:
        """What a request asks to be told."""
        reads = tuple((name, len(readouts(files.get(digest)))) for digest, name in asked.reads)
        behind = [i for i in files.acting(asked.parts) if isinstance(i.control, Gate)]
        return cls(asked.tell, reads, tuple((str(i.site), i.control.most[0] + i.control.most[1]) for i in behind))

    def words(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """As plain data: `readouts` by name, a number for each token (a list where it acts at several sites), and `gates`.

        With `each` it has the tokens that are new, from number `since` on.
        """
        rows: list[Any] = found["readings"]
        made: dict[str, Any] = {"since": self.told} if self.when == "each" else {}
        if self.reads:
            made["readouts"], at = dict[str, Any](), 0
            for name, count in self.reads:
                made["readouts"][name] = [_some(row, at, count) for row in rows]
                at += count
        if self.gates:
            tallies = found["gates"] or [(0, 0)] * len(self.gates)
            made["gates"] = [
                {"site": site, "open": acted > 0, "tokens": tokens, "acted": acted,
                 "strength": strength * acted / tokens if tokens else 0.0}
                for (site, strength), (tokens, acted) in zip(self.gates, tallies, strict=True)
            ]  # fmt: skip
        if self.when == "each":
            self.told += len(rows)
        return made


def _some(row: tuple[float, ...] | None, at: int, count: int) -> Any:
    if row is None:
        return None
    values = [value if math.isfinite(value) else None for value in row[at : at + count]]
    return values[0] if count == 1 else values
