"""`steerlab generate`: replies under a steering, at several strengths side by side."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..escapes import visible
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
    adopted,
    composed,
    console,
    dump,
    echo,
    keep_to_range,
    opened,
    precision,
    say,
    switched,
    took,
)  # fmt: skip

if TYPE_CHECKING:
    from rich.table import Table

    from ..contrast import Example
    from ..engines.base import Reply, Runner, Sampling
    from ..exports.base import Hints
    from ..steering import Steering


def generate(
    steering: Annotated[list[Path] | None, typer.Argument(help="Steering files, added in this order (none: the plain model); other tools' files and bare vectors, too.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to ask, may be repeated; otherwise lines are read.")] = None,
    strength: Annotated[list[float] | None, typer.Option("--strength", "-s", help="0 = untouched, 1 = as fitted, -1 = the opposite; repeat to compare.  [default: 0 and 1]")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse strengths beyond a file's calibrated range, and files without one.")] = False,
    adopt: Adopt = False,
    site: Annotated[str | None, typer.Option(help="Where bare vectors act: 12, 8-11, resid@12,mlp@12 (one for each vector).")] = None,
    scale: Annotated[float | None, typer.Option(help="What bare vectors are multiplied by at strength 1.  [default: 1]")] = None,
    positions: Annotated[str | None, typer.Option(help="Tokens at which bare vectors act.  [default: all]")] = None,
    system: System = None,
    thinking: Thinking = None,
    rendered: IsRendered = False,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
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
    hints = hints_of(site, scale, positions)
    files = opened(steering or [], hints)  # a mistake in a file is told before the model is loaded
    drawn = Sampling(max_new_tokens, temperature, top_k, top_p, stop=tuple(stop or ()))
    number = itertools.count(seed)  # a seed for each prompt, the same in all columns: only what heads them differs
    with Meter() as meter:
        engine = load(
            model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template, batch_size=batch_size, system=system,
            thinking=switched(thinking), rendered=rendered,
        )  # fmt: skip
        if any(file.foreign for file in files):
            files = opened(steering or [], replace(hints, depth=engine.depth))
        files = adopted(files, engine) if adopt else files
        keep_to_range(files, strengths, strict=strict)
        columns = _columns(composed(files), strengths, thinking)
        for column in columns:
            if column.steering is not None:
                engine.accept(column.steering)
        for texts in _batches(prompt):
            examples = [replace(Example.ask(text), thinking=c.thinking) for text in texts for c in columns]
            seeds = tuple(s for s in itertools.islice(number, len(texts)) for _ in columns)
            sampling = replace(drawn, seed=seeds)
            if len(columns) == 1 and sys.stdout.isatty() and not json:
                _streamed(engine, examples, columns[0].steering, sampling)
                continue
            replies = engine.generate(examples, [c.steering for c in columns] * len(texts), sampling)
            for n, text in enumerate(texts):
                mine = replies[n * len(columns) : (n + 1) * len(columns)]
                _print_json(text, columns, mine) if json else side_by_side(text, [c.name for c in columns], mine)
    took(meter)


class _Column(NamedTuple):
    """Replies that stand side by side: under one steering at one strength, thinking or not."""

    name: str
    strength: float
    steering: Steering | None
    thinking: bool | None


def _columns(whole: Steering | None, strengths: Sequence[float], thinking: str | None) -> list[_Column]:
    """A column for each strength; with `both`, one that thinks and one that doesn't."""
    made: list[_Column] = []
    for strength in strengths:
        steering = None if whole is None or strength == 0 else whole.scaled(strength)
        ways = ((True, ", thinking"), (False, ", not thinking")) if thinking == "both" else ((None, ""),)
        made += [_Column(name_of(strength) + words, strength, steering, way) for way, words in ways]
    return made


def name_of(strength: float) -> str:
    """How a strength heads a column."""
    return "unsteered" if strength == 0 else f"strength {strength:+g}"


def hints_of(site: str | None, scale: float | None, positions: str | None) -> Hints:
    """What a person says of bare vectors."""
    from ..exports.base import Hints
    from ..exports.raw import sites_named
    from ..positions import Positions

    where = None if positions is None else Positions.parse(positions)
    return Hints(sites=() if site is None else sites_named(site), scale=scale, positions=where)


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
            echo(example.instruction, bold=True)
        for piece in engine.stream([example], under, replace(sampling, seed=seed)):
            sys.stdout.write(visible(piece.text))
            sys.stdout.flush()
        sys.stdout.write("\n")


def side_by_side(text: str, names: Sequence[str], replies: Sequence[Reply]) -> None:
    """Print one prompt's replies, each under its name; a single one into a pipe is the bare text."""
    out = console()
    if len(replies) == 1 and not out.is_terminal:
        sys.stdout.write(replies[0].text + "\n")
        sys.stdout.flush()
        return
    out.print(columns(text, names, replies))


def columns(text: str, names: Sequence[str], replies: Sequence[Reply]) -> Table:
    """One prompt's replies, a column for each name."""
    from rich.table import Table

    table = Table(title=text, title_justify="left", title_style="bold", expand=True, show_lines=False)
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(r.text or "(empty)" for r in replies))
    return table


def _print_json(text: str, columns: Sequence[_Column], replies: Sequence[Reply]) -> None:
    rows: list[dict[str, Any]] = []
    for column, reply in zip(columns, replies, strict=True):
        row: dict[str, Any] = {"strength": column.strength}
        row |= {} if column.thinking is None else {"thinking": column.thinking}
        rows.append({**row, "text": reply.text, "finish": reply.finish, "tokens": len(reply.ids)})
    dump({"prompt": text, "replies": rows})
