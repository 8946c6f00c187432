"""A judge that is trained on the spot: a logistic regression over words and letters, on texts that you give it.

Give it texts that neither made nor filtered what is judged, or it agrees with itself. It is cross-fitted by family: the
calibration and the quality that it tells come from texts that the model behind them hadn't seen.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..contrast import Contrast
from ..errors import ConfigError, DataError
from .base import Judge, Score

if TYPE_CHECKING:
    from ..contrast import Example

WIDTH = 1 << 14
FOLDS = 5
LEAST = 10  # texts of a class


class Rows(NamedTuple):
    """Sparse rows: which row, which feature, its weight; and how many rows."""

    row: np.ndarray
    feature: np.ndarray
    weight: np.ndarray
    n: int

    def take(self, keep: np.ndarray) -> Rows:
        """Some of the rows, renumbered."""
        place = np.full(self.n, -1)
        place[keep] = np.arange(len(keep))
        here = place[self.row] >= 0
        return Rows(place[self.row[here]], self.feature[here], self.weight[here], len(keep))

    def times(self, w: np.ndarray) -> np.ndarray:
        """Each row's product with a vector of weights."""
        return np.bincount(self.row, self.weight * w[self.feature], self.n)


class Learned(NamedTuple):
    """Weights, bias, and the slope and offset that make a probability of their score; AUROC and accuracy on texts held out."""

    weights: np.ndarray
    bias: float
    slope: float
    offset: float
    auroc: float
    accuracy: float
    texts: int


_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


def featured(texts: Sequence[str]) -> Rows:
    """Words, pairs of words and runs of three to five letters, hashed (CRC-32), weighted 1 + log(count), rows of length 1."""
    rows: list[int] = []
    features: list[int] = []
    weights: list[float] = []
    for n, text in enumerate(texts):
        tokens = _TOKEN.findall(text.lower())
        counts = Counter(tokens)
        counts.update(f"{a} {b}" for a, b in pairwise(tokens))
        counts.update(
            f"#{w[i : i + k]}" for w in (f"<{t}>" for t in tokens) for k in (3, 4, 5) for i in range(len(w) - k + 1)
        )
        hashed: dict[int, float] = {}
        for gram, count in counts.items():
            place = zlib.crc32(gram.encode(errors="surrogatepass")) % WIDTH
            hashed[place] = hashed.get(place, 0.0) + 1 + math.log(count)
        length = math.sqrt(sum(v * v for v in hashed.values())) or 1.0
        rows += [n] * len(hashed)
        features += hashed
        weights += [v / length for v in hashed.values()]
    return Rows(np.asarray(rows, int), np.asarray(features, int), np.asarray(weights), len(texts))


def _fitted(x: Rows, y: np.ndarray, ridge: float, steps: int = 200) -> tuple[np.ndarray, float]:
    """Logistic regression by Nesterov's gradient; rows have length 1, so that the step 1 / (1/2 + ridge) is safe."""
    w, b = np.zeros(WIDTH), 0.0
    ahead, ahead_b, t, step = w, b, 1.0, 1 / (0.5 + ridge)
    for _ in range(steps):
        off = (1 / (1 + np.exp(-np.clip(x.times(ahead) + ahead_b, -30, 30))) - y) / x.n
        new = ahead - step * (np.bincount(x.feature, x.weight * off[x.row], WIDTH) + ridge * ahead)
        new_b, later = ahead_b - step * float(off.sum()), (1 + math.sqrt(1 + 4 * t * t)) / 2
        pace = (t - 1) / later
        ahead, ahead_b = new + pace * (new - w), new_b + pace * (new_b - b)
        w, b, t = new, new_b, later
    return w, b


