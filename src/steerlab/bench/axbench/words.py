"""What the leaderboard says in words and numbers, for every form that it is written in: Markdown and CSV here, HTML in `page`."""

from __future__ import annotations

import csv
import io

from ...evals.report_words import MISSING, signed
from ...evals.stats import Estimate
from .board import AWAY, COLUMNS, DETECTION, STEERING, Board, Column, Line


def summary(board: Board) -> list[str]:
    """What came out, in sentences."""
    told: list[str] = []
    methods = [line for line in board.lines if not line.reference]
    if board.has(STEERING[:1]) and methods:
        best = methods[0]
        score = text_of(STEERING[0], best.figures["score"])
        told.append(f"The best steering method is {best.label}, with a score of {score} out of 2. ")
        prompt, gap = board.line("prompt"), best.figures["difference"]
        if prompt is not None and prompt.figures["score"].mean is not None and gap.mean is not None:
            than = "above" if (gap.low or 0) > 0 else "below" if (gap.high or 0) < 0 else "not told apart from"
            by = f" by {signed(abs(gap.mean), 2)}" if than != "not told apart from" else ""
            told.append(
                f"It is {than} simply asking for the concept{by} ({text_of(STEERING[0], prompt.figures['score'])}). "
            )
        plain = board.line("unsteered")
        if plain is not None and plain.figures["score"].mean is not None:
            told.append(f"With nothing steered the score is {text_of(STEERING[0], plain.figures['score'])}. ")
    if board.has(DETECTION[:1]):
        readers = [line for line in board.lines if line.figures["auroc"].mean is not None]
        best = max(readers, key=lambda line: line.figures["auroc"].mean or 0.0)
        told.append(
            f"The best at detecting is {best.label}, with an AUROC of {text_of(DETECTION[0], best.figures['auroc'])}."
        )
    return told or ["Nothing was measured."]


def text_of(column: Column, estimate: Estimate) -> str:
    """A figure with its interval."""
    if estimate.mean is None:
        return MISSING
    mean, low, high = (
        signed(column.scale * (v or 0.0), column.decimals) for v in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean} [{low}, {high}]"


def sortable(line: Line, column: Column) -> float:
    """What a line is sorted by: what is missing comes last."""
    mean = line.figures[column.key].mean
    return -1e9 if mean is None else mean


def markdown(board: Board) -> str:
    """The tables as Markdown, with what was counted."""
    counts = board.counts
    lines = [
        f"# {board.title}", "",
        f"{counts['arms']} arms × {counts['concepts']} concepts × {counts['factors']} factors × {counts['prompts']} prompts on"
        f" {board.model['name']}: {counts['replies']:,} replies, {counts['ratings']:,} ratings ({counts['missing']:,} missing),"
        f" {counts['texts']:,} texts read ({counts['cut']:,} cut). Means with 95 % intervals.", "",
        "".join(summary(board)).strip(), "",
    ]  # fmt: skip
    for heading, columns in (("Steering", STEERING), ("Suppression", AWAY), ("Detection", DETECTION)):
        if not board.has(columns[:1]):
            continue
        shown = [line for line in board.lines if line.figures[columns[0].key].mean is not None]
        lines += [
            f"## {heading}",
            "",
            "| Method | " + " | ".join(f"{c.name} ({c.unit})" for c in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for line in sorted(shown, key=lambda one: -sortable(one, columns[0])):
            lines.append(
                f"| {_cellular(line.label)} | " + " | ".join(text_of(c, line.figures[c.key]) for c in columns) + " |"
            )
        lines.append("")
    return "\n".join(lines)


def _cellular(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def columns_csv(board: Board) -> str:
    """AxBench's leaderboard (a method, its score on this model, the mean over models) and every other column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Method", str(board.model["name"]), "Avg", "Detection AUROC", "Detection AUROC pooled",
                     *[f"{c.key}{end}" for c in COLUMNS for end in ("", "_low", "_high")]])  # fmt: skip
    for line in board.lines:
        of = [line.figures[c.key] for c in COLUMNS]
        score, auroc = (_three(line.figures[k].mean) for k in ("score", "auroc"))
        every = [_three(v) for e in of for v in (e.mean, e.low, e.high)]
        writer.writerow([line.label, score, score, auroc, _three(line.pooled), *every])
    return out.getvalue()


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
