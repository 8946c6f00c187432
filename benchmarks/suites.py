"""Every suite on the built-in model, at numbers of items that tell something. `make suites`

Each suite runs on the model as it is and under CDAS fitted on the suite's own training data (block 2), at the suite's own
strengths; suites without such data, or that write their own vectors, run as they are. One that the built-in model can't take says
so. Printed: the figures with their intervals, what the suite says of the model's soundness, and the time. A suite's report is
kept in a folder of its own for this number of items, block and code, and taken from there the next time.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import steerlab as sl
from steerlab import plugins, progress
from steerlab.engines.hf import HFEngine
from steerlab.errors import UnsupportedError
from steerlab.files import code_digest
from steerlab.steering import Steering
from steerlab.suites.base import Suite, suite
from steerlab.suites.report import write
from steerlab.suites.run import run


def steered(found: Suite[Any], engine: HFEngine, site: str) -> Steering | None:
    """CDAS on the suite's own data, where it has any."""
    try:
        data = found.contrast("pilot")
    except UnsupportedError:
        return None
    return sl.method("cdas", {"site": site}).fit(engine, data)


def told(kept: dict[str, Any]) -> None:
    """One suite's figures."""
    print(f"\n{kept['suite']}: {kept['about']} ({kept['meter']['seconds']:.0f} s)")
    for label, one in kept["conditions"].items():
        figures = [
            f"{name} {e['mean']:.3f}" + ("" if e.get("low") is None else f" [{e['low']:.3f}, {e['high']:.3f}]")
            for name, e in one["metrics"].items()
            if e is not None and e["mean"] is not None
        ]
        print(f"  {label} ({one['rows']} rows): " + "; ".join(figures))
    for line in kept["verdict"]:
        print(f"  ! {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=120, help="items of each kind")
    parser.add_argument("--only", default="", help="names of suites, with commas between")
    parser.add_argument("--site", default="2")
    parser.add_argument("--out", type=Path, default=Path("runs/suites"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = sl.load("pilot")
    with progress.shown():
        for name in plugins.names("suites"):
            if given.only and name not in given.only.split(","):
                continue
            found = suite(name, {"n": given.n})
            kept = given.out / f"{name} {given.n} {given.site} {code_digest()[:8]}" / "suite.json"
            if not kept.exists():
                try:
                    items = found.of_pilot("pilot")
                except UnsupportedError as refusal:
                    print(f"\n{name}: {refusal}", flush=True)
                    continue
                write(run(found, engine, items, steered(found, engine, given.site), variant="pilot"), kept.parent)
            told(json.loads(kept.read_text()))


if __name__ == "__main__":
    main()
