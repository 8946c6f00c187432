"""How preference and utility move with strength, method by method, and what a few points foretell. `make decay` (minutes).

For each method a steering is fitted to pairs of a concept; on held-out pairs, the concept's answer and the plain one to the
same plain prompt are scored at strengths from -2 to 2 (src/steerlab/evals/decay.py has the formulas). Then the paper's decay
is fitted to all strengths (R² and residuals), and to seven of them: where does that put the strength at which a wanted
preference is reached, and what utility does it expect there, against what was measured at the others? Ends with `bar NAME
VALUE GOAL RUN` lines: value >= goal is good.

    python benchmarks/decay.py                              the methods below on three concepts
    python benchmarks/decay.py --methods cdas,lora --concepts pirate --pairs 16 --items 4
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from pathlib import Path

import arms as catalogue
import numpy as np
import torch

import steerlab as sl
from steerlab import pilot
from steerlab.evals import charts, decay
from steerlab.evals.charts import Axis, Chart, Mark, Series
from steerlab.evals.decay import Foretold, Odds, fit, foretell
from steerlab.files import code_digest, write_text
from steerlab.methods.base import method
from steerlab.progress import shown, task

METHODS = (
    "cdas rank 8", "cdas published", "cdas_free", "diff_means", "lm_vector", "reps", "bipo", "split", "preference_vector", "sft",
    "linear_act",
)  # fmt: skip
CONCEPTS = ("pirate", "formal", "joyful")
STRENGTHS = tuple(float(m) for m in np.arange(-2, 2.01, 0.25))
FEW = (-2.0, -1.25, -0.5, 0.0, 0.5, 1.25, 2.0)  # what a prediction sees; the other ten check it


def measured(engine, arm, concept: str, given: argparse.Namespace) -> dict:
    """One method on one concept: log-odds at every strength that its steering takes, and how long its fit took."""
    begun = time.process_time()
    steering = method(arm.method, arm.settings).fit(engine, pilot.contrast(concept, n=given.pairs, seed=0))
    seconds = time.process_time() - begun
    low, high = steering.domain
    chosen = [m for m in STRENGTHS if low <= m <= high]
    items = decay.rivals(pilot.contrast(concept, n=given.items, seed=1, split="test", neutral=0))
    odds = decay.log_odds(engine, items, steering, chosen, given.per)
    return {
        "arm": arm.name, "concept": concept, "strengths": chosen, "seconds": seconds,
        "preference": odds.preference.tolist(), "utility": odds.utility.tolist(), "clamped": list(odds.clamped),
    }  # fmt: skip


def odds_of(units: list[dict]) -> Odds:
    """A method's items of all concepts together."""
    first = units[0]["strengths"]
    preference, utility = (np.concatenate([np.array(u[k]) for u in units], axis=1) for k in ("preference", "utility"))
    clamped = tuple(int(n) for n in np.sum([u["clamped"] for u in units], axis=0))
    return Odds(tuple(first), preference, utility, clamped)


def foretold(odds: Odds) -> Foretold | None:
    """From the few points that the steering takes; None where these are fewer than five (one that goes one way only)."""
    few = [m for m in FEW if m in odds.strengths]
    if len(few) < 5:
        few = list(odds.strengths[::2])
    return foretell(odds, few) if len(few) >= 5 and len(odds.strengths) - len(few) >= 2 else None


def told(found: dict[str, Odds], run: str) -> None:
    """The table and the bars."""
    heads = (
        "method", "preference R²", "residuals", "utility R²", "residuals", "plateau of utility", "unseen: pref. R²", "off", "util. R²",
        "off", "strength foretold", "reached", "utility foretold", "there", "p+n held",
    )  # fmt: skip
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    fits = {n: {k: fit(o.strengths, o.mean(k), k) for k in ("preference", "utility")} for n, o in found.items()}
    guesses = {n: foretold(o) for n, o in found.items()}
    for name, odds in found.items():
        p, u, g = fits[name]["preference"], fits[name]["utility"], guesses[name]
        low, high = u.plateau()
        cells = [f"{p.r2:.3f}", f"{p.rmse:.2f}", f"{u.r2:.3f}", f"{u.rmse:.2f}", f"{low:+.2f} to {high:+.2f}"]
        cells += ["–"] * 8 if g is None else [
            f"{g.preference_r2:.3f}", f"{g.preference_error:.2f}", f"{g.utility_r2:.3f}", f"{g.utility_error:.2f}",
            number(g.strength), number(g.reached), number(g.utility_there), number(g.cost),
        ]  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + f" | {sum(odds.clamped)} of {odds.utility.size} |")
    preference, utility = ([f[k].r2 for f in fits.values()] for k in ("preference", "utility"))
    apart = [
        abs(g.strength - g.reached) for g in guesses.values() if g and g.strength is not None and g.reached is not None
    ]
    costs = [
        abs(g.utility_there - g.cost) / np.ptp(found[n].mean("utility"))
        for n, g in guesses.items()
        if g and g.utility_there is not None and g.cost is not None
    ]
    unseen = [r for g in guesses.values() if g for r in (g.preference_r2, g.utility_r2)]
    bars = {
        "decay_methods": (len(found), 8), "decay_preference_r2_median": (np.median(preference), 0.9),
        "decay_utility_r2_median": (np.median(utility), 0.9), "decay_preference_r2_worst": (min(preference), 0.8),
        "decay_utility_r2_worst": (min(utility), 0.8),
    }  # fmt: skip
    if unseen:
        bars["decay_unseen_r2_median"] = (np.median(unseen), 0.9)
    if apart:
        bars["decay_strength_off_median"] = (-np.median(apart), -0.15)
        bars["decay_utility_off_median"] = (-np.median(costs), -0.1)  # as a share of its range
    print()
    for name, (value, goal) in bars.items():
        print(f"bar {name} {value:.3f} {goal:.3f} {run}{'' if value >= goal else '   (short)'}")


