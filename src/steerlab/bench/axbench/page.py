"""The leaderboard as one HTML file that a stranger understands, and as Markdown; the figures stand beside it as JSON and CSV.

No network, no fonts to fetch, no scripts; vector drawings, light or dark as the reader's system is. All text in it, steered or
not, is escaped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...evals.charts_markup import Markup, joined, tag
from ...evals.report_style import CSS
from ...evals.report_words import MISSING, definitions, flat, folded, lede, listed, plural, section
from ...files import write_text
from .board import AWAY, DETECTION, STEERING, Board
from .drawings import curves, plane
from .tables import AWAY_WORDS, DETECTION_WORDS, STEERING_WORDS, by_concept, table_of
from .words import columns_csv, markdown, summary

_FILES = ("leaderboard.html", "leaderboard.json", "leaderboard.md", "leaderboard.csv")
_EXTRA = """
.board td svg{display:block;width:7.2rem;height:.85rem;margin:.12rem 0 0 auto}
.board .num{min-width:5.4rem}.board .bar,.board .track{stroke-width:1.4}.board .track{stroke:var(--rule);stroke-width:.8}
.board .bar{stroke:var(--effect);opacity:1}.board .dot{fill:var(--effect)}
.board .cost .bar{stroke:var(--cost)}.board .cost .dot{fill:var(--cost)}
.board .rank{color:var(--soft);padding-right:.5rem}
.board tr.reference th{font-style:italic;font-weight:500}
.reads{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:.4rem 2rem;margin:.8rem 0 0;
padding-left:1.2rem;max-width:60rem}
.said{columns:24rem;column-gap:2rem}.said article{break-inside:avoid;margin:0 0 1.1rem}
.said h4{font-size:.86rem;margin:0 0 .15rem}.said h4 small{font-weight:400;color:var(--soft)}
"""


def write(board: Board, folder: str | Path) -> list[Path]:
    """The page, the JSON, the Markdown and the CSV, into a folder; returns their paths."""
    folder = Path(folder)
    page_, data, text, table = (folder / name for name in _FILES)
    board.save(data)
    write_text(text, markdown(board))
    write_text(table, columns_csv(board))
    return [write_text(page_, page(board)), data, text, table]


def page(board: Board) -> str:
    """The whole document."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    top = tag(
        "head", None, tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", None, board.title), tag("style", None, Markup(CSS + _EXTRA)),
    )  # fmt: skip
    main = tag(
        "main", None, _head(board), table_of(board, "steering", "Steering towards a concept", STEERING, STEERING_WORDS),
        table_of(board, "away", "Steering away from a concept", AWAY, AWAY_WORDS),
        table_of(board, "detection", "Detecting a concept", DETECTION, DETECTION_WORDS), plane(board), curves(board),
        by_concept(board), _samples(board), _missing(board), _setup(board),
        tag("footer", None, "The same figures as data: ", *_links()),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, top, tag('body', None, main))}\n"


# --- head -----------------------------------------------------------------------------------------------------------


def _head(board: Board) -> Markup:
    counts, judged = board.counts, "a language model" if board.asked else "rules"
    methods = [line for line in board.lines if not line.reference]
    beside = listed([line.label for line in board.lines if line.reference]) or "nothing"
    cut = f", {counts['cut']:,} of them cut to the model's context" if counts["cut"] else ""
    cut += f"; {counts['cut_fitted']:,} times a text that was fitted on" if counts["cut_fitted"] else ""
    facts = [
        ("Model", str(board.model["name"])), ("Concepts", f"{counts['concepts']}, of {_genres(board)}"),
        ("Compared", f"{plural(len(methods), 'method')} beside {beside}"),
        ("Factors", f"{counts['factors']}, from {min(board.plan['factors']):g} to {max(board.plan['factors']):g}"),
        ("Prompts", f"{counts['prompts']} a concept: half choose the factor, half are reported"),
        ("Replies", f"{counts['replies']:,}, rated by {judged}"),
        ("Ratings missing", f"{counts['missing']:,} of {counts['ratings']:,}"),
        ("Texts read", f"{counts['texts']:,}{cut}"),
    ]  # fmt: skip
    what = tag(
        "p", {"class": "lede"},
        "AxBench asks two things of a direction inside a language model: does adding it make the model write about a concept, and"
        " does reading it tell which texts are about the concept? Each method below found its own direction for each concept,"
        " from the same data.",
    )  # fmt: skip
    reads = tag(
        "ul", {"class": "reads"},
        tag("li", None, "A figure is followed by its 95 % interval; the bar shows both on the column's whole scale."),
        tag("li", None, "Where two intervals overlap much, this run doesn't tell which is better."),
        tag("li", None, "Methods in italics are there to be compared with, and take no rank."),
    )  # fmt: skip
    return tag(
        "header",
        None,
        tag("h1", None, board.title),
        what,
        definitions(facts),
        tag("p", {"class": "summary"}, *summary(board)),
        reads,
    )


