"""`steerlab compose A B ...`: what steerings do to each other's effects and to the joint cost, and how best to join them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (  # fmt: skip
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
    console,
    dump,
    precision,
    refuse_overwriting,
    say,
    switched,
    took,
)

if TYPE_CHECKING:
    from ..evals.compose import Interference
    from ..evals.joining import Part
    from ..evals.suite import Suite
    from ..steering import Steering


def compose(
    steering: Annotated[list[Path], typer.Argument(help="Two or more steering files.")],
    strength: Annotated[list[float] | None, typer.Option("--strength", "-s", help="One for each, in their order.  [default: the calibrated one, else 1]")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="What each is measured on, in their order: contrast data, or pilot:NAME.  [default: what their files say]")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="What tells each behaviour in your data, in their order.")] = None,
    neutral_file: Annotated[str | None, typer.Option("--neutral", help="JSON Lines of unrelated prompts with answers, for KL.")] = None,
    items_file: Annotated[str | None, typer.Option("--items", help="JSON Lines of capability items with the tag 'right'.")] = None,
    text: Annotated[str | None, typer.Option(help="Held-out text, for perplexity.")] = None,
    lost: Annotated[float, typer.Option(help="Joint budget: share of capability items (0: no limit).")] = 0.02,
    kl: Annotated[float, typer.Option(help="Joint budget: nats of KL a token on neutral prompts (0: no limit).")] = 0.1,
    perplexity: Annotated[float, typer.Option(help="Joint budget: share of perplexity on held-out text (0: no limit).")] = 0.05,
    matrix: Annotated[bool, typer.Option("--matrix/--no-matrix", help="Measure every pair, or the whole compositions alone.")] = True,
    prompts: Annotated[int, typer.Option(min=2, help="Dev prompts of each effect in the matrix.")] = 12,
    test: Annotated[int, typer.Option(min=2, help="Test prompts of each effect in a composition.")] = 24,
    items: Annotated[int, typer.Option(min=0, help="Capability items.")] = 200,
    tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 64,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The proposed composition's file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The matrices as a picture (.svg).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files where they exist.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Measure what steerings do to each other, and propose an order, overlaps taken out, or smaller strengths."""
    from .. import progress
    from ..evals import heatmap
    from ..evals.compose import Asked, interference
    from ..evals.guarantee import Budget
    from ..meter import Meter

    for path in (out, picture):
        if path is not None:
            refuse_overwriting(path, force)
    loaded: dict[str, Any] = {
        "revision": revision, "dtype": precision(dtype, quantize), "device": device, "template": template, "batch_size": batch_size,
        "system": system, "thinking": switched(thinking), "rendered": rendered,
    }  # fmt: skip
    suite, parts = _parts(steering, strength, data, rule, model, loaded, (neutral_file, items_file, text))
    asked = Asked(
        Budget(lost or None, kl or None, perplexity or None),
        prompts,
        test,
        items=items,
        tokens=tokens,
        seed=seed,
        matrix=matrix,
    )
    with Meter() as meter, progress.shown():
        if adopt:
            taken = adopted([Opened(Path(p.name), p.steering) for p in parts], suite.engine())
            parts = [replace(part, steering=file.steering) for part, file in zip(parts, taken, strict=True)]
        found = interference(suite, parts, asked)
    if json:
        dump(found.to_json())
    else:
        printed(found)
    if picture is not None:
        say(f"wrote {heatmap.save(found, picture)}")
    if out is not None:
        found.best.steering.save(out)
        say(f"wrote {out}")
    took(meter)


def printed(found: Interference) -> None:
    """The matrix, the compositions and the warnings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    names = [p.name for p in found.parts]
    if any(c is not None for row in found.change for c in row):
        for title, cells in (("effect of the column beside the row, less alone", found.change), ("cross-talk: the row alone on the column", found.cross)):  # fmt: skip
            table = Table(title=f"{title} (points)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for head in ("", *names):
                table.add_column(head, justify="right")
            for name, row in zip(names, cells, strict=True):
                table.add_row(name, *("·" if c is None or c.mean is None else f"{100 * c.mean:+.0f}" for c in row))
            out.print(table)
    table = Table(title="together, on test prompts", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for head in ("composition", "effects kept %", "capability lost", "KL", "perplexity", ""):
        table.add_column(head, justify="left" if not head or head == "composition" else "right")
    for w in found.wholes:
        cells = [f"{100 * c.mean:.1f}" if (c := w.costs.get("lost")) and c.mean is not None else "–"]
        cells += [
            f"{c.mean:.3f}" if (c := w.costs.get(n)) and c.mean is not None else "–" for n in ("kl", "perplexity")
        ]
        kept = "–" if w.kept.mean is None else f"{100 * w.kept.mean:.0f} [{100 * (w.kept.low or 0):.0f}, {100 * (w.kept.high or 0):.0f}]"  # fmt: skip
        mark = "proposed" if w.chosen else ""
        table.add_row(w.name, kept, *cells, f"{mark}{' (over: ' + ', '.join(w.over) + ')' if w.over else ''}".strip())
    out.print(table)
    out.print(f"proposed: {found.best.name}, {found.best.words}", style="bold")
    for line in found.warnings:
        out.print(f"warning: {line}")


def _parts(
    paths: list[Path], strengths: list[float] | None, data: list[str] | None, rules: list[str] | None, model: str,
    loaded: dict[str, Any], files: tuple[str | None, str | None, str | None],
) -> tuple[Suite, list[Part]]:  # fmt: skip
    """Each steering with its task and strength, and what all are measured on. Raises `ConfigError` where numbers differ."""
    from ..errors import ConfigError
    from ..evals.files import FileSuite, ManySuite
    from ..steering import Steering
    from .calibrate import source_of, suite_for

    for name, given in (("--strength", strengths), ("--data", data), ("--rule", rules)):
        if given and len(given) != len(paths):
            raise ConfigError(
                f"{len(given)} {name} for {len(paths)} steerings; give one for each, in their order, or none."
            )
    steerings = [Steering.load(p) for p in paths]
    sources = data or [source_of(s, str(p)) for s, p in zip(steerings, paths, strict=True)]
    found = [
        suite_for(source, model, loaded, 64, (rules[n] if rules else None, None, None), *files)
        for n, source in enumerate(sources)
    ]
    suites = [suite for suite, _ in found]
    if isinstance(suites[0], FileSuite):
        named = [s for s in suites if isinstance(s, FileSuite)]
        if len(named) < len(suites):
            raise ConfigError("some steerings are measured on the pilot's tasks and some on files; give files for all.")
        whole: Suite = ManySuite(tuple(named))
    elif all(s == suites[0] for s in suites):
        whole = suites[0]
    else:
        raise ConfigError(
            f"the steerings are measured on different models or suites ({', '.join(sources)}); give one for all."
        )
    names = [p.stem for p in paths]
    parts = [
        _part(
            f"{name} {k + 1}" if names.count(name) > 1 else name, s, task, None if strengths is None else strengths[k]
        )
        for k, (name, s, (_, task)) in enumerate(zip(names, steerings, found, strict=True))
    ]
    return whole, parts


def _part(name: str, steering: Steering, task: str, given: float | None) -> Part:
    from ..evals.joining import Part
    from ..evals.unit import signed_domain
    from ..ranges import sides

    strength = given
    if strength is None:
        known = sides(steering.meta.range)
        strength = next((s.default for s in known.values() if s.default is not None), 1.0)
    up, _ = signed_domain(steering, None, "elicit")
    return Part(name, steering, task, "elicit" if up and strength > 0 else "suppress", strength)
