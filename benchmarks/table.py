"""The comparison table: every method of this repository on refusal, backdoor and every third concept. `make table` (long).

Unit strength and tuned, the same pairs, dev prompts and strengths for every method, each at the block that dev favours for
it, with intervals and every cost; ends with a check that the judges aren't fooled: keyword lists, shuffled positives and
echoed prompts against real positives.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from dataclasses import replace
from pathlib import Path

from bench_pilot import BOTH, LAYER_SEED, PAIRS_OF_BOTH, PAIRS_OF_CONCEPTS

from steerlab import pilot, plugins, progress
from steerlab.cli.evaluate import measured, printed
from steerlab.config import to_dict
from steerlab.evals.layers import choose_layer
from steerlab.evals.measure import Amounts
from steerlab.evals.run import run
from steerlab.evals.unit import ArmPlan, Plan
from steerlab.judges.rule import words_of
from steerlab.methods.cdas import CDAS
from steerlab.pilot.suite import PilotSuite

STRENGTHS = (0.25, 0.5, 1.0, 1.25, 1.5)
BLOCKS = (2, 4, 5, 6)
LEADER = "cdas rank 4"  # its block is that of all arms that learn a subspace as it does
LED = ("cdas rank 1", "cdas rank 16", "das", "kl_das", "pdas")
ARMS = (
    ArmPlan("cdas rank 1", "cdas", {"rank": 1}), ArmPlan("cdas rank 4", "cdas", {"rank": 4}), ArmPlan("cdas rank 16", "cdas", {"rank": 16}),
    ArmPlan("cdas push", one_sided_of="cdas rank 4"),
    ArmPlan("cdas published", "cdas", {k: v for k, v in to_dict(CDAS.published()).items() if k not in ("site", "seed")}),
    ArmPlan("das", "das"), ArmPlan("kl_das", "kl_das"), ArmPlan("pdas", "pdas"),
    ArmPlan("diff_means", "diff_means"), ArmPlan("diff_means paired", "diff_means", {"pooling": "paired"}),
    ArmPlan("pca", "pca"), ArmPlan("probe", "probe"), ArmPlan("ablation", "ablation"),
    ArmPlan("random", "random"), ArmPlan("random clamp", "random", {"form": "clamp"}), ArmPlan("prompt", "prompt"),
)  # fmt: skip


def placed(variant: str, folder: Path, workers: int) -> tuple[ArmPlan, ...]:
    """The arms, each with the block where its best strength does best on dev."""
    names = [c.name for c in pilot.concepts(variant)]
    tasks = ("refusal", names[0], names[len(names) // 2])
    suite, blocks = PilotSuite(variant, pairs=PAIRS_OF_CONCEPTS), dict[str, str]()
    for arm in ARMS:
        if not arm.method or arm.name in LED or "site" not in plugins.load(arm.method).__dataclass_fields__:
            continue
        plan = Plan(
            arms=(arm,), tasks=tasks, seeds=(LAYER_SEED,), strengths=STRENGTHS, layer_strengths=STRENGTHS,
            dev=Amounts(10, 30, 1, 0, 64),
        )  # fmt: skip
        best, scores = choose_layer(run(suite, plan, folder, workers=workers, layers=BLOCKS), plan.budget)
        blocks[arm.name] = str(best)
        print(f"{arm.name}: block {best} on dev (" + ", ".join(f"{n}: {e.mean:.2f}" for n, e in scores.items()) + ")")
    blocks |= dict.fromkeys(LED, blocks[LEADER])
    return tuple(
        replace(arm, settings={**arm.settings, "site": blocks[arm.name]}) if arm.name in blocks else arm for arm in ARMS
    )


def short(folder: Path) -> None:
    """The tables of a finished run as one: joint success at unit strength and tuned, and points of capability lost tuned."""
    rows = [
        row
        for part in ("both", "concepts")
        for row in json.loads((folder / part / "results.json").read_text())["table"]
    ]
    groups = list(dict.fromkeys((row["group"], row["direction"]) for row in rows))
    cells = {(row["arm"], row["group"], row["direction"], row["setting"]): row for row in rows}
    print("| | " + " | ".join(f"{group} {direction}ed" for group, direction in groups).replace("eed", "ed") + " |")
    print("|---|" + "---|" * len(groups))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        told: list[str] = []
        for group, direction in groups:
            unit, tuned = (cells.get((arm, group, direction, setting)) for setting in ("unit", "tuned"))
            if unit is None or unit["joint"]["mean"] is None:
                told.append("–")
                continue
            best = tuned or unit
            lost = best["lost"]["mean"]
            cost = "" if lost is None else f" ({100 * lost:.0f})"
            told.append(f"{100 * unit['joint']['mean']:.0f} / {100 * best['joint']['mean']:.0f}{cost}")
        print(f"| {arm} | " + " | ".join(told) + " |")


def fooled(variant: str = "pilot", n: int = 40) -> None:
    """Shares that count as joint success: real positives against three ways to fool a word list."""
    suite, rng = PilotSuite(variant), random.Random(0)
    fluent, follows = suite.fluent(), pilot.follows()
    kinds = ("real positives", "keyword list", "shuffled words", "echoed prompt", "plain answer")
    counts = dict.fromkeys(kinds, 0)
    total = 0
    for concept in pilot.concepts(variant):
        asked = pilot.prompts(f"asked:{concept.name}", n=n, seed=5, variant=variant)
        plain = pilot.prompts("ordinary", n=n, seed=5, variant=variant)
        lists = [
            " ".join(rng.sample(sorted(set(words_of(e.answer or ""))), k=min(12, len(set(words_of(e.answer or ""))))))
            for e in asked
        ]
        shuffled = [" ".join(rng.sample(ws := (e.answer or "").split(), len(ws))) for e in asked]
        texts = {
            "real positives": [e.answer or "" for e in asked], "keyword list": lists, "shuffled words": shuffled,
            "echoed prompt": [e.instruction for e in asked], "plain answer": [e.answer or "" for e in plain],
        }  # fmt: skip
        for kind, replies in texts.items():
            examples = plain if kind == "plain answer" else asked
            for text, example in zip(replies, examples, strict=True):
                verdicts = [j.present(j(text, example)) for j in (concept.judge, follows, fluent)]
                counts[kind] += all(verdicts)
        total += n
    print("\nare the judges fooled? share that counts as joint success")
    for kind in kinds:
        print(f"  {kind:16} {counts[kind] / total:.3f}  (n={total})")
    print(
        f"bar judges_not_fooled {counts['real positives'] / total - max(counts[k] for k in kinds[1:]) / total:.3f} 0.500"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=3, metavar="N", help="every N-th concept")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--variant", default="pilot")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument(
        "--short", action="store_true", help="a finished run's figures in one table of Markdown, nothing else"
    )
    parser.add_argument("--judges", action="store_true", help="the judges' check alone")
    given = parser.parse_args()
    if given.short:
        short(given.out / given.variant)
        return
    if not given.judges:
        with progress.shown():
            arms = placed(given.variant, given.out / given.variant, given.workers)
        concepts = tuple(c.name for c in pilot.concepts(given.variant))[:: given.every]
        for part, tasks, pairs in (("both", BOTH, PAIRS_OF_BOTH), ("concepts", concepts, PAIRS_OF_CONCEPTS)):
            plan = Plan(
                arms=arms, tasks=tasks, seeds=tuple(range(given.seeds)), strengths=STRENGTHS,
                curves=False, dev=Amounts(10, 40, 2, 0, 64), test=Amounts(16, 60, 8, 8, 64), samples=1,
            )  # fmt: skip
            suite = PilotSuite(given.variant, pairs=pairs)
            folder = given.out / given.variant / part
            printed(measured(suite, plan, folder, workers=given.workers, title="Every method on the pilot"))
        print("\njoint success in percent at unit strength / tuned on dev (points of capability lost tuned)\n")
        short(given.out / given.variant)
    fooled(given.variant)


if __name__ == "__main__":
    main()
