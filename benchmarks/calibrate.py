"""Does `steerlab calibrate` choose as well as a full grid, at a fifth of its price, and does its range hold? `make bench-calibrate`

For each task, the grid fits the method at every block and measures every strength both ways with all prompts, capability items,
neutral prompts and texts of dev, and takes the best joint success within the budget; `calibrate` gets the same blocks and the
same dev data. Both are then measured on test, on the same prompts. `--search` compares halving with Optuna on drawn surfaces
whose best is known, `--guarantee` counts over 1,000 calibrations how often a range is over its budget, on drawn costs and, with
`--saved`, on the per-prompt costs that the main run has kept: through the very steps that write a range (minutes). Ends with `bar NAME VALUE GOAL RUN` lines: value >= goal is
good. Every unit is kept in `--out`, so that the same command goes on where it was.

    python benchmarks/calibrate.py                                  refusal, backdoor and five concepts (an hour)
    python benchmarks/calibrate.py --tasks pirate --layers 4 --method diff_means --items 100 --prompts 8
    python benchmarks/calibrate.py --search --guarantee
"""

from __future__ import annotations

import argparse
import json
import math
import time
import uuid
from pathlib import Path

import numpy as np

from steerlab.evals.asked import Asked
from steerlab.evals.guarantee import Budget
from steerlab.evals.search import halving, optuna
from steerlab.evals.stats import mean
from steerlab.files import code_digest, write_text
from steerlab.testing.drawn import Kind, budget_of, calibrated, kinds, oracle

TASKS = "refusal,backdoor,pirate,sea,joyful,bullets,formal"
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
DIRECTIONS = ("elicit", "suppress")


# --- the grid and calibrate, on the pilot -----------------------------------------------------------------------------------


def fitted_at(suite, engine, method, settings, site, task, seed):
    from steerlab.evals.unit import ArmPlan, fit_arm

    return fit_arm(suite, None, ArmPlan(method, method, {**settings, "site": site}), task, seed, engine)


def settings_of(given) -> dict:
    import yaml

    return {k: yaml.safe_load(v) for k, v in (p.split("=") for p in given.set.split(",") if p)}


def costs_of(found, signals, steering) -> dict[str, float | None]:
    """The mean costs of a steering: capability from what was found, KL and perplexity read here. What isn't known is None."""
    return {
        "lost": mean(found.lost), "kl": float(signals.kl(steering).mean()), "perplexity": float(signals.perplexity(steering).mean()),
    }  # fmt: skip


def within(costs, budget) -> bool:
    """Whether each cost is known and within its limit."""
    return all(costs[name] is not None and costs[name] <= most for name, most in budget.limits().items())


def full_grid(suite, engine, task, given, budget) -> tuple[dict, list]:
    """Every block at every strength, both ways, all of dev; and the blocks' steerings, which `calibrate` gets too."""
    from steerlab.evals.measure import Amounts, CostMeter, measure_effects
    from steerlab.evals.signals import Signals

    amounts = Amounts(given.prompts, given.items, 1, 0, given.tokens)
    meter = CostMeter(suite, engine, "dev", amounts, given.seed)
    signals = Signals(suite, engine, task, "dev", pairs=0, neutral=given.neutral, texts=given.texts, seed=given.seed)
    cells, fitted, replies = [], [], given.items
    for site in given.layers.split(","):
        steering = fitted_at(suite, engine, given.method, settings_of(given), site, task, given.seed)
        fitted.append(steering)
        print(f"{task}: block {site} fitted for the grid", flush=True)
        for direction in DIRECTIONS:
            sign = 1.0 if direction == "elicit" else -1.0
            under = [steering.scaled(sign * s) for s in STRENGTHS]
            effects = measure_effects(suite, engine, task, direction, "dev", under, amounts, given.seed)
            for s, e, c, one in zip(STRENGTHS, effects, meter.measure(under), under, strict=True):
                told = costs_of(c, signals, one)
                cells.append(
                    {"site": site, "direction": direction, "strength": sign * s, "joint": mean(e.joint), **told}
                )
            replies += len(under) * (given.prompts + given.items)
    best = {}
    for site in given.layers.split(","):
        for direction in DIRECTIONS:
            mine = [
                c
                for c in cells
                if c["site"] == site and c["direction"] == direction and c["joint"] is not None and within(c, budget)
            ]
            best[site, direction] = max(mine, key=lambda c: (c["joint"], -abs(c["strength"])), default=None)
    score = lambda site: sum(best[site, d]["joint"] if best[site, d] else 0.0 for d in DIRECTIONS)  # noqa: E731
    site = max(given.layers.split(","), key=score)
    chosen = {d: (best[site, d] or {}).get("strength") for d in DIRECTIONS}
    return {"site": site, "chosen": chosen, "cells": cells, "replies": replies, "evaluations": len(cells)}, fitted


