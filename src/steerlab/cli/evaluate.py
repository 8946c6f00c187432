"""`steerlab evaluate`: what steerings do and what they cost, as a table, a report and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Adopt,
    BatchSize,
    Config,
    Device,
    Dtype,
    IsRendered,
    Json,
    Model,
    Quantize,
    Revision,
    System,
    TemplateOption,
    Thinking,
    console,
    dump,
    precision,
    say,
    switched,
    took,
)

if TYPE_CHECKING:
    from ..evals.results import Results, Row
    from ..evals.suite import Suite
    from ..evals.unit import ArmPlan, Plan
    from ..pilot.suite import PilotSuite

ALWAYS = ("random", "prompt")  # beside every method, as is the unsteered model
DONE = {"elicit": "elicited", "suppress": "suppressed"}
COLUMNS = ("strength", "effect", "joint", "lost", "wrong", "refused", "KL", "ppl", "repeats", "n")
NARROW = ("strength", "effect", "joint", "lost", "KL", "n")  # where a terminal has less than WIDE columns
WIDE = 110
BAD = "it is written NAME=METHOD,key=value,... (cdas4=cdas,rank=4), or just METHOD"


def evaluate(
    steering: Annotated[list[Path] | None, typer.Argument(help="Saved steerings to measure beside the methods.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="A behaviour of the pilot, may be repeated.  [default: all]")] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", "-a", help="METHOD, or NAME=METHOD,key=value; may be repeated.  [default: cdas, diff_means]")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Your own contrast data instead of the pilot's tasks.")] = None,
    rule: Annotated[str | None, typer.Option(help="What tells the behaviour in your data: words:a,b, regex:..., or any judge (`steerlab judge list`).")] = None,
    follows: Annotated[str | None, typer.Option(help="With --data: a judge of following the instruction (llm,what=instruction,model=...).")] = None,
    fluent: Annotated[str | None, typer.Option(help="With --data: a judge of fluency (fluency,language=en, or llm,what=fluency,model=...).")] = None,
    neutral: Annotated[str | None, typer.Option(help="JSON Lines of unrelated prompts with answers, for KL.")] = None,
    items: Annotated[str | None, typer.Option(help="JSON Lines of capability items with the tag 'right'.")] = None,
    text: Annotated[str | None, typer.Option(help="Held-out text, for perplexity.")] = None,
    layout: Annotated[str | None, typer.Option(help="The data's layout, where it isn't recognised.")] = None,
    concept: Annotated[str | None, typer.Option(help="Which concept, where the data holds several.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each arm, pairs and prompts drawn anew.")] = 3,
    strengths: Annotated[list[float] | None, typer.Option(help="Sizes tried with both signs.  [default: 0.5, 1, 1.5, 2]")] = None,
    site: Annotated[str | None, typer.Option(help="Site of every arm that names none.  [default: the method's own]")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Profile every layer on dev first, and use the best.")] = False,
    budget: Annotated[float, typer.Option(help="Share of capability items that may be lost when choosing a strength.")] = 0.10,
    prompts: Annotated[int, typer.Option(min=2, help="Test prompts per fit and direction.")] = 24,
    capability: Annotated[int, typer.Option(min=0, help="Capability items per fit.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 64,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs to fit on, from the pilot's corpus.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = os.cpu_count() or 1,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    adopt: Adopt = False,
    system: System = None,
    thinking: Thinking = None,
    rendered: IsRendered = False,
    batch_size: BatchSize = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; the same folder goes on where it was.")] = None,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Measure effect and cost of methods or saved steerings: dev chooses the strength, test reports it.

    The unsteered model, a random direction and the prompt are always beside. Writes report.html and results.json. With
    --thinking both it measures twice, in the folders `thinking` and `not-thinking`.
    """
    from ..evals.measure import split_amounts
    from ..evals.unit import ArmPlan, Plan

    loaded: dict[str, Any] = {
        "revision": revision, "dtype": precision(dtype, quantize), "device": device, "template": template, "batch_size": batch_size,
        "system": system, "thinking": switched(thinking), "rendered": rendered,
    }  # fmt: skip
    suite = suite_of(model, loaded, pairs, data, (rule, follows, fluent), neutral, items, text, layout, concept)
    named = [parse_arm(a) for a in (arm or ([] if steering else ["cdas", "diff_means"]))]
    named += [ArmPlan(p.stem, file=str(p), adopt=adopt) for p in steering or ()]
    named += [ArmPlan(n, n) for n in ALWAYS if n not in {a.name for a in named}]
    dev, test = split_amounts(prompts, capability, tokens)
    plan = Plan(
        arms=tuple(named), tasks=tuple(task or [t.name for t in suite.tasks()]), seeds=tuple(range(seeds)),
        strengths=tuple(strengths or (0.5, 1.0, 1.5, 2.0)), site=site, budget=budget,
        dev=dev, test=test,
    )  # fmt: skip
    folder = out or Path("runs") / datetime.now(UTC).strftime("evaluate-%Y%m%d-%H%M%S")
    runs = {folder: suite}
    if thinking == "both":
        ways = {"thinking": True, "not-thinking": False}
        runs = {
            folder / name: suite_of(
                model, {**loaded, "thinking": way}, pairs, data, (rule, follows, fluent), neutral, items, text, layout, concept
            )
            for name, way in ways.items()
        }  # fmt: skip
    tables: dict[str, Any] = {}
    for place, one in runs.items():
        results = measured(
            one, plan, place, workers=workers, layers=layers, title="What steering does and what it costs"
        )
        tables[place.name] = [_flat(row) for row in results.table]
        if not json:
            printed(results)
        say(f"wrote {place / 'report.html'} and {place / 'results.json'}")
    if json:
        dump(tables if thinking == "both" else tables[folder.name])


