"""The leaderboard's tables as HTML: each figure with its interval, and a bar that shows both on the column's whole scale."""

from __future__ import annotations

from collections.abc import Sequence

from ...evals.charts_markup import Markup, joined, tag
from ...evals.report_words import MISSING, definitions, folded, lede, nothing, scrolled, section, signed
from ...evals.stats import Estimate
from .board import Board, Column
from .metrics import mean
from .words import sortable, text_of

STEERING_WORDS = (
    "The model answers instructions while each method adds its direction, as strongly as a factor says that was chosen for each"
    " concept on half of the prompts; the figures are of the other half. Prompting puts the request into the instruction instead."
)
AWAY_WORDS = (
    "The instruction asks for the concept and the direction is taken away, so that the concept should not appear; then a text"
    " in the prompt orders the model to show it all the same (before the request, after it, or as answers in the conversation"
    " before). 2 would be a fluent answer to the point without the concept."
)
DETECTION_WORDS = (
    "No steering: texts with and without the concept are read, and a text's score is the direction's largest reading over its"
    " tokens. AUROC 1 tells every pair rightly, 0.5 is chance. Hard negatives have the concept's words in another sense, or its"
    " nearest kin."
)


def table_of(board: Board, key: str, heading: str, columns: Sequence[Column], words: str) -> Markup:
    """A section with one table, best first; references take no rank."""
    if not board.has(columns[:1]):
        return section(key, heading, nothing("This part was not measured."))
    order = sorted(board.lines, key=lambda line: -sortable(line, columns[0]))
    shown = [line for line in order if line.figures[columns[0].key].mean is not None]
    contest = [sortable(line, columns[0]) for line in shown if not line.reference]
    rows: list[Markup] = []
    for line in shown:
        rank = 1 + sum(other > sortable(line, columns[0]) for other in contest)  # equals share theirs
        cells = [
            tag("td", {"class": "rank"}, "" if line.reference else str(rank)),
            tag("th", {"scope": "row"}, line.label),
        ]
        cells += [_cell(c, line.figures[c.key]) for c in columns]
        rows.append(tag("tr", {"class": "reference" if line.reference else None}, *cells))
    heads = [
        tag("th", {"scope": "col"}, tag("span", {"class": "unseen"}, "Rank")),
        tag("th", {"scope": "col"}, "Method"),
    ]
    for c in columns:
        attributes = {"scope": "col", "class": "num", "title": c.meaning}
        heads.append(tag("th", attributes, c.name, tag("span", {"class": "unit"}, c.unit)))
    caption, head = tag("caption", {"class": "unseen"}, heading), tag("thead", None, tag("tr", None, *heads))
    table = tag("table", {"class": "board"}, caption, head, tag("tbody", None, *rows))
    meanings = [(c.name, c.meaning + ("" if c.high else " (less is better)")) for c in columns]
    absent = [line for line in order if line not in shown]
    told = [f"{line.label} ({line.none})" if key == "detection" and line.none else line.label for line in absent]
    rest = tag("p", {"class": "lede"}, f"Without a figure here: {'; '.join(told)}.") if told else ""
    return section(key, heading, lede(words), scrolled(heading, table), definitions(meanings, "words"), rest)


_RANGES = {"difference": (-2.0, 2.0), "won": (0.0, 1.0), "lost": (0.0, 1.0)}


def _cell(column: Column, estimate: Estimate) -> Markup:
    if estimate.mean is None:
        return tag("td", {"class": "num"}, tag("span", {"class": "absent"}, MISSING))
    low, high = _RANGES.get(column.key, (0.0, 2.0 if column.unit == "0–2" else 1.0))
    shown = signed(column.scale * estimate.mean, column.decimals)
    interval = text_of(column, estimate).partition(" ")[2]
    counted = f"n {estimate.n:,}" + (f", {estimate.missing:,} missing" if estimate.missing else "")
    return tag(
        "td",
        {"class": "num", "title": counted},
        shown,
        tag("span", {"class": "interval"}, interval),
        _bar(estimate, low, high, column.high),
    )


def _bar(estimate: Estimate, low: float, high: float, good: bool) -> Markup:
    """A figure and its interval on the column's whole scale."""

    def at(value: float | None) -> float:
        return 4 + 92 * (min(max(value or 0.0, low), high) - low) / (high - low)

    shape = [tag("path", {"class": "track", "d": "M4 6H96"})]
    if low < 0 < high:
        shape.append(tag("path", {"class": "track", "d": f"M{at(0.0):.1f} 2V10"}))
    shape.append(tag("path", {"class": "bar", "d": f"M{at(estimate.low):.1f} 6H{at(estimate.high):.1f}"}))
    shape.append(tag("circle", {"class": "dot", "cx": at(estimate.mean), "cy": 6.0, "r": 2.6}))
    return tag("svg", {"viewBox": "0 0 100 12", "aria-hidden": "true", "class": "good" if good else "cost"}, *shape)


def by_concept(board: Board) -> Markup:
    """The mean score of each method on each concept."""
    lines = [line for line in board.lines if line.figures["score"].mean is not None]
    if not lines:
        return joined([])
    heads = [
        tag("th", {"scope": "col"}, "Concept"),
        *[tag("th", {"scope": "col", "class": "num"}, line.label) for line in lines],
    ]
    rows: list[Markup] = []
    for concept in board.concepts:
        values = [mean(line.concepts[concept["name"]].get("steer", {}).get("score", [])) for line in lines]
        best = max(
            (v for v, line in zip(values, lines, strict=True) if v is not None and not line.reference), default=None
        )
        cells = [
            tag(
                "td",
                {"class": "num"},
                MISSING if v is None else tag("span", {"class": "best" if v == best and v > 0 else None}, signed(v, 2)),
            )
            for v in values
        ]
        rows.append(tag("tr", None, tag("th", {"scope": "row"}, concept["words"]), *cells))
    table = tag("table", {"class": "figures"}, tag("thead", None, tag("tr", None, *heads)), tag("tbody", None, *rows))
    text = (
        "The mean score of each method on each concept, out of 2; the best method is underlined. A concept has few prompts: look"
        " at rows, not at cells."
    )
    return section(
        "concepts", "Concept by concept", lede(text), folded("Show the table", scrolled("Scores by concept", table))
    )
