"""The row of every token of a step: which edits act on it, by its place in its own request.

A request's tokens fall into classes, by which of its interventions touch them; each class is one row. Rows are written when
they are first needed, shared by requests that ask for the same, and given to others once nobody in the batch uses them, so there
is nothing to set free: a request that was preempted, aborted or ended just stops using its rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..positions import Positions
from ..steering import Intervention
from .rows import Row
from .tables import Tables

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
KEPT = 256 * 2**20  # bytes of folded rows that are remembered


class Run(NamedTuple):
    """Tokens from a position on, up to the next run's, that have one class."""

    begin: int
    bits: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A request's classes, in runs from its first token on; the last run has no end.

    A class is a number whose bit k says whether the k-th set of positions is touched; 0 is untouched.
    """

    key: str
    sets: tuple[Positions, ...]
    interventions: tuple[Intervention, ...]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, key: str, interventions: Sequence[Intervention], prompt_length: int, head: int) -> Plan:
        """The plan of a prompt of so many tokens, `head` of them the template's."""
        sets = tuple(dict.fromkeys(i.positions for i in interventions))
        begins = np.array([_bounds(sets, prompt_length, head)])
        bits = np.zeros(begins.shape[1], dtype=np.int64)
        for k, positions in enumerate(sets):  # which is plain arithmetic, on arrays as on tensors
            mask: Any = positions.mask
            bits += mask(begins, np.array([prompt_length]), np.array([head]))[0].astype(np.int64) << k
        runs: list[Run] = []
        for begin, one in zip(begins[0].tolist(), bits.tolist(), strict=True):
            if not runs or runs[-1].bits != one:
                runs.append(Run(begin, one))
        return cls(key, sets, tuple(interventions), tuple(runs))

    @property
    def classes(self) -> set[int]:
        """The classes that it can ever have, but for 0."""
        return {run.bits for run in self.runs} - {0}

    def at(self, first: int, count: int) -> list[tuple[int, int]]:
        """The classes of `count` tokens from position `first` on: how many tokens, and their class, again and again."""
        n, found = bisect_right(self.runs, first, key=_begin) - 1, list[tuple[int, int]]()
        while count > 0:
            until = self.runs[n + 1].begin if n + 1 < len(self.runs) else first + count
            found.append((min(count, until - first), self.runs[n].bits))
            first, count, n = until, count - (until - first), n + 1
        return found

    def one(self, position: int) -> int:
        """The class of one token."""
        last = self.runs[-1]
        return (
            last.bits if position >= last.begin else self.runs[bisect_right(self.runs, position, key=_begin) - 1].bits
        )

    def settled(self, position: int) -> bool:
        """Whether every token from there on has one class."""
        return position >= self.runs[-1].begin

    def rows(self, bits: int) -> dict[int, Row]:
        """What is done to a token of a class, by block."""
        on = [p for k, p in enumerate(self.sets) if bits >> k & 1]
        acting = [i for i in self.interventions if i.positions in on]
        return rows_of(acting)


class Span(NamedTuple):
    """A request's tokens in this step: so many, from position `first` on. A plan of None is untouched."""

    plan: Plan | None
    first: int
    tokens: int


class Filler:
    """Keeps which row holds what, and tells every token of a step its row."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._held: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._used: dict[int, int] = {}
        self._free = list(range(tables.size.rows - 1, 0, -1))
        self._packed: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._kept = max(1, KEPT // max(1, 4 * len(tables.size.layers) * tables.size.columns))
        self._step, self._dirty = 0, 0
        self._host: Ints = np.zeros(len(tables.rows), dtype=np.int64)
        self.steady = False  # each request of the last step brought one token, of its last class

    def step(self, spans: Sequence[Span]) -> None:
        """Write the rows of a step's tokens, one request after another as they lie in the batch, and 0 behind them.

        Raises `UnsupportedError` where more rows are needed at once than there are.
        """
        if all(span.plan is None for span in spans):
            self.clear()
            return
        self._step += 1
        self.steady = False
        host, missing, at, steady = self._host, dict[int, tuple[Plan, int]](), 0, True
        try:
            for plan, first, count in spans:
                if count != 1:
                    steady = False
                if plan is None:
                    host[at : at + count] = 0
                    at += count
                elif count == 1:
                    host[at] = self._row(plan, plan.one(first), missing)
                    at += 1
                    steady = steady and plan.settled(first)
                else:
                    for many, bits in plan.at(first, count):
                        host[at : at + many] = self._row(plan, bits, missing)
                        at += many
        finally:
            self._write(missing)
        host[at : self._dirty] = 0
        self._put(max(at, self._dirty))
        self._dirty, self._tables.live, self.steady = at, True, steady

    def clear(self) -> None:
        """All tokens have row 0 from now on."""
        if self._dirty:
            self._host[: self._dirty] = 0
            self._put(self._dirty)
            self._dirty = 0
        self.steady = self._tables.live = False

    def forget(self) -> None:
        """No row holds anything."""
        self.clear()
        self._held.clear()
        self._free[:] = range(self._tables.size.rows - 1, 0, -1)

    def _row(self, plan: Plan, bits: int, missing: dict[int, tuple[Plan, int]]) -> int:
        """The number of a class's row; where nobody has filled it yet, it is among the `missing`."""
        if not bits:
            return 0
        key = (plan.key, bits)
        number = self._held.get(key)
        if number is None:
            number = self._taken()
            missing[number] = (plan, bits)
            self._held[key] = number
        else:
            self._held.move_to_end(key)
        self._used[number] = self._step
        return number

    def _taken(self) -> int:
        if self._free:
            return self._free.pop()
        key, number = next(iter(self._held.items()))
        if self._used.get(number) == self._step:
            raise UnsupportedError(
                f"this step's requests need more than {self._tables.size.rows - 1} rows; start the server with more classes."
            )
        del self._held[key]
        return number

    def _write(self, missing: Mapping[int, tuple[Plan, int]]) -> None:
        if missing:
            self._tables.fill(list(missing), [self._of(plan, bits) for plan, bits in missing.values()])

    def _of(self, plan: Plan, bits: int) -> Tensor:
        """What a row holds, folded once and then remembered for a while."""
        key = (plan.key, bits)
        packed = self._packed.get(key)
        if packed is None:
            packed = self._packed[key] = self._tables.packed(plan.rows(bits))
            if len(self._packed) > self._kept:
                self._packed.popitem(last=False)
        else:
            self._packed.move_to_end(key)
        return packed

    def _put(self, count: int) -> None:
        self._tables.rows[:count].copy_(torch.from_numpy(self._host[:count]))


def _begin(run: Run) -> int:
    return run.begin


def _bounds(sets: Sequence[Positions], prompt_length: int, head: int) -> list[int]:
    """Every position at which some set may begin or end, from 0 on."""
    n, found = prompt_length, {0, head, prompt_length}
    for positions in sets:
        for window in positions.prompt:
            origin = head if window.anchor == "body" else 0
            found.update(n + b if b < 0 else origin + b for b in window[:2] if b is not None)
        found.update(n + b for w in positions.generated for b in (w.start, w.stop) if b is not None)
    return sorted(b for b in found if b >= 0)


def rows_of(interventions: Sequence[Intervention]) -> dict[int, Row]:
    """Interventions folded by block, in order; a block where nothing is left has none."""
    by_layer: dict[int, list[Intervention]] = {}
    for i in interventions:
        assert i.site.layer is not None, "sites without a block are refused before"
        by_layer.setdefault(i.site.layer, []).append(i)
    return {layer: Row.of(acting[0].edit.width, acting) for layer, acting in by_layer.items()}
