"""`steerlab judge`: rate texts with a judge, see how far judges agree with each other and with people, and list the judges."""

from __future__ import annotations

import json as json_
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Config, Json, console, dump, refuse_overwriting, say, took

if TYPE_CHECKING:
    from ..evals.agree import Agreement
    from ..judges.base import Judge

app = typer.Typer(help="Judges: rate texts, measure agreement, list what there is.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSON Lines or CSV with a text in each row.")]
Judges = Annotated[list[str] | None, typer.Option("--judge", "-j", help="A judge: words:a,b, language:de, form:json, sentiment:positive, or NAME,key=value,... (llm, classifier, learned, ./mine.py); may be repeated.")]  # fmt: skip
Text = Annotated[str | None, typer.Option(help="The column with the text.  [default: text, reply, answer, ...]")]
Prompt = Annotated[str | None, typer.Option(help="The column with the prompt.  [default: prompt, instruction, ...]")]
MISSING = "–"


@app.command("list")
def list_(json: Json = False, config: Config = None) -> None:
    """Every judge that is installed, and the short forms of rules."""
    from .. import plugins
    from ..judges.spec import FORMS

    names = plugins.names("judges")
    told = {name: (plugins.load(name, "judges").__doc__ or "").strip().splitlines()[0] for name in names}
    if json:
        dump({"judges": told, "rules": FORMS})
        return
    out = console()
    for name, about in told.items():
        out.print(f"{name:12} {about}")
    out.print("rules: " + "; ".join(FORMS.values()))


