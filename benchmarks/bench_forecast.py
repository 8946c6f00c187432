"""What `--dry-run` says against what the fit then takes, for every trained method on the pilot. `make bench-forecast`.

Forecast and fit run in a process of their own each, so that memory is their own. Wall-clock seconds; memory is the process's
peak beyond that before the fit. Ends with `bar` lines: the share of methods within 30 % in time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import uuid

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import steerlab as sl
from steerlab import plugins
from steerlab.meter import peak_mib
from steerlab.methods.forecast import forecast
from steerlab.methods.trained import Trained


def child(name: str, fits: bool, task: str, pairs: int) -> None:
    torch.set_num_threads(1)
    engine, data = sl.load("pilot"), sl.read_data(f"pilot:{task}", n=pairs)
    cls = plugins.load(name)
    made = sl.method(name, {**cls.small})
    engine.logits(data.positive[:2])
    if not fits:
        print(json.dumps(forecast(made, engine, data)._asdict()))
        return
    before = peak_mib()
    figures = made.fit(engine, data).meta.figures
    print(json.dumps({"seconds": figures["seconds"], "memory_mib": peak_mib() - before}))


def done(*given: object) -> dict[str, float]:
    """What a process of its own prints. Raises `RuntimeError` with its last line where it fails."""
    found = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(given)], capture_output=True, text=True, env=os.environ
    )
    if found.returncode:
        raise RuntimeError(found.stderr.strip().splitlines()[-1])
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pirate")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--only", help="names of methods, with commas between")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*json.loads(given.child))
        return
    names = [n for n in plugins.names() if issubclass(plugins.load(n), Trained)]
    run, ratios = uuid.uuid4().hex[:8], list[float]()
    print(
        f"run {run}: steerlab {sl.__version__}, torch {torch.__version__}, one thread, {given.pairs} pairs of {given.task}"
    )
    for name in names:
        if given.only and name not in given.only.split(","):
            continue
        try:
            said, took = (done(name, fits, given.task, given.pairs) for fits in (False, True))
        except RuntimeError as error:
            print(f"{name:14} failed: {error}", flush=True)
            ratios.append(float("inf"))
            continue
        ratios.append(took["seconds"] / said["seconds"])
        print(
            f"{name:14} {said['steps']:5} steps  said {said['seconds']:6.1f} s, took {took['seconds']:6.1f} s ({ratios[-1]:.2f})"
            f"  said {said['memory_mib']:6.0f} MiB, took {took['memory_mib']:6.0f} MiB",
            flush=True,
        )
    near = sum(1 / 1.3 <= r <= 1.3 for r in ratios) / len(ratios)
    print(f"bar forecast_within_30_percent {near:.2f} 1.00 {run}{'' if near >= 1 else '   (short)'}")


if __name__ == "__main__":
    main()
