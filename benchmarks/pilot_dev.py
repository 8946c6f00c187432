"""What the pilot's defaults were chosen by, on dev prompts alone.

    python benchmarks/pilot_dev.py flow refusal backdoor pirate sea
    python benchmarks/pilot_dev.py settings refusal --set early=0 --set early=0.75,rank=8 --strength 1 --strength 1.5
    python benchmarks/pilot_dev.py fits backdoor --pairs 96 --seed 0 --seed 2 --set flat=1 --set flat=0.98

`flow` puts the source's whole activation into the base run, block by block, and tells how much of the divergence is left:
where a behaviour is decided. `settings` fits CDAS with each set of settings and measures it both ways. `fits` fits only, any
method that tells its divergence, and prints how much of it is left after each epoch.
"""

from __future__ import annotations

import argparse

import torch
import yaml

from steerlab.evals.measure import Amounts, CostMeter, measure_effects
from steerlab.evals.stats import mean
from steerlab.evals.unit import DIRECTIONS
from steerlab.methods.base import method
from steerlab.methods.interchange import both_ways
from steerlab.methods.objectives import jensen_shannon
from steerlab.pilot.suite import PilotSuite
from steerlab.sites import Site

SEED = 1000  # used for no reported figure


def flow(suite: PilotSuite, tasks: list[str], n: int) -> None:
    engine = suite.engine()
    print(
        "share of the divergence left: first answer token, source at the last prompt token; all tokens, there and in the answer"
    )
    for task in tasks:
        rows = [row for pair in suite.contrast(task, SEED).pairs[:n] for row in both_ways(*pair)]
        base, source = engine.batch([r.example for r in rows]), engine.batch([r.source for r in rows])
        sites = [Site(layer) for layer in range(engine.depth)]
        with torch.no_grad():
            given, plain = engine.resume(source, sites=sites), engine.resume(base)
            first = torch.cat([torch.arange(int(k)) == 0 for k in base.predicts.sum(dim=1)])
            before = jensen_shannon(plain.logits, given.logits)
            for site in sites:
                prompt_end = base.position == base.prompt_length[:, None] - 1
                there = source.position == source.prompt_length[:, None] - 1

                def put(h, place, value):
                    h = h.clone()
                    h[place] = value
                    return h

                told = []
                for here, from_ in ((prompt_end, there), (prompt_end | base.answers, there | source.answers)):
                    value = given.at[site][from_]
                    run = engine.resume(base, {site: lambda h, here=here, value=value: put(h, here, value)})
                    told.append(jensen_shannon(run.logits, given.logits))
                print(
                    f"{task:10} block {site.layer}: first {float(told[0][first].mean() / before[first].mean()):.2f},"
                    f" all {float(told[1].mean() / before.mean()):.2f}"
                )


def settings(
    suite: PilotSuite, tasks: list[str], sets: list[dict], strengths: list[float], n: int, directions: list[str]
) -> None:
    engine = suite.engine()
    amounts = Amounts(prompts=n, items=40, neutral=1, texts=0)
    costs = CostMeter(suite, engine, "dev", amounts, SEED)
    for task in tasks:
        data = suite.contrast(task, SEED)
        for given in sets:
            steering = method("cdas", {"seed": SEED, **given}).fit(engine, data)
            told = steering.meta.figures["divergence"]
            served = steering.meta.figures["divergence_served"] / told["unsteered"]
            print(f"{task} {given}: held-out divergence served {served:.2f} of the unsteered")
            for direction in directions:
                for strength in strengths:
                    under = [steering.scaled(strength if direction == "elicit" else -strength)]
                    effect = measure_effects(suite, engine, task, direction, "dev", under, amounts, SEED)[0]
                    lost = mean(costs.measure(under)[0].lost)
                    print(
                        f"  {direction:8} {strength:4g}: effect {shown(mean(effect.effect))}, joint {shown(mean(effect.joint))},"
                        f" follows {shown(mean(effect.follows))}, fluent {shown(mean(effect.fluent))}, capability lost {shown(lost)}  (n={n}, {amounts.items} items)",
                        flush=True,
                    )


def fits(suite: PilotSuite, tasks: list[str], names: list[str], sets: list[dict], seeds: list[int]) -> None:
    """How far each fit gets on its held-out pairs, and where: half of the divergence left is one way found of two."""
    engine = suite.engine()
    for task in tasks:
        for seed in seeds:
            data = suite.contrast(task, seed)
            for name in names:
                for given in sets:
                    told = method(name, {"seed": seed, **given}).fit(engine, data).meta.figures
                    scale = told["divergence"]["unsteered"]
                    curve = " ".join(f"{v / scale:.3f}" for v in told["divergence"]["held_out"])
                    print(f"{task} seed {seed} {name} {given}: left {curve}; {told['seconds']:.1f} s", flush=True)


def shown(value: float | None) -> str:
    return "not judged" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("flow", "settings", "fits"))
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--set", action="append", default=[], help="settings of cdas, as name=value,name=value")
    parser.add_argument("--strength", action="append", type=float, default=[])
    parser.add_argument("--direction", action="append", default=[], choices=DIRECTIONS)
    parser.add_argument("--seed", action="append", type=int, default=[], help="for fits")
    parser.add_argument("--method", action="append", default=[], help="for fits")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--variant", default="pilot")
    given = parser.parse_args()
    torch.set_num_threads(1)
    suite = PilotSuite(given.variant, pairs=given.pairs)
    if given.what == "flow":
        flow(suite, given.tasks, given.prompts)
        return
    sets = [{k: yaml.safe_load(v) for k, v in (part.split("=") for part in text.split(","))} for text in given.set]
    if given.what == "fits":
        fits(suite, given.tasks, given.method or ["cdas"], sets or [{}], given.seed or [SEED])
        return
    settings(
        suite, given.tasks, sets or [{}], given.strength or [1.0], given.prompts, given.direction or list(DIRECTIONS)
    )


if __name__ == "__main__":
    main()
