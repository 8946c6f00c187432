"""`steerlab data`: check a contrast set, make one with the model itself, convert, and list the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    BatchSize,
    Config,
    Device,
    Dtype,
    IsRendered,
    Json,
    Model,
    OneThinking,
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
    from ..contrast import Example

app = typer.Typer(help="Contrast data: check it, make it, convert it.", no_args_is_help=True)

Layout = Annotated[str | None, typer.Option(help="The layout, where it isn't recognised (`steerlab data layouts`).")]
Concept = Annotated[str | None, typer.Option(help="Which concept, where the data holds several.")]


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="A file or folder, or pilot:NAME.")],
    layout: Layout = None,
    concept: Concept = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Check lengths and the template against this model.")] = None,
    template: TemplateOption = "chat",
    system: System = None,
    thinking: OneThinking = None,
    rendered: IsRendered = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Tell what a contrast set holds and what is wrong with it; exits with 1 where something is an error."""
    from ..data import check as checked
    from ..data.render import table
    from ..loading import load, read_data

    contrast = read_data(file, layout=layout, concept=concept)
    engine = None
    if model is not None:
        engine = load(model, template=template, system=system, thinking=switched(thinking), rendered=rendered)
    report = checked(contrast, engine=engine)
    if json:
        dump(report.to_json())
    else:
        console().print(table(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def make(
    concept: Annotated[str, typer.Argument(help="What the answers should show, in a few words.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The contrast set (.jsonl).")],
    instructions: Annotated[Path | None, typer.Option(help="Instructions, one a line, or JSON Lines of examples.  [default: the pilot's]")] = None,
    rule: Annotated[str | None, typer.Option(help="Keep pairs that this rule tells apart: words:a,b or words:@FILE or regex:...")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs wanted.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Order of the instructions, and of drawing.")] = 0,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    system: System = None,
    thinking: Thinking = None,
    batch_size: BatchSize = 32,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Make pairs for a concept: the model answers each instruction plain, and asked for the concept."""
    from .. import progress
    from ..data import MakeOptions
    from ..data import make as made
    from ..data.render import made as rendered
    from ..judges.spec import parse_rule
    from ..loading import load
    from ..meter import Meter

    options = MakeOptions(pairs=pairs, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    judge = None if rule is None else parse_rule(rule)
    with Meter() as meter, progress.shown():
        engine = load(
            model,
            revision=revision,
            dtype=precision(dtype, quantize),
            device=device,
            template=template,
            batch_size=batch_size,
        )
        asks = written(_instructions(instructions, pairs, seed), system, thinking)
        found = made(engine, concept, asks, out=out, judge=judge, options=options)
    if json:
        dump(found.report.to_json())
    else:
        console().print(rendered(found.report))
    say(f"wrote {out}")
    took(meter)


@app.command()
def convert(
    file: Annotated[str, typer.Argument(help="A file or folder of any layout, or pilot:NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines.")],
    layout: Layout = None,
    concept: Concept = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs drawn from the corpus (pilot:NAME).")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    config: Config = None,
) -> None:
    """Write contrast data as our own JSON Lines."""
    from ..data import write
    from ..loading import read_data

    contrast = read_data(file, n=pairs, seed=seed, layout=layout, concept=concept)
    write(contrast, out)
    say(f"wrote {out}: {len(contrast.positive)} positive and {len(contrast.negative)} negative examples")


@app.command()
def layouts(json: Json = False, config: Config = None) -> None:
    """List the layouts that can be read."""
    from rich.table import Table

    from .. import data

    found = data.layouts()
    if json:
        dump([layout._asdict() for layout in found])
        return
    table = Table("layout", "what", "expects", box=None, header_style="bold")
    for layout in found:
        table.add_row(*layout)
    console().print(table)


def _instructions(path: Path | None, pairs: int, seed: int) -> list[Example]:
    from .. import pilot

    if path is None:
        return list(pilot.prompts("ordinary", n=3 * pairs, seed=seed, split="train"))
    return instructions_from(path)


def written(examples: Sequence[Example], system: str | None, thinking: str | None) -> list[Example]:
    """The instructions with a system message and a switch of thinking, both of which the pairs then say themselves.

    With `both`, every second instruction is answered with thinking.
    """
    from ..contrast import Message

    ways: tuple[bool | None, ...] = (True, False) if thinking == "both" else (switched(thinking),)
    made: list[Example] = []
    for n, e in enumerate(examples):
        bare = system is None or e.messages[0].role == "system"
        messages = e.messages if bare else (Message("system", system or ""), *e.messages)
        way = ways[n % len(ways)]
        made.append(replace(e, messages=messages, thinking=e.thinking if way is None else way))
    return made


def instructions_from(path: Path) -> list[Example]:
    """Instructions of a file: one a line, or JSON Lines of examples. Raises `DataError`."""
    from ..contrast import Example
    from ..errors import DataError
    from ..evals.files import read_examples

    if path.suffix == ".jsonl":
        return list(read_examples(str(path)))
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} can't be read as UTF-8 text: {problem}.") from problem
    found = [Example.ask(line) for line in lines if line]
    if not found:
        raise DataError(f"{path} holds no instruction; expected one a line.")
    return found