def measured(
    suite: Suite, plan: Plan, folder: Path, *, workers: int, layers: bool = False, title: str, notes: Sequence[str] = ()
) -> Results:
    """Run an evaluation, write its report and its JSON, and say what it took."""
    from dataclasses import replace

    from .. import progress
    from ..evals import report
    from ..evals.layers import choose_layer, profile
    from ..evals.run import run
    from ..evals.summarise import summarise
    from ..meter import Meter

    found: list[Any] = []
    if suite.fluent() is None:
        notes = [*notes, "no judge of fluency or of following the instruction: joint success is the effect alone"]
    with Meter() as meter, progress.shown():
        engine = suite.engine()
        if layers:
            every = run(suite, plan, folder, workers=workers, layers=range(engine.depth))
            best, _ = choose_layer(every, plan.budget)
            found, plan = profile(plan, every), replace(plan, site=str(best))
            notes = [*notes, f"site: block {best}, chosen on dev among {engine.depth} blocks for all arms and tasks"]
        units = run(suite, plan, folder, workers=workers)
    workers_peak = max((u["meter"]["peak_mib"] for u in units), default=0.0)
    told = meter.figures() | {
        "worker_peak_mib": workers_peak,
        "units": len(units),
        "fit_and_measure_seconds": round(sum(u["meter"]["seconds"] for u in units), 1),
    }
    results = summarise(suite, plan, units, engine, run=folder.name, title=title, meter=told, layers=found, notes=notes)
    report.write(results, folder / "report.html")
    took(meter)
    return results


def parse_arm(text: str) -> ArmPlan:
    """An arm from `NAME=METHOD,key=value`. Raises `ConfigError`."""
    import yaml

    from .. import config, plugins
    from ..errors import ConfigError
    from ..evals.unit import ArmPlan

    head, *rest = text.split(",")
    name, _, method = head.partition("=")
    method = (method or name).replace("-", "_")
    settings: dict[str, Any] = {}
    for piece in rest:
        key, equals, value = piece.partition("=")
        if not equals:
            raise ConfigError(f"the arm {text!r} has the piece {piece!r}; {BAD}.")
        settings[key.strip()] = yaml.safe_load(value)
    config.build(plugins.load(method), settings, where=f"the arm {text!r}")
    return ArmPlan(name, method, settings)


