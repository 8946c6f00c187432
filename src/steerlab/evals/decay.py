"""How preference and utility move with strength, the decay that describes them, and what it foretells.

"Why Steering Works" (arXiv 2602.02343): for one prompt with an answer that shows the concept and a plain one, whose
negative log-probabilities are L_p and L_n, with p = exp(−L_p) and n = exp(−L_n),

    preference = log(p / n) = L_n − L_p        utility = log((p + n) / (1 − p − n))

and over strength m, piecewise in its sign and continuous at 0,

    D(m) = (1 + (m − m_±)² / L_±)^(−p_±)       preference = (α·m + β)·D(m) + b       utility = β·D(m) + b

L_p and L_n are of whole answers: these probabilities add up to less than 1, however long the answers are. The published
code takes means over tokens (`per="token"`), whose p + n reaches 1 where a model is sure of its words: 1 − p − n is held at
1e-6 or more there, and how often is counted; where that is often, such a utility says little.
The shape (m_±, L_±, p_±) is found by Levenberg–Marquardt from several starts, the linear part by least squares
within it. A weak pull towards a peak at 0 makes few points enough; it weighs a thousandth of the data's variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from ..contrast import Contrast, Example
from ..engines.base import Runner
from ..errors import ConfigError, DataError
from ..steering import Steering

Array = np.ndarray
Kind = Literal["preference", "utility"]
Per = Literal["answer", "token"]
LEAST = 1e-6  # of 1 − p − n
PULL = 1e-3  # of the shape towards its usual values, in units of the data's variance
USUAL = (-4.0, 0.0, 0.0)  # peak, width and power, as `_side` takes them
STARTS = tuple(product((-3.0, 0.0), (-2.0, 1.0), (-1.0, 1.5)))
JUMP = 1e3  # how heavily a jump at 0 weighs


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odds:
    """Log-odds `[strengths, items]`, and for how many items at each strength p + n was held below 1."""

    strengths: tuple[float, ...]
    preference: Array
    utility: Array
    clamped: tuple[int, ...]

    def mean(self, kind: Kind) -> Array:
        """The mean over items at each strength."""
        return np.asarray(getattr(self, kind)).mean(axis=1)

    def at(self, chosen: Sequence[float]) -> Odds:
        """Some of the strengths."""
        rows = [self.strengths.index(m) for m in chosen]
        return Odds(tuple(chosen), self.preference[rows], self.utility[rows], tuple(self.clamped[n] for n in rows))


def rivals(contrast: Contrast) -> list[tuple[Example, Example]]:
    """Each plain prompt with the answer that shows the concept, and with its own. Raises `DataError` without such pairs."""
    if not contrast.paired:
        raise DataError(
            "preference compares two answers to one prompt, and this contrast has no pairs; give paired data."
        )
    found = [(replace(n, answer=p.answer), n) for p, n in contrast.pairs if p.answer and n.answer]
    if not found:
        raise DataError("preference compares two answers to one prompt, and no pair has both; add answers.")
    return found


def log_odds(
    engine: Runner,
    items: Sequence[tuple[Example, Example]],
    steering: Steering,
    strengths: Sequence[float],
    per: Per = "answer",
) -> Odds:
    """Preference and utility of each item (an answer that shows the concept, a plain one) at each strength.

    Raises `EditError` for a strength that the steering doesn't take.
    """
    rows = [example for pair in items for example in pair]
    under = [steering.scaled(m) for m in strengths]
    scored = engine.logprobs(rows * len(under), [s for s in under for _ in rows])
    told = [-float(lp.double().sum() if per == "answer" else lp.double().mean()) for lp in scored]
    return odds_of(strengths, np.array(told, dtype=float).reshape(len(under), len(items), 2))


def odds_of(strengths: Sequence[float], nll: Array) -> Odds:
    """From negative log-probabilities `[strengths, items, 2]`, in nats: of the concept's answer, and of the plain one."""
    either = np.logaddexp(-nll[:, :, 0], -nll[:, :, 1])
    rest = -np.expm1(either)
    clamped = tuple(int(n) for n in (rest < LEAST).sum(axis=1))
    utility = either - np.log(np.maximum(rest, LEAST))
    return Odds(tuple(float(m) for m in strengths), nll[:, :, 1] - nll[:, :, 0], utility, clamped)


# --- the fit --------------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """D on one side of 0: where it is 1, how wide it is (a squared strength), and how fast it falls."""

    peak: float
    width: float
    power: float

    def __call__(self, m: Array) -> Array:
        return (1 + (m - self.peak) ** 2 / self.width) ** -self.power


