"""How far judges agree, with each other and with people: kappa, weighted kappa and rank agreement, with intervals.

Raters give numbers; None is missing, and a pair with a missing side is counted apart. Kappa needs categories: with people who
gave k different values, a degree in [0, 1] becomes the nearest of k steps, for two values the judge's own threshold. Intervals
are percentile bootstraps over families of texts where the file names them, else over texts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..contrast import Example
from ..errors import DataError, nearest
from ..judges.base import Judge
from .stats import Estimate

Weights = Literal["none", "linear", "quadratic"]
TEXT = ("text", "reply", "answer", "output", "completion")
PROMPT = ("prompt", "instruction", "question", "input")
KENDALL = 1500  # pairs of texts grow with the square
DRAWS = 1000


@dataclass(frozen=True)
class Agreement:
    """How two raters agree. `table[i][j]`: texts that `a` put into category i and `b` into j; `missing`: those without both."""

    a: str
    b: str
    n: int
    missing: int
    labels: tuple[float, ...]
    table: tuple[tuple[int, ...], ...]
    same: Estimate
    kappa: Estimate
    linear: Estimate
    quadratic: Estimate
    spearman: Estimate
    kendall: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told = {k: getattr(self, k).to_json() for k in ("same", "kappa", "linear", "quadratic", "spearman", "kendall")}
        return {"a": self.a, "b": self.b, "n": self.n, "missing": self.missing, "labels": list(self.labels),
                "table": [list(r) for r in self.table], **told}  # fmt: skip


def kappa(table: np.ndarray, weights: Weights = "none") -> np.ndarray:
    """Cohen's kappa of `[..., k, k]` tables of counts: 1 − observed disagreement / that of independent raters.

    Disagreement weighs 1 apart from the diagonal, or the distance of the categories, or its square. Not a number where chance
    alone would agree always (both used one category).
    """
    k = table.shape[-1]
    apart = np.abs(np.arange(k)[:, None] - np.arange(k)[None, :]).astype(float)
    cost = {"none": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]
    total = table.sum(axis=(-2, -1))
    rows, columns = table.sum(axis=-1), table.sum(axis=-2)
    seen = (table * cost).sum(axis=(-2, -1))
    by_chance = np.einsum("...i,ij,...j->...", rows, cost, columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(by_chance > 0, 1 - seen * total / by_chance, np.nan)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of ranks; not a number where one side never varies."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > 0 else math.nan


def kendall(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Kendall's tau-b; `weight` counts each text so often."""
    w = np.ones(len(a)) if weight is None else weight
    x, y = np.sign(a[:, None] - a[None, :]), np.sign(b[:, None] - b[None, :])
    size = math.sqrt(float((w @ np.abs(x) @ w) * (w @ np.abs(y) @ w)))
    return float(w @ (x * y) @ w) / size if size > 0 else math.nan


