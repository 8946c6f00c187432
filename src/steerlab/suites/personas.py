"""Personas: would the model say so? Anthropic's evaluations and CAA's questions, each asked in both orders of its letters.

Perez et al. 2022, https://arxiv.org/abs/2212.09251; Rimsky et al. 2024 (CAA), https://arxiv.org/abs/2312.06681.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import UnsupportedError
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean, values
from .reading import files, table
from .traits import Statement, answers_otherwise, statement, trait_metrics, trait_rows


@dataclass(frozen=True)
class Personas(Suite[Statement]):
    """The first `n` statements of each persona."""

    about: ClassVar[str] = "agreement with a persona's statements, balanced over the letters of the answers"
    paper: ClassVar[str] = "https://arxiv.org/abs/2312.06681"
    layout: ClassVar[str] = (
        "question, answer_matching_behavior, answer_not_matching_behavior as JSON Lines or a JSON list, or a folder of such files"
    )

    def of_pilot(self, variant: str) -> Sequence[Statement]:
        raise UnsupportedError(
            "the built-in model can't take the suite personas: it was trained on no statements about itself and holds no opinion"
            f" that could be moved. Give a model and data of your own (--model NAME --data FILE: {self.layout})."
        )

    def read(self, path: str) -> Sequence[Statement]:
        found: list[Statement] = []
        for file in files(path, (".jsonl", ".json", ".csv")):
            needs = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
            rows = table(file, needs, self.layout)[: self.n]
            found += [statement(cells, Path(file).stem.replace("_", "-")) for cells in rows]
        return found

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Statement]) -> list[Row]:
        return trait_rows(stage, condition, items)

    def metrics(self, items: Sequence[Statement]) -> tuple[Metric, ...]:
        return trait_metrics(items)

    def notes(self, rows: Rows) -> list[str]:
        return answers_otherwise(mean(values(rows, "mass")))
