"""Stability: does an answer follow what an option says, or where it stands? ("Randomness, Not Representation".)

Each question is put in several presentations: options upward and downward, under letters and under numbers. `changes` is
the share of questions whose chosen option isn't the same in all of them; `spread` the mean distance of two presentations'
answer distributions (total variation); `presentation p` a permutation test within questions. An effect of a steering that
is smaller than twice what presentation alone does (`spread`) is no effect yet; a note says so.

Khan et al. 2025, https://arxiv.org/abs/2503.08688. Invalid answers are left out and counted, not set to the middle; the
permutation stays within questions. The built-in model: letter-choice items (which it answers better than chance, and not
well).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, NamedTuple

import numpy as np

from .. import pilot
from ..contrast import Contrast, Example
from ..errors import DataError
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean, mean_of, values
from .choices import told
from .measures import fleiss, presentation_p
from .reading import Cells, table, text, texts, unit

LETTERS, NUMBERS = "ABCDEFGH", "12345678"
PRESENTATIONS = (("letters, upward", LETTERS, False), ("letters, downward", LETTERS, True),
                 ("numbers, upward", NUMBERS, False), ("numbers, downward", NUMBERS, True))  # fmt: skip
ENOUGH = 0.2


class Choice(NamedTuple):
    """A question with options; `right` is the place of the right one, where there is one."""

    question: str
    options: tuple[str, ...]
    right: int | None = None
    marks: int = len(PRESENTATIONS)  # how many presentations it is put in


@dataclass(frozen=True)
class Stability(Suite[Choice]):
    """The first `n` questions."""

    about: ClassVar[str] = "answers under other orders and labels of the options"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.08688"
    layout: ClassVar[str] = "question and options (a list, or with semicolons), and perhaps answer (one of them)"

    def of_pilot(self, variant: str) -> Sequence[Choice]:
        found: list[Choice] = []
        for e in pilot.capability(split="test", n=13 * self.n + 120, seed=self.seed, variant=variant):
            if e.tags["kind"] == "choice" and len(found) < self.n:
                where = re.search(r"\bA(\) |: |\. )", e.instruction)
                assert where is not None
                options = [
                    o.strip() for o in re.split(r"\b[A-D](?:\) |: |\. )", e.instruction[where.start() :]) if o.strip()
                ]
                right = LETTERS.index(e.tags["right"][0])
                found.append(Choice(e.instruction[: where.start()].strip(), tuple(options), right, 2))
        return found

    def read(self, path: str) -> Sequence[Choice]:
        return [_choice(cells) for cells in table(path, ("question", "options"), self.layout)[: self.n]]

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast("formal", n=64, seed=self.seed, variant=variant)

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Choice]) -> list[Row]:
        asked: list[Example] = []
        for item in items:
            for _, marks, downward in PRESENTATIONS[: item.marks]:
                shown = item.options[::-1] if downward else item.options
                body = " ".join(f"{m}) {o}" for m, o in zip(marks, shown, strict=False))
                asked += [Example.ask(f"{item.question} {body}", marks[k]) for k in range(len(shown))]
        scores = iter(t.logprob for t in told(stage, condition, asked))
        return [
            _row(n, item, [[next(scores) for _ in item.options] for _ in range(item.marks)])
            for n, item in enumerate(items)
        ]

    def metrics(self, items: Sequence[Choice]) -> tuple[Metric, ...]:
        found = [
            mean_of(
                "changes",
                "changes",
                "questions whose answer isn't the same in all presentations",
                wanted=-1,
                share=True,
            ),
            mean_of(
                "spread",
                "spread",
                "distance between presentations' answer distributions, 0 to 1",
                wanted=-1,
                bounded=True,
            ),
            mean_of("first", "first", "presentations answered with the option that stands first", bounded=True),
            Metric(
                "presentation p",
                "permutation test: do answers depend on the presentation? (small: yes)",
                _p,
                interval=False,
            ),
            Metric(
                "kappa",
                "Fleiss' kappa of the chosen options over presentations",
                _kappa,
                "changes",
                wanted=1,
                bounded=True,
            ),
            mean_of("mass", "mass", "probability on the options' marks", wanted=1, bounded=True),
        ]
        if any(i.right is not None for i in items):
            found.insert(0, mean_of("right", "right", "presentations answered right", wanted=1, bounded=True))
        found.append(
            Metric(
                "effect / spread",
                "distance from the plain model's answers over the presentations' spread",
                _over,
                "spread",
                compares=True,
            )
        )
        return tuple(found)

    def notes(self, rows: Rows) -> list[str]:
        mass = mean(values(rows, "mass"))
        if mass is not None and mass < ENOUGH:
            return [f"only {mass:.0%} of the probability is on the marks: the model answers with something else"]
        return []


def _choice(cells: Cells) -> Choice:
    options = texts(cells, "options")
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"{cells[0]}: there are {len(options)} options; expected 2 to {len(LETTERS)}.")
    answer = cells[1].get("answer")
    if answer is not None and str(answer).strip() not in options:
        raise DataError(f"{cells[0]}: the answer {answer!r} is none of the options.")
    return Choice(text(cells, "question"), options, None if answer is None else options.index(str(answer).strip()))


def _row(n: int, item: Choice, scores: Sequence[Sequence[float]]) -> Row:
    """One question: for each presentation, which option won and at which place, and the distribution over options."""
    chosen: list[int] = []
    places: list[int] = []
    spread: list[list[float]] = []
    for (_, _, downward), found in zip(PRESENTATIONS, scores, strict=False):
        place = int(np.argmax(found))
        p = np.exp(np.asarray(found) - max(found))
        p = (p / p.sum()).tolist()
        spread.append(p[::-1] if downward else p)
        places.append(place)
        chosen.append(len(found) - 1 - place if downward else place)
    return {
        "unit": unit(item.question + " " + " ".join(item.options)), "item": n, "set": "", "chosen": chosen, "places": places,
        "distribution": spread, "changes": float(len(set(chosen)) > 1),
        "spread": mean([_distance(a, b) for a, b in combinations(spread, 2)]),
        "first": mean([float(p == 0) for p in places]),
        "right": None if item.right is None else mean([float(c == item.right) for c in chosen]),
        "mass": mean([float(np.exp(s).sum()) for s in scores]), "prompt": item.question, "reply": None,
    }  # fmt: skip


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2


def _p(rows: Rows) -> float | None:
    return presentation_p([r["chosen"] for r in rows])


def _kappa(rows: Rows) -> float | None:
    return fleiss([r["chosen"] for r in rows])


def _over(rows: Rows, plain: Rows) -> float | None:
    """How far the mean distribution of each question moved from the plain model's, in units of what presentation does."""
    before = {(r["unit"], r["item"]): r for r in plain}
    moved = [
        _distance(np.mean(r["distribution"], axis=0).tolist(), np.mean(b["distribution"], axis=0).tolist())
        for r in rows
        if (b := before.get((r["unit"], r["item"]))) is not None
    ]
    base = mean(values(plain, "spread"))
    return None if not moved or not base else sum(moved) / len(moved) / base
