"""Where a steering works and stays within a damage budget: `min_useful`, `default` and `max_safe` for each direction.

On dev alone, the cheap before the dear, each step for what the one before has left:

1. signals (`signals`): gain, KL and perplexity by forward passes, of every setting, halved on the way (`search`);
2. replies of the settings in the final at a few strengths up to where the signals reach the budget: effect, joint success,
   and a first lot of capability items; the best setting goes on, strengths that have lost too much don't;
3. the budget (`guarantee`): KL and perplexity on more prompts, then capability lot by lot until each strength, from the
   weakest up, is certified, can't be, or has used up the items.

`max_safe` is the strongest strength that is certified for every cost at level δ. Where a suite has too few items to certify
any capability budget, the cost counts as `unresolved`: its mean has to be within, and the range says so. `default` is the
safe strength with the best joint success (the weakest of equals) where that is surely more than without steering, and
`min_useful` is where half of that is reached.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .. import progress
from ..engines.base import Trainable
from ..errors import ConfigError, SteerlabError
from ..steering import Steering
from ..version import __version__
from .guarantee import DELTA, Budget
from .measure import Amounts, Effects, capability, measure_effects
from .operating import Row, hopeless, kept, side, verdict
from .results import Direction
from .search import Found, halving, optuna
from .signals import Ledger, Signals, clipped
from .suite import Suite
from .unit import DIRECTIONS, ArmPlan, fit_arm, signed_domain

Search = Literal["halving", "optuna"]


@dataclass(frozen=True)
class Setting:
    """One way to fit: what replaces the method's own settings (a site, positions, a rank)."""

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def told(self) -> str:
        """In words."""
        return ", ".join(f"{k}={v}" for k, v in self.settings.items()) or "as it is"


@dataclass(frozen=True)
class Asked:
    """What is calibrated and how much is measured.

    `points` are the strengths measured with replies, as shares of where the signals reach the budget. `most` is the greatest
    strength that is tried where the edit has no limit of its own. `finalists` settings get replies. `lot` capability items
    are measured at a time, `items` at most; `neutral` prompts and `texts` carry KL and perplexity. A direction whose signals
    show less than `least` of what asking brings isn't measured with replies: nothing useful lies within its budget.
    """

    budget: Budget = field(default_factory=Budget)
    directions: tuple[Direction, ...] = DIRECTIONS
    search: Search = "halving"
    trials: int = 40
    finalists: int = 2
    points: tuple[float, ...] = (0.4, 0.6, 0.8, 0.95)
    most: float = 3.0
    least: float = 0.05
    delta: float = DELTA
    prompts: int = 24
    items: int = 2000
    lot: int = 200
    neutral: int = 192
    texts: int = 128
    pairs: int = 24
    tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "lot", "neutral", "tokens", "finalists", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if (
            not self.points
            or min(self.points) <= 0
            or max(self.points) > 1
            or not 0 < self.delta < 0.5
            or self.most <= 0
        ):
            raise ConfigError(
                f"points are {self.points}, delta {self.delta:g}, most {self.most:g}; expected shares in (0, 1], a level below"
                " a half, and a strength above 0."
            )
        if not self.directions:
            raise ConfigError("at least one direction is calibrated; give elicit, suppress or both.")


@dataclass(frozen=True)
class Calibrated:
    """The steering with its range in its meta, the setting that won, every strength measured, and what it took."""

    steering: Steering
    setting: Setting
    rows: Mapping[Direction, Sequence[Row]]
    found: Found
    ledger: Ledger
    full: float  # replies as a number of full measurements (prompts + items)


