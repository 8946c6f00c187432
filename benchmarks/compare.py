"""Does `steerlab compare` claim what isn't there, and see what it promises? `make compare-proof` (minutes; no model is run).

Successes and failures of two arms are drawn with everything that makes such numbers hard: tasks of their own difficulty, tasks that
suit one arm, fits that turn out well or badly, prompts that both arms share, shares near 0 and 1, few of each. Then:

1. 2,000 comparisons of an arm with itself (A/A): the share that is called better or worse, which should be 5 %. Beside it, the same
   by the percentile interval that resamples every level, which reports draw.
2. Designs in which one arm is better by 5 or 10 points: the power that is promised, from the variances of an earlier, larger run and
   from those of one of the same size, against the share of 2,000 comparisons that see the difference.
3. For 5 points, the number of prompts that `prompts_needed` names, and the share that sees it with so many.
4. Capability lost, on items that all tasks share: the share of 1,000 intervals that hold the truth, with tasks and items drawn,
   as `compare` has them and as if every task had items of its own.

Ends with `bar NAME VALUE GOAL` lines.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from steerlab.evals.inference import difference
from steerlab.evals.power import Components, Design, power, prompts_needed
from steerlab.evals.stats import bootstrap

RUNS = 2000
EARLIER = 1500  # tasks of the run that the variances are from: their own noise is small beside three points


@dataclass(frozen=True)
class World:
    """Log-odds: of success at the middle, and the spreads of tasks, of what suits an arm, of fits and of prompts."""

    base: float = 0.0
    tasks: float = 1.0
    suits: float = 0.7
    fits: float = 0.5
    prompts: float = 1.0


def drawn(rng: np.random.Generator, world: World, design: Design, better: float = 0.0) -> list[list[list[float]]]:
    """Paired differences of two arms; `better` is how much likelier the first one's successes are, as a share.

    What is fixed on a level stays fixed: on the level of fits no task suits an arm, on that of prompts no fit is better.
    """
    suits = world.suits if design.level == "concepts" else 0.0
    fits = 0.0 if design.level == "prompts" else world.fits
    c, f, p = design.concepts, design.fits, design.prompts
    task, suit = rng.normal(world.base, world.tasks, (c, 1, 1)), rng.normal(0, suits, (c, 1, 1)) / 2
    prompt = rng.normal(0, world.prompts, (c, f, p))
    arms = []
    for sign, gain in ((1, better), (-1, 0.0)):
        share = 1 / (1 + np.exp(-(task + sign * suit + rng.normal(0, fits, (c, f, 1)) + prompt)))
        # the gain moves failures to successes, so that the difference of the shares is what was said whatever the task
        share = share + gain * (1 - share) / np.mean(1 - share) if gain else share
        arms.append(rng.random((c, f, p)) < np.clip(share, 0, 1))
    return (arms[0].astype(float) - arms[1]).tolist()


def alike(runs: int, seed: int) -> dict[str, list[int]]:
    """A/A: how often a difference is claimed, of how many, by level and in all; and by the interval of reports."""
    rng = np.random.default_rng(seed)
    counts: dict[str, list[int]] = {}
    for n in range(runs):
        concepts, fits = int(rng.choice([1, 2, 4, 5, 6, 10, 20, 26])), int(rng.choice([1, 2, 3, 5]))
        level = "concepts" if concepts >= 5 else "fits" if fits > 1 else "prompts"
        design = Design(concepts, fits, int(rng.choice([10, 24, 50])), level)
        clusters = drawn(rng, World(base=float(rng.choice([-2.0, 0.0, 1.0, 2.5]))), design)
        found = difference(clusters)
        assert found is not None and found.level == level
        claims = {"in all": found.p < 0.05, level: found.p < 0.05}
        if n % 4 == 0:
            plain = bootstrap(clusters, draws=400, seed=n)
            claims[f"interval of reports, {level}"] = not plain.low <= 0 <= plain.high
        for name, claimed in claims.items():
            row = counts.setdefault(name, [0, 0])
            row[0], row[1] = row[0] + claimed, row[1] + 1
    return counts


def seen(rng: np.random.Generator, world: World, design: Design, better: float, runs: int) -> tuple[float, float]:
    """The share of runs in which the difference is told, and the true difference (what clipping leaves of it)."""
    hits, means = 0, []
    for _ in range(runs):
        found = difference(drawn(rng, world, design, better), level=design.level)
        hits += found.p < 0.05 and found.mean > 0
        means.append(found.mean)
    return hits / runs, float(np.mean(means))


def promises(runs: int, seed: int) -> list[dict[str, float | str]]:
    """Promised and reached power of several designs."""
    rng, rows = np.random.default_rng(seed), []
    designs = [
        (Design(26, 3, 24, "concepts"), 0.05), (Design(10, 3, 24, "concepts"), 0.10), (Design(6, 2, 50, "concepts"), 0.10),
        (Design(2, 5, 40, "fits"), 0.10), (Design(1, 1, 150, "prompts"), 0.10), (Design(1, 3, 100, "prompts"), 0.05),
    ]  # fmt: skip
    for design, better in designs:
        world = World()
        earlier = Components.of(drawn(rng, world, Design(EARLIER, 6, 60, design.level), better))
        reached, true = seen(rng, world, design, better, runs)
        small = [power(true, design, Components.of(drawn(rng, world, design, better))) for _ in range(100)]
        promised = power(true, design, earlier)
        rows.append(
            asdict(design)
            | {"true": true, "promised": promised, "reached": reached, "from one of its size": float(np.mean(small))}
        )
    design = Design(20, 3, 24, "concepts")
    world = World(suits=0.2, fits=0.2)
    earlier = Components.of(drawn(rng, world, Design(EARLIER, 6, 60, design.level), 0.05))
    n = prompts_needed(0.05, design, earlier)
    assert n is not None
    reached, true = seen(rng, world, Design(20, 3, n, "concepts"), 0.05, runs)
    rows.append(
        asdict(Design(20, 3, n, "concepts"))
        | {
            "true": true,
            "promised": power(true, Design(20, 3, n, "concepts"), earlier),
            "reached": reached,
            "asked for": 0.8,
        }
    )
    return rows


def crossed(runs: int, seed: int) -> list[dict[str, float | str]]:
    """Coverage where tasks share their items: differences of −1, 0 and 1, with an effect of tasks, of items and of fits."""
    rng, rows = np.random.default_rng(seed), []
    designs = [(5, 1, 50), (10, 1, 200), (30, 1, 500), (10, 3, 100), (3, 3, 200), (2, 1, 200)]
    for tasks, fits, items in designs:
        level = "concepts" if tasks >= 5 else "fits" if fits > 1 else "prompts"
        for spread in (0.0, 0.1, 0.3):
            hits = {"shared": 0, "as if each its own": 0}
            names = [list(range(fits)) for _ in range(tasks)]  # a seed's items are those of all tasks
            for _ in range(runs):
                task = rng.normal(0, 0.03 if level == "concepts" else 0.0, (tasks, 1, 1))
                fit = rng.normal(0, 0.02 if level != "prompts" else 0.0, (tasks, fits, 1))
                each = task + fit + np.clip(rng.normal(0, spread, (1, fits, items)), -0.5, 0.5)
                up, down = np.clip(0.1 + each / 2, 0, 0.5), np.clip(0.1 - each / 2, 0, 0.5)
                u = rng.random((tasks, fits, items))
                values = ((u < up).astype(float) - (u > 1 - down)).tolist()
                for name, sets in (("shared", names), ("as if each its own", None)):
                    compared = difference(values, items=sets)
                    assert compared is not None and compared.level == level
                    hits[name] += compared.low <= 0 <= compared.high
            covered = {name: n / runs for name, n in hits.items()}
            rows.append(
                {"tasks": tasks, "fits": fits, "items": items, "spread of items": spread, "level": level, **covered}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    asked = parser.parse_args()
    counts = alike(asked.runs, asked.seed)
    for name, (claimed, of) in sorted(counts.items()):
        print(f"A/A {name:36} {claimed:5} of {of:5}  {claimed / of:.3f}")
    rows = promises(asked.runs, asked.seed + 1)
    for row in rows:
        print(" ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    covered = crossed(asked.runs // 2, asked.seed + 2)
    for row in covered:
        print(" ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if asked.out:
        figures = {"alike": counts, "promises": rows, "crossed": covered}
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    claimed, of = counts["in all"]
    half = 2.326 * math.sqrt(0.05 * 0.95 / of)
    print(f"bar false_claims {claimed / of:.4f} {0.05 - half:.4f}..{0.05 + half:.4f}")
    off = max(abs(float(r["promised"]) - float(r["reached"])) for r in rows)
    print(f"bar power_off_by {off:.4f} <=0.03")
    least = min(float(r["shared"]) for r in covered)
    print(f"bar covered_with_shared_items {least:.4f} >={0.95 - 3 * math.sqrt(0.95 * 0.05 / (asked.runs // 2)):.4f}")


if __name__ == "__main__":
    main()