def printed(results: Results) -> None:
    """The tables, for a terminal: one for each group of tasks and direction."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    names = COLUMNS if out.width >= WIDE else NARROW
    for group, direction in dict.fromkeys((row.group, row.direction) for row in results.table):
        table = Table(
            title=f"{group}, {DONE[direction]}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1),
            header_style="", pad_edge=False,
        )  # fmt: skip
        table.add_column("arm", min_width=max(8, min(16, *(len(row.arm) for row in results.table))))
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for row in results.table:
            if (row.group, row.direction) == (group, direction):
                cells = _cells(row)
                table.add_row(row.arm, *(cells[name] for name in names))
        out.print(table)
    out.print(
        "in percent, with 95 % intervals; lost: points of capability; KL in nats; n: replies judged (+ not judged)"
        + ("; ppl: perplexity of held-out text, a ratio" if names is COLUMNS else "; more in the report")
    )


def _cells(row: Row) -> dict[str, str]:
    missing = f" +{row.effect.missing}" if row.effect.missing else ""
    told = [
        f"{row.strength} tuned" if row.setting == "tuned" else row.strength,
        _share(row.effect), _share(row.joint), _share(row.lost), _percent(row.wrong), _percent(row.refused),
        "–" if row.kl.mean is None else f"{row.kl.mean:.3f}",
        "–" if row.perplexity.mean is None else f"{row.perplexity.mean:.2f}", _percent(row.repetition),
        f"{row.effect.n}{missing}",
    ]  # fmt: skip
    return dict(zip(COLUMNS, told, strict=True))


def _percent(estimate: Any) -> str:
    return "–" if estimate.mean is None else f"{100 * estimate.mean:.0f}"


def _share(estimate: Any) -> str:
    if estimate.mean is None:
        return "–"
    mean, low, high = (f"{round(100 * v) + 0}" for v in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _flat(row: Row) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(row)


def pilot_suite(variant: str, loaded: Mapping[str, Any], pairs: int, *, neutral_pairs: int = 64) -> PilotSuite:
    """The built-in model's suite. Raises `ConfigError` for what its template hasn't got."""
    from ..engines.hf_quantize import taken_apart
    from ..errors import ConfigError
    from ..pilot.suite import PilotSuite

    if loaded.get("thinking") is not None or loaded.get("rendered"):
        raise ConfigError(
            "the built-in model's template has no switch for thinking, and its prompts are not rendered; leave --thinking and"
            " --rendered out."
        )
    if taken_apart(loaded.get("dtype", "auto"))[1] is not None:
        raise ConfigError(
            "the built-in model's own tasks are measured in float32; leave --quantize out, or give your own data (--data FILE"
            " --rule ...)."
        )
    return PilotSuite(
        variant, pairs=pairs, neutral_pairs=neutral_pairs, batch_size=loaded["batch_size"], device=loaded["device"],
        system=loaded.get("system"),
    )  # fmt: skip


def suite_of(
    model: str, loaded: dict[str, Any], pairs: int, data: str | None, rules: tuple[str | None, str | None, str | None],
    neutral: str | None, items: str | None, text: str | None, layout: str | None, concept: str | None,
) -> Suite:  # fmt: skip
    """The pilot's suite, or one from the user's files."""
    from .. import pilot
    from ..errors import ConfigError
    from ..evals.files import FileSuite
    from ..loading import load

    if data is None:
        if model not in pilot.VARIANTS:
            raise ConfigError(
                f"the model {model!r} has no built-in tasks; give your contrast data and what tells the behaviour"
                " (--data FILE --rule words:...)."
            )
        return pilot_suite(model, loaded, pairs, neutral_pairs=pairs)
    rule, following, fluency = rules
    if rule is None:
        raise ConfigError(
            "your own data needs a rule that tells the behaviour in a reply: --rule words:a,b or regex:..."
        )
    return FileSuite(
        data, rule, model, load, layout=layout, concept=concept, neutral_file=neutral, items_file=items, text_file=text,
        following=following, fluency=fluency, **loaded,
    )  # fmt: skip