def calibrate(
    suite: Suite,
    task: str,
    given: Steering | ArmPlan,
    asked: Asked = Asked(),
    *,
    settings: Sequence[Setting] = (),
    fitted: Sequence[Steering] = (),
    engine: Trainable | None = None,
) -> Calibrated:
    """The steering (or the best of an arm's settings, each fitted) with its calibrated range.

    `fitted` are the settings' steerings, where they are there already. Raises `ConfigError` where the budget limits what the
    suite can't measure, or where nothing can act.
    """
    engine = engine or suite.engine()
    run = _Run(suite, task, given, asked, list(settings) or [Setting()], engine, fitted)
    with progress.task("calibrating", 3) as bar:
        bar.tell("signals")
        found = run.searched()
        bar.advance()
        bar.tell("replies")
        arm, rows = run.final(found)
        bar.advance()
        bar.tell("the budget")
        run.certify(arm, rows)
        bar.advance()
    told = run.range(arm, rows, found)
    steering = run.fitted(arm)
    steering = replace(steering, meta=replace(steering.meta, range=told))
    full = run.ledger.replies / max(1, asked.prompts + asked.items)
    return Calibrated(steering, run.settings[arm], rows, found, run.ledger, full)


class _Run:
    """One calibration, step by step."""

    def __init__(
        self,
        suite: Suite,
        task: str,
        given: Steering | ArmPlan,
        asked: Asked,
        settings: list[Setting],
        engine: Trainable,
        fitted: Sequence[Steering],
    ) -> None:
        self.suite, self.task, self.given, self.asked = suite, task, given, asked
        self.settings, self.engine = settings, engine
        self.ledger = Ledger()
        self.signals = Signals(
            suite, engine, task, "dev", pairs=asked.pairs, neutral=asked.neutral, texts=asked.texts, seed=asked.seed,
            ledger=self.ledger,
        )  # fmt: skip
        items = list(suite.items("dev", asked.items, asked.seed)) if asked.items and suite.correct() else []
        # in an order of no meaning: a suite may give them kind by kind, and measuring may stop at any lot
        self.items = [items[i] for i in np.random.default_rng(asked.seed).permutation(len(items))]
        self.limits = self._limits()
        self._fitted: dict[int, Steering | None] = dict(enumerate(fitted))
        self._why: dict[int, str] = {}
        self._base: list[float | None] = []
        self._plain: dict[Direction, Effects] = {}

    def _limits(self) -> dict[str, float]:
        """The budgets that this suite can measure."""
        there = {"lost": self.items, "kl": self.signals.neutral, "perplexity": self.signals.texts}
        limits = {n: m for n, m in self.asked.budget.limits().items() if there[n]}
        if not limits:
            raise ConfigError(
                f"the budget ({self.asked.budget.told()}) limits nothing that can be measured here; give capability items,"
                " neutral prompts or texts."
            )
        return limits

    def fitted(self, arm: int) -> Steering:
        """A setting's steering. Raises what its fit raised."""
        if arm not in self._fitted:
            if isinstance(self.given, Steering):
                self._fitted[arm] = self.given
            else:
                merged = replace(self.given, settings={**self.given.settings, **self.settings[arm].settings})
                self.ledger.fits += 1
                try:
                    self._fitted[arm] = fit_arm(self.suite, None, merged, self.task, self.asked.seed, self.engine)
                except SteerlabError as problem:
                    if len(self.settings) == 1:
                        raise
                    self._fitted[arm], self._why[arm] = None, str(problem)
        made = self._fitted[arm]
        if made is None:
            raise ConfigError(f"the setting {self.settings[arm].told()} can't be fitted: {self._why[arm]}")
        return made

    def _reach(self, arm: int, direction: Direction) -> float:
        """The greatest strength that a setting takes in a direction; 0 where it has none."""
        try:
            steering = self.fitted(arm)
        except SteerlabError:
            return 0.0
        sign, most = signed_domain(steering, self.given if isinstance(self.given, ArmPlan) else None, direction)
        return min(most, self.asked.most) if sign else 0.0

    def sign(self, arm: int, direction: Direction) -> float:
        """Of the strengths of a direction."""
        return signed_domain(self.fitted(arm), self.given if isinstance(self.given, ArmPlan) else None, direction)[0]

    # --- signals ----------------------------------------------------------------------------------------------------

    def searched(self) -> Found:
        """The settings in order, with where each reaches the budget."""

        def read(arm: int, direction: Direction, size: float, share: float) -> tuple[float | None, float]:
            if self.fitted(arm).prompt is not None and size < 1:
                return None, math.inf  # a prompt is there or it isn't
            steering = self.fitted(arm).scaled(self.sign(arm, direction) * size)
            signal = self.signals.read(steering, direction, share)
            return signal.gain, signal.strain(self.asked.budget)

        arms, directions = len(self.settings), self.asked.directions
        if self.asked.search == "optuna":
            found = optuna(arms, self._reach, directions, read, trials=self.asked.trials, seed=self.asked.seed)
        else:
            found = halving(arms, self._reach, directions, read, keep=min(self.asked.finalists, arms))
        if not found.edges:
            raise ConfigError(
                f"nothing can act on {self.task!r} in {' or '.join(directions)}"
                + (f": {next(iter(self._why.values()))}" if self._why else ".")
            )
        return found

    # --- replies ----------------------------------------------------------------------------------------------------

    def final(self, found: Found) -> tuple[int, dict[Direction, list[Row]]]:
        """The setting that wins on replies, with what was measured of it."""
        alive = [a for a in found.order if any(key[0] == a for key in found.edges)]
        if any(p.gain is not None for edge in found.edges.values() for p in edge.points):
            alive = alive[: self.asked.finalists]  # without pairs the signals can't tell settings apart
        measured = {arm: self._measured(arm, found) for arm in alive}
        best = max(alive, key=lambda a: (self._score(measured[a]), -alive.index(a)))
        return best, measured[best]

    def _measured(self, arm: int, found: Found) -> dict[Direction, list[Row]]:
        rows: dict[Direction, list[Row]] = {}
        for direction in self.asked.directions:
            edge = found.edges.get((arm, direction))
            if edge is None:
                continue
            known = any(p.gain is not None for p in edge.points)
            if not edge.strength or (known and edge.gain < self.asked.least):
                rows[direction] = []  # nothing that the signals see lies within the budget
                continue
            sizes = self._sizes(arm, direction, edge.strength)
            steerings = [self.fitted(arm).scaled(s) for s in sizes]
            amounts = Amounts(self.asked.prompts, 0, 0, 0, self.asked.tokens)
            effects = measure_effects(
                self.suite, self.engine, self.task, direction, "dev", steerings, amounts, self.asked.seed
            )
            self.ledger.replies += len(steerings) * len(effects[0].joint)
            rows[direction] = [Row(s, e) for s, e in zip(sizes, effects, strict=True)]
            if "lost" in self.limits:
                self._first_lot(arm, rows[direction])
        return rows

    def _sizes(self, arm: int, direction: Direction, edge: float) -> list[float]:
        """Strengths with their sign, the weakest first. A prompt has but one."""
        sign = self.sign(arm, direction)
        if self.fitted(arm).prompt is not None:
            return [sign]
        return [sign * float(f"{share * edge:.3g}") for share in sorted(self.asked.points)]

    def _first_lot(self, arm: int, rows: Sequence[Row]) -> None:
        for row in rows:
            row.costs["lost"] = np.zeros(0)
        for row in rows:
            self._lot(arm, row)

    def _lot(self, arm: int, row: Row) -> bool:
        """Measure a row's next capability items; False where there are none left."""
        done = len(row.costs["lost"])
        at, until = done, min(len(self.items), done + self.asked.lot)
        if at >= until:
            return False
        while len(self._base) < until:
            more = self.items[len(self._base) : len(self._base) + self.asked.lot]
            self._base += capability(self.suite, self.engine, more, [None], self.asked.tokens)[0].capability
            self.ledger.replies += len(more)
        steering = self.fitted(arm).scaled(row.strength)
        now = capability(self.suite, self.engine, self.items[at:until], [steering], self.asked.tokens)[0].capability
        self.ledger.replies += until - at
        # an item that can't be judged is one that was lost: nothing may look safe for want of a judgement
        lost = [1.0 if b is None or v is None else b - v for b, v in zip(self._base[at:until], now, strict=True)]
        row.costs["lost"] = np.concatenate([row.costs["lost"], lost])
        return True

    def _score(self, rows: Mapping[Direction, Sequence[Row]]) -> float:
        """Mean over directions of the best joint success among strengths that haven't surely lost too much."""
        told = [
            max((r.joint or 0.0 for r in found if not hopeless(r, self.limits)), default=0.0) for found in rows.values()
        ]
        return sum(told) / len(told) if told else 0.0

    # --- the budget -------------------------------------------------------------------------------------------------

    def certify(self, arm: int, rows: Mapping[Direction, Sequence[Row]]) -> None:
        """Every strength's verdict on every cost, from the weakest up until one can't be safe."""
        order = np.random.default_rng(self.asked.seed)
        for found in rows.values():
            for row in found:
                self._cheap(arm, row, order)
                cheap = all(self._settle(row, name) for name in ("kl", "perplexity") if name in row.costs)
                if not cheap or ("lost" in self.limits and not self._items_held(arm, row)):
                    break

    def _cheap(self, arm: int, row: Row, order: np.random.Generator) -> None:
        steering = self.fitted(arm).scaled(row.strength)
        for name, read in (("kl", self.signals.kl), ("perplexity", self.signals.perplexity)):
            if name in self.limits and len(values := clipped(name, read(steering))):
                row.costs[name] = values[order.permutation(len(values))]

    def _settle(self, row: Row, name: str) -> bool:
        row.verdicts[name] = verdict(name, row.costs[name], self.limits, len(row.costs[name]), self.asked.delta)
        return kept(row, name, self.limits, self.asked.delta)

    def _items_held(self, arm: int, row: Row) -> bool:
        """Capability, lot by lot until the case is clear."""
        while True:
            row.verdicts["lost"] = verdict("lost", row.costs["lost"], self.limits, len(self.items), self.asked.delta)
            if row.verdicts["lost"] == "held":
                return True
            if hopeless(row, self.limits):
                row.verdicts["lost"] = "broken"
                return False
            if not self._lot(arm, row):
                return kept(row, "lost", self.limits, self.asked.delta)

    # --- the range --------------------------------------------------------------------------------------------------

    def range(self, arm: int, rows: Mapping[Direction, Sequence[Row]], found: Found) -> dict[str, Any]:
        """What the steering's meta keeps."""
        asked = self.asked
        directions = {
            d: side(
                int(self.sign(arm, d)),
                measured,
                self.plain(d) if measured else Effects(),
                self.limits,
                asked.delta,
            )
            for d, measured in rows.items()
        }
        told = {
            "steerlab": __version__, "model": self.engine.name, "revision": self.engine.revision, "task": self.task,
            "suite": str(self.suite.told().get("kind")), "split": "dev", "seeds": [asked.seed], "delta": asked.delta,
            "digest": self._digest(),
            "n": {"prompts": asked.prompts, "items": len(self.items), "neutral": len(self.signals.neutral),
                  "texts": len(self.signals.texts), "pairs": len(self.signals.pairs), "tokens": asked.tokens},
            "search": {"by": asked.search, "settings": len(self.settings), "won": dict(self.settings[arm].settings),
                       "readings": found.readings, "replies": self.ledger.replies, "rows": self.ledger.rows,
                       "fits": self.ledger.fits},
            "unmeasured": [n for n in asked.budget.limits() if n not in self.limits],
        }  # fmt: skip
        return {"directions": directions, "budget": asdict(asked.budget), "measured": told}

    def plain(self, direction: Direction) -> Effects:
        """What the model does unsteered."""
        if direction not in self._plain:
            amounts = Amounts(self.asked.prompts, 0, 0, 0, self.asked.tokens)
            found = measure_effects(
                self.suite, self.engine, self.task, direction, "dev", [None], amounts, self.asked.seed
            )
            self._plain[direction] = found[0]
            self.ledger.replies += len(found[0].joint)
        return self._plain[direction]

    def _digest(self) -> str:
        h = hashlib.sha256()
        prompts = [
            e for d in self.asked.directions
            for e in self.suite.prompts(self.task, d, "dev", self.asked.prompts, self.asked.seed)
        ]  # fmt: skip
        for example in (*prompts, *self.items, *self.signals.neutral):
            h.update(json.dumps(example.to_json(), sort_keys=True).encode(errors="surrogatepass"))
        for text in self.signals.texts:
            h.update(text.encode(errors="surrogatepass"))
        return h.hexdigest()