def on_test(suite, engine, task, steering, strengths, given) -> dict:
    """Joint success, prompt by prompt, and mean costs at strengths of one direction each."""
    from steerlab.evals.measure import Amounts, CostMeter, measure_effects
    from steerlab.evals.signals import Signals

    amounts = Amounts(given.test, given.test_items, 1, 0, given.tokens)
    meter = CostMeter(suite, engine, "test", amounts, given.seed)
    signals = Signals(suite, engine, task, "test", pairs=0, neutral=given.neutral, texts=given.texts, seed=given.seed)
    found = {}
    for direction, strength in strengths:
        under = None if not strength else steering.scaled(strength)
        effects = measure_effects(suite, engine, task, direction, "test", [under], amounts, given.seed)[0]
        row = {"strength": strength, "joint": effects.joint}
        if under is not None:
            row["costs"] = costs_of(meter.measure([under])[0], signals, under)
        found.setdefault(direction, []).append(row)
    return found


def unit(suite, engine, task, given, budget) -> dict:
    """One task with both choosers, and what each choice does on test."""
    from steerlab.evals.asked import Setting
    from steerlab.evals.calibrate import calibrate
    from steerlab.evals.unit import ArmPlan
    from steerlab.ranges import sides

    began = time.process_time()
    grid, fitted = full_grid(suite, engine, task, given, budget)
    grid_seconds, began = time.process_time() - began, time.process_time()
    asked = Asked(
        budget, prompts=given.prompts, items=given.items, lot=min(given.items, given.lot), neutral=given.neutral, texts=given.texts,
        pairs=12, tokens=given.tokens, seed=given.seed, search=given.by,
    )  # fmt: skip
    settings = [Setting({"site": site}) for site in given.layers.split(",")]
    print(f"{task}: the grid took {grid_seconds:.0f} s of processor; calibrating", flush=True)
    found = calibrate(
        suite,
        task,
        ArmPlan(given.method, given.method, settings_of(given)),
        asked,
        settings=settings,
        fitted=fitted,
        engine=engine,
    )
    seconds = time.process_time() - began
    known = sides(found.steering.meta.range)
    theirs = fitted[given.layers.split(",").index(grid["site"])]
    wanted = [(d, known[d].default) for d in known] + [(d, known[d].max_safe) for d in known if known[d].max_safe]
    return {
        "task": task, "grid": {**grid, "seconds": grid_seconds}, "range": found.steering.meta.range,
        "calibrate": {"setting": dict(found.setting.settings), "replies": found.ledger.replies, "rows": found.ledger.rows,
                      "evaluations": found.full, "seconds": seconds},
        "test_grid": on_test(suite, engine, task, theirs, list(grid["chosen"].items()), given),
        "test_calibrate": on_test(suite, engine, task, found.steering, wanted, given),
        "per_prompt": {
            d: [{"strength": r.strength, **{k: v.tolist() for k, v in r.costs.items()}} for r in rows] for d, rows in found.rows.items()
        },
    }  # fmt: skip


def told(units: list[dict], budget: Budget, run: str) -> None:
    """The table and the bars."""
    from steerlab.evals.stats import paired_difference

    print(
        "\n| task | direction | grid: block, strength | joint on test | calibrate: block, range | joint on test | difference | kept at max_safe |"
    )
    print("|---|---|---|---|---|---|---|---|")
    fine, kept, shares = [], [], []
    for u in units:
        shares.append(u["calibrate"]["replies"] / u["grid"]["replies"])
        for d in DIRECTIONS:
            mine, theirs = u["test_calibrate"].get(d), u["test_grid"][d][0]
            if not mine:
                continue
            apart = paired_difference([[mine[0]["joint"]]], [[theirs["joint"]]])
            fine.append(apart.high is not None and apart.high >= 0)
            verdict = "–"
            if len(mine) > 1:
                kept.append(within(mine[1]["costs"], budget))
                verdict = ("yes " if kept[-1] else "NO ") + " ".join(
                    f"{k} {in_figures(v)}" for k, v in mine[1]["costs"].items()
                )
            side = u["range"]["directions"][d]
            print(
                f"| {u['task']} | {d} | {u['grid']['site']}, {theirs['strength']} | {in_figures(mean(theirs['joint']))} |"
                f" {u['calibrate']['setting'].get('site')}, {side['min_useful']} / {side['default']} / {side['max_safe']} |"
                f" {in_figures(mean(mine[0]['joint']))} | {apart} | {verdict} |"
            )
    print()
    for u in units:
        print(
            f"{u['task']}: grid {u['grid']['replies']} replies, {u['grid']['seconds']:.0f} s of processor; calibrate"
            f" {u['calibrate']['replies']} replies and {u['calibrate']['rows']} scored rows, {u['calibrate']['seconds']:.0f} s"
        )
    bar("calibrate_not_worse_share", np.mean(fine), 1.0, run)
    bar("calibrate_replies_share_worst", -max(shares), -0.2, run)
    if kept:
        bar("calibrate_budget_kept_share", np.mean(kept), 0.9, run)


