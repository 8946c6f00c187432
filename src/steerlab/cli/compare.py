"""`steerlab compare RUN:ARM RUN:ARM ...`: is it better? In a sentence with its interval, from what evaluations wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .common import Config, Json, console, dump

if TYPE_CHECKING:
    from ..evals.compare import Compared


def compare(
    runs: Annotated[list[str], typer.Argument(help="RUN (all of its arms) or RUN:ARM; RUN is a folder of `steerlab evaluate` or its results.json. The first arm is asked about.")],
    arm: Annotated[list[str] | None, typer.Option("--arm", "-a", help="Only these arms, the first asked about; may be repeated.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help="joint, effect, degree, follows, fluent, lost, wrong, refused, kl, perplexity or repetition; may be repeated.  [default: joint, lost]")] = None,
    direction: Annotated[Literal["elicit", "suppress", "both"], typer.Option(help="Which way.")] = "both",
    setting: Annotated[Literal["tuned", "unit"], typer.Option(help="At the strength tuned on dev, or at strength 1.")] = "tuned",
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="Only these tasks.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only these groups of tasks.")] = None,
    level: Annotated[Literal["auto", "concepts", "fits", "prompts"], typer.Option(help="What the answer is to hold for. auto: concepts from five on, else further fits, else prompts.")] = "auto",
    correction: Annotated[Literal["holm", "bh", "none"], typer.Option(help="How p is adjusted for the number of questions.")] = "holm",
    see: Annotated[float, typer.Option(min=0.01, help="Points that planning is told for.")] = 5.0,
    power: Annotated[float, typer.Option(help="The share of cases in which they are to be seen.")] = 0.8,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Is it better? Each arm against the first, pair by pair, with an interval and what it would take to see more."""
    from ..errors import ConfigError, nearest
    from ..evals.compare import Ask
    from ..evals.compare import compare as compared
    from ..evals.compare import sides as found

    sides = found(runs)
    if arm:
        names = [s.name for s in sides]
        for name in arm:
            if name not in names:
                raise ConfigError(f"no run that was given has an arm {name!r}. {nearest(name, names)}")
        sides = [next(s for s in sides if s.name == name) for name in arm]
    ask = Ask(
        measures=tuple(measure or ("joint", "lost")), directions=("elicit", "suppress") if direction == "both" else (direction,),
        setting=setting, level=None if level == "auto" else level, correction=correction, tasks=tuple(task or ()),
        groups=tuple(group or ()), see=see / 100, power=power,
    )  # fmt: skip
    answers = compared(sides[0], sides[1:], ask)
    dump([a.to_json() for a in answers]) if json else printed(answers)


def printed(answers: list[Compared]) -> None:
    """A sentence for each question, with what it would take to see more, and sizes in a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    for a in answers:
        out.print(a.sentence, style="bold" if a.verdict != "not told apart" else None)
        out.print(f"  {a.plan}", style="dim")
        for note in a.notes:
            out.print(f"  Note: {note}.")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="")
    for name in ("against", "which way", "measure"):
        table.add_column(name)
    for name in ("better", "worse", "same", "size g", "p", "adjusted"):
        table.add_column(name, justify="right", no_wrap=True)
    for a in answers:
        f = a.found
        up, down = (f.better, f.worse) if a.measure in _higher() else (f.worse, f.better)
        size = "–" if f.standardised is None else f"{f.standardised:+.2f}"
        table.add_row(
            a.b,
            a.direction,
            a.measure,
            f"{up:.0%}",
            f"{down:.0%}",
            f"{f.same:.0%}",
            size,
            f"{f.p:.3g}",
            f"{a.adjusted:.3g}",
        )
    out.print(table)
    out.print(
        f"better, worse, same: shares of the pairs in which {answers[0].a} is; size: in standard deviations of what varies"
    )


def _higher() -> dict[str, str]:
    from ..evals.compare import HIGHER

    return HIGHER
