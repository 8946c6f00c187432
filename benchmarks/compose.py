"""What eight steerings do to each other, and what the proposed composition keeps. `make bench-compose` (tens of minutes)

Each concept's steering is fitted alone (by default CDAS at rank 2, each at its own block of `--layers`, in turn), measured alone,
two by two and all together, as given, reordered, with overlaps taken out, one-sided, and weaker. The joint budget is the sum of
what the steerings cost one by one: together they may cost what they cost apart. Beside it, what the unsteered model keeps when
it is asked in words for all that is to be brought at once: what it can't do when asked, no composition can be expected to do.
Ends with `bar NAME VALUE GOAL RUN` lines.

    python benchmarks/compose.py                    a style and a format brought, six behaviours taken away
    python benchmarks/compose.py --eight            eight behaviours brought at once
    python benchmarks/compose.py --concepts pirate,bullets --method diff_means --prompts 4 --test 8 --items 20
"""

from __future__ import annotations

import argparse
import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steerlab.evals import heatmap
from steerlab.evals.compose import Asked, interference
from steerlab.evals.guarantee import Budget
from steerlab.evals.joining import Part
from steerlab.evals.stats import mean
from steerlab.files import write_text

if TYPE_CHECKING:
    from steerlab.engines.base import Trainable
    from steerlab.pilot.suite import PilotSuite

CONCEPTS = "pirate,bullets,refusal,backdoor,gloomy,spanish,questions,capitals"
SUPPRESSED = "refusal,backdoor,gloomy,spanish,questions,capitals"
EIGHT = "pirate,sea,joyful,bullets,formal,polite,winter,questions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=CONCEPTS)
    parser.add_argument("--method", default="cdas")
    parser.add_argument("--set", default="", help="settings of the method, key=value with commas between")
    parser.add_argument("--layers", default="2", help="blocks, dealt out in turn")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--suppress", default=SUPPRESSED, help="those of them that are taken away instead")
    parser.add_argument("--eight", action="store_true", help=f"instead: all of {EIGHT} brought at once")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--test", type=int, default=24)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--neutral", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--no-matrix", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compose"))
    given = parser.parse_args()
    if given.eight:
        given.concepts, given.suppress = EIGHT, ""
    import torch
    import yaml

    from steerlab.evals.signals import Signals
    from steerlab.evals.unit import ArmPlan, fit_arm
    from steerlab.pilot.suite import PilotSuite

    torch.set_num_threads(1)
    run, suite = uuid.uuid4().hex[:8], PilotSuite(pairs=given.pairs)
    engine, parts = suite.engine(), []
    more = {k: yaml.safe_load(v) for k, v in (p.split("=") for p in given.set.split(",") if p)}
    layers, away = given.layers.split(","), given.suppress.split(",")
    for n, concept in enumerate(given.concepts.split(",")):
        settings = {**more, "site": layers[n % len(layers)]}
        steering = fit_arm(suite, None, ArmPlan(given.method, given.method, settings), concept, given.seed, engine)
        direction, sign = ("suppress", -1.0) if concept in away else ("elicit", 1.0)
        parts.append(Part(concept, steering, concept, direction, sign * given.strength))
        print(f"{concept} fitted", flush=True)
    signals = Signals(suite, engine, parts[0].task, "dev", pairs=0, neutral=given.neutral, texts=32, seed=given.seed)
    apart = sum(float(signals.kl(p.applied).mean()) for p in parts)
    added = sum(max(0.0, float(signals.perplexity(p.applied).mean())) for p in parts)
    budget = Budget(lost=0.02 * len(parts), kl=min(0.99, apart), perplexity=min(0.49, max(added, 0.01)))
    asked = Asked(
        budget, given.prompts, given.test, given.neutral, 32, given.items, given.tokens, given.seed, not given.no_matrix
    )
    found = interference(suite, parts, asked, engine=engine)
    write_text(given.out / "interference.json", json.dumps(found.to_json(), indent=1))
    print(
        f"run {run}: {len(parts)} steerings by {given.method}, blocks {given.layers}; wrote {heatmap.save(found, given.out / 'interference.svg')}"
    )
    print("alone, dev: " + ", ".join(f"{p.name} {e}" for p, e in zip(parts, found.solo, strict=True)))
    for w in found.wholes:
        costs = ", ".join(f"{k} {e}" for k, e in w.costs.items())
        print(
            f"{'* ' if w.chosen else '  '}{w.name} ({w.words}): kept {w.kept}; {costs}; over: {', '.join(w.over) or 'nothing'}"
        )
    for line in found.warnings:
        print(f"  {line}")
    talk = [abs(c.mean) for row in found.cross for c in row if c is not None and c.mean is not None]
    kept, kl = [w.kept.mean for w in found.wholes if w.kept.mean is not None], found.best.costs["kl"].mean
    told(suite, engine, [p for p in parts if p.direction == "elicit"], given)
    bar("compose_kept_proposed", found.best.kept.mean, 0.9, run)
    bar("compose_kept_best", max(kept, default=None), 0.9, run)
    bar("compose_joint_kl_over_sum", None if kl is None else -kl / apart, -1.0, run)
    bar("compose_cross_talk_mean", -float(np.mean(talk)) if talk else None, -0.1, run)


def told(suite: PilotSuite, engine: Trainable, parts: Sequence[Part], given: argparse.Namespace) -> None:
    """What the unsteered model shows of each behaviour asked for alone and together with all others, in words."""
    from steerlab.engines.base import Sampling
    from steerlab.pilot.expression import specs
    from steerlab.pilot.requests import request_text

    known, rng = specs("pilot"), random.Random(given.seed)
    asked = [p.task for p in parts if p.task in known]
    if len(asked) < 2:
        return
    shares: list[tuple[str, float, float]] = []
    for task in asked:
        prompts, judge, found = suite.prompts(task, "elicit", "test", given.test, given.seed), suite.judge(task), []
        for wanted in ([task], asked):
            requests = [" ".join(request_text(known[c], rng) for c in wanted) for _ in prompts]
            rows = [
                replace(p, messages=(*p.messages[:-1], replace(m := p.messages[-1], content=f"{m.content} {request}")))
                for p, request in zip(prompts, requests, strict=True)
            ]
            replies = [r.text for r in engine.generate(rows, None, Sampling(given.tokens))]
            found.append(mean([judge.present(s) for s in judge.scores(replies, rows)]))
        if None in found:
            print(f"asked in words: what is said of {task} couldn't be judged, and isn't counted")
        else:
            shares.append((task, *found))
    if alone := sum(a for _, a, _ in shares):
        each = ", ".join(f"{n} {a:.2f} -> {b:.2f}" for n, a, b in shares)
        kept = sum(b for _, _, b in shares) / alone
        print(f"asked in words, alone -> all {len(asked)} at once: {each}; kept {kept:.3f}")


def bar(name: str, value: float | None, goal: float, run: str) -> None:
    if value is None:
        print(f"no bar {name}: nothing of it could be judged")
        return
    print(f"bar {name} {value:.3f} {goal:.3f} {run}{'' if value >= goal else '   (short)'}")


if __name__ == "__main__":
    main()
