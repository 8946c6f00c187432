"""`steerlab bench`: published benchmarks, whole: AxBench, and the data that it measures on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .common import (
    BatchSize,
    Config,
    Device,
    Dtype,
    Json,
    Model,
    Quantize,
    Revision,
    TemplateOption,
    console,
    dump,
    precision,
    say,
    took,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bench.axbench.board import Board, Column
    from ..bench.axbench.data import AxSuite
    from ..bench.axbench.units import AxPlan
    from ..evals.unit import ArmPlan
    from ..judges.client import Client

app = typer.Typer(help="Published benchmarks, whole: AxBench.", no_args_is_help=True)
QUICK = {
    "factors": (0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 5.0), "suppress_factors": (0.8, 1.6, 3.0), "prompts": 4, "tokens": 48, "rows": 12,
    "hard": 8, "shared": 100,
}  # fmt: skip
CONCEPTS, QUICK_CONCEPTS, PAIRS = 20, 5, 32
SHOWN = 4  # of what failed


@app.command()
def axbench(
    data: Annotated[str | None, typer.Option(help="A folder in AxBench's layout (Concept10, Concept500, or what `bench data` wrote).  [default: the built-in model's own concepts]")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="METHOD or NAME=METHOD,key=value; repeat it.  [default: ten methods beside prompting, a random direction and nothing]")] = None,
    concepts: Annotated[str | None, typer.Option(help="How many concepts, or which: names or ids with commas between.  [default: 20]")] = None,
    parts: Annotated[str, typer.Option(help="What to measure: detection, steering, suppression, attack, with commas between.")] = "detection,steering,suppression,attack",
    judge: Annotated[str, typer.Option(help="A judging model: llm,model=NAME,url=URL (any OpenAI-compatible endpoint), or llm,model=FOLDER.  [default: on the built-in model its own rules]")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Five concepts, seven factors, four prompts: whether it runs.")] = False,
    factors: Annotated[list[float] | None, typer.Option(help="Strengths to steer at (1 = as fitted); repeat it.  [default: AxBench's fourteen, 0.2 to 5]")] = None,
    prompts: Annotated[int | None, typer.Option(min=2, help="Prompts a concept: half choose the factor, half are reported.  [default: 10]")] = None,
    instructions: Annotated[Path | None, typer.Option(help="With --data: instructions to steer on, one a line.  [default: those of the texts]")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Longest reply.  [default: 128; built-in model 64]")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = 1.0,
    rows: Annotated[int | None, typer.Option(min=1, help="Texts of each class to detect a concept in.  [default: 36]")] = None,
    pairs: Annotated[int | None, typer.Option(min=4, help="Pairs to fit on (built-in model).  [default: 32]")] = None,
    site: Annotated[str | None, typer.Option(help="The block, or site, of every arm that doesn't name its own.")] = None,
    seed: Annotated[int, typer.Option(help="Of fits and sampling.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the model loaded once.  [default: a processor each]", show_default=False)] = os.cpu_count() or 1,
    retries: Annotated[int, typer.Option(min=0, help="How often a unit that failed is tried again.")] = 2,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    batch_size: BatchSize = 140,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; the same folder goes on where it was.  [default: runs/axbench-MODEL]")] = None,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """AxBench, whole: detect concepts, steer towards them and away, stand attacks; a leaderboard with intervals.

    On the built-in model it runs offline, with rules as judges. Killed at any point, the same command goes on where it was, with
    the same results. Writes leaderboard.html, .json, .md and .csv.
    """
    from dataclasses import replace

    from .. import pilot
    from ..bench.axbench.board import board
    from ..bench.axbench.folder import FolderAxBench
    from ..bench.axbench.page import write
    from ..bench.axbench.pilot import PilotAxBench
    from ..bench.axbench.run import run
    from ..evals.workers import local
    from ..meter import Meter

    suite: AxSuite
    small = model in pilot.VARIANTS
    if data is not None:
        suite = FolderAxBench(
            data,
            model,
            template,
            revision,
            precision(dtype, quantize),
            device,
            batch_size,
            judge,
            None if instructions is None else str(instructions),
        )
    elif small:
        if quantize is not None:
            raise ConfigError(
                "the built-in model's own concepts run in float32; leave --quantize out, or give --data FOLDER."
            )
        many = pairs or (16 if quick else PAIRS)
        suite = PilotAxBench(model, many, neutral_pairs=many, batch_size=batch_size, device=device, judged_by=judge)
    else:
        raise ConfigError(
            f"the model {model!r} has no concepts of its own; give --data FOLDER (AxBench's layout, or `steerlab bench data`)."
        )
    plan = _plan(suite, _arms(arm, small), _tasks(suite, concepts, quick), small, quick)
    given = {
        "factors": None if factors is None else tuple(factors), "prompts": prompts, "tokens": tokens, "rows": rows,
    }  # fmt: skip
    plan = replace(
        plan, parts=tuple(p.strip() for p in parts.split(",") if p.strip()), temperature=temperature, site=site, seed=seed,
        **{k: v for k, v in given.items() if v is not None},
    )  # fmt: skip
    folder = out or Path("runs") / f"axbench-{Path(model).name}{'-quick' if quick else ''}"
    ran, meter = _measured(run, suite, plan, folder, local, workers, retries, Meter)
    found = board(ran, title=f"AxBench on {Path(ran.about.name).name}", meter=meter)
    written = write(found, folder)
    if json:
        dump(found.to_json())
    else:
        printed(found)
    for line in told(found):
        say(line)
    say(f"wrote {', '.join(str(p) for p in written)}")


@app.command("data")
def data_(
    concepts: Annotated[list[str] | None, typer.Argument(help="Concepts in a few words each.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write, in AxBench's layout.")] = Path("axbench-data"),
    writer: Annotated[str, typer.Option(help="Who writes: llm,model=NAME,url=URL (any OpenAI-compatible endpoint), or llm,model=FOLDER.  [default: the built-in model's own generator, its own concepts]")] = "",
    names: Annotated[Path | None, typer.Option(help="A metadata.jsonl that names concepts (Concept500's, say).")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="The twenty-five rule concepts, too.")] = False,
    instructions: Annotated[Path | None, typer.Option(help="Instructions to answer, one a line, for every genre.  [default: built-in ones]")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Answers with a concept to fit on, and plain ones a genre.")] = 72,
    evals: Annotated[int, typer.Option(min=1, help="Texts of each class to detect a concept in.")] = 36,
    hard: Annotated[int, typer.Option(min=0, help="Hard negatives.")] = 24,
    words: Annotated[int, typer.Option(min=1, help="Longest answer that is asked for.")] = 90,
    seed: Annotated[int, typer.Option(help="Of the instructions' order.")] = 0,
    model: Model = "pilot",
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Write AxBench's data: genres, positives, shared and hard negatives, preference pairs, rule concepts.

    Answers are kept by what was asked (cache=FILE in --writer): the same command asks for what is missing alone. What isn't
    answered is left out and counted.
    """
    from .. import pilot, progress
    from ..bench.axbench import writing
    from ..bench.axbench.exporting import exported
    from ..bench.axbench.pilot import PilotAxBench
    from ..bench.axbench.rules import rule_concepts

    named = [writing.Named(c) for c in concepts or ()]
    named += writing.named_in(names) if names is not None else []
    named += rule_concepts() if rules else ()
    if not writer:
        if named or model not in pilot.VARIANTS:
            raise ConfigError(
                "somebody has to write: --writer llm,model=NAME,url=URL (or a folder); the built-in generator knows its own concepts alone."
            )
        suite = PilotAxBench(model, examples, neutral_pairs=examples)
        made, asked = exported(suite, [t.name for t in suite.tasks()], rows=evals, hard=hard, seed=seed), None
    else:
        client = _client(writer)
        pool: dict[str, list[str]] | None = None
        if instructions is not None:
            from ..loading import read_prompts

            given = [e.instruction for e in read_prompts(str(instructions))]
            pool = dict.fromkeys(writing.GENRES, given)
        options = writing.WriteOptions(examples, evals, hard, words=words, seed=seed)
        with progress.shown():
            made, asked = writing.write(client, named, options, pool), client.tally
    paths = writing.save(made, out)
    if json:
        dump({**made.to_json(), "asked": None if asked is None else asked.to_json()})
    say(made.told())
    if asked is not None:
        say(f"writer: {asked.told()}")
    say(f"wrote {', '.join(str(p) for p in paths)}")


