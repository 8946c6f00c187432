"""What keeps a CDAS clamp from harming prompts that it wasn't meant for, and what that costs. `make preserve`.

On the pilot's dev prompts, seeds that no reported figure uses, the settings and block of `bench_pilot.py`:

* clamp: as it comes, at several strengths: its own frontier, which the others have to beat.
* spare: the clamp's divergence on neutral prompts in the loss, at a weight.
* projected: q kept out of the strongest principal directions of neutral prompts' activations, by the start and by every
  gradient. What is clamped then hardly varies over neutral prompts.
* one-sided: the same fit, moving only what has not reached the pole yet (`Push`).
* factors: published poles (no training of them), read at the last prompt token, over answers, or over all touched tokens.
* gated: the same fit behind a gate that opens on the prompts whose behaviour is to be suppressed.

Effect is joint success on the prompts of the task; cost is capability lost on items of all families and the KL from the
untouched model on neutral prompts. Every fit's figures are journalled. Ends with gates: the share of the effect kept where
they should act, and how often they open on 10,000 unrelated prompts; `bar NAME VALUE GOAL RUN` lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench_pilot import BOTH, OF_BOTH, OF_CONCEPTS, PAIRS_OF_BOTH, PAIRS_OF_CONCEPTS
from torch import Tensor

from steerlab import pilot, progress
from steerlab.contrast import Contrast
from steerlab.controls import Gate
from steerlab.edits import Clamp, Edit, Push
from steerlab.engines.base import Trainable
from steerlab.evals.measure import Amounts, measure_effects
from steerlab.evals.stats import bootstrap
from steerlab.evals.workers import Bench, completed, local
from steerlab.files import code_digest, write_text
from steerlab.methods.cdas import CDAS
from steerlab.methods.gates import gated
from steerlab.methods.optimisers import orthonormal
from steerlab.methods.trained import Free, Given
from steerlab.pilot.suite import PilotSuite
from steerlab.positions import GENERATED, LAST_PROMPT
from steerlab.steering import Steering

SEED = 1000  # used for no reported figure
SITE = "2"
TASKS = (*BOTH, "pirate", "sea", "music", "formal", "bullets")
DIRECTIONS = {"elicit": 1.0, "suppress": -1.0}
OWN = (0.6, 0.8, 1.0, 1.25)  # strengths of the plain clamp, its own frontier
UNRELATED, CORPUS = 10_000, 1_000


@dataclass(frozen=True)
class Projected(CDAS):
    """CDAS whose basis has no part in the `avoid` strongest principal directions of neutral prompts' activations."""

    avoid: int = 8

    def _towards(self, given: Given, more: Tensor) -> Tensor:
        neutral = [e for e in given.contrast.neutral if e.answer]
        read = given.engine.capture(neutral, given.sites, given.positions)[given.sites[0]].values
        _, _, v = torch.linalg.svd(read - read.mean(dim=0), full_matrices=False)
        given.constants["avoided"] = v[: self.avoid]
        return orthonormal(self._outside(super()._towards(given, more), given))

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        return super().edits({**free, "q": self._outside(free["q"], given)}, given)

    def _outside(self, q: Tensor, given: Given) -> Tensor:
        """What is left of the rows; gradients lose the same part, so a basis that begins outside stays there."""
        avoided = given.constants["avoided"]
        return q - (q @ avoided.T) @ avoided


def fits(task: str) -> dict[str, CDAS]:
    """The methods that are fitted, by name."""
    own = OF_BOTH if task in BOTH else OF_CONCEPTS
    plain = CDAS(site=SITE, seed=SEED, **own)
    return {
        "clamp": plain,
        **{f"spare {w:g}": replace(plain, spare=w) for w in (0.3, 1.0, 3.0)},
        **{f"projected {k}": Projected(site=SITE, seed=SEED, avoid=k, **own) for k in (4, 16)},
        "factors, last token": replace(plain, poles="factors"),
    }


