"""What a suite is: items, a table with a line per item, and the metrics of such a table.

A suite measures one steering at some strengths, beside the model as it is. (`evals.suite.Suite` is something else: the tasks
over which an evaluation compares methods.) A suite is one file in this folder, an entry point in the group `steerlab.suites`,
or a file of your own; running it, intervals, soundness and reports are the same for all (`suites.run`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from .. import config, plugins
from ..contrast import Contrast, Example
from ..engines.base import Sampling, Trainable
from ..errors import ConfigError, UnsupportedError
from ..evals.stats import mean
from ..judges.base import Judge, Score
from ..judges.fluency import FluencyJudge
from ..steering import Steering

Item = TypeVar("Item")
Row = dict[str, Any]  # `unit` and `item` name it, `set` is its group; a column that can't be judged is None
Rows = Sequence[Mapping[str, Any]]


class Condition(NamedTuple):
    """The model as it is (no steering, strength 0), or a steering that is scaled to a strength already."""

    label: str
    strength: float
    steering: Steering | None

    @classmethod
    def of(cls, steering: Steering | None, strength: float) -> Condition:
        """A steering at a strength."""
        if steering is None or strength == 0:
            return cls("plain", 0.0, None)
        return cls(f"{strength:+g}", strength, steering.scaled(strength))


@dataclass(frozen=True)
class Metric:
    """A figure of a table: `of(rows)`, or `of(rows, plain rows)` where it `compares` with the model as it is.

    None where there is nothing to compute it from. `column` is the one whose missing values are counted, among the rows
    that `where` holds for. `wanted` is 1 where more is better, −1 where less is, 0 where that depends on what is steered
    for. `share` says that its values are all 0 or 1, so that an interval at 0 or at 1 isn't nothing wide. A metric that is
    a test's p has no `interval`. `bounded` says that it lies between −1 and 1, so that an interval isn't nothing wide where
    no unit differs from another. One that the steering can't move is `still`.
    """

    name: str
    about: str
    of: Callable[..., float | None]
    column: str = ""
    where: Mapping[str, Any] | None = None
    wanted: int = 0
    share: bool = False
    compares: bool = False
    interval: bool = True
    bounded: bool = False
    still: bool = False

    def rows(self, rows: Rows) -> list[Mapping[str, Any]]:
        """The rows that it is about."""
        wanted = self.where or {}
        return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def mean_of(
    name: str,
    column: str,
    about: str,
    *,
    wanted: int = 0,
    share: bool = False,
    bounded: bool = False,
    where: Mapping[str, Any] | None = None,
) -> Metric:
    """The mean of a column, over the rows that `where` holds for and that have a value."""

    def of(rows: Rows) -> float | None:
        return mean(values(rows, column))

    return Metric(name, about, of, column, where, wanted, share, bounded=bounded)


def values(rows: Rows, column: str) -> list[float]:
    """What is there of a column."""
    return [float(r[column]) for r in rows if r.get(column) is not None]


@dataclass(frozen=True)
class Stage:
    """Where a suite runs: a model, which pilot it is (None: none), reply tokens, and who says that a reply is language."""

    engine: Trainable
    variant: str | None = None
    tokens: int = 64
    fluent: Judge = field(default_factory=lambda: FluencyJudge(distinct=0.4, language="same"))

    def replies(self, prompts: Sequence[Example], condition: Condition) -> list[str]:
        """Greedy replies under a condition."""
        asked = [p.without_answer() for p in prompts]
        return [r.text for r in self.engine.generate(asked, condition.steering, Sampling(self.tokens))]

    def sound(self, reply: str, prompt: Example) -> float | None:
        """1 where the reply is language, 0 where it isn't or says nothing; None where it is too short to tell."""
        if not reply.strip():
            return 0.0
        return yes(self.fluent, self.fluent(reply, prompt))


def yes(judge: Judge, score: Score) -> float | None:
    """1 or 0 where a judge can say, None where it can't."""
    there = judge.present(score)
    return None if there is None else float(there)


@dataclass(frozen=True)
class Suite(ABC, Generic[Item]):
    """Settings of a suite, each with a default. `n` items of each kind are drawn with `seed`."""

    about: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    layout: ClassVar[str] = ""  # what --data has to hold
    strengths: ClassVar[tuple[float, ...]] = (1.0, -1.0)  # beside the model as it is
    needs_steering: ClassVar[bool] = False  # it says nothing about a model alone

    n: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"{type(self).__name__}.n is {self.n}; expected at least 1.")

    def of_pilot(self, variant: str) -> Sequence[Item]:
        """Items for the built-in model. Raises `UnsupportedError` with the reason where it lacks the ability."""
        raise UnsupportedError(f"{self.name} has no items for the built-in model; pass --data ({self.layout}).")

    @abstractmethod
    def read(self, path: str) -> Sequence[Item]:
        """Items from the user's file or folder. Raises `DataError`."""

    def contrast(self, variant: str) -> Contrast:
        """Pairs of the built-in model's corpus that a steering for this suite is fitted on, from the training split."""
        raise UnsupportedError(f"{self.name} has no data of its own to fit on; pass --fit-on DATA.")

    @abstractmethod
    def rows(self, stage: Stage, condition: Condition, items: Sequence[Item]) -> list[Row]:
        """A line for each item (and set) under a condition."""

    @abstractmethod
    def metrics(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """The figures of such tables."""

    def notes(self, rows: Rows) -> list[str]:
        """What a reader has to know about this table beside its figures."""
        return []

    @property
    def name(self) -> str:
        """The name under which it is loaded."""
        return plugins.name_of(type(self), "suites")


def suite(name: str, settings: Mapping[str, Any] | None = None) -> Suite[Any]:
    """The suite of this name, or of this `.py` file. Raises `ConfigError` with the nearest one."""
    return config.build(plugins.load(name, "suites"), settings or {}, where=f"the suite {name}")
