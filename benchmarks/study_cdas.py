"""What of a CDAS fit buys what: start, tangent, gain, poles, epochs; quality, effect, cost and time. `make study`.

Four kinds of models: the pilot, its second organism, stories260k (a model that nobody here trained) and a model of books,
trained here in minutes. On each, problems that no step size was chosen on, at a third, a half and three quarters of the depth.
The published recipe's step size is chosen from a grid on problems of their own, at each site.

* quality: held-out Jensen–Shannon divergence, as a share of that without an edit (0 perfect, 1 no effect), under the
  interchange where that is what is trained (`swap`), and under the clamp that is served (`served`).
* up: how far the clamp at strength 1 takes the log-likelihood of the concept's held-out answers under plain prompts from
  what it is there (0) to what it is under the concept's prompts (1); left: the same at strength -1 under the concept's
  prompts (0 as under plain prompts, 1 as unsteered); plain: the change of the likelihood of plain answers under plain
  prompts at strength 1, in nats a token (what it costs).
* time: CPU seconds of a whole fit, what is kept included, against one `diff_means` fit at the site (two sequences a
  pair) and against the published loop, transcribed (`peers/published.py`), whose epochs all take as long.

Every fit is journalled as a line of JSON and taken from there the next time; ends with `bar NAME VALUE GOAL RUN` lines.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import books
import stories
import torch
from peers import published

import steerlab as sl
from steerlab import pilot, progress
from steerlab.config import to_dict
from steerlab.contrast import Contrast, Example
from steerlab.engines.hf import HFEngine
from steerlab.methods.cdas import CDAS
from steerlab.methods.diff_means import DiffMeans
from steerlab.pilot.suite import PilotSuite

PAIRS, TESTS, EPOCHS = 40, 24, 18
DEPTHS = {"third": 1 / 3, "half": 1 / 2, "three quarters": 3 / 4}
GRID = (0.02, 0.04, 0.08)
COMMON: dict[str, Any] = {"rank": 1, "start": "paired", "early": 0.0, "batch_size": 8, "held_out": 0.2, "flat": 1.0}
TANGENT = {**COMMON, "poles": "factors", "optimiser": "tangent", "step": 0.04}
SPHERE = {**COMMON, "poles": "factors", "optimiser": "sphere", "step": 0.15}
ARMS: dict[str, dict[str, Any]] = {
    "published": {},
    "published + tangent": {"optimiser": "tangent"},
    "published + paired start": {"start": "paired"},
    "tangent, paired, 2 epochs": {**TANGENT, "epochs": 2},
    "sphere, paired, 2 epochs": {**SPHERE, "epochs": 2},
    "gain, 2 epochs": {**SPHERE, "poles": "gain", "epochs": 2},
    "gain, 6 epochs": {**SPHERE, "poles": "gain", "epochs": 6},
    "poles, 2 epochs": {**SPHERE, "poles": "trained", "epochs": 2},
    "poles, 6 epochs": {**SPHERE, "poles": "trained", "epochs": 6},
    "free (no gradients)": {"rank": 1, "epochs": 0, "early": 0.0, "held_out": 0.2},
    "defaults": {},
    "defaults, rank 1": {"rank": 1},
    "defaults, rank 1, 1 epoch": {"rank": 1, "epochs": 1},
    "defaults, rank 1, 2 epochs": {"rank": 1, "epochs": 2},
    "defaults, 2 epochs": {"epochs": 2},
}
OLD = tuple(name for name in ARMS if name.startswith("published"))
STEPPED = {"published + paired start": "published"}  # whose step size it takes; the others' are chosen for themselves


@dataclass(frozen=True)
class World:
    """A model, and problems on it: names to choose step sizes on, and names to report."""

    name: str
    engine: Callable[[], HFEngine]
    contrast: Callable[[str, int, int], Contrast]
    tuned_on: Sequence[str]
    problems: Sequence[str]


def worlds(folder: Path, few: int | None) -> list[World]:
    found: list[World] = []
    for variant in ("pilot", "second"):
        names = [c.name for c in pilot.concepts(variant)]
        found.append(
            World(
                variant,
                partial(lambda v: PilotSuite(v, batch_size=32).engine(), variant),
                partial(lambda v, name, n, seed: pilot.contrast(name, n=n, seed=seed, variant=v), variant),
                names[1:2],
                names[0::5][:3],
            )
        )
    if not stories.SHARED.is_dir():
        print(
            f"no shared data at {stories.SHARED} (set STEERLAB_SHARED): the books' and the stories' models are left out."
        )
        return [replace(w, problems=w.problems[:few]) for w in found]
    texts = books.Books.read(stories.SHARED / "data/texts")
    names = list(books.BOOKS)
    found.append(World("books", lambda: books.engine(texts, folder / "books"), texts.contrast, names[:1], names[1:5]))
    small = functools.cache(
        lambda: sl.load(str(stories.SHARED / "models/stories260k"), template="plain", dtype="float32", batch_size=32)
    )
    found.append(
        World(
            "stories260k", small, lambda name, n, seed: mood(small(), name, n, seed), ["seed 0"], ["seed 1", "seed 2"]
        )
    )
    return [replace(w, problems=w.problems[:few]) for w in found]


def mood(engine: HFEngine, name: str, n: int, seed: int) -> Contrast:
    made = stories.contrast(engine, n + 8, 100 * int(name.split()[1]) + seed)
    return replace(made, positive=made.positive[:n], negative=made.negative[:n], concept=name)


# --- one fit ----------------------------------------------------------------------------------------------------------


def recipe(arm: str, site: int, steps: Mapping[str, float], seed: int) -> CDAS:
    if arm in OLD:
        base = CDAS.published(site=str(site), step=steps[arm], epochs=EPOCHS, seed=seed)
        return replace(base, held_out=0.2, **ARMS[arm])
    return CDAS(site=str(site), seed=seed, **ARMS[arm])


def likelihood(
    engine: HFEngine, examples: Sequence[Example], steering: sl.Steering | None, strength: float = 1.0
) -> float:
    under = [steering.scaled(strength) if steering else None] * len(examples)
    tokens = torch.cat(engine.logprobs(examples, under))
    return float(tokens.mean())


def effects(engine: HFEngine, test: Contrast, steering: sl.Steering) -> dict[str, float]:
    crossed = [Example(n.messages, p.answer) for p, n in test.pairs]
    concept, plain = [p for p, _ in test.pairs], [n for _, n in test.pairs]
    low, high = likelihood(engine, crossed, None), likelihood(engine, concept, None)
    return {
        "room": high - low,
        "up": (likelihood(engine, crossed, steering) - low) / (high - low),
        "left": (likelihood(engine, concept, steering, -1.0) - low) / (high - low),
        "plain": likelihood(engine, plain, steering) - likelihood(engine, plain, None),
    }


def fitted(
    engine: HFEngine, world: World, problem: str, arm: str, site: int, steps: Mapping[str, float]
) -> dict[str, Any]:
    made = recipe(arm, site, steps, seed=0)
    data, test = world.contrast(problem, PAIRS, 0), world.contrast(problem, TESTS, 1)
    began = time.process_time()
    steering = made.fit(engine, data)
    seconds = time.process_time() - began
    told = steering.meta.figures["divergence"]
    curve = [v / told["unsteered"] for v in told["held_out"]]
    served = steering.meta.figures["divergence_served"] / told["unsteered"]
    return {
        "seconds": seconds, "curve": curve, "swap": min(curve), "served": served, "unsteered": told["unsteered"],
        "gain": steering.meta.figures.get("gain"), **effects(engine, test, steering),
    }  # fmt: skip


def loop_seconds(engine: HFEngine, data: Contrast, site: int) -> float:
    """One epoch of the published loop, without what it measures."""
    ways: list[tuple[published.Rows, published.Rows]] = []

    def rows(examples: Sequence[Example]) -> published.Rows:
        batches = [engine.batch([e], close=False) for e in examples]
        return [(b.ids[0].tolist(), int(b.prompt_length[0])) for b in batches]

    train = data.pairs[: int(0.8 * len(data.pairs))]
    for p, n in train:
        ways.append((rows([Example(n.messages, p.answer), Example(p.messages, n.answer)]), rows([p, n])))
    loop = published.Loop(engine.model, engine.anatomy.blocks[site], int(engine.batch([train[0][0]]).head[0]))
    start = torch.randn(engine.width(sl.Site(site)), generator=torch.Generator().manual_seed(0))
    order = [torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()]
    began = time.process_time()
    published.train_cdas(loop, ways, start / start.norm(), order, step=0.04, batch=8)
    return time.process_time() - began


def means_seconds(engine: HFEngine, data: Contrast, site: int) -> float:
    made = DiffMeans(site=str(site), pooling="response")
    times: list[float] = []
    for _ in range(3):
        began = time.process_time()
        made.fit(engine, data)
        times.append(time.process_time() - began)
    return statistics.median(times)


def seconds_beside(engine: HFEngine, data: Contrast, site: int) -> dict[str, float]:
    return {"epoch": loop_seconds(engine, data, site), "means": means_seconds(engine, data, site)}


# --- all of them ------------------------------------------------------------------------------------------------------


class Journal:
    """A line of JSON for each piece of work that is done."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self.found = path, dict[str, dict[str, Any]]()
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.found[row["key"]] = row

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.found:
            self.found[key] = {"key": key, **make()}
            with self._path.open("a") as file:
                file.write(json.dumps(self.found[key]) + "\n")
        return self.found[key]


