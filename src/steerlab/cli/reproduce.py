"""`steerlab reproduce CLAIM`: a published figure beside the one reached here, and a receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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

UNIT = "factors are in this library's unit: 1 is the effect as fitted"


def reproduce(
    claim: Annotated[str | None, typer.Argument(help="The claim; none: list them.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Every claim with its source, figures and what is known here.")] = False,
    scale: Annotated[Literal["full", "pilot"] | None, typer.Option(help="full: the published figure on your model. pilot: the pattern on the built-in one.  [default: pilot for --model pilot, else full]")] = None,
    setting: Annotated[str | None, typer.Option(help="Which of the published settings (model and block).")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Items, or AxBench's concept rows.")] = None,
    fit_on: Annotated[str | None, typer.Option(help="Contrast data that the steering is fitted on.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Instructions, one in each line.")] = None,
    judge: Annotated[str | None, typer.Option("--judge", "-j", help="A judge in a line of text, such as llm,model=...,what=all.")] = None,
    concepts: Annotated[int | None, typer.Option(min=1, help="Only the first so many concepts.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="At the pilot's scale: fewer prompts and epochs.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 42,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    batch_size: BatchSize = 32,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where receipts are kept.")] = Path("runs/reproduce"),
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Run a published claim with its locked configuration, and say what it comes to beside what was published."""
    if list_ or claim is None:
        listed(out, json)
        return
    from .. import pilot, progress
    from ..errors import ConfigError
    from ..loading import load
    from ..meter import Meter
    from ..reproduce.claims import claim as named
    from ..reproduce.full import Given
    from ..reproduce.run import run_full, run_small, write
    from ..reproduce.small import Size

    found = named(claim)
    small = (scale or ("pilot" if model in pilot.VARIANTS else "full")) == "pilot"
    if small and model not in pilot.VARIANTS:
        raise ConfigError(
            f"--scale pilot runs on the built-in models ({', '.join(pilot.VARIANTS)}), not on {model!r}; use --scale full."
        )
    which = None if small else found.setting(setting)
    with Meter() as meter, progress.shown():
        engine = load(
            model,
            revision=revision,
            dtype=precision(dtype, quantize),
            device=device,
            template=template,
            batch_size=batch_size,
        )
        if small:
            size = (
                Size(pairs=24, prompts=8, items=12, suite=12, epochs=3, strengths=(1.0, 1.5), tokens=40)
                if quick
                else Size()
            )
            receipt = run_small(found, engine, size, model)
        else:
            receipt = run_full(found, which, engine, Given(data, fit_on, prompts, judge, concepts, seed))
    path = write(receipt, out)
    dump(receipt) if json else printed(receipt, found.figures)
    say(f"wrote {path}")
    took(meter)


def printed(receipt: dict[str, Any], figures: dict[str, float]) -> None:
    """The claim, its source, and what was found."""
    out = console()
    out.print(receipt["says"], style="bold")
    out.print(f"  {receipt['source']['title']}, {receipt['source']['where']}: {receipt['source']['url']}", style="dim")
    if receipt["note"]:
        out.print(f"  Note: {receipt['note']}.")
    if receipt["scale"] == "full":
        found, published = receipt["reached"], receipt["published"]
        value = "–" if found["mean"] is None else f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        out.print(
            f"  {receipt['setting'] or receipt['model']}: published {'–' if published is None else published}, reached {value}: {receipt['verdict']}"
        )
        return
    out.print(
        f"  published: {', '.join(f'{k} {v:g}' for k, v in figures.items()) or 'no number'}; on the built-in model only the pattern counts"
    )
    for part in receipt["pattern"]:
        d = part["difference"]
        told = "–" if d["mean"] is None else f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        out.print(f"  {part['finding']:15} {part['words']}  {told}")
    out.print(f"  the pattern: {receipt['verdict']}")


def listed(folder: Path, json: bool) -> None:
    """Every claim with its source, its figures, and what is known here of each."""
    from ..reproduce.claims import receipts, registry, status

    claims, _ = registry()
    done = receipts(folder)
    rows: list[dict[str, Any]] = [
        {
            "claim": c.name, "says": c.says, "source": f"{c.source.title}, {c.source.where}: {c.source.url}", "config": c.config,
            "figures": {s: {"published": v, "here": status(c, s, done)} for s, v in c.figures.items()} or {"": {"published": None, "here": status(c, None, done)}},
            "tolerance": c.tolerance, "pilot": [r["verdict"] for r in done if r["claim"] == c.name and r["scale"] == "pilot"][-1:],
        }
        for c in claims.values()
    ]  # fmt: skip
    if json:
        dump(rows)
        return
    out = console()
    for row in rows:
        out.print(row["claim"], style="bold", end="  ")
        out.print(row["says"])
        out.print(f"  {row['source']}", style="dim")
        for setting, told in row["figures"].items():
            published = "no number is published" if told["published"] is None else f"published {told['published']:g}"
            out.print(f"  {setting + ': ' if setting else ''}{published}, {told['here']}")
        if row["pilot"]:
            out.print(f"  on the built-in model, the pattern: {row['pilot'][0]}")
    out.print(UNIT, style="dim")
