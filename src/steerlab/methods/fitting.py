"""Fits as they stand between steps, and a step of many: their rows run together, each under its own edits.

Rows of as many fits share a pass as make it full (`FULL`): on a processor a small one is as fast a token as a large one, whose
activations no longer fit its caches; an accelerator wants thousands of tokens at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..engines.base import Batch
from ..errors import DataError
from ..sites import Site
from ..steering import Intervention
from .frozen import EditRows, Frozen
from .steps import Free, Given, Row, Step

if TYPE_CHECKING:
    from .trained import Trained

One = TypeVar("One")
FULL = {"cpu": 1024}  # tokens from which on a pass is full
ELSEWHERE = 2**16


@dataclass
class Fit:
    """One concept's training as it stands; `rows_taken` were the last batch, of `taken` items."""

    method: Trained
    given: Given
    best: Free = field(default_factory=dict[str, Tensor])
    losses: list[float] = field(default_factory=list[float])
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def begin(self, trial: Sequence[int] = ()) -> None:
        """Start, and measure the start; a trial takes these items instead, and measures nothing."""
        self.optimiser = self.method.optimisers(self.method.initial(self.given), self.steps)
        self.best, self._least = self.optimiser.free, None
        self._epoch, self._order, self._total, self._seen = 0, list[int](), 0.0, 0
        self._orders, self.taken = torch.Generator().manual_seed(self.method.seed), 0
        if trial:
            self._order = list(trial)
            return
        self._judge()
        self._shuffle()

    @property
    def steps(self) -> int:
        return -(-len(self.given.train) // self.method.batch_size) * self.method.epochs

    @property
    def unfinished(self) -> bool:
        return bool(self._order)

    @property
    def gone(self) -> float:
        """The share of all steps that lies behind."""
        return len(self.losses) / self.method.epochs + self._seen / (len(self.given.train) * self.method.epochs)

    def every_row(self) -> list[Row]:
        """Those of all its items."""
        draw = torch.Generator().manual_seed(0)
        return self.method.batch([*self.given.train, *self.given.held_out], draw)

    def rows(self) -> list[Row]:
        """Those of the next batch."""
        size = self.method.batch_size
        chosen, self._order = self._order[:size], self._order[size:]
        self.taken = len(chosen)
        rows = self.method.batch([self.given.train[i] for i in chosen], self.given.generator)
        self.rows_taken = self.method.disturbed(rows, self.given.generator)
        return self.rows_taken

    def learn(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """One step; at the end of an epoch, what it has come to."""
        if not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
            raise DataError(
                f"the gradient of {self.method.name} is NaN or infinite (loss {loss}); the model overflows on this data. Try"
                " bfloat16 or float32, or look for empty or damaged rows with `steerlab data check`."
            )
        self.optimiser.move(gradients)
        self._total, self._seen = self._total + loss * self.taken, self._seen + self.taken
        if not self._order:
            self.losses.append(round(self._total / self._seen, 6))
            self._total, self._seen, self._epoch = 0.0, 0, self._epoch + 1
            self._judge()
            self._shuffle()

    def told(self) -> str:
        """In a few words."""
        words = f"loss {self._total / self._seen if self._seen else self.losses[-1]:.4f}"
        if self.curve:
            words += f", held-out loss {self.curve[-1]['loss']:.4f} ({self.curve[0]['loss']:.4f} to begin with)"
        return words

    def made(self) -> tuple[list[Intervention], dict[str, Any]]:
        """What is served, and the figures of the fit."""
        given, edits = self.given, self.method.served(self.best, self.given)
        controls = self.method.controls(self.best, given)
        made = [Intervention(s, e, given.positions, c) for s, e, c in zip(given.sites, edits, controls, strict=True)]
        return made, {"loss": self.losses, **self.method.told(self.best, given, self.curve)}

    def _shuffle(self) -> None:
        if self._epoch < self.method.epochs:
            self._order = torch.randperm(len(self.given.train), generator=self._orders).tolist()

    def _judge(self) -> None:
        """Measure on what is held out, and keep the best."""
        free = {name: t.detach().clone() for name, t in self.optimiser.free.items()}
        if not self.given.held_out:
            self.best = free
            return
        draw = torch.Generator().manual_seed(self.method.seed)
        rows = self.method.batch(self.given.held_out, draw)
        with torch.no_grad():
            touching, alike = self.method.touching(rows, free, self.given), [self.method.alike(row) for row in rows]
            found = self.method.judged(ran(self.given, rows, touching, alike), free)
        self.curve.append(found)
        if self._least is None or found["loss"] < self._least:
            self._least, self.best = found["loss"], free


def lots(fits: Sequence[One], scored: Sequence[int], room: int) -> list[Sequence[One]]:
    """Fits that are trained together: as many, in order, as there is room for the bytes of."""
    found: list[Sequence[One]] = []
    begin, held = 0, 0
    for n, size in enumerate(scored):
        if n > begin and held + size > room:
            found.append(fits[begin:n])
            begin, held = n, 0
        held += size
    return [*found, fits[begin:]]


def ran(
    given: Given,
    rows: Sequence[Row],
    touching: Mapping[Site, EditRows] | None = None,
    alike: Sequence[Hashable | None] | None = None,
) -> Step:
    """Some rows under edits, or without any."""
    said = given.frozen.run([row.example for row in rows], touching, alike)
    return Step(rows, said, given.frozen, given.positions)


def together(turn: Sequence[Fit], frozen: Frozen) -> None:
    """A step of every fit, in as few passes as are full."""
    rows = [fit.rows() for fit in turn]
    sizes = [frozen.tokens([row.example for row in r]) for r in rows]
    full = FULL.get(frozen.device.type, ELSEWHERE)
    begin, held = 0, 0
    for n, size in enumerate(sizes):
        if held and held + size > full:
            _step(turn[begin:n], rows[begin:n], frozen)
            begin, held = n, 0
        held += size
    _step(turn[begin:], rows[begin:], frozen)


def _step(turn: Sequence[Fit], rows: Sequence[list[Row]], frozen: Frozen) -> None:
    """A step of some fits, in one pass."""
    leaves = [{name: t.detach().clone().requires_grad_() for name, t in fit.optimiser.free.items()} for fit in turn]
    ends = torch.tensor([len(r) for r in rows]).cumsum(0).tolist()
    touching = [fit.method.touching(r, free, fit.given) for fit, r, free in zip(turn, rows, leaves, strict=True)]
    alike = [_of_fit(n, fit.method.alike(row)) for n, (fit, r) in enumerate(zip(turn, rows, strict=True)) for row in r]
    said = frozen.run([row.example for r in rows for row in r], _merged(touching, ends), alike)
    losses = [
        fit.method.loss(Step(r, said.part(end - len(r), end), frozen, fit.given.positions, fit.gone), free)
        for fit, r, free, end in zip(turn, rows, leaves, ends, strict=True)
    ]
    flat = [t for free in leaves for t in free.values()]
    gradients = iter(torch.autograd.grad(torch.stack(losses).sum(), flat, materialize_grads=True))
    for fit, free, loss in zip(turn, leaves, losses, strict=True):
        fit.learn(float(loss.detach()), {name: next(gradients) for name in free})


def _of_fit(n: int, alike: Hashable | None) -> Hashable | None:
    return None if alike is None else (n, alike)


def _merged(touching: Sequence[Mapping[Site, EditRows]], ends: Sequence[int]) -> Mapping[Site, EditRows]:
    """Each fit's edits on its own rows."""
    if len(touching) == 1:
        return touching[0]
    begins = [0, *ends[:-1]]

    def at(site: Site) -> EditRows:
        def put(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
            out = None if site.on_weights else h  # all that a matrix reads is in one fit or another
            for mine, begin, end in zip(touching, begins, ends, strict=True):
                here = ((index >= begin) & (index < end)).nonzero()[:, 0]
                if len(here):
                    made = mine[site](h[here], index[here] - begin, batch.take(here))
                    out = made.new_empty(*h.shape[:-1], made.shape[-1]) if out is None else out
                    out = out.index_copy(0, here, made)
            return h if out is None else out

        return put

    return {site: at(site) for site in touching[0]}
