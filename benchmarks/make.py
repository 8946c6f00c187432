"""`steerlab make` on three descriptions, as a new user would: how long, and how good beside curated data. `make bench-make`

Each description goes through `steerlab make --yes`; then the same method is fitted and calibrated on the corpus's own pairs for
that concept. Both are judged by the corpus's own judge, which had no part in making, on the same test prompts at their default
strengths; where the curated steering has a useful strength and the made one has none, its share is 0. Ends with `bar NAME VALUE GOAL RUN` lines.

    python benchmarks/make.py
    python benchmarks/make.py --concepts pirate --method diff_means --pairs 48 --items 60
"""

from __future__ import annotations

import argparse
import time
import uuid
from dataclasses import replace
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default="pirate,joyful,formal")
    parser.add_argument("--method", default="cdas")
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--items", type=int, default=1200)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--site", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/make"))
    given = parser.parse_args()
    import torch

    from steerlab import pilot
    from steerlab.evals.asked import Asked
    from steerlab.evals.calibrate import calibrate
    from steerlab.evals.measure import Amounts, measure_effects
    from steerlab.evals.stats import mean
    from steerlab.evals.unit import ArmPlan
    from steerlab.making.steps import Job, make_steering
    from steerlab.pilot.suite import PilotSuite
    from steerlab.ranges import in_words, sides

    torch.set_num_threads(1)
    run, suite = uuid.uuid4().hex[:8], PilotSuite(pairs=64)
    engine = suite.engine()
    asked = Asked(
        prompts=given.prompts,
        items=given.items,
        lot=min(100, given.items),
        neutral=96,
        texts=64,
        pairs=12,
        tokens=given.tokens,
    )
    settings = {} if given.site is None else {"site": given.site}
    shares, took, everything = [], [], Amounts(given.test, 0, 0, 0, given.tokens)
    for concept in given.concepts.split(","):
        description = pilot.concept(concept).description
        wall, began = time.perf_counter(), time.process_time()
        job = Job(description, method=given.method, settings=settings, pairs=given.pairs, asked=asked, tokens=given.tokens,
                  test=given.test, seed=given.seed)  # fmt: skip
        folder = given.out / f"{concept}-{given.pairs}-{given.seed}"
        whole = not folder.exists()  # what goes on with an earlier run's folder tells nothing of the time
        made = make_steering(job, folder, engine, lambda *_: True)
        seconds, wall = time.process_time() - began, time.perf_counter() - wall
        took += [seconds] if whole else []
        curated = calibrate(
            suite,
            concept,
            ArmPlan(given.method, given.method, settings),
            replace(asked, seed=given.seed),
            engine=engine,
        ).steering
        print(
            f"{description!r}: {seconds:.0f} s of one core ({wall:.0f} s on this machine); {made.steps['data']['dropped']}"
        )
        print(
            f"  made: {in_words(made.steering.meta.range)}; {made.steps['gate']['gate']}\n  curated: {in_words(curated.meta.range)}"
        )
        for direction in ("elicit", "suppress"):
            told = []
            for steering in (made.steering, curated):
                default = (known := sides(steering.meta.range).get(direction)) and known.default
                under = steering.scaled(default) if default else None
                found = measure_effects(suite, engine, concept, direction, "test", [under], everything, given.seed)[0]
                told.append((default, mean(found.effect), mean(found.joint)))
            (a, effect, joint), (b, theirs, other) = told
            print(
                f"  {direction}: made at {a}: effect {in_figures(effect)}, joint {in_figures(joint)};"
                f" curated at {b}: {in_figures(theirs)}, {in_figures(other)}",
                flush=True,
            )
            if b and effect is not None and theirs:
                shares.append(effect / theirs if a else 0.0)
    print(f"run {run}: {given.method}, {given.pairs} pairs, {given.items} items")
    if shares:
        bar("make_effect_of_curated_worst", min(shares), 0.8, run)
    else:
        print(
            "no bar make_effect_of_curated_worst: curated data gave no useful strength either way, so there is nothing to hold it to"
        )
    if took:
        bar("make_seconds_of_a_core_slowest", -max(took), -300.0, run)
    else:
        print("no bar make_seconds_of_a_core_slowest: all were begun by an earlier run; remove their folders")


def in_figures(value: float | None) -> str:
    return "not judged" if value is None else f"{value:.2f}"


def bar(name: str, value: float, goal: float, run: str) -> None:
    print(f"bar {name} {value:.3f} {goal:.3f} {run}{'' if value >= goal else '   (short)'}")


if __name__ == "__main__":
    main()