def studied(world: World, journal: Journal, depths: Mapping[str, float], arms: Sequence[str]) -> list[dict[str, Any]]:
    engine = world.engine()
    sites = {depth: min(int(engine.depth * share), engine.depth - 1) for depth, share in depths.items()}
    tuned = [arm for arm in OLD if arm not in STEPPED]
    total = len(sites) * (len(GRID) * len(tuned) * len(world.tuned_on) + len(arms) * len(world.problems))
    found: list[dict[str, Any]] = []
    with progress.task(f"studying {world.name}", total) as bar:
        for depth, site in sites.items():
            steps: dict[str, float] = {}
            for arm in (a for a in OLD if a in arms and a not in STEPPED):
                scores: dict[float, float] = {}
                for step in GRID:
                    ends: list[float] = []
                    for problem in world.tuned_on:
                        key = f"{world.name} {site} {problem} {arm} {step}"
                        ends.append(
                            journal.get(key, partial(fitted, engine, world, problem, arm, site, {arm: step}))["swap"]
                        )
                        bar.advance()
                    scores[step] = statistics.median(ends)
                steps[arm] = min(scores, key=scores.__getitem__)
            steps |= {arm: steps[of] for arm, of in STEPPED.items() if of in steps}
            for problem in world.problems:
                data = world.contrast(problem, PAIRS, 0)
                took = journal.get(
                    f"{world.name} {site} {problem} times",
                    partial(seconds_beside, engine, data, site),
                )
                for arm in arms:
                    key = f"{world.name} {site} {problem} {arm} {to_dict(recipe(arm, site, steps or dict.fromkeys(OLD, 0.04), 0))}"
                    row = journal.get(key, partial(fitted, engine, world, problem, arm, site, steps))
                    found.append(
                        {**row, "arm": arm, "world": world.name, "depth": depth, "problem": problem, "times": took}
                    )
                    bar.advance()
    return found