def _client(spec: str) -> Client:
    """Who writes. Raises `ConfigError`."""
    from .. import config
    from ..judges.client import Client
    from ..judges.spec import settings_of

    name = spec.split(",", 1)[0].strip()
    if name != "llm":
        raise ConfigError(f"the writer is {name!r}; expected a language model: llm,model=NAME,url=URL (or a folder).")
    return config.build(Client, {"temperature": 1.0, "max_tokens": 300, **settings_of(spec)}, where="the writer")


def _measured(
    run: Any, suite: AxSuite, plan: AxPlan, folder: Path, local: Any, workers: int, retries: int, meters: Any
) -> tuple[Any, dict[str, Any]]:
    """Run it, and say what it took."""
    from .. import progress

    with meters() as meter, progress.shown(), local(suite, workers, threads=1) as pool:
        ran = run(suite, plan, folder, pool, retries=retries)
    took(meter)
    done = [r["meter"] for r in ran.results.values() if r is not None]
    return ran, {
        **meter.figures(), "work_seconds": round(sum(m["seconds"] for m in done), 1),
        "work_cpu_seconds": round(sum(m.get("cpu_seconds", 0.0) for m in done), 1),
    }  # fmt: skip


def _plan(suite: AxSuite, arms: tuple[ArmPlan, ...], tasks: tuple[str, ...], small: bool, quick: bool) -> AxPlan:
    from ..bench.axbench.units import AxPlan

    settings: dict[str, Any] = {"tokens": 64 if small else 128, **(QUICK if quick else {})}
    return AxPlan(arms, tasks, **settings)


