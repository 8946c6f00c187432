"""`steerlab suite NAME`: what a steering does on a known kind of test, with intervals, beside the model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Adopt,
    BatchSize,
    Config,
    Device,
    Dtype,
    Json,
    Model,
    OneThinking,
    Quantize,
    Revision,
    System,
    TemplateOption,
    adopted,
    composed,
    console,
    dump,
    opened,
    precision,
    refuse_overwriting,
    say,
    switched,
    took,
)  # fmt: skip

if TYPE_CHECKING:
    from ..engines.base import Trainable
    from ..steering import Steering
    from ..suites.base import Suite


def suite(
    name: Annotated[str | None, typer.Argument(help="A suite, or a file of your own (.py); none: list them.")] = None,
    steering: Annotated[list[Path] | None, typer.Option("--steering", help="Steering files, added in this order (none: the model alone).")] = None,
    method: Annotated[str | None, typer.Option(help="Fit this method here in place of a file, on --fit-on.")] = None,
    method_set: Annotated[list[str] | None, typer.Option("--method-set", help="A setting of that method, KEY=VALUE; may be repeated.")] = None,
    fit_on: Annotated[str | None, typer.Option(help="Contrast data to fit on: a file, or pilot:NAME.  [default: the suite's own, for the pilot]")] = None,
    strength: Annotated[list[float] | None, typer.Option("--strength", "-s", help="Beside the model as it is; may be repeated.  [default: the suite's own]")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Your items, in the suite's layout.  [default: the pilot's own]")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Items of each kind.  [default: the suite's own]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of the suite, KEY=VALUE; may be repeated.")] = None,
    fluent: Annotated[str | None, typer.Option(help="The judge of whether a reply is language, in a line of text.")] = None,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    adopt: Adopt = False,
    system: System = None,
    thinking: OneThinking = None,
    batch_size: BatchSize = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for suite.json, rows.jsonl and report.md.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Measure a steering by a suite: its table, intervals, what changed, and whether the model stood it.

    `steerlab suite refusal --method cdas` fits on the built-in model and measures there.
    """
    if name in (None, "list"):
        listed(json)
        return
    if out is not None:
        refuse_overwriting(out / "suite.json", force)
    from .. import pilot, progress
    from ..errors import ConfigError
    from ..judges.spec import parse_rule
    from ..loading import load
    from ..meter import Meter
    from ..suites.base import suite as made
    from ..suites.report import printed, write
    from ..suites.run import run

    if steering and method:
        raise ConfigError("--steering and --method are both given; name a file, or a method to fit, one of the two.")
    variant = model if model in pilot.VARIANTS else None
    found = made(str(name), {**_settings(set_), "seed": seed, **({} if n is None else {"n": n})})
    with Meter() as meter, progress.shown():
        items = found.of_pilot(_own(found, variant)) if data is None else found.read(data)
        engine = load(
            model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template, batch_size=batch_size, system=system,
            thinking=switched(thinking),
        )  # fmt: skip
        files = opened(steering or [])
        whole = (
            composed(adopted(files, engine) if adopt else files)
            if method is None
            else fitted(found, engine, method, _settings(method_set), fit_on, variant, seed)
        )
        result = run(
            found, engine, items, whole, strengths=strength, variant=variant if data is None else None,
            fluent=None if fluent is None else parse_rule(fluent), tokens=max_new_tokens, data=data or f"{model}, its own",
        )  # fmt: skip
    written = [] if out is None else write(result, out)
    if json:
        dump(result.to_json())
    else:
        printed(result, console())
    for path in written:
        say(f"wrote {path}")
    took(meter)


def _own(found: Suite[Any], variant: str | None) -> str:
    """The built-in model's name. Raises `ConfigError` where there is none, and so no items without a file."""
    from ..errors import ConfigError

    if variant is None:
        raise ConfigError(
            f"the suite {found.name} has items of its own for the built-in model alone; pass --data ({found.layout})."
        )
    return variant


def fitted(
    found: Suite[Any],
    engine: Trainable,
    method: str,
    settings: dict[str, Any],
    fit_on: str | None,
    variant: str | None,
    seed: int,
) -> Steering:
    """A steering fitted on the data named, or on the suite's own for the built-in model."""
    from ..errors import ConfigError
    from ..loading import read_data
    from ..methods.base import method as made

    if fit_on is not None:
        contrast = read_data(fit_on, seed=seed)
    elif variant is not None:
        contrast = found.contrast(variant)
    else:
        raise ConfigError("there is nothing to fit on: pass --fit-on DATA, or a fitted steering (--steering FILE).")
    return made(method, settings).fit(engine, contrast)


def listed(json: bool) -> None:
    """Every suite that is installed."""
    from .. import plugins

    told = {name: plugins.load(name, "suites") for name in plugins.names("suites")}
    if json:
        dump({name: {"about": c.about, "data": c.layout, "paper": c.paper} for name, c in told.items()})
        return
    out = console()
    for name, cls in told.items():
        out.print(f"{name:18} {cls.about}")
        out.print(f"{'':18} --data: {cls.layout}", style="dim")


def _settings(given: list[str] | None) -> dict[str, Any]:
    import yaml

    from ..errors import ConfigError

    found: dict[str, Any] = {}
    for pair in given or ():
        key, mark, value = pair.partition("=")
        if not mark:
            raise ConfigError(f"--set got {pair!r}; expected KEY=VALUE.")
        found[key.strip()] = yaml.safe_load(value)
    return found