def agreement(
    a: Sequence[float | None],
    b: Sequence[float | None],
    *,
    names: tuple[str, str] = ("a", "b"),
    categories: tuple[Sequence[int | None], Sequence[int | None]] | None = None,
    labels: Sequence[float] = (),
    families: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:
    """How two raters agree on the same texts.

    `categories` are the places of their ratings among `labels` (none: each value is one).
    """
    there = [n for n in range(len(a)) if a[n] is not None and b[n] is not None]
    if categories is None:
        labels = sorted({v for side in (a, b) for v in side if v is not None})
        place = {v: i for i, v in enumerate(labels)}
        categories = tuple([None if v is None else place[v] for v in side] for side in (a, b))  # pyright: ignore[reportAssignmentType]
        assert categories is not None
    k, n, missing = len(labels), len(there), len(a) - len(there)
    if not there:
        nothing = Estimate(None, None, None, 0, missing)
        return Agreement(*names, 0, missing, tuple(labels), tuple((0,) * k for _ in labels), *(nothing,) * 6)
    x, y = (np.asarray([side[i] for i in there], float) for side in (a, b))
    i, j = (np.asarray([side[m] for m in there], int) for side in categories)
    groups = [str(families[m]) if families else str(m) for m in there]
    names_of = {g: t for t, g in enumerate(dict.fromkeys(groups))}
    of = np.asarray([names_of[g] for g in groups])
    cells = np.zeros((len(names_of), k * k))
    np.add.at(cells, (of, i * k + j), 1.0)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names_of), np.full(len(names_of), 1 / len(names_of)), draws)
    whole, tables = cells.sum(axis=0).reshape(k, k), (drawn @ cells).reshape(draws, k, k)

    def of_tables(measure: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        return _estimate(float(measure(whole)), measure(tables), n, missing)

    def share(table: np.ndarray) -> np.ndarray:
        return np.trace(table, axis1=-2, axis2=-1) / table.sum(axis=(-2, -1))

    few = drawn[: min(draws, 300)][:, of]  # how often each text is drawn
    again = [np.repeat(np.arange(n), w) for w in few]
    by_rank = [spearman(x[at], y[at]) if len(at) else math.nan for at in again]
    if n <= KENDALL:
        by_pairs = _estimate(kendall(x, y), np.asarray(_kendalls(x, y, few)), n, missing)
    else:
        by_pairs = Estimate(None, None, None, 0, missing)
    return Agreement(
        *names, n, missing, tuple(labels), tuple(tuple(int(v) for v in row) for row in whole.tolist()), of_tables(share),
        of_tables(lambda t: kappa(t)), of_tables(lambda t: kappa(t, "linear")), of_tables(lambda t: kappa(t, "quadratic")),
        _estimate(spearman(x, y), np.asarray(by_rank), n, missing), by_pairs,
    )  # fmt: skip


def _kendalls(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> list[float]:
    """Kendall's tau-b under each row of counts."""
    x, y = (np.sign(v[:, None] - v[None, :]).astype(np.float32) for v in (a, b))
    w = weights.astype(np.float32)
    both, left, right = (((w @ m) * w).sum(axis=1).astype(float) for m in (x * y, np.abs(x), np.abs(y)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (both / np.sqrt(left * right)).tolist()


def _estimate(value: float, drawn: np.ndarray, n: int, missing: int) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    if not math.isfinite(value):
        return Estimate(None, None, None, n, missing)
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), n, missing)


@dataclass(frozen=True)
class Rater:
    """Somebody's ratings of the texts of a file; `threshold` is a judge's, None for a column of the file."""

    name: str
    values: tuple[float | None, ...]
    threshold: float | None = None

    def among(self, labels: Sequence[float]) -> list[int | None]:
        """The place of each rating among the labels: a degree's nearest step, or the threshold where there are two."""
        if self.threshold is None:
            place = {v: i for i, v in enumerate(labels)}
            return [None if v is None else place[v] for v in self.values]
        if len(labels) == 2:
            return [None if v is None else int(v >= self.threshold) for v in self.values]
        return [None if v is None else min(len(labels) - 1, int(v * (len(labels) - 1) + 0.5)) for v in self.values]


def compared(a: Rater, b: Rater, *, families: Sequence[str] | None = None, draws: int = DRAWS) -> Agreement:
    """How two raters agree, in the categories that the columns of the file use; between two judges, present and absent."""
    columns = [r for r in (a, b) if r.threshold is None]
    labels = sorted({v for r in columns for v in r.values if v is not None}) or [0.0, 1.0]
    if len(labels) == 1:
        raise DataError(f"{columns[0].name} gives {labels[0]:g} to every text; agreement needs labels that differ.")
    if len(labels) > 12:
        raise DataError(f"{columns[0].name} has {len(labels)} different values; kappa needs categories, at most 12.")
    return agreement(
        a.values, b.values, names=(a.name, b.name), categories=(a.among(labels), b.among(labels)), labels=labels,
        families=families, draws=draws,
    )  # fmt: skip


def judged(name: str, judge: Judge, rows: Sequence[Mapping[str, Any]], text: str, prompt: str | None) -> Rater:
    """A judge's ratings of a file's texts."""
    replies = [str(row.get(text) or "") for row in rows]
    examples = [
        Example.ask(str(row[prompt])) if prompt and row.get(prompt) else Example.ask("Write a text.") for row in rows
    ]
    return Rater(name, tuple(score.value for score in judge.scores(replies, examples)), judge.threshold)


def column(name: str, rows: Sequence[Mapping[str, Any]]) -> Rater:
    """A column of numbers, or of two words (in the order of the alphabet). Empty cells are missing.

    Raises `DataError` where the file lacks it.
    """
    known = {k for row in rows for k in row}
    if name not in known:
        raise DataError(f"the file has no column {name!r}. {nearest(name, map(str, known))}")
    given = [row.get(name) for row in rows]
    try:
        return Rater(name, tuple(None if v is None or v == "" else float(v) for v in given))
    except (TypeError, ValueError):
        words = sorted({str(v) for v in given if v is not None and v != ""})
        if len(words) != 2:
            raise DataError(
                f"the column {name!r} holds {', '.join(words[:5])}, ...; expected numbers, or two words."
                " Number the labels in their order."
            ) from None
        return Rater(name, tuple(None if v is None or v == "" else float(words.index(str(v))) for v in given))


def rows_of(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a JSON Lines, CSV or TSV file. Raises `DataError` with the line."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix in (".csv", ".tsv"):
                rows: list[Any] = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
            else:
                rows = []
                for n, line in enumerate(file, 1):
                    if line.strip():
                        try:
                            rows.append(json.loads(line))
                        except ValueError as problem:
                            raise DataError(f"{path}, line {n} is no JSON: {problem}.") from problem
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path} can't be read: {problem}.") from problem
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds no rows; expected JSON Lines of objects, or CSV with a head.")
    return rows


def named(rows: Sequence[Mapping[str, Any]], given: str | None, usual: Sequence[str], what: str) -> str | None:
    """The column that holds something: as it was given, else by its usual names. Raises `DataError` for one that isn't there."""
    known = {str(k) for row in rows for k in row}
    if given is not None and given not in known:
        raise DataError(f"the file has no column {given!r} for {what}. {nearest(given, known)}")
    return given if given is not None else next((name for name in usual if name in known), None)
