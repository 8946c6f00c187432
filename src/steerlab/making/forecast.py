"""What `steerlab make` will take, before it begins: a few replies and passes are timed, a fit is tried, the rest is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..contrast import Contrast
from ..engines.base import Sampling
from ..errors import UnsupportedError
from ..evals.unit import ArmPlan, method_of
from ..methods.forecast import forecast
from . import wordings
from .steps import Job, instructions_of, suite_of
from .wordings import EVERY

if TYPE_CHECKING:
    from pathlib import Path

    from ..engines.base import Trainable

TRIED = 16  # replies


class Expected(NamedTuple):
    """Seconds of each step, the most memory beyond the model's in MiB (None: can't be told before), and disk in MiB."""

    data: float
    fit: float
    calibrate: float
    evaluate: float
    memory_mib: float | None
    disk_mib: float
    replies: int

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.data + self.fit + self.calibrate + self.evaluate

    def told(self) -> str:
        """In words."""
        memory = "a few passes' memory" if self.memory_mib is None else f"about {self.memory_mib:.0f} MiB"
        return (
            f"about {self.seconds:.0f} s (data {self.data:.0f}, fit {self.fit:.0f}, calibration {self.calibrate:.0f}, evaluation"
            f" {self.evaluate:.0f}; {self.replies} replies), {memory} beside the model, {self.disk_mib:.1f} MiB of disk; a gate,"
            " where one is tried, takes a calibration more"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**self._asdict(), "seconds": self.seconds}


def expected(job: Job, folder: Path, engine: Trainable) -> Expected:
    """Time a little of each kind of work, and count."""
    prompts = instructions_of(job)
    some = [e.without_answer() for e in prompts[:TRIED]]
    replies = engine.generate(some, None, Sampling(job.tokens))
    each = _seconds(lambda: engine.generate(some, None, Sampling(job.tokens))) / len(some)
    rows = [type(e)(e.messages, r.text or "none") for e, r in zip(some, replies, strict=True)]
    row = _seconds(lambda: engine.logprobs(rows)) / len(rows)
    half = max(1, len(rows) // 2)
    count = max(12, round(0.6 * 0.6 * job.pairs)) if job.rule is None else max(12, round(0.6 * job.pairs))
    sides = [tuple(rows[k % half + at] for k in range(count)) for at in (0, len(rows) - half)]
    contrast = Contrast(sides[0], sides[1], paired=True, concept=job.description)
    suite, arm = suite_of(job, folder, job.rule or "capitals"), ArmPlan(job.method, job.method, job.settings)
    made = method_of(suite, None, arm, job.description, job.seed)
    try:
        trial = forecast(made, engine, contrast)
        fit, memory, saved = trial.seconds, trial.memory_mib, trial.saved_mib
    except UnsupportedError:
        fit, memory, saved = 4 * count * row, None, 0.1
    fits = max(1, len(job.tried))
    a, directions = job.asked, len(job.asked.directions)
    strengths = len(a.points) * directions
    calibrating = min(fits, a.finalists) * strengths * (a.prompts + a.lot) + strengths * a.items // 2 + a.items
    scored = fits * directions * 3 * 2 * (a.choosing + a.pairs) + strengths * (a.neutral + a.texts)
    testing = (1 + 2 * directions) * (job.test + min(200, a.items))
    writing = 2.3 * job.pairs + TRIED + (len(EVERY) + 1) * wordings.TRIED
    disk = (
        3 * saved
        + 4 * sum(len((r.answer or "") + r.instruction) for r in rows) / len(rows) * job.pairs * 4 / 2**20
        + 0.3
    )
    return Expected(
        round(writing * each, 1), round(fits * fit, 1), round(calibrating * each + scored * row, 1), round(testing * each, 1),
        memory, round(disk, 2), round(writing + calibrating + testing),
    )  # fmt: skip


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
