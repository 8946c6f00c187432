"""What a fit will take, before it is run: two of its steps are timed, and the rest counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..contrast import Contrast
from ..engines.base import Trainable
from ..errors import UnsupportedError
from ..meter import peak_mib
from ..positions import Positions
from .base import Method
from .frozen import Frozen
from .trained import Fit, Row, Trained, ran, together

TRIED = 3  # steps
AT_LEAST = 12  # pairs that they are tried on


class Forecast(NamedTuple):
    """Steps, wall seconds, the most memory beyond the model's, and how much of what is kept (on disk with a cache)."""

    steps: int
    seconds: float
    memory_mib: float
    kept_mib: float

    def told(self) -> str:
        """In words."""
        return (
            f"{self.steps} steps, about {self.seconds:.1f} s, about {self.memory_mib:.0f} MiB beside the model, of which"
            f" {self.kept_mib:.0f} MiB are activations that are kept (on disk with --cache-gb)"
        )


def forecast(made: Method, engine: Trainable, contrast: Contrast) -> Forecast:
    """Raises `UnsupportedError` for a method that isn't trained step by step: it takes a few passes over the data."""
    if not isinstance(made, Trained):
        raise UnsupportedError(
            f"{made.name} isn't trained step by step: it reads the data a few times, so just run it."
        )
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    made.check(engine, sites)
    frozen = made.frozen(engine, sites, positions)
    whole = made.given(engine, contrast, sites, positions, frozen)
    trial = Fit(made, made.given(engine, _some(contrast, max(AT_LEAST, made.batch_size)), sites, positions, frozen))
    draw = torch.Generator().manual_seed(0)
    train, held_out = (made.batch(items, draw) for items in (whole.train, whole.held_out))
    some, rows = made.batch(trial.given.train, draw), [*train, *held_out]
    steps = -(-len(whole.train) // made.batch_size) * made.epochs
    before = peak_mib()
    reading = _timed(lambda: frozen.prepare(*made.needed(some))) * _tokens(frozen, rows) / _tokens(frozen, some)
    with torch.no_grad():
        beginning = _timed(lambda: trial.begin(trial=[*range(len(trial.given.train))] * (2 * TRIED)))
    each: list[float] = []
    while len(each) < min(TRIED, steps):
        each.append(_timed(lambda: together([trial], frozen)) / _tokens(frozen, trial.rows_taken))
    with torch.no_grad():
        under = made.touching(some, trial.optimiser.free, trial.given)
        looking = _timed(lambda: ran(trial.given, some, under)) / _tokens(frozen, some)
    training = min(each, default=0.0) * _tokens(frozen, train) * made.epochs
    measuring = looking * _tokens(frozen, held_out) * (made.epochs + 3)
    kept = frozen.kept_bytes(*made.needed(rows)) / 2**20
    memory = max(peak_mib() - before, 0.0) + kept
    return Forecast(steps, round(reading + beginning + training + measuring, 1), round(memory, 1), round(kept, 1))


def _some(contrast: Contrast, pairs: int) -> Contrast:
    """Its first pairs."""
    return replace(contrast, positive=contrast.positive[:pairs], negative=contrast.negative[:pairs])


def _tokens(frozen: Frozen, rows: Sequence[Row]) -> int:
    return sum(frozen.batch([row.example]).ids.shape[1] for row in rows)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
