"""What `calibrate` is asked for: the settings to choose from, the budget, and how much is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigError
from .guarantee import DELTA, Budget
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
    strength that is tried where the edit has no limit of its own. `finalists` settings get replies. `lot` capability items
    are measured at a time, `items` at most; `neutral` prompts and `texts` carry KL and perplexity. A direction whose signals
    show less than `least` of what asking brings isn't measured with replies: nothing useful lies within its budget.
    """

    budget: Budget = field(default_factory=Budget)
    directions: tuple[Direction, ...] = DIRECTIONS
    search: Search = "halving"
    trials: int = 40
    finalists: int = 2
    points: tuple[float, ...] = (0.4, 0.6, 0.8, 0.9, 0.95)
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