@dataclass(frozen=True)
class Decay:
    """A fitted curve over strength: `(slope·m + height)·D(m) + floor`, and how near it comes to what was measured."""

    slope: float  # α; 0 for utility
    height: float  # β
    floor: float  # b
    below: Side
    above: Side
    strengths: tuple[float, ...]
    residuals: tuple[float, ...]  # measured less fitted
    r2: float

    def d(self, m: float | Array) -> Array:
        """D(m), the share of the representation's validity that is left."""
        m = np.asarray(m, dtype=float)
        return np.where(m < 0, self.below(m), self.above(m))

    def __call__(self, m: float | Array) -> Array:
        m = np.asarray(m, dtype=float)
        return (self.slope * m + self.height) * self.d(m) + self.floor

    @property
    def rmse(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(np.square(self.residuals))))

    def reaches(self, wanted: float) -> float | None:
        """The smallest positive strength within what was measured at which the curve is as high; None where it never is."""
        m = np.linspace(0, max(self.strengths), 4001)
        return _crossing(m, self(m), wanted)

    def plateau(self, share: float = 0.05) -> tuple[float, float]:
        """The strengths around 0 between which the curve stays within a share of its value at 0, as far as was measured."""
        at = float(self(0.0))
        near = [np.linspace(0, end, 2001) for end in (min(self.strengths), max(self.strengths))]
        low, high = (self._leaves(m, abs(share * at), at) for m in near)
        return low, high

    def _leaves(self, m: Array, most: float, at: float) -> float:
        gone = np.abs(self(m) - at) > most
        return float(m[int(gone.argmax())] if gone.any() else m[-1])


def fit(strengths: Sequence[float], values: Sequence[float] | Array, kind: Kind) -> Decay:
    """The paper's curve through values at strengths. Raises `ConfigError` for fewer than five, or none other than 0."""
    m, y = np.asarray(strengths, dtype=float), np.asarray(values, dtype=float)
    if len(m) < 5 or len(m) != len(y) or not np.isfinite(y).all() or not m.any():
        raise ConfigError(
            f"a decay is fitted to {len(y)} values at {len(m)} strengths; expected at least five finite values, one for"
            " each strength, and strengths other than 0."
        )
    sides = (bool((m < 0).any()), bool((m > 0).any()))
    reach, scale = float(np.abs(m).max()), float(y.std()) or 1.0
    pulled = np.array(USUAL * sum(sides))

    def off(free: Array) -> Array:
        below, above = _sides(free, sides, reach)
        _, apart = _linear(m, y, below, above, kind)
        jump = float(below(np.zeros(1))[0] - above(np.zeros(1))[0])
        return np.concatenate([apart / scale, [JUMP * jump], np.sqrt(PULL) * (free - pulled)])

    tried = [_least_squares(off, np.array(start * sum(sides))) for start in STARTS]
    best = min(tried, key=lambda free: float(np.square(off(free)).sum()))
    below, above = _sides(best, sides, reach)
    c, apart = _linear(m, y, below, above, kind)
    slope, height, floor = c if kind == "preference" else (0.0, *c)
    return Decay(
        float(slope), float(height), float(floor), below, above,
        tuple(m.tolist()), tuple(apart.tolist()), r_squared(y, y - apart),
    )  # fmt: skip


def r_squared(measured: Array, said: Array) -> float:
    """1 − the squared error over the squared spread; of values that are all alike, 1 if hit and 0 otherwise."""
    error, spread = float(np.square(measured - said).sum()), float(np.square(measured - measured.mean()).sum())
    return 1 - error / spread if spread > 1e-12 else float(error < 1e-12)


def _side(free: Array, sign: float, reach: float) -> Side:
    """A side of three free numbers: the peak within the reach, the width within 1e-2 to 1e2 of its square, power .1 to 10."""
    peak, width, power = 1 / (1 + np.exp(-np.clip(free, -30, 30)))
    return Side(sign * reach * float(peak), reach**2 * 10.0 ** float(4 * width - 2), 10.0 ** float(2 * power - 1))


def _sides(free: Array, there: tuple[bool, bool], reach: float) -> tuple[Side, Side]:
    """Both sides; one without strengths is the other's mirror image."""
    first, last = free[:3], free[-3:]
    below, above = _side(first, -1.0, reach), _side(last, 1.0, reach)
    if not there[0]:
        below = Side(-above.peak, above.width, above.power)
    if not there[1]:
        above = Side(-below.peak, below.width, below.power)
    return below, above


