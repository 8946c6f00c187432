"""AxBench's figures, each by its definition: detection by the largest latent, steering by three ratings.

Detection (section 3 of the paper): a text's score is the largest latent over its tokens. AUROC tells positives from
negatives; Youden's threshold on these two classes is then held against hard negatives, and against a hundred negatives for
each positive. Steering (section 4): three ratings from 0 to 2, their harmonic mean, 0 where one is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...evals.stats import mean
from ...judges.asking import MOST, harmonic

Rating = float | None
TIE = 1e-6  # two scores nearer than this are equal
IMBALANCE = 100  # negatives for each positive


class Ratings(NamedTuple):
    """What a judge says of one reply, each from 0 to 2; None where there is no rating."""

    concept: Rating
    instruction: Rating
    fluency: Rating

    def score(self, *, suppress: bool = False) -> Rating:
        """The harmonic mean; suppressing, the concept counts as 2 − its rating. None where a rating is missing."""
        concept = self.concept
        if suppress and concept is not None:
            concept = MOST - concept
        return harmonic([concept, self.instruction, self.fluency])


# --- detection ------------------------------------------------------------------------------------------------------


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The chance that a positive scores above a negative, ties counted half; None where a class is empty."""
    if not len(positive) or not len(negative):
        return None
    both = np.concatenate([np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)])
    _, place, count = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # of equals, the mean of theirs
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def scaled(scores: Sequence[float]) -> np.ndarray:
    """Scores brought to [0, 1] by their least and greatest; all 0 where these are the same."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or values.max() == values.min():
        return np.zeros(len(values))
    return (values - values.min()) / (values.max() - values.min())


def youden(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The threshold with the greatest J = (positives at or above it) − (negatives at or above it), shares of their class.

    The highest of equals. None where a class is empty, and where no threshold is better than calling nothing positive.
    """
    if not len(positive) or not len(negative):
        return None
    p, n = np.sort(np.asarray(positive, dtype=np.float64)), np.sort(np.asarray(negative, dtype=np.float64))
    candidates = np.unique(np.concatenate([p, n]))[::-1]
    j = _at_least(p, candidates) / len(p) - _at_least(n, candidates) / len(n)
    best = int(np.argmax(j))
    return float(candidates[best]) if j[best] > 0 else None


def _at_least(ordered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(ordered) - np.searchsorted(ordered, thresholds, side="left")


class Detected(NamedTuple):
    """How well a concept's scores tell it; None where there is nothing to tell it by.

    `threshold` is Youden's on positives and negatives; the shares are of texts that it puts on their right side. `hard` is of
    hard negatives, `macro` the mean of `positive` and `hard`. `f1` is at as many negatives as positives, `f1_imbalanced` at
    100 negatives for each positive.
    """

    auroc: float | None
    threshold: float | None
    positive: float | None
    negative: float | None
    hard: float | None
    macro: float | None
    f1: float | None
    f1_imbalanced: float | None


def detected(
    positive: Sequence[float], negative: Sequence[float], hard: Sequence[float], shared: Sequence[float] = ()
) -> Detected:
    """Every figure of detection. `shared` are further negatives, which only the imbalanced F1 counts."""
    threshold = youden(positive, negative)
    if threshold is None:
        return Detected(auroc(positive, negative), None, None, None, None, None, None, None)
    hit = float(np.mean(np.asarray(positive) >= threshold))
    false = float(np.mean(np.asarray(negative) >= threshold))
    every = float(np.mean(np.asarray([*negative, *shared]) >= threshold))
    spared = None if not len(hard) else 1 - float(np.mean(np.asarray(hard) >= threshold))
    macro = None if spared is None else (hit + spared) / 2
    figures = (threshold, hit, 1 - false, spared, macro, f1(hit, false, 1), f1(hit, every, IMBALANCE))
    return Detected(auroc(positive, negative), *figures)


def f1(hit: float, false: float, ratio: float) -> float:
    """F1 with `ratio` negatives for each positive: 2·hit / (2·hit + (1 − hit) + ratio·false), shares of their class.

    What would be counted if each negative stood for so many; exact where the shares are.
    """
    return 2 * hit / (2 * hit + (1 - hit) + ratio * false) if hit > 0 else 0.0


# --- steering -------------------------------------------------------------------------------------------------------


def best_factor(scores: Sequence[Sequence[Rating]]) -> int | None:
    """Which factor (row) has the greatest mean score over its prompts, the first of equals; None where nothing is rated."""
    means = [mean(row) for row in scores]
    known = [n for n, value in enumerate(means) if value is not None]
    return max(known, key=lambda n: (means[n], -n)) if known else None


class Winrate(NamedTuple):
    """Shares of prompts on which one scores above the other, below it, and the same; and on how many there's no telling."""

    win: float | None
    loss: float | None
    tie: float | None
    n: int
    missing: int


def winrate(mine: Sequence[Rating], theirs: Sequence[Rating]) -> Winrate:
    """Prompt by prompt, mine against theirs. Raises `ValueError` where the numbers differ."""
    verdicts = [verdict(a, b) for a, b in zip(mine, theirs, strict=True)]
    known = [v for v in verdicts if v is not None]
    missing = len(verdicts) - len(known)
    if not known:
        return Winrate(None, None, None, 0, missing)
    win, loss = known.count(1), known.count(-1)
    n = len(known)
    return Winrate(win / n, loss / n, (n - win - loss) / n, n, missing)


def verdict(mine: Rating, theirs: Rating) -> int | None:
    """1 where mine is the greater, −1 where it is the lesser, 0 for a tie; None where one is missing."""
    if mine is None or theirs is None:
        return None
    return 0 if abs(mine - theirs) < TIE else 1 if mine > theirs else -1


__all__ = [
    "IMBALANCE", "Detected", "Rating", "Ratings", "Winrate", "auroc", "best_factor", "detected", "f1", "harmonic", "mean",
    "scaled", "verdict", "winrate", "youden",
]  # fmt: skip
