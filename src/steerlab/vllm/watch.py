"""What a step's graph has found, fetched after it and kept by request: read-outs, and what gates decided.

A step notes whose tokens are looked at. Before the next one begins, or when somebody asks, the numbers that the graph left are
fetched in one copy. A held gate's decision is remembered here from its last prompt token on, preemption or not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .tables import Tables

if TYPE_CHECKING:
    from .batch import Plan

KEPT = 8192  # requests whose findings are remembered, those that nobody asks for among them
DECIDED = 65536  # requests whose decision is


class Reading(NamedTuple):
    """A token whose read-outs are wanted: its place in the batch, and its position in the request."""

    name: str
    plan: Plan
    token: int
    position: int


class Gated(NamedTuple):
    """Tokens of one class at a gate: `token` and `many` say which of the batch ask it; with `open` it is decided already."""

    name: str
    plan: Plan
    bits: int
    token: int
    many: int
    open: bool | None


@dataclass
class Told:
    """All that is known of a request: its read-outs by the number of the token predicted, and its gate's tally by class."""

    readings: dict[int, tuple[float, ...]] = field(default_factory=dict[int, tuple[float, ...]])
    tally: dict[int, tuple[int, int]] = field(
        default_factory=dict[int, tuple[int, int]]
    )  # tokens, and those it acted at
    plan: Plan | None = None


class Watch:
    """Fetches what the graph left."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._told: OrderedDict[str, Told] = OrderedDict()
        self._decided: OrderedDict[str, bool] = OrderedDict()
        self._readings: list[Reading] = []
        self._gated: list[Gated] = []
        self._pending = False

    def decided(self, name: str) -> bool | None:
        """What a request's held gate has decided; None before it has."""
        if name in self._decided:
            self._decided.move_to_end(name)
        return self._decided.get(name)

    def end(self, names: Iterable[str]) -> None:
        """Requests of these names are over, or new ones begin, whatever was before."""
        self.fetch()
        for name in names:
            self._told.pop(name, None)
            self._decided.pop(name, None)

    def expect(self, readings: Sequence[Reading], gated: Sequence[Gated]) -> None:
        """The step that begins has these tokens."""
        self._readings, self._gated = list(readings), list(gated)
        self._pending = bool(readings or gated)

    def again(self) -> None:
        """The step that begins has the tokens that follow those of the last one."""
        if self._readings or self._gated:
            self._readings = [r._replace(position=r.position + 1) for r in self._readings]
            self._pending = True

    def fetch(self) -> None:
        """Fetch what the last step's graph has found, once."""
        if not self._pending:
            return
        self._pending = False
        if self._readings:
            self._fetch_readings()
        asking = [g for g in self._gated if g.open is None]
        found = self._tables.open[: max(g.token + g.many for g in asking)].cpu().numpy() if asking else np.zeros(0)
        for g in self._gated:
            acted = int(found[g.token : g.token + g.many].sum()) if g.open is None else g.many * g.open
            told = self._of(g.name, g.plan)
            tokens, before = told.tally.get(g.bits, (0, 0))
            told.tally[g.bits] = (tokens + g.many, before + acted)
            if g.open is None and g.plan.held:
                self._decided[g.name] = acted > 0
                if len(self._decided) > DECIDED:
                    self._decided.popitem(last=False)

    def told(self, asks: Sequence[tuple[str, int, bool]]) -> list[dict[str, Any]]:
        """Of each request by name: its read-outs from a token's number on, and what its gate did; forgotten where so asked.

        `gates` has for each intervention behind a gate, in order: how many tokens it touches, and at how many it acted.
        """
        self.fetch()
        found: list[dict[str, Any]] = []
        for name, since, over in asks:
            told = self._told.get(name, Told())
            numbers = range(since, max(told.readings, default=-1) + 1)
            rows = [told.readings.get(n) for n in numbers]
            found.append({"readings": rows, "gates": [] if told.plan is None else told.plan.tallied(told.tally)})
            if over:
                self.end([name])
        return found

    def _fetch_readings(self) -> None:
        at = torch.tensor([r.token for r in self._readings], device=self._tables.device)
        seen = self._tables.seen.index_select(1, at).double().cpu().numpy()
        for n, (name, plan, _, position) in enumerate(self._readings):
            values = tuple(
                float(seen[layer, n, slot]) + offset for layer, slot, offset in plan.slots(self._tables.place)
            )
            self._of(name, plan).readings[position - plan.prompt_length + 1] = values

    def _of(self, name: str, plan: Plan) -> Told:
        told = self._told.setdefault(name, Told(plan=plan))
        self._told.move_to_end(name)  # so that what goes is what no step has looked at for longest
        if len(self._told) > KEPT:
            self._told.popitem(last=False)
        return told
