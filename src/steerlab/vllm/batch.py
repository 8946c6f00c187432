"""The row of every token of a step: which edits act on it, by its place in its own request.

A request's tokens fall into classes, by which of its interventions touch them; each class is one row. Rows are written when
they are first needed, shared by requests that ask for the same, and given to others once nobody in the batch uses them, so there
is nothing to set free: a request that was preempted, aborted or ended just stops using its rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ..controls import Gate
from ..engines.readout import Readout
from ..errors import UnsupportedError
from ..positions import DECODING, LAST_PROMPT, Positions
from ..steering import Intervention
from .rows import Row
from .tables import Look, Packed, Probe, Tables
from .watch import Gated, Reading, Watch

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
KEPT = 256 * 2**20  # bytes of folded rows that are remembered
State = Literal["open", "closed", "asks"]
OPEN: State = "open"  # or without a gate
CLOSED: State = "closed"
ASKS: State = "asks"  # closed until the graph finds it open


class Run(NamedTuple):
    """Tokens from a position on, up to the next run's, that have one class."""

    begin: int
    bits: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A request's classes, in runs from its first token on; the last run has no end.

    A class is a number whose bit k says whether the k-th set of positions is touched; 0 is untouched. Tokens that are read are
    one more such set: those at which others are predicted.
    """

    key: str
    sets: tuple[Positions, ...]
    interventions: tuple[Intervention, ...]
    runs: tuple[Run, ...]
    prompt_length: int
    reads: tuple[Readout, ...] = ()
    gate: Gate | None = None
    gated: int = 0  # the sets of positions at which the gate matters

    @classmethod
    def of(
        cls,
        key: str,
        interventions: Sequence[Intervention],
        prompt_length: int,
        head: int,
        reads: Sequence[Readout] = (),
    ) -> Plan:
        """The plan of a prompt of so many tokens, `head` of them the template's."""
        behind = [i for i in interventions if isinstance(i.control, Gate)]
        gate = next((i.control for i in behind if isinstance(i.control, Gate)), None)
        more = [DECODING] if reads else []
        if (
            gate is not None
            and gate.held
            and not any(_touches(i.positions, prompt_length - 1, prompt_length, head) for i in behind)
        ):
            more.append(LAST_PROMPT)  # where it decides, though nothing behind it acts there
        sets = tuple(dict.fromkeys((*(i.positions for i in interventions), *more)))
        begins = _bounds(sets, prompt_length, head)
        bits = np.zeros(len(begins), dtype=np.int64)
        for k, positions in enumerate(sets):
            bits += _mask(positions, begins, prompt_length, head).astype(np.int64) << k
        runs: list[Run] = []
        for begin, one in zip(begins, bits.tolist(), strict=True):
            if not runs or runs[-1].bits != one:
                runs.append(Run(begin, one))
        gated = sum(
            1 << k
            for k, p in enumerate(sets)
            if any(i.positions == p for i in behind) or (p == LAST_PROMPT and p in more)
        )
        return cls(key, sets, tuple(interventions), tuple(runs), prompt_length, tuple(reads), gate, gated)

    @property
    def held(self) -> bool:
        """Whether its gate decides once."""
        return self.gate is not None and self.gate.held

    def tallied(self, tally: Mapping[int, tuple[int, int]]) -> list[tuple[int, int]]:
        """Of each intervention behind the gate: tokens that it touches and acted at, from those of each class."""
        made: list[tuple[int, int]] = []
        for i in self.interventions:
            if isinstance(i.control, Gate):
                mine = [told for bits, told in tally.items() if bits >> self.sets.index(i.positions) & 1]
                made.append((sum(tokens for tokens, _ in mine), sum(acted for _, acted in mine)))
        return made

    def slots(self, place: Callable[[int], int]) -> list[tuple[int, int, float]]:
        """Where each read-out is found: the number of its block, the place there, and what is added to it."""
        taken, found = dict[int, int](), list[tuple[int, int, float]]()
        for read in self.reads:
            assert read.site.layer is not None, "sites without a block are refused before"
            slot = taken[read.site.layer] = taken.get(read.site.layer, -1) + 1
            found.append((place(read.site.layer), slot, read.offset))
        return found

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

    def rows(self, bits: int, gate: State = OPEN) -> dict[int, Row]:
        """What is done to a token of a class, by block."""
        return rows_of(self.acting(bits, gate))

    def acting(self, bits: int, gate: State = OPEN) -> list[Intervention]:
        """What acts on a token of a class."""
        on = [p for k, p in enumerate(self.sets) if bits >> k & 1]
        acting = [i for i in self.interventions if i.positions in on]
        return [i for i in acting if gate == OPEN or not isinstance(i.control, Gate)]

    def looks(self, bits: int, gate: State = OPEN) -> dict[int, Look]:
        """What of a token of a class is looked at, by block."""
        read = self.reads if self.reads and bits >> self.sets.index(DECODING) & 1 else ()
        return looks_of(self.gate if gate == ASKS else None, read)


class Span(NamedTuple):
    """A request's tokens in this step: so many, from position `first` on. A plan of None is untouched."""

    plan: Plan | None
    first: int
    tokens: int
    name: str = ""


class Key(NamedTuple):
    """What tells rows apart: what was asked for, the class, and what of the gate is known."""

    asked: str
    bits: int
    gate: State


