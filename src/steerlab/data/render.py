"""What a check found, and what a making kept, as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .check import CheckReport, Lengths
from .make import MakeReport

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_STYLE = {"error": "bold red", "warn": "yellow", "note": "cyan"}
_NONE = "–"


def table(report: CheckReport) -> RenderableType:
    """A check's report as something that rich prints: the classes, the giveaways, and the findings with their"
    " advice."""
    from rich.console import Group
    from rich.text import Text

    n = {s: sum(f.severity == s for f in report.findings) for s in _STYLE}
    words = {"error": "error", "warn": "warning", "note": "note"}
    verdict = ", ".join(f"{k} {words[s]}{'s' * (k != 1)}" for s, k in n.items() if k) or "nothing found"
    style = next((_STYLE[s] for s, k in n.items() if k), "green")
    pairs = "unpaired" if report.pairs is None else f"{report.pairs} pairs"
    head = " · ".join(part for part in (report.source, report.concept, pairs) if part)
    parts: list[RenderableType] = [Text(head, style="bold"), _classes(report)]
    if report.giveaways:
        parts.append(_giveaways(report))
    if report.findings:
        parts.append(_findings(report))
    parts.append(Text(verdict, style=style))
    return Group(*parts)


def made(report: MakeReport) -> RenderableType:
    """A making's report as something that rich prints: the requests with what they brought, and what was dropped."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    requests = Table(title="requests for the concept", title_justify="left")
    for name in ("request", "asked", "kept"):
        requests.add_column(name, justify="left" if name == "request" else "right")
    for r in report.requests:
        requests.add_row(Text(" ".join(r.template.split())), str(r.asked), str(r.kept))
    dropped = Table(title="dropped", title_justify="left", show_lines=True)
    for name in ("why", "instructions", "for example"):
        dropped.add_column(name, justify="right" if name == "instructions" else "left")
    for d in report.dropped:
        dropped.add_row(Text(d.reason), str(d.count), Text(d.example))
    told = f"{report.told()} · {report.retried} asked again · {report.cut} answers cut at their greatest length"
    return Group(
        requests, *([dropped] if report.dropped else []), Text(told, style="yellow" if report.short else "green")
    )


def _classes(report: CheckReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title="what it holds", title_justify="left")
    grid.add_column("")
    for c in report.classes:
        grid.add_column(c.name, justify="right")
    lines: list[tuple[str, list[str]]] = [
        ("rows", [str(c.rows) for c in report.classes]),
        ("instructions", [str(c.instructions) for c in report.classes]),
        ("families", [str(c.families) for c in report.classes]),
        ("answers", [str(c.answered) for c in report.classes]),
        ("words of a prompt", [_span(c.prompt_words) for c in report.classes]),
        ("words of an answer", [_span(c.answer_words) for c in report.classes]),
        ("tokens of a prompt", [_span(c.prompt_tokens) for c in report.classes]),
        ("tokens of an answer", [_span(c.answer_tokens) for c in report.classes]),
        ("first words", [", ".join(f"{word} {k}" for word, k in c.openings) for c in report.classes]),
    ]
    for name, cells in lines:
        if any(cell != _NONE for cell in cells):
            grid.add_row(name, *(Text(cell) for cell in cells))
    return grid


def _giveaways(report: CheckReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title="what gives the class away (balanced accuracy, 50% is chance)", title_justify="left")
    grid.add_column("by")
    grid.add_column("accuracy", justify="right")
    grid.add_column("how it looks")
    for g in report.giveaways:
        grid.add_row(g.name, _NONE if g.accuracy is None else f"{g.accuracy:.0%}", Text(g.told))
    return grid


def _findings(report: CheckReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title="what is wrong, and what to do", title_justify="left", show_lines=True)
    for name in ("", "what", "rows", "found", "do"):
        grid.add_column(name, overflow="fold", justify="right" if name == "rows" else "left")
    for f in report.findings:
        told = "\n".join((f.told, *(f"  {e}" for e in f.examples)))
        grid.add_row(Text(f.severity, style=_STYLE[f.severity]), Text(f.name), str(f.count), Text(told), Text(f.advice))
    return grid


def _span(lengths: Lengths | None) -> str:
    return _NONE if lengths is None else f"{lengths.least} to {lengths.most}, median {lengths.median:g}"
