"""Big-Five traits: how far a steering for one trait moves it, how far it moves the others, and how evenly.

Each trait is measured by its statements in both letter orders. `target` names the trait that the steering is for: the suite
then tells its shift from the plain model (`aligned`), the mean size of the others' shifts (`spill`), and the stability
A/(1 + CV(A)) − mean |Δ|, with A the target's shifts statement by statement and Δ the other traits' mean shifts.
`measures.purified` takes other traits' directions out of one, all at once.

Handa et al. 2025, https://arxiv.org/abs/2509.04794 (code not public: the formulas follow its abstract and are our own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import DataError, UnsupportedError, nearest
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean, values
from .measures import trait_stability
from .reading import files, table, text
from .traits import Statement, answers_otherwise, statement, trait_metrics, trait_rows

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")


@dataclass(frozen=True)
class BigFive(Suite[Statement]):
    """The first `n` statements of each trait; `target` is the trait that the steering is for (none: the first one)."""

    about: ClassVar[str] = "Big-Five traits: the target's shift, what spills over to the others, stability"
    paper: ClassVar[str] = "https://arxiv.org/abs/2509.04794"
    layout: ClassVar[str] = (
        "a folder of files named after traits (openness.jsonl, ...), or one file with a column `trait`; rows with question,"
        " answer_matching_behavior, answer_not_matching_behavior"
    )

    target: str = ""

    def of_pilot(self, variant: str) -> Sequence[Statement]:
        raise UnsupportedError(
            "the built-in model can't take the suite big_five: it was trained on no statements about itself and has no traits."
            f" Give a model and data of your own (--model NAME --data FOLDER: {self.layout})."
        )

    def read(self, path: str) -> Sequence[Statement]:
        found: list[Statement] = []
        for file in files(path, (".jsonl", ".json", ".csv")):
            stem = Path(file).stem.lower()
            named = stem if stem in TRAITS else None
            if named is None and Path(path).is_dir():
                continue  # a folder of personas holds others, too
            kept: dict[str, int] = {}
            for cells in table(
                file, ("question", "answer_matching_behavior", "answer_not_matching_behavior"), self.layout
            ):
                trait = named or text(cells, "trait").lower()
                kept[trait] = kept.get(trait, 0) + 1
                if kept[trait] <= self.n:
                    found.append(statement(cells, trait))
        if not found:
            raise DataError(f"{path} holds none of the traits {', '.join(TRAITS)}. Expected {self.layout}.")
        self._target(found)
        return found

    def _target(self, items: Sequence[Statement]) -> str:
        there = list(dict.fromkeys(i.trait for i in items))
        if self.target and self.target not in there:
            raise DataError(f"the data holds no statements of the trait {self.target!r}. {nearest(self.target, there)}")
        return self.target or there[0]

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Statement]) -> list[Row]:
        return trait_rows(stage, condition, items)

    def metrics(self, items: Sequence[Statement]) -> tuple[Metric, ...]:
        target = self._target(items)
        others = [t for t in dict.fromkeys(i.trait for i in items) if t != target]

        def aligned(rows: Rows, plain: Rows) -> float | None:
            return mean(shifts(rows, plain, target))

        def spill(rows: Rows, plain: Rows) -> float | None:
            moved = [mean(shifts(rows, plain, t)) for t in others]
            return mean([abs(m) for m in moved if m is not None])

        def stable(rows: Rows, plain: Rows) -> float | None:
            mine = shifts(rows, plain, target)
            moved = [mean(shifts(rows, plain, t)) for t in others]
            return trait_stability(mine, [m for m in moved if m is not None]) if mine else None

        found = [
            Metric(
                f"aligned, {target}",
                f"shift of {target}'s log-odds from the plain model",
                aligned,
                "log_odds",
                compares=True,
            )
        ]
        if others:
            found.append(
                Metric("spill", "mean size of the other traits' shifts", spill, "log_odds", wanted=-1, compares=True)
            )
        found.append(Metric("stability", "A/(1 + CV(A)) − mean |Δ| of the others", stable, "log_odds", compares=True))
        return (*found, *trait_metrics(items))

    def notes(self, rows: Rows) -> list[str]:
        return answers_otherwise(mean(values(rows, "mass")))


def shifts(rows: Rows, plain: Rows, trait: str) -> list[float]:
    """A trait's change of log-odds, statement by statement."""
    before = {(r["unit"], r["item"]): r["log_odds"] for r in plain if r["set"] == trait}
    return [
        float(r["log_odds"]) - before[r["unit"], r["item"]]
        for r in rows
        if r["set"] == trait and (r["unit"], r["item"]) in before
    ]
