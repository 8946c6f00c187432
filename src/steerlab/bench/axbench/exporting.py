"""A set of concepts as files in AxBench's layout, so that other tools measure on the same data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...contrast import Example
from .data import AxSuite, answered
from .writing import NOBODY, Written


def exported(suite: AxSuite, tasks: Sequence[str], *, rows: int, hard: int, seed: int = 0) -> Written:
    """The tables of these concepts.

    A row of the layout holds one instruction and one answer: what has a system message is left out and counted.
    """
    out, genres = Written(), {t.name: t.genre for t in suite.tasks()}
    shared: dict[str, Example] = {}
    for key, task in enumerate(tasks):
        words, contrast = suite.words(task), answered(suite.contrast(task, seed))
        for positive, negative in contrast.pairs if contrast.paired else ():
            _add(out, out.train, positive, words, "positive", str(key))
            shared.setdefault(negative.instruction, negative)
            if negative.answer and positive.answer and len(negative.messages) == 1:
                out.pairs.append({
                    "input": negative.instruction, "winning_output": positive.answer, "losing_output": negative.answer,
                    "output_concept": words, "concept_genre": "text", "concept_id": str(key),
                })  # fmt: skip
        found = suite.rows(task, rows, hard)
        for kind, examples in (
            ("positive", found.positive),
            ("negative", found.negative),
            ("hard negative", found.hard),
        ):
            for example in examples:
                _add(out, out.latent, example, words, kind, str(key))
        out.names.append(
            {"concept_id": key, "concept": words, "ref": genres[task], "concept_genres_map": {words: ["text"]}}
        )
    for example in shared.values():
        _add(out, out.train, example, NOBODY, "negative", "-1")
    return out


def _add(out: Written, table: list[dict[str, Any]], example: Example, words: str, category: str, key: str) -> None:
    out.wanted += 1
    if len(example.messages) > 1:
        out.drop("it has a system message, which the layout has no place for")
    elif not (example.answer or "").strip():
        out.drop("it has no answer")
    else:
        table.append({
            "input": example.instruction, "output": example.answer, "output_concept": words, "concept_genre": "text",
            "category": category, "dataset_category": "instruction", "concept_id": key,
        })  # fmt: skip
