"""What `--dry-run` says against what the fit then takes, for every trained method on the pilot. `make bench-forecast`.

Each fit runs in a process of its own: the forecast first, then the fit, so that memory is its own. Wall-clock seconds; memory is
the process's peak beyond what it held before the fit. Ends with `bar` lines: the share of methods within 30 % in time.
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


def child(name: str, task: str, pairs: int) -> None:
    torch.set_num_threads(1)
    engine, data = sl.load("pilot"), sl.read_data(f"pilot:{task}", n=pairs)
    cls = plugins.load(name)
    made = sl.method(name, {**cls.small})
    engine.logits(data.positive[:2])
    said = forecast(made, engine, data)
    before = peak_mib()
    figures = made.fit(engine, data).meta.figures
    print(json.dumps({"said": said._asdict(), "seconds": figures["seconds"], "grew": peak_mib() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pirate")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--only", help="names of methods, with commas between")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.task, given.pairs)
        return
    names = [n for n in plugins.names() if issubclass(plugins.load(n), Trained)]
    run, ratios = uuid.uuid4().hex[:8], list[float]()
    print(f"run {run}: steerlab {sl.__version__}, torch {torch.__version__}, one thread, {given.pairs} pairs of {given.task}")
    for name in names:
        if given.only and name not in given.only.split(","):
            continue
        command = [sys.executable, __file__, "--child", name, "--task", given.task, "--pairs", str(given.pairs)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            print(f"{name:14} failed: {done.stderr.strip().splitlines()[-1]}")
            ratios.append(float("inf"))
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        ratios.append(found["seconds"] / found["said"]["seconds"])
        print(
            f"{name:14} {found['said']['steps']:5} steps  said {found['said']['seconds']:6.1f} s, took {found['seconds']:6.1f} s"
            f" ({ratios[-1]:.2f})  said {found['said']['memory_mib']:6.0f} MiB, grew {found['grew']:6.0f} MiB after the forecast",
            flush=True,
        )
    near = sum(1 / 1.3 <= r <= 1.3 for r in ratios) / len(ratios)
    print(f"bar forecast_within_30_percent {near:.2f} 1.00 {run}{'' if near >= 1 else '   (short)'}")


if __name__ == "__main__":
    main()