def _genres(board: Board) -> str:
    genres = list(dict.fromkeys(c["genre"] for c in board.concepts))
    return plural(len(genres), "genre") + f" ({', '.join(genres)})"


def _samples(board: Board) -> Markup:
    if not board.samples:
        return joined([])
    labels = {line.name: line.label for line in board.lines}
    order = {line.name: k for k, line in enumerate(board.lines)}
    parts: list[Markup] = []
    for concept in dict.fromkeys(s["concept"] for s in board.samples):
        of = sorted((s for s in board.samples if s["concept"] == concept), key=lambda s: order[s["arm"]])
        told = [
            tag("article", None, tag("h4", None, labels[s["arm"]], tag("small", None, f" factor {s['factor']:g}, {_rated(s)}")),
                tag("div", {"class": "text", "dir": "auto"}, s["text"]))
            for s in of
        ]  # fmt: skip
        head = tag(
            "p",
            {"class": "prompt"},
            tag("span", {"class": "way"}, f"Concept: {of[0]['words']}. Prompt:"),
            tag("q", {"dir": "auto"}, of[0]["prompt"]),
        )
        parts.append(folded(str(of[0]["words"]), head, tag("div", {"class": "said"}, *told), opened=not parts))
    text = (
        "One reported prompt and what the model wrote to it under each method, at the factor chosen for the concept, with its"
        " ratings."
    )
    return section("samples", "What it reads like", lede(text), *parts)


def _rated(sample: dict[str, Any]) -> str:
    told = zip(("concept", "instruction", "fluency"), sample["ratings"], strict=True)
    return ", ".join(f"{name} {MISSING if rating is None else f'{rating:g}'}" for name, rating in told)


_ASKED = {
    "wanted": "Ratings asked for", "kept": "Known before", "calls": "Calls", "retries": "Of them repeated",
    "unreadable": "Unreadable", "unanswered": "Unanswered", "prompt_tokens": "Tokens asked", "answer_tokens": "Tokens answered",
    "cost": "Cost",
}  # fmt: skip


def _missing(board: Board) -> Markup:
    counts = board.counts
    parts = [lede(
        f"{counts['missing']:,} of {counts['ratings']:,} ratings are missing. A missing rating is left out of every mean and"
        " never counts as zero; a reply without a word in it is the model's failing, and counts as zero."
    )]  # fmt: skip
    if board.asked:
        facts = [
            (words, f"{board.asked[k]:,.4f}" if k == "cost" else f"{board.asked[k]:,}")
            for k, words in _ASKED.items()
            if k in board.asked
        ]
        parts += [tag("h3", None, "The judge"), definitions(facts)]
        if reasons := board.asked.get("reasons"):
            told = [tag("li", None, f"{n:,} × {reason}") for reason, n in reasons.items()]
            parts.append(tag("ul", {"class": "notes"}, *told))
    if board.failed:
        rows = [tag("li", None, f"{f['unit']}: {f['reason']}") for f in board.failed]
        parts += [tag("h3", None, "What failed"), tag("ul", {"class": "notes"}, *rows)]
    return section("missing", "Missing and counted", *parts)


def _setup(board: Board) -> Markup:
    arms = [
        (line.label, ", ".join(f"{k} {v}" for k, v in flat(line.method)) or "nothing is changed")
        for line in board.lines
    ]
    fits = [
        (line.label, f"{line.fit_seconds:.1f} s of processor time a concept")
        for line in board.lines
        if line.fit_seconds is not None
    ]
    plan = {k: v for k, v in board.plan.items() if k != "arms"}
    text = json.dumps(
        {"plan": board.plan, "suite": board.suite, "model": board.model}, indent=2, ensure_ascii=False, default=str
    )
    return section(
        "setup", "How it was run", tag("h3", None, "Settings"), definitions(list(flat(plan)), "settings"),
        tag("h3", None, "Methods"), definitions(arms, "words"), tag("h3", None, "Fits"), definitions(fits, "settings"),
        tag("h3", None, "Time and memory"), definitions(list(flat(board.meter)), "settings"),
        folded("All of it as JSON", tag("pre", None, text)),
    )  # fmt: skip


def _links() -> list[Markup | str]:
    found: list[Markup | str] = []
    for name in _FILES[1:]:
        found += [tag("a", {"href": f"./{name}"}, name), " "]
    return found