def spread(values: Iterable[float], digits: int = 2) -> str:
    values = sorted(values)
    return (
        f"{statistics.median(values):.{digits}f} [{values[0]:.{digits}f}, {values[-1]:.{digits}f}]" if values else "-"
    )


def table(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    heads = ("swap", "served", "up", "left", "plain", "x diff_means", "x published loop")
    print(f"{'arm':26}" + "".join(f"{head:>22}" for head in heads))
    for arm in arms:
        mine = [r for r in rows if r["arm"] == arm]
        cells = [spread(r[head] for r in mine) for head in ("swap", "served", "up", "left", "plain")]
        cells.append(spread((r["seconds"] / r["times"]["means"] for r in mine), 1))
        cells.append(spread((EPOCHS * r["times"]["epoch"] / r["seconds"] for r in mine), 1))
        print(f"{arm:26}" + "".join(f"{cell:>22}" for cell in cells))


def plateau(curve: Sequence[float]) -> int:
    """The epoch from which a curve is within 2 % of its own end."""
    return next(n for n, v in enumerate(curve) if v <= 1.02 * curve[-1])


def reaching(row: Mapping[str, Any], goal: float) -> bool:
    return min(row["served"], row["swap"]) <= goal


def bars(rows: Sequence[Mapping[str, Any]], arm: str) -> list[tuple[str, float, float]]:
    """Those of one arm against the published recipe, on the same problems."""
    of = {(r["world"], r["depth"], r["problem"]): r for r in rows if r["arm"] == "published"}
    mine = [r for r in rows if r["arm"] == arm]
    late = [r for r in mine if r["depth"] == "three quarters"]
    here = [(r, of[r["world"], r["depth"], r["problem"]]) for r in late]
    good = sum(r["served"] <= p["swap"] for r, p in here) / len(here)
    fit = statistics.median(r["seconds"] / r["times"]["means"] for r in late)
    whole = statistics.median(EPOCHS * r["times"]["epoch"] / r["seconds"] for r in late)
    stopped = statistics.median(max(plateau(p["curve"]), 1) * r["times"]["epoch"] / r["seconds"] for r, p in here)
    name = arm.replace(", ", "_").replace(" ", "_")
    found = [
        (f"{name}_share_at_least_as_good", good, 0.5), (f"{name}_price_in_diff_means_5_over", 5 / fit, 1.0),
        (f"{name}_against_whole_schedule", whole, 18.0), (f"{name}_against_its_plateau", stopped, 2.0),
    ]  # fmt: skip
    for depth in dict.fromkeys(r["depth"] for r in mine):
        ratios = [r["served"] / of[r["world"], depth, r["problem"]]["swap"] for r in mine if r["depth"] == depth]
        found.append((f"{name}_divergence_{depth.replace(' ', '_')}_.85_over", 0.85 / statistics.median(ratios), 1.0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="pilot,second,books,stories260k")
    parser.add_argument("--depths", default=",".join(DEPTHS))
    parser.add_argument("--arms", help="parts of names, with commas between")
    parser.add_argument("--problems", type=int, help="at most so many of each model")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    arms = [a for a in ARMS if not given.arms or any(part in a for part in given.arms.split("|"))]
    journal = Journal(given.out / "fits.jsonl")
    depths = {name: share for name, share in DEPTHS.items() if name in given.depths.split(",")}
    rows: list[dict[str, Any]] = []
    with progress.shown():
        for world in worlds(given.out, given.problems):
            if world.name in given.worlds.split(","):
                rows += studied(world, journal, depths, arms)
    run = hashlib.sha256(json.dumps(sorted(r["key"] for r in rows)).encode()).hexdigest()[:8]
    print(
        f"run {run}: steerlab {sl.__version__}, torch {torch.__version__}, one thread, {PAIRS} pairs, medians [least, most]"
    )
    for world in dict.fromkeys(r["world"] for r in rows):
        for depth in depths:
            mine = [r for r in rows if (r["world"], r["depth"]) == (world, depth)]
            print(f"\n{world}, {depth} of the depth, {len({r['problem'] for r in mine})} problems")
            table(mine, arms)
    if "published" in arms:
        for arm in (a for a in arms if a not in OLD):
            for name, value, goal in bars(rows, arm):
                print(f"bar {name} {value:.2f} {goal:.2f} {run}{'' if value >= goal else '   (short)'}")


if __name__ == "__main__":
    main()
