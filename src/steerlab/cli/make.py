"""`steerlab make "DESCRIPTION"`: from a sentence to a checked artefact with its range and its card."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .common import (  # fmt: skip
    BatchSize,
    Config,
    Device,
    Dtype,
    Json,
    Model,
    Quantize,
    Revision,
    TemplateOption,
    coloured,
    console,
    dump,
    echo,
    precision,
    say,
    took,
)

if TYPE_CHECKING:
    from ..contrast import Contrast


def make(
    description: Annotated[str, typer.Argument(help="What replies should show, in a few words: \"pirate talk\".")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of everything; the same call goes on where it was.")],
    arm: Annotated[str, typer.Option("--arm", "-a", help="METHOD, or METHOD,key=value,...: what is fitted.")] = "cdas",
    layers: Annotated[str | None, typer.Option(help="Blocks that are tried, commas between, or all.  [default: the method's own]")] = None,
    rule: Annotated[str | None, typer.Option(help="What tells the behaviour: words:a,b, regex:..., or any judge.  [default: judges trained on the data]")] = None,
    instructions: Annotated[Path | None, typer.Option(help="Instructions, one a line, or JSON Lines of examples.  [default: the pilot's, else common ones]")] = None,
    neutral: Annotated[str | None, typer.Option(help="JSON Lines of unrelated prompts with answers, for KL.")] = None,
    items: Annotated[str | None, typer.Option(help="JSON Lines of capability items with the tag 'right'.")] = None,
    text: Annotated[str | None, typer.Option(help="Held-out text, for perplexity.")] = None,
    writer: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint that writes the data.  [default: the model itself]")] = None,
    writer_model: Annotated[str, typer.Option(help="The endpoint's model.")] = "",
    pairs: Annotated[int, typer.Option(min=16, help="Pairs to write.")] = 192,
    gate: Annotated[Literal["auto", "yes", "no"], typer.Option(help="auto: where a direction isn't useful within the budget, and it pays.")] = "auto",
    lost: Annotated[float | None, typer.Option(help="Budget: share of capability items (0: no limit).  [default: 0.02, two points, where there are items]")] = None,
    kl: Annotated[float | None, typer.Option(help="Budget: nats of KL a token on neutral prompts (0: no limit).  [default: 0.1]")] = None,
    perplexity: Annotated[float | None, typer.Option(help="Budget: share of perplexity on held-out text (0: no limit).  [default: 0.05 where there are texts]")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Dev prompts of each direction.")] = 12,
    test: Annotated[int, typer.Option(min=2, help="Test prompts of each direction.")] = 24,
    capability: Annotated[int, typer.Option(min=0, help="Capability items that certify, at most; two points take some 2,000.")] = 2000,
    tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 64,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Go on without showing the data first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and do nothing else.")] = False,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    batch_size: BatchSize = 64,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Make a steering from a description: data, a look at it, fit, range, gate where it pays, test, card, file."""
    from .. import progress
    from ..loading import load
    from ..making.forecast import expected
    from ..making.steps import FILES, MEASURED, Job, make_steering
    from ..meter import Meter
    from .calibrate import limits_of
    from .data import instructions_from
    from .evaluate import parse_arm

    plan = parse_arm(arm)
    loaded: dict[str, Any] = {
        "revision": revision,
        "dtype": precision(dtype, quantize),
        "device": device,
        "template": template,
        "batch_size": batch_size,
    }
    asked = replace(MEASURED, prompts=prompts, items=capability, **limits_of(lost, kl, perplexity))
    with Meter() as meter:
        engine = load(model, **loaded)
        job = Job(
            description, model, plan.method, dict(plan.settings), _layers(layers, engine.depth), rule,
            () if instructions is None else tuple(instructions_from(instructions)), neutral, items, text, writer, writer_model,
            pairs, tokens, gate, asked, test, seed, loaded,
        )  # fmt: skip
        if dry_run:
            told = expected(job, out, engine)
            dump(told.to_json()) if json else echo(told.told())
            return
        agree = _anyhow if yes else _asked
        if yes:
            with progress.shown():
                made = make_steering(job, out, engine, agree)
        else:  # a bar would write over the question
            made = make_steering(job, out, engine, agree)
    if json:
        dump({"folder": str(out), "digest": made.steering.digest, "steps": made.steps, "range": made.steering.meta.range, "test": made.evaluation})  # fmt: skip
    else:
        console().print(coloured(made.steering.meta.range))
        console().print(f"gate: {made.steps['gate']['gate']}")
    say(f"wrote {out / FILES['gate']}, {out / 'card.md'} and {out / 'card.html'}")
    took(meter)


def _layers(text: str | None, depth: int) -> tuple[dict[str, Any], ...]:
    if not text:
        return ()
    names = [str(n) for n in range(depth)] if text == "all" else [piece.strip() for piece in text.split(",")]
    return tuple({"site": name} for name in names)


def _anyhow(contrast: Contrast, told: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> bool:
    return True


def _asked(contrast: Contrast, told: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> bool:
    """Show the data and what is odd about it, and ask. Raises `ConfigError` where there is nobody to ask."""
    from rich.table import Table

    from ..data import check
    from ..data.render import table
    from ..errors import ConfigError

    out = console(err=True)
    shown = Table("instruction", "with the trait", "without", show_lines=True)
    for row in rows:
        shown.add_row(row["instruction"], row["with"], row["without"])
    out.print(shown)
    out.print(table(check(contrast)))
    out.print(
        f"{told['fitted']} pairs to fit; near misses left alone: {', '.join(told['near_misses']) or 'none'}; {told['dropped']}"
    )
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to look at the data; pass --yes to go on without, or run it on a terminal.")
    return typer.confirm("Is this what was meant? Fit to it?", err=True)