def derived(
    engine: Trainable, name: str, found: Steering, data: Contrast
) -> dict[str, tuple[Steering, tuple[float, ...]]]:
    """What a fit is measured as: itself, and forms of it that need no other fit; with the strengths."""
    (one,) = found.interventions
    clamp = one.edit
    assert isinstance(clamp, Clamp)
    if name == "clamp":
        push = replace(found, interventions=(replace(one, edit=Push(clamp.q, clamp.positive, clamp.negative)),))
        return {"clamp": (found, OWN), "one-sided": (push, (1.0, 1.25))}
    if name != "factors, last token":
        return {name: (found, (1.0, 1.25))}
    made = {name: (found, (1.0, 1.5, 2.0))}
    for where, positions in (("answers", GENERATED), ("touched", one.positions)):
        poles = [
            engine.capture(side, [one.site], positions)[one.site].values.mean(dim=0) @ clamp.q.T
            for side in (data.positive, data.negative)
        ]
        edit = Clamp(clamp.q, *poles)
        made[f"factors, {where}"] = (replace(found, interventions=(replace(one, edit=edit),)), (1.0, 1.5, 2.0))
    return made


@dataclass(frozen=True)
class Measured:
    """A task's fits of one seed, each measured in all its forms. Runs in a worker."""

    task: str
    seed: int
    name: str
    amounts: Amounts

    def __call__(self, bench: Bench) -> list[dict[str, Any]]:
        seed, engine = SEED + self.seed, bench.engine
        suite = replace(bench.suite, pairs=PAIRS_OF_BOTH if self.task in BOTH else PAIRS_OF_CONCEPTS)
        data = suite.contrast(self.task, seed)
        found = replace(fits(self.task)[self.name], seed=seed).fit(engine, data)
        left = found.meta.figures["divergence_served"] / found.meta.figures["divergence"]["unsteered"]
        meter, rows = bench.meter("dev", self.amounts, SEED), []
        forms = derived(engine, self.name, found, data)
        if self.name == "clamp":
            corpus = pilot.prompts("neutral", n=CORPUS, seed=SEED, split="train", variant=suite.variant)
            forms["gated"] = (gated(engine, found, data, corpus), (1.0,))
        for form, (steering, strengths) in forms.items():
            for direction, sign in DIRECTIONS.items():
                if form == "gated" and direction == "elicit":
                    continue
                under = [steering.scaled(sign * s) for s in strengths]
                effects = measure_effects(suite, engine, self.task, direction, "dev", under, self.amounts, SEED)
                for strength, effect, cost in zip(strengths, effects, meter.measure(under), strict=True):
                    rows.append(
                        {"task": self.task, "seed": self.seed, "arm": form, "direction": direction, "strength": strength, "left": left,
                         "joint": effect.joint, "effect": effect.effect, "lost": cost.lost, "kl": cost.kl}
                    )  # fmt: skip
        if "gated" in forms:
            rows.append({"arm": "gate", **opened(engine, suite, forms["gated"][0], self)})
        return rows


def opened(engine: Trainable, suite: PilotSuite, steering: Steering, of: Measured) -> dict[str, Any]:
    """How often a gate opens on unrelated prompts of held-out wordings, and on those that it is meant for."""
    gate = steering.interventions[0].control
    assert isinstance(gate, Gate)
    meant = suite.prompts(of.task, "suppress", "test", 200, SEED)
    unrelated = pilot.prompts("neutral", n=UNRELATED, seed=SEED, split="test", variant=suite.variant)
    many = [
        sum(int(gate.opens(engine.capture(prompts[at : at + 500], [gate.site], LAST_PROMPT)[gate.site].values).sum())
            for at in range(0, len(prompts), 500))
        for prompts in (meant, unrelated)
    ]  # fmt: skip
    return {
        "task": of.task, "seed": of.seed, "opened": many[0], "meant": len(meant), "opened_elsewhere": many[1],
        "unrelated": len(unrelated), "different": len({e.messages for e in unrelated}),
    }  # fmt: skip