class Filler:
    """Keeps which row holds what, and tells every token of a step its row."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self.watch = tables, Watch(tables)
        self._held: OrderedDict[Key, int] = OrderedDict()
        self._used: dict[int, int] = {}
        self._free = list(range(tables.size.rows - 1, 0, -1))
        self._packed: OrderedDict[Key, Packed] = OrderedDict()
        wide = tables.size.columns + tables.size.looks
        self._kept = max(1, KEPT // (4 * len(tables.size.layers) * wide))
        self._step, self._dirty = 0, 0
        self._missing: dict[int, tuple[Plan, Key]] = {}
        self._readings: list[Reading] = []
        self._gated: list[Gated] = []
        self._host: Ints = np.zeros(len(tables.rows), dtype=np.int64)
        self.steady = False  # each request of the last step brought one token, of its last class

    def step(self, spans: Sequence[Span]) -> None:
        """Write the rows of a step's tokens, one request after another as they lie in the batch, and 0 behind them.

        Raises `UnsupportedError` where more rows are needed at once than there are.
        """
        if all(span.plan is None for span in spans):
            self.clear()
            return
        self.watch.fetch()
        self._step += 1
        self.steady = False
        self._readings, self._gated = [], []
        try:
            end, steady = self._laid(spans)
        finally:
            self._write()
        self._host[end : self._dirty] = 0
        self._put(max(end, self._dirty))
        self.watch.expect(self._readings, self._gated)
        self._dirty, self._tables.live, self.steady = end, True, steady

    def again(self) -> None:
        """The step that begins is the last one, a token later: its rows stay."""
        self.watch.fetch()
        self.watch.again()

    def clear(self) -> None:
        """All tokens have row 0 from now on."""
        self.watch.fetch()
        self.watch.expect((), ())
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

    def _laid(self, spans: Sequence[Span]) -> tuple[int, bool]:
        """Where the tokens end, once each has its row; and whether each is its request's only one, of its last class."""
        host, at, steady = self._host, 0, True
        for span in spans:
            plan, first, count, _ = span
            if plan is None:
                host[at : at + count] = 0
            elif count == 1 and plan.gate is None:
                host[at] = self._row(plan, plan.one(first))
                steady = steady and plan.settled(first)
            else:
                begin = at
                for many, bits in plan.at(first, count):
                    host[begin : begin + many] = self._behind(span, bits, begin, many)
                    begin += many
                steady = steady and plan.settled(first) and not (plan.held and self.watch.decided(span.name) is None)
            steady = steady and count == 1
            at += count
            if plan is not None and plan.reads and first + count >= plan.prompt_length:
                self._readings.append(Reading(span.name, plan, at - 1, first + count - 1))
        return at, steady

    def _behind(self, span: Span, bits: int, at: int, count: int) -> int:
        """The row of tokens of one class, where a gate may have to be asked."""
        plan, first, _, name = span
        assert plan is not None
        if not bits & plan.gated:
            return self._row(plan, bits)
        open_ = self.watch.decided(name) if plan.held else None
        if plan.held and open_ is None and (count > 1 or first + span.tokens != plan.prompt_length):
            raise UnsupportedError(
                f"the request {name} goes on behind a held gate that hasn't decided; what it would do isn't known."
            )
        self._gated.append(Gated(name, plan, bits, at, count, open_))
        if open_ is not None:
            return self._row(plan, bits, OPEN if open_ else CLOSED)
        opened = self._row(plan, bits, OPEN)
        self._tables.opened[at : at + count] = opened
        return self._row(plan, bits, ASKS)

    def _row(self, plan: Plan, bits: int, gate: State = OPEN) -> int:
        """The number of a class's row; where nobody has filled it yet, that is still to be done."""
        if not bits:
            return 0
        key = Key(plan.key, bits, gate)
        number = self._held.get(key)
        if number is None:
            if not plan.acting(bits, gate) and not plan.looks(bits, gate):
                return 0
            number = self._taken()
            self._missing[number] = (plan, key)
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

    def _write(self) -> None:
        missing, self._missing = self._missing, {}
        if missing:
            self._tables.fill(list(missing), [self._of(plan, key) for plan, key in missing.values()])

    def _of(self, plan: Plan, key: Key) -> Packed:
        """What a row holds, folded once and then remembered for a while."""
        packed = self._packed.get(key)
        if packed is None:
            made = self._tables.packed(plan.rows(key.bits, key.gate), plan.looks(key.bits, key.gate))
            packed = self._packed[key] = made
            if len(self._packed) > self._kept:
                self._packed.popitem(last=False)
        else:
            self._packed.move_to_end(key)
        return packed

    def _put(self, count: int) -> None:
        self._tables.rows[:count].copy_(torch.from_numpy(self._host[:count]))


def _begin(run: Run) -> int:
    return run.begin


def _mask(
    positions: Positions, at: Sequence[int], prompt_length: int, head: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of a request's tokens are touched."""
    mask: Any = positions.mask  # which is plain arithmetic, on arrays as on tensors
    return mask(np.array([at]), np.array([prompt_length]), np.array([head]))[0]


def _touches(positions: Positions, at: int, prompt_length: int, head: int) -> bool:
    return bool(_mask(positions, [at], prompt_length, head)[0])


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


def looks_of(gate: Gate | None, reads: Sequence[Readout]) -> dict[int, Look]:
    """A probe and read-outs by block."""
    found: dict[int, Look] = {}
    for read in reads:
        assert read.site.layer is not None, "sites without a block are refused before"
        found.setdefault(read.site.layer, Look()).reads.append(read.weight)
    if gate is not None:
        assert gate.site.layer is not None, "sites without a block are refused before"
        found.setdefault(gate.site.layer, Look()).probe = Probe(gate.direction, gate.threshold)
    return found


def same_gate(a: Gate, b: Gate) -> bool:
    """Whether two gates decide the same, however strong what stands behind them is."""
    alike = (a.site, a.threshold, a.held) == (b.site, b.threshold, b.held)
    return alike and torch.equal(a.direction, b.direction)