def number(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f}"


def picture(found: dict[str, Odds], path: Path) -> Path:
    """Each method's two curves: what was measured as marks, the fit as a line."""
    panels = []
    for name, odds in found.items():
        series = []
        for kind, tone in (("preference", "effect"), ("utility", "cost")):
            curve, values = fit(odds.strengths, odds.mean(kind), kind), odds.mean(kind)
            fine = np.linspace(min(odds.strengths), max(odds.strengths), 81)
            points = [Mark(float(m), float(y)) for m, y in zip(fine, curve(fine), strict=True)]
            series.append(Series(points, tone, kind, band=False, shape=None, dashed=kind == "utility"))
            shape = "circle" if kind == "preference" else "square"
            series.append(
                Series([Mark(m, float(y), note=f"{kind} {y:.2f} at {m:+g}") for m, y in zip(odds.strengths, values, strict=True)],
                       tone, line=False, band=False, shape=shape, size=1.8)
            )  # fmt: skip
        every = [m.y for s in series for m in s.marks if m.y is not None]
        words = f"{name}: preference and utility log-odds by strength, measured and fitted"
        panels.append(
            Chart(Axis(-2.05, 2.05, (-2, -1, 0, 1, 2), "strength"), Axis.over([*every, 0], label="log-odds, nats"), series, name, words,
                  width=300, height=190)
        )  # fmt: skip
    return charts.save(
        panels, path, columns=3, title="Preference and utility over strength: measured, and the decay fitted"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="arms of benchmarks/arms.py")
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--pairs", type=int, default=48, help="to fit on")
    parser.add_argument("--items", type=int, default=12, help="held-out pairs of each concept")
    parser.add_argument(
        "--per", default="answer", choices=("answer", "token"), help="whole answers, or the mean of their tokens"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/decay"))
    parser.add_argument("--quick", action="store_true", help="one epoch, 8 pairs, 2 items, one concept: does it run?")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        given.pairs, given.items, given.concepts = 8, 2, given.concepts.split(",")[0]
    arms = catalogue.at(
        catalogue.chosen(given.methods), {**catalogue.USUAL_BLOCKS, **catalogue.blocks_in(Path("runs/table/pilot"))}
    )
    if given.quick:
        from table import quickened

        arms = quickened(arms)
    arms = tuple(a for a in arms if a.method)
    run, engine, units = uuid.uuid4().hex[:8], sl.load("pilot", batch_size=64), []
    concepts = given.concepts.split(",")
    with shown(), task("scoring", len(arms) * len(concepts)) as bar:
        for arm in arms:
            for concept in concepts:
                bar.tell(f"{arm.name} on {concept}")
                units.append(kept(engine, arm, concept, given))
                bar.advance()
    found = {a.name: odds_of([u for u in units if u["arm"] == a.name]) for a in arms}
    print(
        f"run {run}: {len(arms)} methods, {len(concepts)} concepts, {given.pairs} pairs to fit, {given.items} held-out pairs each"
    )
    told(found, run)
    print(f"wrote {picture(found, given.out / 'decay.svg')}")


def kept(engine, arm, concept: str, given: argparse.Namespace) -> dict:
    """What `measured` gives, from disk where an earlier run of the same code has it."""
    asked = json.dumps(
        [arm.method, arm.settings, concept, given.pairs, given.items, given.per, STRENGTHS, code_digest()],
        sort_keys=True,
        default=str,
    )
    path = given.out / "units" / f"{uuid.uuid5(uuid.NAMESPACE_OID, asked).hex}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    unit = measured(engine, arm, concept, given)
    write_text(path, json.dumps(unit))
    return unit


if __name__ == "__main__":
    main()