def told(rows: Sequence[Mapping[str, Any]], run: str) -> None:
    """The table by group, and what the gates do."""
    shown = [r for r in rows if r["arm"] != "gate"]
    groups = {t: (t if t in BOTH else "concepts") for t in TASKS}
    for group in dict.fromkeys(groups.values()):
        for direction in DIRECTIONS:
            mine = [r for r in shown if groups[r["task"]] == group and r["direction"] == direction]
            if not mine:
                continue
            print(
                f"\n| {group}, {direction} | strength | joint success | effect | capability lost, points | KL on neutral prompts, nats a token |"
            )
            print("|---|---|---|---|---|---|")
            for arm, strength in dict.fromkeys((r["arm"], r["strength"]) for r in mine):
                here = [r for r in mine if (r["arm"], r["strength"]) == (arm, strength)]
                cells = [bootstrap(clusters(here, k)) for k in ("joint", "effect", "lost", "kl")]
                words = [f"{c.mean:.2f} [{c.low:.2f}, {c.high:.2f}]" for c in cells[:2]]
                words += [
                    f"{100 * cells[2].mean:.1f} [{100 * cells[2].low:.1f}, {100 * cells[2].high:.1f}]",
                    f"{cells[3].mean:.3f}",
                ]
                print(f"| {arm} | {strength:g} | " + " | ".join(words) + " |")
    gates = [r for r in rows if r["arm"] == "gate"]
    if not gates:
        return
    print()
    for g in gates:
        print(
            f"gate of {g['task']}, seed {g['seed']}: opens on {g['opened']} of {g['meant']} prompts that it is meant for, on"
            f" {g['opened_elsewhere']} of {g['unrelated']} unrelated ones ({g['different']} different)"
        )
    with_, without = (
        [bootstrap(clusters([r for r in shown if (r["arm"], r["strength"], r["direction"], r["task"]) == (arm, 1.0, "suppress", t)], "effect")).mean
         for t in dict.fromkeys(g["task"] for g in gates)]
        for arm in ("gated", "clamp")
    )  # fmt: skip
    kept = [a / b for a, b in zip(with_, without, strict=True) if a is not None and b]
    bars = {
        "gate_effect_kept_worst_task": (min(kept), 0.95),
        "gate_openings_on_unrelated_prompts_worst": (0.0 - max(g["opened_elsewhere"] for g in gates), 0.0),
    }
    for name, (value, goal) in bars.items():
        print(f"bar {name} {value:.3f} {goal:.3f} {run}{'' if value >= goal else '   (short)'}")


def clusters(rows: Sequence[Mapping[str, Any]], what: str) -> list[list[list[float | None]]]:
    """Tasks, then fits, then prompts."""
    return [[r[what] for r in rows if r["task"] == t] for t in dict.fromkeys(r["task"] for r in rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--arms", help=f"fits, semicolons between  [default: all of {', '.join(fits('refusal'))}]")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--items", type=int, default=80)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/preserve"))
    given = parser.parse_args()
    amounts = Amounts(prompts=given.prompts, items=given.items, neutral=16, texts=0)
    names = given.arms.split(";") if given.arms else list(fits("refusal"))
    run, jobs, rows = uuid.uuid4().hex[:8], {}, []
    for task in given.tasks.split(","):
        for seed in range(given.seeds):
            for name in names:
                asked = json.dumps([task, seed, name, str(amounts), code_digest(), Path(__file__).read_text("utf-8")])
                path = given.out / f"{hashlib.sha256(asked.encode()).hexdigest()[:20]}.json"
                jobs[str(path)] = Measured(task, seed, name, amounts)
    missing = {path: job for path, job in jobs.items() if not Path(path).is_file()}
    with progress.shown(), progress.task("fitting and measuring", len(missing)) as bar:
        if missing:
            with local(PilotSuite(), given.workers) as workers:
                for path, value in completed(workers, missing):
                    write_text(Path(path), json.dumps(value))
                    bar.advance()
    for path in jobs:
        rows += json.loads(Path(path).read_text(encoding="utf-8"))
    print(
        f"run {run}: {given.prompts} prompts, {given.items} capability items, {given.seeds} fits of each; block {SITE}; dev"
    )
    told(rows, run)


if __name__ == "__main__":
    main()