def _linear(m: Array, y: Array, below: Side, above: Side, kind: Kind) -> tuple[Array, Array]:
    """The linear part within a shape, and what it leaves over."""
    d = np.where(m < 0, below(m), above(m))
    x = np.stack([m * d, d, np.ones_like(d)][0 if kind == "preference" else 1 :], axis=1)
    ridge = 1e-4 * np.eye(x.shape[1])  # D that hardly moves is all but the constant
    c = np.linalg.lstsq(np.concatenate([x, ridge]), np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]
    return c, y - x @ c


def _least_squares(off: Callable[[Array], Array], start: Array, steps: int = 60) -> Array:
    """Levenberg–Marquardt with forward differences."""
    x, damping = start.astype(float), 1e-2
    r = off(x)
    for _ in range(steps):
        jacobian = np.stack([(off(x + 1e-6 * e) - r) / 1e-6 for e in np.eye(len(x))], axis=1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ r
        better: tuple[Array, Array] | None = None
        while better is None and damping < 1e8:
            step = np.linalg.solve(normal + damping * (np.diag(np.diag(normal)) + 1e-9 * np.eye(len(x))), -gradient)
            tried = x + np.clip(step, -2, 2)
            now = off(tried)
            if now @ now < r @ r:
                better = (tried, now)
            else:
                damping *= 4
        if better is None:
            break
        settled = float(r @ r - better[1] @ better[1]) <= 1e-9 * float(r @ r)
        (x, r), damping = better, max(damping / 6, 1e-9)
        if settled:
            break
    return x


# --- what it foretells ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Foretold:
    """What fits to a few strengths say of the others.

    `wanted` is a preference; `strength` and `utility` are what was foretold for it: where it is reached, and what utility
    is there. `reached` and `cost` are what the measured points say (between neighbours, linearly): where preference first
    is as high, and the utility measured at the *foretold* strength.
    """

    few: tuple[float, ...]
    preference: Decay
    utility: Decay
    preference_r2: float  # on the strengths that the fits didn't see
    utility_r2: float
    preference_error: float  # mean distance there, in nats
    utility_error: float
    wanted: float
    strength: float | None
    reached: float | None
    utility_there: float | None
    cost: float | None


def foretell(odds: Odds, few: Sequence[float], share: float = 0.75) -> Foretold:
    """Fit to a few of the strengths, checked on all others.

    The wanted preference lies a share of the way up from strength 0 to the highest that was measured above 0.
    """
    unseen = [m for m in odds.strengths if m not in set(few)]
    if len(unseen) < 2 or not set(few) <= set(odds.strengths):
        raise ConfigError(
            f"a prediction from the strengths {tuple(few)} is to be checked on {unseen}; expected strengths that were"
            " measured, and at least two that are left over."
        )
    seen, rest = odds.at(few), odds.at(unseen)
    fits = {kind: fit(seen.strengths, seen.mean(kind), kind) for kind in ("preference", "utility")}
    said = {kind: fits[kind](np.array(unseen)) for kind in fits}
    order = np.argsort(odds.strengths)
    m, preference, utility = (
        np.array(odds.strengths)[order],
        odds.mean("preference")[order],
        odds.mean("utility")[order],
    )
    up = m >= 0
    at_zero = float(np.interp(0.0, m, preference))
    wanted = at_zero + share * (float(preference[up].max()) - at_zero)
    strength = fits["preference"].reaches(wanted)
    return Foretold(
        tuple(few), fits["preference"], fits["utility"],
        r_squared(rest.mean("preference"), said["preference"]), r_squared(rest.mean("utility"), said["utility"]),
        float(np.abs(rest.mean("preference") - said["preference"]).mean()),
        float(np.abs(rest.mean("utility") - said["utility"]).mean()),
        wanted, strength, _crossing(m[up], preference[up], wanted),
        None if strength is None else float(fits["utility"](strength)),
        None if strength is None else float(np.interp(strength, m, utility)),
    )  # fmt: skip


def _crossing(m: Array, y: Array, wanted: float) -> float | None:
    """Where y first is as high as wanted, between neighbours linearly."""
    high = y >= wanted - 1e-12
    if not high.any():
        return None
    n = int(high.argmax())
    if n == 0:
        return float(m[0])
    return float(m[n - 1] + (wanted - y[n - 1]) / (y[n] - y[n - 1]) * (m[n] - m[n - 1]))