def _arms(given: list[str] | None, small: bool) -> tuple[ArmPlan, ...]:
    """The arms that were named, with prompting and nothing beside; else the usual ones."""
    from ..bench.axbench.arms import labelled, usual
    from .evaluate import parse_arm

    every = usual(small=small)
    if not given:
        return every
    known = {a.name: a for a in every}
    named = [known[a] if a in known else labelled(parse_arm(a)) for a in given]
    names = {a.name for a in named}
    return (*(a for a in every[:2] if a.name not in names), *named)


def _tasks(suite: AxSuite, given: str | None, quick: bool) -> tuple[str, ...]:
    """The concepts: so many, spread over all there are, or those named."""
    names = [t.name for t in suite.tasks()]
    if given is not None and not given.isdigit():
        return tuple(dict.fromkeys(p.strip() for p in given.split(",") if p.strip()))
    if given is not None and int(given) < 1:
        raise ConfigError(f"--concepts is {given}; expected how many (from 1), or names with commas between.")
    many = min(len(names), QUICK_CONCEPTS if quick and given is None else int(given or CONCEPTS))
    return tuple(names[k * len(names) // many] for k in range(many))


def printed(board: Board) -> None:
    """The leaderboard, for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..bench.axbench.board import AWAY, DETECTION, STEERING
    from ..bench.axbench.words import sortable

    out = console()
    for title, columns in (("steering", STEERING), ("suppression", AWAY), ("detection", DETECTION)):
        if not board.has(columns[:1]):
            continue
        lines = sorted(board.lines, key=lambda one, first=columns[0]: -sortable(one, first))
        rows = [
            [line.label, *(_cell(line.figures[c.key], c, wide=c is columns[0]) for c in columns)]
            for line in lines
            if line.figures[columns[0].key].mean is not None
        ]
        heads = ["method", *("\n".join(c.name.lower().split()) for c in columns)]
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
            header_style="",
            pad_edge=False,
        )
        shown = _fitting(heads, rows, out.width)
        for n in shown:
            table.add_column(heads[n], justify="right" if n else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(row[n] for n in shown))
        out.print(table)
    out.print(
        "ratings from 0 to 2, with 95 % intervals; the factor is chosen on one half of the prompts, the figures are of the other"
    )


def _fitting(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The columns that fit: where not all do, what was won and lost goes first, then the last ones, never the first two."""
    widths = [
        2 + max(len(part) for text in (head, *(row[n] for row in rows)) for part in text.split("\n"))
        for n, head in enumerate(heads)
    ]
    shown = list(range(len(heads)))
    for n in sorted(shown[2:], key=lambda n: (heads[n] not in ("won", "lost"), -n)):
        if sum(widths[k] for k in shown) > width:
            shown.remove(n)
    return shown


def _cell(estimate: Any, column: Column, *, wide: bool) -> str:
    if estimate.mean is None:
        return "–"
    mean, low, high = (f"{column.scale * v:.{column.decimals}f}" for v in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]" if wide or console().width >= 140 else mean


def told(board: Board) -> list[str]:
    """What was counted, and what the judge took."""
    c = board.counts
    lines = [
        f"{c['arms']} arms × {c['concepts']} concepts × {c['factors']} factors × {c['prompts']} prompts: {c['fits']} fits, {c['replies']:,} replies,"
        f" {c['ratings']:,} ratings ({c['missing']:,} missing), {c['texts']:,} texts read ({c['cut']:,} cut; {c['cut_fitted']:,} in fits,"
        f" {c['cut_prompts']:,} prompts), {c['units']:,} units"
    ]  # fmt: skip
    if board.asked:
        a = board.asked
        lines.append(
            f"judge: {a['wanted']:,} ratings asked for, {a['kept']:,} known before, {a['calls']:,} calls ({a['retries']:,} repeated), {a['unreadable']:,}"
            f" unreadable, {a['unanswered']:,} unanswered; {a['prompt_tokens']:,} + {a['answer_tokens']:,} tokens, cost {a['cost']:.4f}"
        )
        if a["unanswered"]:
            lines.append("run the same command again to ask for what was not answered")
    lines += [f"failed: {f['unit']}: {f['reason']}" for f in board.failed[:SHOWN]]
    if len(board.failed) > SHOWN:
        lines.append(f"and {len(board.failed) - SHOWN} more, in leaderboard.json")
    return lines
