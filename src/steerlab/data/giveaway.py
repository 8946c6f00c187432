"""What gives a class away without the concept: the first word, or the length, of a text.

A classifier that sees only that is fitted on four fifths of the rows and tried on the rest, so that it can't learn rows
by heart; the rows of one family or pair stay together. Its balanced accuracy is 0.5 where there is nothing to see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .examples import squash

if TYPE_CHECKING:
    from collections.abc import Callable

Clue = Literal["first word", "length"]
Where = Literal["answers", "prompts"]
LEAST = 10  # rows of each class below which an accuracy says nothing


class Labelled(NamedTuple):
    """A text, its class, and the group that it must stay with."""

    text: str
    positive: bool
    group: str


@dataclass(frozen=True, slots=True)
class Giveaway:
    """How well one clue tells the classes apart: balanced accuracy, or None with the reason.

    `told` says in words what the clue looks like on either side.
    """

    clue: Clue
    where: Where
    accuracy: float | None
    told: str

    @property
    def name(self) -> str:
        """`first word of answers`, say."""
        return f"{self.clue} of {self.where}"


def first_word(text: str) -> str:
    """The first word of a text as it is compared: case folded, bare of punctuation; "" where there is none."""
    words = squash(text).split(maxsplit=1)
    return words[0].strip("\"'“”‘’.,:;!?()[]*_#-–—") or words[0] if words else ""


def giveaway(rows: Sequence[Labelled], clue: Clue, where: Where, *, folds: int, seed: int) -> Giveaway:
    """The balanced accuracy of one clue, by cross-validation."""
    n = Counter(row.positive for row in rows)
    if min(n[True], n[False]) < LEAST:
        return Giveaway(clue, where, None, f"fewer than {LEAST} texts in a class")
    fold = _folds([row.group for row in rows], folds, seed)
    positive = np.array([row.positive for row in rows])
    if clue == "first word":
        words = [first_word(row.text) for row in rows]
        hits = _cross(fold, folds, positive, lambda train, test: _by_word(words, positive, train, test))
        told = _openings(words, positive)
    else:
        lengths = np.array([len(row.text.split()) for row in rows])
        hits = _cross(fold, folds, positive, lambda train, test: _by_length(lengths, positive, train, test))
        medians = [float(np.median(lengths[positive == side])) for side in (True, False)]
        told = f"median of {medians[0]:g} words on the positive side, {medians[1]:g} on the negative"
    accuracy = float((hits[positive].mean() + hits[~positive].mean()) / 2)
    return Giveaway(clue, where, accuracy, told)


def certain(found: Giveaway, rows: Sequence[Labelled], bar: float) -> bool:
    """Whether an accuracy is over the bar, and by more than chance gives (three standard errors of a fair coin)."""
    if found.accuracy is None:
        return False
    n = Counter(row.positive for row in rows)
    error = 0.5 * (0.25 / n[True] + 0.25 / n[False]) ** 0.5
    return found.accuracy >= bar and found.accuracy - 0.5 > 3 * error


def _folds(groups: Sequence[str], folds: int, seed: int) -> Any:
    """A fold per row, whole groups together, of like size."""
    names = list(dict.fromkeys(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    of = {names[j]: i % folds for i, j in enumerate(order.tolist())}
    return np.array([of[g] for g in groups])


def _cross(fold: Any, folds: int, positive: Any, classify: Callable[[Any, Any], Any]) -> Any:
    """For each row the credit (0, 0.5 or 1) of the classifier that was fitted without its fold."""
    hits = np.full(len(fold), 0.5)
    for k in range(folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(test) and len(set(positive[train].tolist())) == 2:
            says = classify(train, test)
            hits[test] = np.where(says == 0, 0.5, (says > 0) == positive[test])
    return hits


def _by_word(words: Sequence[str], positive: Any, train: Any, test: Any) -> Any:
    """For each test row +1, −1, or 0 where its word was not seen or is as frequent on both sides."""
    counts = {side: Counter(words[i] for i in train if positive[i] == side) for side in (True, False)}
    total = {side: sum(counts[side].values()) for side in (True, False)}
    rates = [counts[True][words[i]] / total[True] - counts[False][words[i]] / total[False] for i in test]
    return np.sign(np.array(rates))


def _by_length(lengths: Any, positive: Any, train: Any, test: Any) -> Any:
    """For each test row +1 or −1 by the one threshold that parts the training rows best."""
    steps = np.unique(lengths[train])
    held = {side: np.sort(lengths[train][positive[train] == side]) for side in (True, False)}
    shorter = [np.searchsorted(held[side], steps, side="right") / len(held[side]) for side in (True, False)]
    gap = shorter[0] - shorter[1]  # > 0: positives are shorter
    best = int(np.argmax(np.abs(gap)))
    if gap[best] == 0:
        return np.zeros(len(test))
    return np.where(lengths[test] <= steps[best], np.sign(gap[best]), -np.sign(gap[best]))


def _openings(words: Sequence[str], positive: Any) -> str:
    sides: list[str] = []
    for side, name in ((True, "positive"), (False, "negative")):
        mine = [w for w, p in zip(words, positive.tolist(), strict=True) if p == side]
        word, n = Counter(mine).most_common(1)[0]
        sides.append(f"{word!r} opens {n} of {len(mine)} {name} texts")
    return ", ".join(sides)