@app.command()
def rate(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", help="The rows with their ratings (.jsonl).")],
    judge: Judges = None,
    text: Text = None,
    prompt: Prompt = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Rate every text: writes the rows with a degree for each judge, null where there is none, and says what it took."""
    refuse_overwriting(out, force)
    from .. import progress
    from ..errors import ConfigError
    from ..evals.agree import PROMPT, TEXT, judged, named, rows_of
    from ..files import write_text
    from ..judges.spec import parse_rule
    from ..meter import Meter

    if not judge:
        raise ConfigError(
            "there is nothing to rate with; name at least one judge (--judge words:a,b or --judge llm,model=...)."
        )
    rows = rows_of(file)
    where, asked = _texts(rows, text, TEXT), named(rows, prompt, PROMPT, "the prompt")
    made = {name: parse_rule(name) for name in judge}
    with Meter() as meter, progress.shown():
        raters = [judged(name, one, rows, where, asked) for name, one in made.items()]
    lines = [{**row, "ratings": {r.name: r.values[n] for r in raters}} for n, row in enumerate(rows)]
    write_text(out, "".join(json_.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    told = {r.name: _told(made[r.name], r.values) for r in raters}
    if json:
        dump(told)
    else:
        for name, about in told.items():
            mean = MISSING if about["mean"] is None else f"{about['mean']:.3f}"
            say(f"{name}: mean {mean}, {about['rated']} rated, {about['missing']} missing")
            if "took" in about:
                say(f"  {about['took']}")
    say(f"wrote {out}")
    took(meter)


@app.command()
def agree(
    file: File,
    judge: Judges = None,
    human: Annotated[list[str] | None, typer.Option("--human", "-h", help="A column with labels of people, or of another judge; may be repeated.")] = None,
    text: Text = None,
    prompt: Prompt = None,
    family: Annotated[str | None, typer.Option(help="A column that says which texts belong together (one source, one prompt); they are drawn together.")] = None,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Kappa, weighted kappa and rank agreement between judges and labels, with intervals and the table of who said what."""
    from itertools import combinations

    from .. import progress
    from ..errors import ConfigError
    from ..evals.agree import PROMPT, TEXT, column, compared, judged, named, rows_of
    from ..judges.spec import parse_rule

    rows = rows_of(file)
    raters = [column(name, rows) for name in human or ()]
    if judge:
        where, asked = _texts(rows, text, TEXT), named(rows, prompt, PROMPT, "the prompt")
        with progress.shown():
            raters += [judged(name, parse_rule(name), rows, where, asked) for name in judge]
    if len(raters) < 2:
        raise ConfigError(
            "agreement is between two: name a judge and a column of labels (--judge words:a,b --human label)."
        )
    named(rows, family, (), "families")
    families = None if family is None else [str(row.get(family)) for row in rows]
    found = [compared(a, b, families=families) for a, b in combinations(raters, 2)]
    dump([a.to_json() for a in found]) if json else printed(found)


@app.command()
def noise(
    file: File,
    judge: Annotated[str, typer.Option("--judge", "-j", help="An llm judge with several variants: llm,model=...,concept=...,variants=4")],
    text: Text = None,
    prompt: Prompt = None,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """How much a language model that judges differs from itself when it is asked in other words and orders."""
    from .. import progress
    from ..contrast import Example
    from ..errors import ConfigError
    from ..evals.agree import PROMPT, TEXT, named, rows_of
    from ..judges.llm import LLMJudge
    from ..judges.spec import parse_rule

    made = parse_rule(judge)
    if not isinstance(made, LLMJudge):
        raise ConfigError(
            f"{judge!r} is no judge with a noise of its own: it says the same of the same text. Give an llm judge."
        )
    rows = rows_of(file)
    where, asked = _texts(rows, text, TEXT), named(rows, prompt, PROMPT, "the prompt")
    with progress.shown():
        examples = [
            Example.ask(str(row[asked])) if asked and row.get(asked) else Example.ask("Write a text.") for row in rows
        ]
        found = made.noise([str(row.get(where) or "") for row in rows], examples)
    if json:
        dump({**found._asdict(), "tally": made.tally.to_json()})
        return
    if found.same is None:
        say("no text had two ratings that could be read: nothing tells how the judge differs from itself")
    else:
        say(f"of {found.texts} texts, two ways to ask give the same rating in {found.same:.0%} of the pairs, {found.distance:.2f} apart"
            " in the mean")  # fmt: skip
    say(f"  {made.tally.told()}")


def _texts(rows: Sequence[Mapping[str, Any]], given: str | None, usual: Sequence[str]) -> str:
    from ..errors import DataError
    from ..evals.agree import named

    found = named(rows, given, usual, "the text")
    if found is None:
        raise DataError(
            f"no column of {', '.join(usual)} is in the file; name the one that holds the text (--text COLUMN)."
        )
    return found


def _told(judge: Judge, values: Sequence[float | None]) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    told: dict[str, Any] = {
        "mean": sum(known) / len(known) if known else None, "rated": len(known), "missing": len(values) - len(known)
    }  # fmt: skip
    tally = getattr(judge, "tally", None)
    return told | ({} if tally is None else {"took": tally.told(), "tally": tally.to_json()})


def printed(found: Sequence[Agreement]) -> None:
    """A table of measures, and who put how many texts where."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    for a in found:
        head = f"{a.a} and {a.b}: {a.n} texts" + (f", {a.missing} without both ratings" if a.missing else "")
        out.print(head, style="bold")
        for name in ("same", "kappa", "linear", "quadratic", "spearman", "kendall"):
            label = {"same": "same category", "linear": "kappa, linear weights", "quadratic": "kappa, quadratic weights",
                     "spearman": "Spearman's rho", "kendall": "Kendall's tau-b"}.get(name, name)  # fmt: skip
            out.print(f"  {label:26}{getattr(a, name)}")
        out.print(f"  texts by what {a.a} says (rows) and {a.b} (columns)")
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="")
        table.add_column("")
        for label in a.labels:
            table.add_column(f"{label:g}", justify="right")
        for label, row in zip(a.labels, a.table, strict=True):
            table.add_row(f"{label:g}", *map(str, row))
        out.print(table)
