"""`steerlab demo`: the main job from end to end on the built-in model, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Config, say, took

PAIRS = 32
SHOWN = ("pirate", "Describe a kitchen to a friend.")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where steerings, report and figures are written.")] = Path("runs/demo"),
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    config: Config = None,
) -> None:  # fmt: skip
    """Fit CDAS on contrast data, steer both ways, measure effect beside cost, and write a report."""
    from .. import pilot, progress
    from ..engines.base import Sampling
    from ..evals.measure import Amounts
    from ..evals.unit import ArmPlan, Plan
    from ..loading import load
    from ..meter import Meter
    from ..methods.base import method
    from ..pilot.suite import PilotSuite
    from .evaluate import measured, printed
    from .generate import name_of, side_by_side
    from .show import drawn

    concept, prompt = SHOWN
    with Meter() as meter, progress.shown():
        engine = load("pilot")
        say(f"1. fit: CDAS on {PAIRS} pairs of {concept!r} talk")
        steering = method("cdas").fit(engine, pilot.contrast(concept, n=PAIRS, seed=0))
        path = out / f"{concept}.safetensors"
        steering.save(path)
    drawn(steering, path)
    took(meter)

    say("\n2. steer: one prompt, both ways")
    strengths = (-1.0, 0.0, 1.0, 1.25)
    for text in (prompt, f"{prompt} {pilot.request(concept, seed=1)}"):
        replies = engine.generate([text] * 4, [steering.scaled(s) for s in strengths], Sampling(64))
        side_by_side(text, [name_of(s) for s in strengths], replies)

    say("\n3. measure: effect and cost of four arms on refusal and a concept, three fits each")
    plan = Plan(
        arms=tuple(ArmPlan(n, n) for n in ("cdas", "diff_means", "random", "prompt")),
        tasks=("refusal", concept), seeds=(0, 1, 2), strengths=(0.5, 1.0, 1.25, 1.5),
        dev=Amounts(8, 30, 2, 0, 56), test=Amounts(14, 48, 6, 6, 56),
    )  # fmt: skip
    results = measured(
        PilotSuite(pairs=PAIRS), plan, out, workers=workers, title="The demonstration: refusal and a concept"
    )
    printed(results)
    say(f"\nopen {out / 'report.html'} in a browser; the steering is {path}")
