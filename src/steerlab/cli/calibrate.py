"""`steerlab calibrate`: where a steering works and stays within a damage budget, measured and written into its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

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
    OneThinking,
    Opened,
    Quantize,
    Revision,
    System,
    TemplateOption,
    adopted,
    coloured,
    console,
    dump,
    precision,
    refuse_overwriting,
    say,
    switched,
    took,
)

if TYPE_CHECKING:
    from rich.text import Text

    from ..evals.asked import Setting
    from ..evals.calibrate import Calibrated
    from ..evals.guarantee import Budget
    from ..evals.suite import Suite
    from ..evals.unit import ArmPlan
    from ..steering import Steering


class Limits(TypedDict):
    """A budget, and the costs of it that are left out where there is nothing to measure them with."""

    budget: Budget
    optional: tuple[str, ...]


COSTS = {"lost": ("capability lost, points", 100), "kl": ("KL, nats", 1), "perplexity": ("perplexity, +%", 100)}


def calibrate(
    target: Annotated[str, typer.Argument(help="A steering's file, or contrast data to fit on: a file, a folder, pilot:NAME.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The calibrated steering's file.  [default: the steering's own]")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="What a steering is measured on: contrast data, or pilot:NAME.  [default: what its file says]")] = None,
    rule: Annotated[str | None, typer.Option(help="What tells the behaviour in your data: words:a,b, regex:..., or any judge (`steerlab judge list`).")] = None,
    follows: Annotated[str | None, typer.Option(help="With your data: a judge of following the instruction.")] = None,
    fluent: Annotated[str | None, typer.Option(help="With your data: a judge of fluency.")] = None,
    neutral_file: Annotated[str | None, typer.Option("--neutral", help="JSON Lines of unrelated prompts with answers, for KL.")] = None,
    items_file: Annotated[str | None, typer.Option("--items", help="JSON Lines of capability items with the tag 'right'.")] = None,
    text: Annotated[str | None, typer.Option(help="Held-out text, for perplexity.")] = None,
    arm: Annotated[str, typer.Option("--arm", "-a", help="METHOD, or METHOD,key=value,...: what is fitted to contrast data.")] = "cdas",
    layers: Annotated[str | None, typer.Option(help="Blocks that are tried, commas between (2,3,4), or all.")] = None,
    positions: Annotated[str | None, typer.Option(help="Positions that are tried, with ; between (not_template;decoding).")] = None,
    ranks: Annotated[str | None, typer.Option(help="Ranks that are tried, commas between.")] = None,
    lost: Annotated[float | None, typer.Option(help="Budget: share of capability items (0: no limit).  [default: 0.02, two points, where there are items]")] = None,
    kl: Annotated[float | None, typer.Option(help="Budget: nats of KL a token on neutral prompts (0: no limit).  [default: 0.1]")] = None,
    perplexity: Annotated[float | None, typer.Option(help="Budget: share of perplexity on held-out text (0: no limit).  [default: 0.05 where there are texts]")] = None,
    direction: Annotated[Literal["elicit", "suppress", "both"], typer.Option(help="Which way.")] = "both",
    search: Annotated[Literal["halving", "optuna"], typer.Option(help="What looks through settings and strengths (optuna needs steerlab[tune]).")] = "halving",
    prompts: Annotated[int, typer.Option(min=2, help="Dev prompts of each direction.")] = 24,
    items: Annotated[int, typer.Option(min=0, help="Capability items that certify, at most; two points take some 2,000, and 4,000 where items change both ways.")] = 4000,
    neutrals: Annotated[int, typer.Option(min=0, help="Neutral prompts that certify, at most.")] = 256,
    texts: Annotated[int, typer.Option(min=0, help="Held-out texts that certify, at most.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 64,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs to fit on, from the pilot's corpus.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the fit, and of what is drawn.")] = 0,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    adopt: Adopt = False,
    system: System = None,
    thinking: OneThinking = None,
    rendered: IsRendered = False,
    batch_size: BatchSize = 64,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Find the strengths that are useful and safe, in both directions, and write them into the file.

    A steering's file is calibrated as it is; contrast data is fitted first, at the layer, positions and rank that dev favours.
    """
    from .. import progress
    from ..evals.asked import Asked
    from ..evals.calibrate import calibrate as calibrated
    from ..meter import Meter

    fitted = _loaded(target)
    path = out or (Path(target) if fitted is not None and not target.startswith("hf:") else None)
    if path is None:
        from ..errors import ConfigError

        raise ConfigError("say where the calibrated steering goes: --out FILE.safetensors.")
    if fitted is None or out is not None:
        refuse_overwriting(path, force)
    loaded: dict[str, Any] = {
        "revision": revision, "dtype": precision(dtype, quantize), "device": device, "template": template, "batch_size": batch_size,
        "system": system, "thinking": switched(thinking), "rendered": rendered,
    }  # fmt: skip
    suite, task = suite_for(
        data or (target if fitted is None else source_of(fitted, target)), model, loaded, pairs, (rule, follows, fluent),
        neutral_file, items_file, text,
    )  # fmt: skip
    asked = Asked(
        **limits_of(lost, kl, perplexity),
        directions=("elicit", "suppress") if direction == "both" else (direction,), search=search, prompts=prompts, items=items,
        neutral=neutrals, texts=texts, tokens=tokens, seed=seed,
    )  # fmt: skip
    given: Steering | ArmPlan = fitted if fitted is not None else _arm(arm)
    settings = [] if fitted is not None else tried(suite, layers, positions, ranks)
    with Meter() as meter, progress.shown():
        if fitted is not None and adopt:
            given = adopted([Opened(Path(target), fitted)], suite.engine())[0].steering
        found = calibrated(suite, task, given, asked, settings=settings)
        found.steering.save(path)
    if json:
        dump({"file": str(path), "digest": found.steering.digest, **(found.steering.meta.range or {})})
    else:
        printed(found)
    say(f"wrote {path}; it took {found.ledger.told()}")
    took(meter)


