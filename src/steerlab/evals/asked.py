"""What `calibrate` is asked for: the settings to choose from, the budget, and how much is measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import ConfigError
from .guarantee import DELTA, HIGH, Budget
from .results import Direction
from .unit import DIRECTIONS

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
    strength that is tried where the edit has no limit of its own. `finalists` settings get replies. At most `items` capability
    items, `neutral` prompts and `texts` certify capability, KL and perplexity, `lot` items at a time; beside these, `lot` items
    and `choosing` prompts and texts are read to choose settings and strengths by, and never certify (`apart`). A direction whose
    signals show less than `least` of what asking brings isn't measured with replies: nothing useful lies within its budget.

    Without a `budget` the usual limits hold for what the suite can measure. Of a budget that is given, each limit has to be
    measurable, except those that `optional` names; what is left out is no part of the range's budget.
    """

    budget: Budget | None = None
    optional: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = DIRECTIONS
    search: Search = "halving"
    trials: int = 40
    finalists: int = 2
    points: tuple[float, ...] = (0.25, 0.5, 0.7, 0.85, 0.95)
    most: float = 3.0
    least: float = 0.05
    delta: float = DELTA
    prompts: int = 24
    items: int = 4000
    lot: int = 200
    neutral: int = 256
    texts: int = 256
    choosing: int = 64
    pairs: int = 24
    tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "lot", "neutral", "choosing", "tokens", "finalists", "trials"):
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
        if unknown := [name for name in self.optional if name not in HIGH]:
            raise ConfigError(f"optional names {', '.join(unknown)}; expected some of {', '.join(HIGH)}.")
        if not self.directions:
            raise ConfigError("at least one direction is calibrated; give elicit, suppress or both.")

    def limits(self, there: Collection[str]) -> Budget:
        """The budget over costs that can be measured. Raises `ConfigError` where a limit was asked for and can't be."""
        budget = self.budget or Budget()
        optional = tuple(HIGH) if self.budget is None else self.optional
        missing = [name for name in budget.limits() if name not in there]
        if short := [name for name in missing if name not in optional]:
            raise ConfigError(
                f"the budget limits {', '.join(WORDS[n][0] for n in short)}, and there is nothing to measure it with, once"
                f" some is set apart to choose by; give {' and '.join(WORDS[n][1] for n in short)}, or leave it out of the budget"
                f" ({', '.join(f'--{n} 0' for n in short)}; in Python, None)."
            )
        if set(missing) == set(budget.limits()):
            raise ConfigError(
                f"the budget ({budget.told()}) limits nothing that can be measured here; give capability items,"
                " neutral prompts or texts."
            )
        return replace(budget, **dict.fromkeys(missing))


WORDS = {
    "lost": ("capability", "capability items (--items)"),
    "kl": ("KL", "neutral prompts with answers (--neutral)"),
    "perplexity": ("perplexity", "texts (--text)"),
}
