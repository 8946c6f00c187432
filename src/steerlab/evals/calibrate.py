"""Where a steering works and stays within a damage budget: `min_useful`, `default` and `max_safe` for each direction.

On dev alone, the cheap before the dear, each step for what the one before has left:

1. signals (`signals`): gain, KL and perplexity by forward passes, of every setting, halved on the way (`search`);
2. replies of the settings in the final at a few strengths up to where the signals reach the budget: effect, joint success,
   and a first lot of capability items; the best setting goes on, strengths that have lost too much don't;
3. the budget (`guarantee`): KL and perplexity on more prompts, then capability lot by lot until each strength, from the
   weakest up, is certified, can't be, or has used up the items. Where that leaves the best setting worth less than the next
   one seemed to be, the next is certified, too.

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
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .. import progress
from ..engines.base import Trainable
from ..errors import ConfigError, SteerlabError
from ..steering import Steering
from ..version import __version__
from .asked import Asked, Setting
from .measure import Amounts, Effects, capability, measure_effects
from .operating import Row, hopeless, kept, side, verdict
from .results import Direction
from .search import Found, halving, optuna
from .signals import Ledger, Signals, clipped
from .stats import mean
from .suite import Suite
from .unit import ArmPlan, fit_arm, signed_domain

Rows = Mapping[Direction, Sequence[Row]]  # the strengths of a setting that were measured, weakest first
MARGIN = (
    0.1  # of joint success: what another setting has to promise beyond what is certified, before it is certified, too
)


@dataclass(frozen=True)
class Calibrated:
    """The steering with its range in its meta, the setting that won, every strength measured, and what it took."""

    steering: Steering
    setting: Setting
    rows: Rows
    found: Found
    ledger: Ledger
    full: float  # replies as a number of full measurements (prompts + items)


def calibrate(
    suite: Suite,
    task: str,
    given: Steering | ArmPlan,
    asked: Asked | None = None,
    *,
    settings: Sequence[Setting] = (),
    fitted: Sequence[Steering] = (),
    engine: Trainable | None = None,
) -> Calibrated:
    """The steering (or the best of an arm's settings, each fitted) with its calibrated range.

    `fitted` are the settings' steerings, where they are there already. Raises `ConfigError` where the budget limits what the
    suite can't measure, or where nothing can act.
    """
    engine, asked = engine or suite.engine(), asked or Asked()
    run = Calibration(suite, task, given, asked, list(settings) or [Setting()], engine, fitted)
    with progress.task("calibrating", 3) as bar:
        bar.tell("signals")
        found = run.searched()
        bar.advance()
        bar.tell("replies")
        finalists = run.final(found)
        bar.advance()
        bar.tell("the budget")
        arm, rows = run.settled(finalists)
        bar.advance()
    told = run.range(arm, rows, found)
    steering = run.fitted(arm)
    steering = replace(steering, meta=replace(steering.meta, range=told))
    full = run.ledger.replies / max(1, asked.prompts + asked.items)
    return Calibrated(steering, run.settings[arm], rows, found, run.ledger, full)


class Calibration:
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

    def final(self, found: Found) -> list[tuple[int, Rows]]:
        """The settings that got replies, the one that does best first, with what was measured of each."""
        alive = [a for a in found.order if any(key[0] == a for key in found.edges)]
        if any(p.gain is not None for edge in found.edges.values() for p in edge.points):
            alive = alive[: self.asked.finalists]  # without pairs the signals can't tell settings apart
        measured = {arm: self._measured(arm, found) for arm in alive}
        return sorted(measured.items(), key=lambda one: (-self._promised(one[1]), alive.index(one[0])))

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

    def _promised(self, rows: Rows) -> float:
        """What a setting seems to bring: mean over directions of the most joint success, beyond the unsteered, among strengths
        that haven't surely lost too much."""
        gains = [
            max((self._gained(d, r.joint) for r in found if not hopeless(r, self.limits)), default=0.0)
            for d, found in rows.items()
        ]
        return sum(gains) / len(gains) if gains else 0.0

    def _gained(self, direction: Direction, joint: float | None) -> float:
        return max(0.0, (joint or 0.0) - (mean(self.plain(direction).joint) or 0.0))

    # --- the budget -------------------------------------------------------------------------------------------------

    def settled(self, finalists: Sequence[tuple[int, Rows]]) -> tuple[int, Rows]:
        """The setting that is worth most once its strengths are certified.

        The first is certified; another one only where it promises surely more than the best so far has kept.
        """
        best: tuple[int, Rows] | None = None
        worth = -math.inf
        for arm, rows in finalists:
            if best is not None and self._promised(rows) <= worth + MARGIN:
                break  # they come in order: no later one promises more
            self.certify(arm, rows)
            if (kept := self._worth(arm, rows)) > worth:
                best, worth = (arm, rows), kept
        assert best is not None
        return best

    def _worth(self, arm: int, rows: Rows) -> float:
        """The same of what is certified: a direction without a default brings nothing."""
        gains = [
            self._gained(d, told["joint"]) if told["default"] else 0.0 for d, told in self.sides(arm, rows).items()
        ]
        return sum(gains) / len(gains) if gains else 0.0

    def certify(self, arm: int, rows: Rows) -> None:
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

    def range(self, arm: int, rows: Rows, found: Found) -> dict[str, Any]:
        """What the steering's meta keeps."""
        asked = self.asked
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
        return {"directions": self.sides(arm, rows), "budget": asdict(asked.budget), "measured": told}

    def sides(self, arm: int, rows: Rows) -> dict[Direction, dict[str, Any]]:
        """Each direction's range as plain data."""
        return {
            d: side(int(self.sign(arm, d)), of, self.plain(d) if of else Effects(), self.limits, self.asked.delta)
            for d, of in rows.items()
        }

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
