"""What a fit will take, before it is run: two of its steps are timed, and the rest counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..artefact import flatten
from ..contrast import Contrast
from ..edits import Edit
from ..engines.base import Trainable
from ..errors import UnsupportedError
from ..meter import peak_mib
from ..positions import Positions
from .base import Method
from .fitting import Fit, lots, ran, together
from .frozen import Frozen
from .trained import Row, Trained

TRIED = 3  # steps
AT_LEAST = 12  # pairs that they are tried on


class Forecast(NamedTuple):
    """Steps, wall seconds, the most memory beyond the model's, how much of it is kept (on disk with a cache), the file's size."""

    steps: int
    seconds: float
    memory_mib: float
    kept_mib: float
    saved_mib: float = 0.0

    def told(self) -> str:
        """In words."""
        return (
            f"{self.steps} steps, about {self.seconds:.1f} s, about {self.memory_mib:.0f} MiB beside the model, of which"
            f" {self.kept_mib:.0f} MiB are activations that are kept (on disk with --cache-gb)"
        )


def forecast(made: Method, engine: Trainable, contrast: Contrast) -> Forecast:
    """Raises `UnsupportedError` for a method that isn't trained step by step: it takes a few passes over the data."""
    return forecast_many(made, engine, [contrast])


def forecast_many(made: Method, engine: Trainable, contrasts: Sequence[Contrast]) -> Forecast:
    """What `fit_many` will take; steps are counted fit by fit."""
    if not isinstance(made, Trained):
        raise UnsupportedError(
            f"{made.name} isn't trained step by step: it reads the data a few times, so just run it."
        )
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    made.check(engine, sites)
    frozen = made.frozen(engine, sites, positions)
    least = max(AT_LEAST, made.batch_size)
    wholes = [made.given(engine, contrast, sites, positions, frozen) for contrast in contrasts]
    trials = [Fit(made, made.given(engine, _some(c, least), sites, positions, frozen)) for c in contrasts]
    draw = torch.Generator().manual_seed(0)
    train, held_out = (
        [row for items in parts for row in made.batch(items, draw)]
        for parts in ([w.train for w in wholes], [w.held_out for w in wholes])
    )
    tried = [made.batch(trial.given.train, draw) for trial in trials]
    some, rows = [row for part in tried for row in part], [*train, *held_out]
    steps = sum(-(-len(whole.train) // made.batch_size) * made.epochs for whole in wholes)
    before = peak_mib()
    scored = [made.scored(Fit(made, whole), frozen) for whole in wholes]
    whole = max(scored) <= frozen.room
    reading = (
        _timed(lambda: frozen.prepare(*made.needed(some), whole=whole)) * _tokens(frozen, rows) / _tokens(frozen, some)
    )
    with torch.no_grad():
        beginning = _timed(lambda: [t.begin(trial=[*range(len(t.given.train))] * (2 * TRIED)) for t in trials])
    each: list[float] = []
    while len(each) < min(TRIED, steps):
        took = _timed(lambda: together(trials, frozen))
        each.append(took / _tokens(frozen, [row for trial in trials for row in trial.rows_taken]))
    with torch.no_grad():
        looking = _timed(lambda: _looked(made, trials, tried)) / _tokens(frozen, some)
        saved = sum(_bytes(intervention.edit) for trial in trials for intervention in trial.made()[0])
    training = min(each, default=0.0) * _tokens(frozen, train) * made.epochs
    measuring = looking * _tokens(frozen, held_out) * (made.epochs + 3)
    bases, untouched = made.needed(rows)
    held = max(sum(lot) for lot in lots(scored, scored, frozen.room)) if whole else 0
    kept = (held + frozen.kept_bytes(bases, () if whole else untouched)) / 2**20
    memory = max(peak_mib() - before, 0.0) + kept
    seconds = reading + beginning + training + measuring
    return Forecast(steps, round(seconds, 1), round(memory, 1), round(kept, 1), round(saved / 2**20, 4))


def _looked(made: Trained, trials: Sequence[Fit], tried: Sequence[Sequence[Row]]) -> None:
    """What is held out, run as it is when it is measured: fit by fit."""
    for trial, rows in zip(trials, tried, strict=True):
        touching = made.touching(rows, trial.optimiser.free, trial.given)
        ran(trial.given, rows, touching, [made.alike(row) for row in rows])


def _bytes(edit: Edit) -> int:
    return sum(t.numel() * t.element_size() for t in flatten(edit, "edit")[1].values())


def _some(contrast: Contrast, pairs: int) -> Contrast:
    """Its first pairs."""
    return replace(contrast, positive=contrast.positive[:pairs], negative=contrast.negative[:pairs])


def _tokens(frozen: Frozen, rows: Sequence[Row]) -> int:
    return sum(frozen.batch([row.example]).ids.shape[1] for row in rows)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