def limits_of(lost: float | None, kl: float | None, perplexity: float | None) -> Limits:
    """The budget of the options: what isn't said has its usual limit, where it can be measured. Raises `ConfigError` for none."""
    from ..evals.guarantee import Budget

    given = {"lost": lost, "kl": kl, "perplexity": perplexity}
    usual = {name: v for name, v in given.items() if v is not None}
    unsaid = tuple(name for name in given if name not in usual)
    return {"budget": replace(Budget(), **{n: v or None for n, v in usual.items()}), "optional": unsaid}


def suite_for(
    data: str, model: str, loaded: dict[str, Any], pairs: int, rules: tuple[str | None, str | None, str | None],
    neutral: str | None = None, items: str | None = None, text: str | None = None,
) -> tuple[Suite, str]:  # fmt: skip
    """What a behaviour is measured on, and its task: the pilot's own suite for pilot:NAME, else one from files."""
    from .. import pilot
    from .evaluate import pilot_suite, suite_of

    variant, _, task = data.partition(":")
    if task and variant in pilot.VARIANTS:
        return pilot_suite(variant, loaded, pairs), task
    suite = suite_of(model, loaded, pairs, data, rules, neutral, items, text, None, None)
    return suite, suite.tasks()[0].name


def tried(suite: Suite, layers: str | None, positions: str | None, ranks: str | None) -> list[Setting]:
    """Every combination of what is named. Raises `ConfigError` for a rank that is no number."""
    from itertools import product

    from ..errors import ConfigError
    from ..evals.asked import Setting

    axes: list[list[tuple[str, Any]]] = []
    if layers == "all":
        axes.append([("site", str(n)) for n in range(suite.engine().depth)])
    elif layers:
        axes.append([("site", piece.strip()) for piece in layers.split(",")])
    if positions:
        axes.append([("positions", piece.strip()) for piece in positions.split(";")])
    if ranks:
        try:
            axes.append([("rank", int(piece)) for piece in ranks.split(",")])
        except ValueError as problem:
            raise ConfigError(
                f"ranks are {ranks!r}; expected whole numbers with commas between, like 1,4,8."
            ) from problem
    return [Setting(dict(made)) for made in product(*axes)] if axes else []


def printed(found: Calibrated) -> None:
    """The range in words, and every strength that was measured."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out, told = console(), found.steering.meta.range or {}
    if found.setting.settings:
        out.print(f"setting: {found.setting.told()}")
    out.print(coloured(told))
    for direction, side in told["directions"].items():
        table = Table(title=direction, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        costs = [n for n in COSTS if any(n in row for row in side["strengths"])]
        for head in ("strength", "effect %", "joint %", *(COSTS[n][0] for n in costs), "budget"):
            table.add_column(head, justify="right")
        for row in side["strengths"]:
            cells = [f"{row['strength']:+g}", *(_number(row[k], 100) for k in ("effect", "joint"))]
            cells += [_number(row.get(n), COSTS[n][1]) for n in costs]
            table.add_row(*cells, _verdict(row))
        out.print(table) if side["strengths"] else out.print(f"{direction}: the signals show nothing within the budget")
        for name, r in side["unresolved"].items():
            out.print(f"  unresolved: {COSTS[name][0]} ({unresolved_words(r, COSTS[name][1])})", style="yellow")
    missing = told["measured"]["unmeasured"]
    if missing:
        out.print(
            f"not in the budget, as there is nothing to measure it with: {', '.join(COSTS[n][0] for n in missing)}",
            style="yellow",
        )


def unresolved_words(r: Mapping[str, Any], scale: float = 1.0) -> str:
    """How finely a cost is known, and what it takes."""
    if not r["n"]:
        return "not measured at this strength"
    takes = "too close to the budget for any number" if r["needed"] is None else f"it takes about {r['needed']}"
    return f"± {scale * (r['half'] or 0):.2g} from {r['n']}; {takes}"


def _verdict(row: dict[str, Any]) -> Text:
    from rich.text import Text

    found = row["verdicts"]
    if not found:
        return Text("not asked", "dim")
    bad = [n for n, v in found.items() if v == "broken"]
    unsure = [n for n, v in found.items() if v == "open"]
    if bad or unsure:
        return Text(f"over: {', '.join(bad)}", "red") if bad else Text(f"unresolved: {', '.join(unsure)}", "yellow")
    return Text("certified", "green")


def _number(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{scale * value:.3g}"


def _loaded(target: str) -> Steering | None:
    from .. import hub
    from ..steering import Steering

    return Steering.load(target) if target.endswith(".safetensors") or hub.is_name(target) else None


def source_of(steering: Steering, target: str) -> str:
    """The pilot's data that a steering was fitted on. Raises `ConfigError` for any other."""
    from .. import pilot
    from ..errors import ConfigError

    pieces = str(steering.meta.data.get("source") or "").split(":")
    if len(pieces) > 2 and pieces[0] == "pilot" and pieces[1] in pilot.VARIANTS:
        return f"{pieces[1]}:{pieces[2]}"
    raise ConfigError(
        f"{target} doesn't say what it is measured on; give --data FILE --rule ..., or --data pilot:NAME."
    )


def _arm(text: str) -> ArmPlan:
    from .evaluate import parse_arm

    return parse_arm(text)
