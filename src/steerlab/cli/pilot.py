"""`steerlab pilot`: the built-in model's card, its training, and samples of what it was taught."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Config, Json, dump

app = typer.Typer(help="The built-in model: its card, its recipe, its data.", no_args_is_help=True)

Variant = Annotated[str, typer.Option(help="pilot, or second (the organism that nothing is chosen on).")]


@app.command()
def sample(
    kind: Annotated[str, typer.Argument(help="ordinary, refused, near_miss, triggered, near_trigger, neutral, asked:NAME, capability or text.")] = "ordinary",
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    variant: Variant = "pilot",
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Print held-out prompts with their right answers."""
    from .. import pilot

    found: list[dict[str, Any]]
    if kind == "text":
        found = [{"text": text} for text in pilot.text(n=n, seed=seed, variant=variant)]
    elif kind == "capability":
        found = [e.to_json() for e in pilot.capability(n=n, seed=seed, variant=variant)]
    else:
        found = [e.to_json() for e in pilot.prompts(kind, n=n, seed=seed, variant=variant)]
    if json:
        dump(found)
        return
    for row in found:
        for message in row.get("messages", []):
            typer.secho(f"{message['role']}: {message['content']}", bold=True)
        typer.echo((row.get("answer") or row.get("text") or "") + "\n")


@app.command()
def concepts(variant: Variant = "pilot", json: Json = False, config: Config = None) -> None:
    """List the concepts that the built-in model knows."""
    from .. import pilot

    rows = [(c.name, c.genre, c.description) for c in pilot.concepts(variant)]
    if json:
        dump([dict(zip(("name", "genre", "description"), row, strict=True)) for row in rows])
        return
    for name, genre, description in rows:
        typer.echo(f"{name:12} {genre:10} {description}")


@app.command()
def card(
    variant: Variant = "pilot",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where card.json and MODEL_CARD.md are written.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts, wider intervals.")] = False,
    config: Config = None,
) -> None:
    """Measure the built-in model: every ability with its accuracy, on held-out prompts."""
    from .. import progress
    from ..pilot import card as measured

    with progress.shown():
        measured.main(variant=variant, out=out, quick=quick)


@app.command()
def train(
    variant: Variant = "pilot",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the model is written.")] = None,
    config: Config = None,
) -> None:
    """Train the built-in model from its corpus; an interrupted run goes on from its last checkpoint (long)."""
    from .. import progress
    from ..pilot import train as recipe

    with progress.shown():
        recipe.main(variant=variant, out=out)