def learned(
    positive: Sequence[str],
    negative: Sequence[str],
    families: Sequence[str] = (),
    *,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Learned:
    """A judge's weights from texts of both classes (`families`: of the positive texts, then of the negative ones).

    Raises `DataError` where there are too few, or where texts held out aren't told apart better than by chance.
    """
    if min(len(positive), len(negative)) < LEAST:
        raise DataError(
            f"there are {len(positive)} positive and {len(negative)} negative texts; a judge needs at least {LEAST} of each"
            f" class."
        )
    texts = [*positive, *negative]
    y = np.asarray([1.0] * len(positive) + [0.0] * len(negative))
    groups = list(families) or [str(n) for n in range(len(texts))]
    names = list(dict.fromkeys(groups))
    if len(names) < FOLDS:
        raise DataError(
            f"the texts are of {len(names)} families; a judge that is tried on families it hadn't seen needs {FOLDS}."
        )
    x = featured(texts)
    held_out = _held_out(x, y, groups, ridge, seed)
    auroc = _auroc(held_out, y)
    noise = math.sqrt((len(positive) + len(negative) + 1) / (12 * len(positive) * len(negative)))
    if auroc < 0.5 + 2 * noise:
        raise DataError(
            f"texts held out aren't told apart (AUROC {auroc:.2f} of {len(texts)} texts); give more texts, or ones that"
            f" differ in it."
        )
    slope, offset = _calibrated(held_out, y)
    w, b = _fitted(x, y, ridge)
    right = float(np.mean((slope * held_out + offset > 0) == (y > 0)))
    return Learned(w, b, slope, offset, auroc, right, len(texts))


def told_apart(
    kinds: Mapping[str, Sequence[str]],
    plain: Sequence[str],
    families: Sequence[str],
    *,
    ridge: float = 1e-3,
    seed: int = 0,
) -> dict[str, float]:
    """How well each kind of text is told from plain text by what all kinds have in common: the AUROC on families held out.

    `families` are of the texts of each kind, and of the plain ones. A judge is trained on all kinds at once, so a kind that
    lacks what the others share is told from plain text no better than by chance.
    """
    texts = [*(t for kind in kinds.values() for t in kind), *plain]
    y = np.asarray([1.0] * (len(texts) - len(plain)) + [0.0] * len(plain))
    groups = [*(f for _ in kinds for f in families), *families]
    scores = _held_out(featured(texts), y, groups, ridge, seed)
    found, at, negative = dict[str, float](), 0, scores[len(texts) - len(plain) :]
    for name, kind in kinds.items():
        mine = np.concatenate([scores[at : at + len(kind)], negative])
        found[name] = _auroc(mine, np.asarray([1.0] * len(kind) + [0.0] * len(plain)))
        at += len(kind)
    return found


def _held_out(x: Rows, y: np.ndarray, groups: Sequence[str], ridge: float, seed: int) -> np.ndarray:
    """Each text's margin from weights fitted without its family."""
    names = list(dict.fromkeys(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[k]: i % FOLDS for i, k in enumerate(order.tolist())}
    folds, found = np.asarray([fold_of[g] for g in groups]), np.zeros(len(y))
    for fold in range(FOLDS):
        seen, rest = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(rest) and 0 < y[seen].sum() < len(seen):
            w, b = _fitted(x.take(seen), y[seen], ridge)
            found[rest] = x.take(rest).times(w) + b
    return found


def _auroc(scores: np.ndarray, y: np.ndarray) -> float:
    """The share of (positive, negative) pairs in the right order, ties half."""
    others = np.sort(scores[y == 0])
    low, high = (np.searchsorted(others, scores[y == 1], side) for side in ("left", "right"))
    return float(np.mean((low + high) / 2) / len(others))


def _calibrated(scores: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Platt's slope and offset by Newton's steps, on targets that are a little off 0 and 1."""
    positive, negative = float(y.sum()), float(len(y) - y.sum())
    goal = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    slope, offset = 1.0, 0.0
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(slope * scores + offset, -30, 30)))
        off, weight = p - goal, np.maximum(p * (1 - p), 1e-9)
        gradient = np.asarray([(off * scores).sum() + 1e-3 * slope, off.sum()])
        hessian = np.asarray([
            [(weight * scores * scores).sum() + 1e-3, (weight * scores).sum()], [(weight * scores).sum(), weight.sum() + 1e-9]
        ])  # fmt: skip
        change = np.linalg.solve(hessian, gradient)
        slope, offset = slope - float(change[0]), offset - float(change[1])
        if float(np.abs(change).max()) < 1e-9:
            break
    return slope, offset


@dataclass(frozen=True)
class LearnedJudge(Judge):
    """The calibrated probability of the positive class of `data`: contrast data in any layout, whose answers are the texts.

    `quality` tells how far it can be trusted.
    """

    data: str = ""
    concept: str | None = None
    ridge: float = 1e-3
    seed: int = 0
    threshold: float = 0.5
    tried: ClassVar[Mapping[str, Any]] = {"data": "{contrast}"}
    shows: ClassVar[tuple[str, ...]] = ("The storm came with rain and thunder.",)
    lacks: ClassVar[tuple[str, ...]] = ("The lamp was lit and the soup was warm.",)

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError(
                "a learned judge needs contrast data (data=FILE) whose answers are texts of both classes."
            )
        if self.ridge <= 0:
            raise ConfigError(f"ridge is {self.ridge}; expected more than 0.")

    @property
    def quality(self) -> dict[str, float]:
        """AUROC and accuracy on texts held out, and how many there were."""
        made = _learned(self.data, self.concept, self.ridge, self.seed)
        return {"auroc": made.auroc, "accuracy": made.accuracy, "texts": float(made.texts)}

    def __call__(self, reply: str, example: Example) -> Score:
        """The probability; missing for an empty reply."""
        if not reply.strip():
            return Score.missing("the reply is empty")
        made = _learned(self.data, self.concept, self.ridge, self.seed)
        score = float(featured([reply]).times(made.weights)[0]) + made.bias
        return Score(1 / (1 + math.exp(-max(-30.0, min(30.0, made.slope * score + made.offset)))))


@lru_cache(maxsize=8)
def _learned(data: str, concept: str | None, ridge: float, seed: int) -> Learned:
    contrast = Contrast.read(data, concept=concept)
    sides = [[e for e in side if e.answer and e.answer.strip()] for side in (contrast.positive, contrast.negative)]
    families = [e.family or f"{e.instruction}" for side in sides for e in side]
    return learned(
        [e.answer or "" for e in sides[0]], [e.answer or "" for e in sides[1]], families, ridge=ridge, seed=seed
    )
