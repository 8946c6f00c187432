"""`steerlab sweep`: concepts x methods x layers x seeds x strengths, from one YAML file; and how one stands."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from .common import Config, Json, dump, echo, say, took

if TYPE_CHECKING:
    from ..evals.suite import Suite
    from ..evals.workers import Workers
    from ..sweep.config import Sweep

HELP = """Fit and measure every concept × method × layer × seed × strength of a YAML file, and report it on one page.

Killed at any point, the same command goes on where it was, with the same results. `steerlab sweep status FOLDER` tells
how one stands, from any terminal.

```yaml
concepts: [formal, pirate, refusal]   # none: every behaviour of the built-in model
methods:
  diff_means:
  cdas: {epochs: 4}
  cdas16: {method: cdas, rank: 16}    # a name of your own
layers: [2, 4]                        # or all; none: each method's own
seeds: 2
strengths: [0.5, 1, 1.5]
```

Further keys, with their defaults: controls [random, prompt], together 8 (concepts fitted in one pass), pairs 64, prompts 24,
capability 100, unrelated 16, tokens 64, budget 0.1, curves true, title; model pilot, revision, dtype, device, template,
batch_size 64. On a model of your own each concept has its data and a rule that tells it:
`concepts: {formal: {data: formal.jsonl, rule: "words:hence,thus"}}`, and neutral, items and text as in
`steerlab evaluate`. A key that doesn't exist is an error that names the line and the nearest one that does.
"""
FAILED = 1
SHOWN = 10
NAMES = {"done": "done", "claimed": "running", "waiting": "to do", "failed": "failed"}

app = typer.Typer(help="Sweeps; `steerlab sweep --help` tells what they are.", no_args_is_help=True)


def sweep(
    file: Annotated[Path, typer.Argument(help="The YAML file, or the word status.", metavar="CONFIG.yaml", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; the same folder goes on where it was.  [default: runs/ and the file's name]")] = None,
    on: Annotated[Literal["local", "ray"], typer.Option(help="local: processes of this machine. ray: a Ray cluster (the extra 'ray').")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Workers, each with the model loaded once.  [default: a processor each; with --gpus, as many as there are GPUs for]")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker; results are bit for bit the same only for the same number.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each worker's own.")] = 0,
    device_map: Annotated[str | None, typer.Option(help="Spread the model over a worker's GPUs: auto, balanced, balanced_low_0 or sequential (needs accelerate).")] = None,
    address: Annotated[str | None, typer.Option(help="The Ray cluster's.  [default: RAY_ADDRESS, else one is started here]")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a unit that failed is tried again.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the units, and the steps, time, memory and disk that they will take.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Run a sweep, or tell what it will take."""
    from .. import progress
    from ..evals import report
    from ..meter import Meter
    from ..sweep.config import Sweep
    from ..sweep.run import run
    from .evaluate import printed

    asked = Sweep.read(file)
    placed = device_map or asked.device or (None if not gpus else "cuda" if gpus == 1 else "auto")
    asked = replace(asked, device=placed)
    suite, folder = asked.suite(), out or Path("runs") / file.stem
    with (
        Meter() as meter,
        progress.shown(),
        _hired(suite, on, 1 if dry_run else workers, threads, gpus, address) as pool,
    ):
        if dry_run:
            _forecast(asked, suite, pool, workers or _most(gpus), json)
            return
        results = run(
            suite, partial(asked.plan, suite), folder, pool, together=asked.together, retries=retries, title=asked.title
        )
        report.write(results, folder / "report.html")
    if json:
        dump({"table": [asdict(row) for row in results.table], "failed": results.failed})
    else:
        printed(results)
    for failed in results.failed[:SHOWN]:
        say(f"failed: {failed['unit']} (tried {failed['attempts']} times): {failed['reason']}")
    if len(results.failed) > SHOWN:
        say(f"and {len(results.failed) - SHOWN} more: `steerlab sweep status {folder}` lists them")
    took(meter)
    say(f"wrote {folder / 'report.html'}, {folder / 'results.json'} and {folder / 'steerings'}")
    if results.failed:
        raise typer.Exit(FAILED)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="The folder of the sweep.")],
    json: Json = False,
    config: Config = None,
) -> None:
    """Tell how a sweep stands: what is done, running and failed, and how long it will take. It disturbs nothing."""
    from ..sweep.status import STATES, in_words
    from ..sweep.status import status as read

    found = read(folder)
    if json:
        dump(asdict(found))
        return
    echo(found.words)
    for kind, of in found.counts.items():
        echo(f"  {kind:8} " + ", ".join(f"{of[state]} {NAMES[state]}" for state in STATES if state in of))
    for unit, worker, seconds in found.running:
        echo(f"  running for {in_words(seconds)} on {worker}: {unit}")
    for unit, tried, reason in found.failed:
        echo(f"  failed, tried {tried} times: {unit}: {reason}")


def _forecast(asked: Sweep, suite: Suite, pool: Workers, workers: int, json: bool) -> None:
    """Say what it will take."""
    from ..evals.workers import completed
    from ..sweep.forecast import Forecasting

    plan = asked.plan(suite, pool.known().depth)
    ((_, expected),) = completed(pool, {"forecast": Forecasting(plan, asked.together)})
    dump({**expected._asdict(), "workers": workers}) if json else echo(expected.words(workers))


def _hired(suite: Suite, on: str, workers: int | None, threads: int, gpus: int, address: str | None) -> Workers:
    """The workers that were asked for; none is started before there is something to do."""
    if on == "ray":
        from ..evals.workers_ray import RayWorkers

        return RayWorkers(suite, workers, threads=threads, gpus=gpus, address=address)
    if address is not None:
        raise ConfigError("--address is of a Ray cluster; give --on ray, too.")
    from ..evals.workers import local

    return local(suite, workers or _most(gpus), threads=threads, gpus=gpus)


def _most(gpus: int) -> int:
    """How many workers this machine has room for."""
    if not gpus:
        return os.cpu_count() or 1
    import torch

    return max(torch.cuda.device_count() // gpus, 1)
