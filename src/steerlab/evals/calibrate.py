"""Where a steering works and stays within a damage budget: `min_useful`, `default` and `max_safe` for each direction.

On dev alone, the cheap before the dear, each step for what the one before has left:

1. signals (`signals`): gain, KL and perplexity by forward passes, of every setting, halved on the way (`search`);
2. replies of the settings in the final at a few strengths up to where the signals reach the budget: effect, joint success,
   and a lot of capability items; the best setting goes on, strengths that have lost too much don't;
3. the budget (`guarantee`), on prompts, texts and items that nothing was chosen by (`apart`), lot by lot until each strength,
   from the weakest up, is certified, can't be, or has used them up. Where that leaves the best setting worth less than the
   next one seemed to be, the next is certified, too.

`max_safe` is the strongest strength that is certified for every cost in the budget, and all weaker ones that were measured with
it. Between it and `max_unresolved` nothing was seen to be over and not all is certified: those strengths are unresolved, and
never called safe. `default` is the safe strength with the best joint success (the weakest of equals) where that is surely more
than without steering, and `min_useful` is where half of that is reached. The steps are in `procedure`; here is what they read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .. import progress
from ..contrast import Example
from ..engines.base import Trainable
from ..errors import ConfigError, SteerlabError
from ..ranges import RULE
from ..steering import Steering
from ..version import __version__
from .apart import Apart, apart
from .asked import Asked, Setting
from .guarantee import Budget
from .measure import Amounts, Effects, capability, measure_effects
from .procedure import Procedure, Rows
from .results import Direction
from .search import Found
from .signals import Cheap, Ledger, Signal, Signals
from .suite import Suite
from .unit import ArmPlan, fit_arm, signed_domain


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
    read = Measured(suite, task, given, asked, list(settings) or [Setting()], engine, fitted)
    budget = asked.limits(read.there())  # refused before anything is fitted
    run = Procedure(asked, read, budget)
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
    told = read.range(run, arm, rows, found)
    steering = read.fitted(arm)
    steering = replace(steering, meta=replace(steering.meta, range=told))
    full = read.ledger.replies / max(1, asked.prompts + asked.items)
    return Calibrated(steering, read.given_settings[arm], rows, found, read.ledger, full)


class Measured:
    """The readings of a model, setting by setting (`procedure.Readings`): dev's prompts, items and texts, set apart at once."""

    def __init__(
        self,
        suite: Suite,
        task: str,
        given: Steering | ArmPlan,
        asked: Asked,
        settings: Sequence[Setting],
        engine: Trainable,
        fitted: Sequence[Steering] = (),
    ) -> None:
        self.suite, self.task, self.given, self.asked = suite, task, given, asked
        self.given_settings, self.engine = settings, engine
        self.ledger = Ledger()
        neutral, texts, self.items = self._apart()
        self.signals = Signals(
            suite, engine, task, "dev", pairs=asked.pairs, neutral=0, texts=0, seed=asked.seed, ledger=self.ledger,
            cheap=Cheap(engine, neutral.choose, texts.choose, self.ledger),
        )  # fmt: skip
        self.certifying = Cheap(engine, neutral.certify, texts.certify, self.ledger)
        self._fitted: dict[int, Steering | None] = dict(enumerate(fitted))
        self._why: dict[int, str] = {}
        self._base: dict[str, list[float | None]] = {"choose": [], "certify": []}
        self._plain: dict[Direction, Effects] = {}

    def _apart(self) -> tuple[Apart[Example], Apart[str], Apart[Example]]:
        """Neutral prompts, texts and items: those that choose, and those that certify."""
        suite, asked = self.suite, self.asked
        texts = suite.texts("dev", asked.texts + asked.choosing) if asked.texts else ()
        items = suite.items("dev", asked.items + asked.lot, asked.seed) if asked.items and suite.correct() else ()
        return (
            neutral_apart(suite, self.task, asked, len(self.given_settings)),
            apart(texts, asked.choosing, asked.texts, asked.seed),
            apart(items, asked.lot, asked.items, asked.seed, key=lambda e: e.instruction),
        )

    def there(self) -> list[str]:
        """The costs that there is something to certify with."""
        things = {"lost": self.items.certify, "kl": self.certifying.neutral, "perplexity": self.certifying.texts}
        return [name for name, kept in things.items() if kept]

    @property
    def settings(self) -> int:
        """How many settings there are to choose from."""
        return len(self.given_settings)

    def fitted(self, arm: int) -> Steering:
        """A setting's steering. Raises what its fit raised."""
        if arm not in self._fitted:
            if isinstance(self.given, Steering):
                self._fitted[arm] = self.given
            else:
                merged = replace(self.given, settings={**self.given.settings, **self.given_settings[arm].settings})
                self.ledger.fits += 1
                try:
                    self._fitted[arm] = fit_arm(self.suite, None, merged, self.task, self.asked.seed, self.engine)
                except SteerlabError as problem:
                    if len(self.given_settings) == 1:
                        raise
                    self._fitted[arm], self._why[arm] = None, str(problem)
        made = self._fitted[arm]
        if made is None:
            raise ConfigError(f"the setting {self.given_settings[arm].told()} can't be fitted: {self._why[arm]}")
        return made

    def reach(self, arm: int, direction: Direction) -> float:
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

    def whole(self, arm: int) -> bool:
        """A prompt is there or it isn't."""
        return self.fitted(arm).prompt is not None

    # --- what settings and strengths are chosen by --------------------------------------------------------------------

    def signal(self, arm: int, direction: Direction, strength: float, share: float) -> Signal:
        """The signals on dev's pairs, and on the prompts and texts that are chosen by."""
        return self.signals.read(self.fitted(arm).scaled(strength), direction, share)

    def effects(self, arm: int, direction: Direction, strengths: Sequence[float]) -> list[Effects]:
        """Of dev's prompts at each strength."""
        return self._effects(direction, [self.fitted(arm).scaled(s) for s in strengths])

    def plain(self, direction: Direction) -> Effects:
        """What the model does unsteered."""
        if direction not in self._plain:
            (self._plain[direction],) = self._effects(direction, [None])
        return self._plain[direction]

    def _effects(self, direction: Direction, steerings: Sequence[Steering | None]) -> list[Effects]:
        amounts = Amounts(self.asked.prompts, 0, 0, 0, self.asked.tokens)
        found = measure_effects(
            self.suite, self.engine, self.task, direction, "dev", steerings, amounts, self.asked.seed
        )
        self.ledger.replies += len(steerings) * len(found[0].joint)
        return found

    def seen(self, arm: int, strength: float) -> np.ndarray:
        """The items that are chosen by."""
        return self._lost("choose", self.items.choose, self.fitted(arm).scaled(strength), 0, len(self.items.choose))

    # --- what certifies ----------------------------------------------------------------------------------------------

    def amount(self, name: str, arm: int) -> int:
        """How many items, neutral prompts or texts certify a cost."""
        if name == "perplexity":
            return self.certifying.readable(self.fitted(arm))
        return len(self.items.certify if name == "lost" else self.certifying.neutral)

    def costs(self, name: str, arm: int, strength: float, start: int, stop: int) -> np.ndarray:
        """A cost of those from `start` to `stop`."""
        steering = self.fitted(arm).scaled(strength)
        if name == "kl":
            return self.certifying.kl(steering, start, stop)
        if name == "perplexity":
            return self.certifying.perplexity(steering, start, stop)
        return self._lost("certify", self.items.certify, steering, start, stop)

    def _lost(self, part: str, items: Sequence[Example], steering: Steering, start: int, stop: int) -> np.ndarray:
        base = self._base[part]
        if more := items[len(base) : stop]:
            base += capability(self.suite, self.engine, more, [None], self.asked.tokens)[0].capability
            self.ledger.replies += len(more)
        now = capability(self.suite, self.engine, items[start:stop], [steering], self.asked.tokens)[0].capability
        self.ledger.replies += len(now)
        # an item that can't be judged is one that was lost: nothing may look safe for want of a judgement
        return np.asarray(
            [1.0 if b is None or v is None else b - v for b, v in zip(base[start:stop], now, strict=True)]
        )

    # --- the range --------------------------------------------------------------------------------------------------

    def range(self, run: Procedure, arm: int, rows: Rows, found: Found) -> dict[str, Any]:
        """What the steering's meta keeps."""
        asked, budget = self.asked, run.budget
        told = {
            "steerlab": __version__, "model": self.engine.name, "revision": self.engine.revision, "task": self.task,
            "suite": str(self.suite.told().get("kind")), "split": "dev", "seeds": [asked.seed], "delta": asked.delta,
            "level": run.level, "digest": self._digest(),
            "n": {"prompts": asked.prompts, "items": len(self.items.certify), "neutral": len(self.certifying.neutral),
                  "texts": len(self.certifying.texts), "pairs": len(self.signals.pairs), "tokens": asked.tokens},
            "choosing": {"items": len(self.items.choose), "neutral": len(self.signals.neutral),
                         "texts": len(self.signals.texts)},
            "search": {"by": asked.search, "settings": self.settings, "won": dict(self.given_settings[arm].settings),
                       "readings": found.readings, "replies": self.ledger.replies, "rows": self.ledger.rows,
                       "fits": self.ledger.fits},
            "unmeasured": [n for n in (asked.budget or Budget()).limits() if n not in run.limits],
        }  # fmt: skip
        return {"rule": RULE, "directions": run.sides(arm, rows), "budget": asdict(budget), "measured": told}

    def _digest(self) -> str:
        h = hashlib.sha256()
        prompts = [
            e for d in self.asked.directions
            for e in self.suite.prompts(self.task, d, "dev", self.asked.prompts, self.asked.seed)
        ]  # fmt: skip
        kept = (*self.items.choose, *self.items.certify, *self.signals.neutral, *self.certifying.neutral)
        for example in (*prompts, *kept):
            h.update(json.dumps(example.to_json(), sort_keys=True).encode(errors="surrogatepass"))
        for text in (*self.signals.texts, *self.certifying.texts):
            h.update(text.encode(errors="surrogatepass"))
        return h.hexdigest()


def neutral_apart(suite: Suite, task: str, asked: Asked, settings: int = 1) -> Apart[Example]:
    """Neutral prompts to choose by and to certify. A suite without ones of its own takes them from the same data as pairs.

    Pairs tell which settings are in the final, so where there are more of these, no prompt of a pair that is read certifies.
    (Replies only say which of the final's is certified first, and those share the level: whichever is taken, it holds.)
    """
    choosing = asked.pairs and settings > asked.finalists
    pairs = suite.held_out(task, "dev", asked.pairs, asked.seed) if choosing else ()
    used = {e.instruction for pair in pairs for e in pair}
    neutral = suite.neutral("dev", asked.neutral + asked.choosing + len(used), asked.seed)
    return apart(neutral, asked.choosing, asked.neutral, asked.seed, used, lambda e: e.instruction)
