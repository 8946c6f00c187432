"""What a suite found, for people (a table, Markdown) and for programs (JSON, and a JSON line for each row)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..evals.stats import Estimate
from ..files import write_text
from .run import Result

if TYPE_CHECKING:
    from rich.console import Console

ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def write(result: Result, folder: Path) -> list[Path]:
    """`suite.json`, `rows.jsonl` and `report.md` in a folder, each whole or not at all; returns their paths."""
    lines = [
        json.dumps({"condition": label, **row}, ensure_ascii=False) + "\n"
        for label, table in result.rows.items()
        for row in table
    ]
    return [
        write_text(folder / "rows.jsonl", "".join(lines)),
        write_text(folder / "suite.json", json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n"),
        write_text(folder / "report.md", markdown(result)),
    ]


def shown(estimate: Estimate | None, *, signed: bool = False) -> str:
    """A figure with its interval, and how much is missing."""
    if estimate is None:
        return ""
    if estimate.mean is None:
        return "–" + (f" ({estimate.missing} missing)" if estimate.missing else "")
    sign = "+" if signed else ""
    interval = "" if estimate.low is None else f" [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
    return f"{estimate.mean:{sign}.3f}{interval}" + (f" ({estimate.missing} missing)" if estimate.missing else "")


def grid(result: Result) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table: a metric a line; for each strength its value, and its change from the plain
    model.
    """
    head = ["", *(c.label if c.steering is None else f"strength {c.label}" for c in result.conditions)]
    lines: list[list[str]] = []
    for metric in result.metrics:
        cells = [metric.name + ARROWS[metric.wanted]]
        for c in result.conditions:
            if metric.compares and c.steering is None:
                cells.append("")
                continue
            cell = shown(result.found[c.label][metric.name])
            moved = result.changes.get(c.label, {}).get(metric.name)
            cells.append(cell if moved is None or moved.mean is None else f"{cell}  Δ {shown(moved, signed=True)}")
        lines.append(cells)
    sound = ["sound replies ↑", *(shown(result.health[c.label].sound) for c in result.conditions)]
    nats = ["nats per token ↓"]
    for c in result.conditions:
        value = result.health[c.label].nats
        nats.append("–" if value is None else f"{value:.3f}")
    return head, [*lines, sound, nats]


def markdown(result: Result) -> str:
    """The report as Markdown."""
    head, lines = grid(result)
    counts = ", ".join(f"{c.label}: {len(result.rows[c.label])} rows" for c in result.conditions)
    parts = [
        f"# {result.suite}: {result.about}", "",
        f"Model {result.model}" + (f", steering {result.steering[:12]}" if result.steering else ", no steering")
        + f", data {result.data or 'given'}. {counts}. 95 % intervals over units (prompts or items).",
        "",
    ]  # fmt: skip
    parts += [f"**{v[0].upper()}{v[1:]}.**\n" for v in result.verdict]
    parts += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    parts += ["| " + " | ".join(cell or " " for cell in line) + " |" for line in lines]
    parts += ["", *(f"- {m.name}: {m.about}" for m in result.metrics)]
    parts += [f"- Note: {note}." for note in result.notes]
    if result.paper:
        parts += ["", f"Source: {result.paper}"]
    return "\n".join(parts) + "\n"


def printed(result: Result, out: Console) -> None:
    """The table on a terminal, what is wrong before it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out.print(f"{result.suite}: {result.about}", style="bold")
    for told in result.verdict:
        out.print(f"  {told}", style="red")
    head, lines = grid(result)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="")
    for n, name in enumerate(head):
        table.add_column(name, overflow="fold", justify="left" if n == 0 else "right")
    for line in lines:
        table.add_row(*line)
    out.print(table)
    for metric in result.metrics:
        out.print(f"  {metric.name}: {metric.about}", style="dim")
    for note in result.notes:
        out.print(f"  Note: {note}.")
