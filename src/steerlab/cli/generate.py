"""`steerlab generate`: replies under a steering, at several strengths side by side."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    BatchSize,
    Config,
    Device,
    Dtype,
    Json,
    Model,
    Revision,
    TemplateOption,
    composed,
    console,
    dump,
    keep_to_range,
    say,
    took,
)  # fmt: skip

if TYPE_CHECKING:
    from rich.table import Table

    from ..contrast import Example
    from ..engines.base import Reply, Runner, Sampling
    from ..steering import Steering


def generate(
    steering: Annotated[list[Path] | None, typer.Argument(help="Steering files, added in this order (none: the plain model).")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to ask, may be repeated; otherwise lines are read.")] = None,
    strength: Annotated[list[float] | None, typer.Option("--strength", "-s", help="0 = untouched, 1 = as fitted, -1 = the opposite; repeat to compare.  [default: 0 and 1]")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse strengths beyond a file's calibrated range, and files without one.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message before each prompt.")] = None,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    template: TemplateOption = "chat",
    batch_size: BatchSize = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 96,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling's share.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Row i draws with seed + i.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends a reply.")] = None,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Reply to prompts under a steering; several strengths are printed side by side.

    Without --prompt, lines are read from the terminal or a pipe, each answered at once.
    """
    from ..contrast import Example
    from ..engines.base import Sampling
    from ..loading import load
    from ..meter import Meter

    strengths = strength or ([0.0, 1.0] if steering else [0.0])
    whole = composed(steering or [])
    keep_to_range(steering or [], strengths, strict=strict)
    under = [_at(whole, s) for s in strengths]
    drawn = Sampling(max_new_tokens, temperature, top_k, top_p, stop=tuple(stop or ()))
    number = itertools.count(seed)  # a seed for each prompt, the same at all strengths: only the strength differs
    with Meter() as meter:
        engine = load(model, revision=revision, dtype=dtype, device=device, template=template, batch_size=batch_size)
        for one in under:
            if one is not None:
                engine.accept(one)
        for texts in _batches(prompt):
            asked = [Example.ask(text, system=system) for text in texts]
            seeds = tuple(s for s in itertools.islice(number, len(texts)) for _ in under)
            sampling = replace(drawn, seed=seeds)
            if len(under) == 1 and sys.stdout.isatty() and not json:
                _streamed(engine, asked, under[0], sampling)
                continue
            replies = engine.generate([e for e in asked for _ in under], list(under) * len(asked), sampling)
            for n, text in enumerate(texts):
                mine = replies[n * len(under) : (n + 1) * len(under)]
                _print_json(text, strengths, mine) if json else side_by_side(text, strengths, mine)
    took(meter)


def _at(whole: Steering | None, strength: float) -> Steering | None:
    return None if whole is None or strength == 0 else whole.scaled(strength)


def _batches(prompts: list[str] | None) -> Iterator[list[str]]:
    """All prompts at once where they were given; otherwise a line at a time, as they come."""
    if prompts:
        yield prompts
        return
    talking = sys.stdin.isatty()
    if talking:
        say("type a prompt and press return; an empty line or Ctrl-D ends.")
    while True:
        if talking:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        text = line.strip()
        if not line or (talking and not text):
            return
        if text:
            yield [text]


def _streamed(engine: Runner, asked: Sequence[Example], under: Steering | None, sampling: Sampling) -> None:
    """A single strength on a terminal appears as it is written."""
    for example, seed in zip(asked, sampling.seeds(len(asked)), strict=True):
        if len(asked) > 1:
            typer.secho(example.instruction, bold=True)
        for piece in engine.stream([example], under, replace(sampling, seed=seed)):
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def side_by_side(text: str, strengths: Sequence[float], replies: Sequence[Reply]) -> None:
    """Print one prompt's replies, a column per strength; a single one into a pipe is the bare text."""
    out = console()
    if len(replies) == 1 and not out.is_terminal:
        sys.stdout.write(replies[0].text + "\n")
        sys.stdout.flush()
        return
    out.print(columns(text, strengths, replies))


def columns(text: str, strengths: Sequence[float], replies: Sequence[Reply]) -> Table:
    """One prompt's replies, a column per strength."""
    from rich.table import Table

    table = Table(title=text, title_justify="left", title_style="bold", expand=True, show_lines=False)
    for strength in strengths:
        table.add_column("unsteered" if strength == 0 else f"strength {strength:+g}", ratio=1, overflow="fold")
    table.add_row(*(r.text or "(empty)" for r in replies))
    return table


def _print_json(text: str, strengths: Sequence[float], replies: Sequence[Reply]) -> None:
    told: list[dict[str, Any]] = [
        {"strength": s, "text": r.text, "finish": r.finish, "tokens": len(r.ids)}
        for s, r in zip(strengths, replies, strict=True)
    ]
    dump({"prompt": text, "replies": told})
