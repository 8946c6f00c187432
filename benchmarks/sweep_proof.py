"""Does a sweep that is killed end as one that isn't? `make sweep-proof` (minutes).

A sweep of more than 200 small units on the pilot, undisturbed; the same from the start, killed (SIGKILL) at ten random moments
and begun again each time; and once more on Ray, with a worker killed. Each must end with the same digest of every unit;
a killed worker may lose its own unit alone. Ends with `bar NAME VALUE GOAL` lines.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from steerlab.config import to_yaml
from steerlab.errors import ArtefactError
from steerlab.meter import Meter
from steerlab.sweep.journal import Journal, Row

SWEEP = {
    "concepts": ["formal", "pirate", "refusal", "backdoor"],
    "methods": {"diff_means": None, "pca": None, "probe": None, "das": {"epochs": 1, "rank": 1}},
    "layers": [1, 3, 5], "seeds": 2, "strengths": [1.0], "controls": ["random"], "together": 2, "pairs": 6, "prompts": 2,
    "capability": 0, "unrelated": 1, "tokens": 4,
}  # fmt: skip


def rows(folder: Path) -> list[Row]:
    """The journal's units; none before there is one."""
    try:
        with Journal(folder, read_only=True) as journal:
            return list(journal.rows().values())
    except ArtefactError:
        return []


def done(folder: Path) -> int:
    return sum(row.state == "done" for row in rows(folder))


def begun(config: Path, folder: Path, workers: int, *words: str) -> subprocess.Popen[bytes]:
    """The command, as a person would give it."""
    command = [sys.executable, "-m", "steerlab", "sweep", config, "--out", folder, "--workers", str(workers), *words]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def to_the_end(process: subprocess.Popen[bytes], folder: Path) -> float:
    with Meter() as meter:
        if process.wait():
            raise SystemExit(f"the sweep in {folder} failed; see {folder.parent / folder.name}.log")
    return meter.seconds


def killed(config: Path, folder: Path, workers: int, kills: int, units: int, draw: random.Random) -> list[int]:
    """Kill it so many times: when a number of units is done that is drawn from those left, and a moment after."""
    at: list[int] = []
    for n in range(kills):
        least = done(folder)
        goal = least + draw.randint(0, max((units - least) * 2 // (kills - n + 2), 0))
        process = begun(config, folder, workers)
        while done(folder) < goal or not any(row.state == "claimed" for row in rows(folder)):
            if process.poll() is not None:
                raise SystemExit(f"it ended before it could be killed; see {folder.parent / folder.name}.log")
            time.sleep(0.01)
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        at.append(done(folder))
    return at


def kill_a_worker(folder: Path, after: int) -> None:
    """Kill a worker at work, once so many units are done."""
    while True:
        if done(folder) >= after and (claimed := [row for row in rows(folder) if row.state == "claimed"]):
            os.kill(int(str(claimed[0].worker).rpartition(":")[2]), signal.SIGKILL)
            return
        time.sleep(0.01)


def digests(folder: Path) -> dict[str, str | None]:
    return {row.inputs: row.outputs for row in rows(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep-proof"))
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with an interrupted proof; times are then not whole"
    )
    given = parser.parse_args()
    out = given.resume or given.out / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    config = out / "sweep.yaml"
    config.write_text(to_yaml(SWEEP))
    bars: dict[str, float] = {}

    took = to_the_end(begun(config, out / "undisturbed", given.workers), out / "undisturbed")
    wanted = digests(out / "undisturbed")
    print(f"undisturbed: {len(wanted)} units with {given.workers} workers in {took:.0f} s", flush=True)
    bars["units"] = len(wanted)

    draw = random.Random(given.seed)
    with Meter() as meter:
        at = killed(config, out / "killed", given.workers, given.kills, len(wanted), draw)
        to_the_end(begun(config, out / "killed", given.workers), out / "killed")
    print(
        f"killed at {', '.join(map(str, at))} of {len(wanted)} units done, then finished: {meter.seconds:.0f} s in all"
    )
    bars["kills"] = len(at)
    bars["same_digests_when_killed"] = share(digests(out / "killed"), wanted)

    if find_spec("ray") is None:
        print("Ray isn't installed (pip install 'steerlab[ray]'): that part is left out")
    else:
        process = begun(config, out / "ray", given.workers, "--on", "ray")
        killer = threading.Thread(target=kill_a_worker, args=(out / "ray", len(wanted) // 3), daemon=True)
        killer.start()
        took = to_the_end(process, out / "ray")
        twice = [row.name for row in rows(out / "ray") if row.tried > 1]
        print(f"on Ray, a worker killed: {took:.0f} s; done twice: {', '.join(twice)}")
        bars["same_digests_on_ray"] = share(digests(out / "ray"), wanted)
        bars["lost_with_a_killed_worker"] = -len(twice)
    for name, value in bars.items():
        goal = {"units": 200, "kills": 10, "lost_with_a_killed_worker": -1}.get(name, 1.0)
        print(f"bar {name} {value:.3f} {goal:.3f}{'' if value >= goal else '   (short)'}")


def share(found: dict[str, str | None], wanted: dict[str, str | None]) -> float:
    """The share of units with the digest that was wanted; 0 where there are others."""
    return (
        sum(found[key] == wanted[key] is not None for key in wanted) / len(wanted) if set(found) == set(wanted) else 0.0
    )


if __name__ == "__main__":
    main()
