"""The row of every token of a step: which edits act on it, by its place in its own request.

A request's tokens fall into classes, by which of its interventions touch them; each class is one row. Rows are written when
they are first needed, shared by requests that ask for the same, and given to others once nobody in the batch uses them, so there
is nothing to set free: a request that was preempted, aborted or ended just stops using its rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..errors import UnsupportedError
from ..positions import Positions
from ..steering import Intervention
from .rows import Row
from .tables import Tables

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Plan:
    """A request's classes. `prompt` has each prompt token's, `after[k]` that of generated tokens from number `begins[k]` on.

    A class is a number whose bit k says whether the k-th set of positions is touched; 0 is untouched.
    """

    key: str
    sets: tuple[Positions, ...]
    interventions: tuple[Intervention, ...]
    prompt: Ints
    begins: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, key: str, interventions: Sequence[Intervention], prompt_length: int, head: int) -> Plan:
        """The plan of a prompt of so many tokens, `head` of them the template's."""
        sets = tuple(dict.fromkeys(i.positions for i in interventions))
        begins = sorted({0, *(b for p in sets for w in p.generated for b in (w.start, w.stop) if b is not None)})
        bits = torch.zeros(prompt_length + len(begins), dtype=torch.long)
        position = torch.tensor([[*range(prompt_length), *(prompt_length + b for b in begins)]])
        for k, positions in enumerate(sets):
            touched = positions.mask(position, torch.tensor([prompt_length]), torch.tensor([head]))
            bits += touched[0].long() << k
        classes: Ints = bits.numpy()
        return cls(key, sets, tuple(interventions), classes[:prompt_length], tuple(begins),
                   tuple(classes[prompt_length:].tolist()))  # fmt: skip

    @property
    def classes(self) -> set[int]:
        """The classes that it can ever have, but for 0."""
        return {*np.unique(self.prompt).tolist(), *self.after} - {0}

    def at(self, first: int, count: int) -> Ints:
        """The classes of `count` tokens from position `first` on."""
        n = len(self.prompt)
        asked = np.arange(first, first + count)
        made = np.zeros(count, dtype=np.int64)
        early = asked < n
        made[early] = self.prompt[asked[early]]
        made[~early] = np.array(self.after)[np.searchsorted(self.begins, asked[~early] - n, side="right") - 1]
        return made

    def one(self, position: int) -> int:
        """The class of one token."""
        n = len(self.prompt)
        if position < n:
            return int(self.prompt[position])
        return self.after[bisect_right(self.begins, position - n) - 1]

    def settled(self, position: int) -> bool:
        """Whether every token from there on has one class."""
        return position >= len(self.prompt) + self.begins[-1]

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

    def __init__(self, tables: Tables, copy: Callable[[Ints, int], None] | None = None) -> None:
        self._tables = tables
        self._held: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._used: dict[int, int] = {}
        self._free = list(range(tables.size.rows - 1, 0, -1))
        self._step, self._dirty = 0, 0
        self._steady: tuple[Plan | None, ...] | None = None
        self._host: Ints = np.zeros(len(tables.rows), dtype=np.int64)
        self._copy = copy or self._put

    def step(self, spans: Sequence[Span]) -> None:
        """Write the rows of a step's tokens, one request after another as they lie in the batch, and 0 behind them.

        Raises `UnsupportedError` where more rows are needed at once than there are.
        """
        if not any(span.plan is not None for span in spans):
            self._clear()
            return
        steady = all(s.tokens == 1 and (s.plan is None or s.plan.settled(s.first)) for s in spans)
        now = tuple(s.plan for s in spans) if steady else None
        if now is not None and now == self._steady:
            return  # the same requests in the same places, each in its last class
        self._step += 1
        at = 0
        for plan, first, count in spans:
            end = at + count
            if plan is None:
                self._host[at:end] = 0
            elif count == 1:
                self._host[at] = self._row(plan, plan.one(first))
            else:
                classes = plan.at(first, count)
                for bits in np.unique(classes).tolist():
                    self._host[at:end][classes == bits] = self._row(plan, bits)
            at = end
        self._steady = now
        self._host[at : self._dirty] = 0
        self._copy(self._host, max(at, self._dirty))
        self._dirty, self._tables.live = at, True

    def clear(self) -> None:
        """All tokens have row 0 from now on."""
        self._clear()

    def _clear(self) -> None:
        if self._dirty:
            self._host[: self._dirty] = 0
            self._copy(self._host, self._dirty)
            self._dirty = 0
        self._steady, self._tables.live = None, False

    def _row(self, plan: Plan, bits: int) -> int:
        if not bits:
            return 0
        key = (plan.key, bits)
        number = self._held.get(key)
        if number is None:
            number = self._taken()
            self._tables.write(number, plan.rows(bits))
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

    def _put(self, host: Ints, count: int) -> None:
        self._tables.rows[:count].copy_(torch.from_numpy(host[:count]))


def rows_of(interventions: Sequence[Intervention]) -> dict[int, Row]:
    """Interventions folded by block, in order; a block where nothing is left has none."""
    by_layer: dict[int, list[Intervention]] = {}
    for i in interventions:
        assert i.site.layer is not None, "sites without a block are refused before"
        by_layer.setdefault(i.site.layer, []).append(i)
    return {layer: Row.of(acting[0].edit.width, acting) for layer, acting in by_layer.items()}
