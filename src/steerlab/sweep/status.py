"""How a sweep stands, read from its journal by whoever asks: nothing is locked and nothing written."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .journal import Journal, Row, alive

SILENT = 15.0  # seconds without a sign of life after which a sweep is said to have stopped
STATES = ("done", "claimed", "waiting", "failed")


@dataclass(frozen=True)
class Status:
    """Counts by kind and state, what is running for how many seconds, what failed, and the seconds left (None: unknown)."""

    counts: dict[str, dict[str, int]]
    running: list[tuple[str, str, float]]  # unit, worker, seconds
    failed: list[tuple[str, int, str]]  # unit, tried, reason
    silent: float  # seconds since its last sign of life
    at_work: bool
    ended: bool
    left: float | None

    @property
    def words(self) -> str:
        """In a line."""
        every = {state: sum(of.get(state, 0) for of in self.counts.values()) for state in STATES}
        told = f"{every['done']} of {sum(every.values())} units done"
        if every["failed"]:
            told += f", {every['failed']} failed"
        if self.ended:
            return f"{told}; finished"
        if not self.at_work:
            return f"{told}; stopped {in_words(self.silent)} ago: run the same command to go on"
        return f"{told}; {every['claimed']} running" + (
            "" if self.left is None else f", about {in_words(self.left)} left"
        )


def status(folder: str | Path) -> Status:
    """How the sweep of a folder stands. Raises `ArtefactError` where there is none."""
    with Journal(Path(folder), read_only=True) as journal:
        rows, now = list(journal.rows().values()), time.time()
        beat, ended, process = (journal.fact(name) for name in ("beat", "ended", "process"))
    silent = now - (beat or 0.0)
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        of = counts.setdefault(row.kind, {})
        of[row.state] = of.get(row.state, 0) + 1
    return Status(
        counts=counts,
        running=[(r.name, r.worker or "", now - (r.claimed or now)) for r in rows if r.state == "claimed"],
        failed=[(r.name, r.tried, r.reason or "") for r in rows if r.state == "failed"],
        silent=silent,
        at_work=ended is None and (silent < SILENT if process is None else _there(process[0], process[1], silent)),
        ended=ended is not None,
        left=remaining(rows, now),
    )


def _there(host: str, process: int, silent: float) -> bool:
    """Whether the sweep's process is still there; of another machine, whether it gave a sign of life lately."""
    return alive(process) if host == platform.node() else silent < SILENT


def remaining(rows: Iterable[Row], now: float) -> float | None:
    """Seconds left: what units of a kind and arm took so far, for those that are missing, over the workers at work.

    An arm that nothing is known of takes what its kind takes. None before the first unit is done.
    """
    rows = list(rows)
    known: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row.state == "done" and row.seconds is not None:
            for key in ((row.kind, row.arm), (row.kind,), ()):
                known.setdefault(key, []).append(row.seconds)
    if not known:
        return None
    total = 0.0
    for row in rows:
        if row.state in ("waiting", "claimed"):
            took = next(known[key] for key in ((row.kind, row.arm), (row.kind,), ()) if key in known)
            spent = now - (row.claimed or now) if row.state == "claimed" else 0.0
            total += max(sum(took) / len(took) - spent, 0.0)
    workers = len({row.worker for row in rows if row.state == "claimed"})
    return total / max(workers, 1)


def in_words(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