def in_figures(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def bar(name: str, value: float, goal: float, run: str) -> None:
    print(f"bar {name} {value:.3f} {goal:.3f} {run}{'' if value >= goal else '   (short)'}")


# --- searches on drawn surfaces ---------------------------------------------------------------------------------------------


def surface(rng: np.random.Generator, arms: int):
    """Arms whose gain saturates and whose strain grows about with the square, noisier on less data."""
    rate, edge, power = rng.lognormal(0, 0.7, arms), rng.lognormal(0, 0.6, arms), rng.uniform(1.5, 2.5, arms)
    best = max(range(arms), key=lambda a: 1 - math.exp(-rate[a] * min(edge[a], 3)))
    goal = 1 - math.exp(-rate[best] * min(edge[best], 3))

    def read(arm, direction, size, share):
        noise = rng.normal(0, 0.03 / math.sqrt(share), 2)
        return 1 - math.exp(-rate[arm] * size) + noise[0], (size / edge[arm]) ** power[arm] * math.exp(3 * noise[1])

    def true(arm, strength):
        return 1 - math.exp(-rate[arm] * strength), (strength / edge[arm]) ** power[arm]

    return read, true, goal


def searches(run: str, draws: int) -> None:
    """Readings on all data, and how much of the best gain within the budget is reached, by each search."""
    print(
        "\n| arms | search | readings (whole ones) | share of the best gain | of them over the budget |\n|---|---|---|---|---|"
    )
    for arms in (4, 8, 24):
        rows = {}
        for seed in range(draws):
            budget = None
            for name in ("halving", "optuna", "optuna, 4 times"):
                read, true, goal = surface(np.random.default_rng(seed), arms)
                if name == "halving":
                    found = halving(arms, lambda a, d: 3.0, ("elicit",), read)
                    budget = max(6, round(found.read))
                else:
                    found = optuna(
                        arms, lambda a, d: 3.0, ("elicit",), read, trials=budget * (4 if "4" in name else 1), seed=seed
                    )
                arm = found.order[0]
                gain, strain = (
                    true(arm, found.edges[arm, "elicit"].strength) if (arm, "elicit") in found.edges else (0.0, 0.0)
                )
                rows.setdefault(name, []).append((found.read, min(1.0, gain / goal), strain > 1.05))
        for name, values in rows.items():
            read, share, over = np.mean(values, axis=0)
            print(f"| {arms} | {name} | {read:.1f} | {share:.3f} | {over:.2f} |")
        ours, theirs = (np.mean([v[1] for v in rows[n]]) for n in ("halving", "optuna"))
        bar(f"search_halving_less_optuna_{arms}_arms", ours - theirs, 0.0, run)


# --- the guarantee over splits ----------------------------------------------------------------------------------------------


def guarantee(every: list[Kind], run: str, splits: int) -> None:
    """Whole calibrations on drawn costs, from the search to the range, by the very steps that write one into a file."""
    asked = Asked()
    print(
        f"\n{splits} calibrations of each kind; up to {asked.items} items, {asked.neutral} neutral prompts, {asked.texts} texts"
        " certify\n\n| cost | kind | over its budget | of the oracle's range |\n|---|---|---|---|"
    )
    worst, shares = 0.0, []
    for kind in every:
        best = oracle(kind, budget_of(kind).limits())
        if not best:
            continue
        found = [calibrated(kind, seed, best=best) for seed in range(splits)]
        over, share = (float(np.mean([getattr(one, name) for one in found])) for name in ("over", "share"))
        print(f"| {', '.join(kind.costs)} | {kind.name} | {100 * over:.1f} % | {100 * share:.0f} % |", flush=True)
        worst, shares = max(worst, over), [*shares, share]
    bar("guarantee_over_budget_worst", -worst, -0.05, run)
    bar("guarantee_share_of_oracle_least", min(shares), 0.3, run)


def of_pool(name: str, cost: str, strengths: np.ndarray, values: np.ndarray) -> Kind:
    """Draws from kept costs `[strengths, prompts]`, between two strengths by a line (from nothing at 0)."""
    grid, kept = np.concatenate([[0.0], strengths]), np.concatenate([np.zeros((1, values.shape[1])), values])

    def at(u: np.ndarray, s: float) -> np.ndarray:
        k = max(1, min(int(np.searchsorted(grid, s)), len(grid) - 1))
        share = min(1.0, (s - grid[k - 1]) / (grid[k] - grid[k - 1]))
        column = np.minimum((u * values.shape[1]).astype(int), values.shape[1] - 1)
        return (1 - share) * kept[k - 1, column] + share * kept[k, column]

    return Kind(name, {cost: at})


def saved_kinds(folder: Path) -> list[Kind]:
    """The per-prompt costs that the main run kept: KL and perplexity of each task and direction, growing strengths."""
    found = []
    for path in sorted((folder / "pools").glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found += [of_pool(row["name"], k, np.asarray(row["strengths"]), np.asarray(v)) for k, v in row["costs"].items()]
    return found


def save_pool(suite, engine, task, direction, steering, given) -> None:
    """Per-prompt KL and perplexity on many prompts, strength by strength."""
    from steerlab.evals.signals import Signals, clipped

    path = given.out / "pools" / f"{task}-{direction}.json"
    if path.is_file():
        return
    signals = Signals(suite, engine, task, "dev", pairs=0, neutral=given.pool, texts=given.pool, seed=given.seed + 1)
    sign, strengths = (1.0 if direction == "elicit" else -1.0), np.arange(0.1, 2.01, 0.1)
    costs = {"kl": [], "perplexity": []}
    for s in strengths:
        under = steering.scaled(sign * float(s))
        costs["kl"].append(clipped("kl", signals.kl(under)).tolist())
        costs["perplexity"].append(clipped("perplexity", signals.perplexity(under)).tolist())
    write_text(path, json.dumps({"name": f"{task}, {direction}", "strengths": strengths.tolist(), "costs": costs}))


# --- the command ------------------------------------------------------------------------------------------------------------


def kept_unit(suite, engine, task, given, budget) -> dict:
    """A unit, from disk where an earlier run of the same code has it."""
    asked = json.dumps([task, given.method, given.set, given.pairs, given.layers, given.prompts, given.items, given.neutral, given.texts, given.test,
                        given.test_items, given.tokens, given.seed, given.by, budget.told(), code_digest()])  # fmt: skip
    path = given.out / "units" / f"{uuid.uuid5(uuid.NAMESPACE_OID, asked).hex}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    made = unit(suite, engine, task, given, budget)
    write_text(path, json.dumps(made, default=str))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--method", default="cdas")
    parser.add_argument("--set", default="", help="settings of the method, key=value with commas between")
    parser.add_argument("--layers", default="2,3,4,5")
    parser.add_argument("--by", default="halving", choices=("halving", "optuna"))
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--lot", type=int, default=200)
    parser.add_argument("--neutral", type=int, default=256)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--test-items", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=512, help="prompts whose costs are kept for --guarantee --saved")
    parser.add_argument("--search", action="store_true", help="halving against Optuna on drawn surfaces")
    parser.add_argument("--guarantee", action="store_true", help="how often a certified range is over its budget")
    parser.add_argument("--saved", action="store_true", help="with --guarantee: on kept costs too; without: keep them")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--kinds", default="", help="with --guarantee: those whose name has this in it")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/calibrate"))
    given = parser.parse_args()
    run, budget = uuid.uuid4().hex[:8], Budget()
    if given.search:
        searches(run, given.draws)
    if given.guarantee:
        every = [*kinds(), *(saved_kinds(given.out) if given.saved else [])]
        guarantee([k for k in every if given.kinds in k.name], run, given.splits)
    if given.search or given.guarantee:
        return
    import torch

    from steerlab.pilot.suite import PilotSuite

    torch.set_num_threads(1)
    suite = PilotSuite(pairs=given.pairs)
    engine, units = suite.engine(), []
    for task in given.tasks.split(","):
        units.append(kept_unit(suite, engine, task, given, budget))
        print(f"{task} done", flush=True)
        if given.saved:
            steering = fitted_at(
                suite, engine, given.method, settings_of(given), units[-1]["grid"]["site"], task, given.seed
            )
            for direction in DIRECTIONS:
                save_pool(suite, engine, task, direction, steering, given)
    print(
        f"run {run}: {given.method}, blocks {given.layers}, {given.prompts} dev prompts, {given.items} items, budget {budget.told()}"
    )
    told(units, budget, run)


if __name__ == "__main__":
    main()
