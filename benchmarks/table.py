"""The comparison table: every method of this repository on refusal, backdoor and every third concept. `make table` (long).

Unit strength and tuned, the same pairs, dev prompts and strengths for every method, each at its default site, with
intervals and every cost; ends with a check that the judges aren't fooled: keyword lists, shuffled positives and echoed
prompts against real positives.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from bench_pilot import BOTH, PAIRS_OF_BOTH, PAIRS_OF_CONCEPTS

from steerlab import pilot
from steerlab.cli.evaluate import measured, printed
from steerlab.config import to_dict
from steerlab.evals.measure import Amounts
from steerlab.evals.unit import ArmPlan, Plan
from steerlab.judges.rule import words_of
from steerlab.methods.cdas import CDAS
from steerlab.pilot.suite import PilotSuite

STRENGTHS = (0.25, 0.5, 1.0, 1.25, 1.5)
ARMS = (
    ArmPlan("cdas rank 1", "cdas", {"rank": 1}), ArmPlan("cdas rank 4", "cdas", {"rank": 4}), ArmPlan("cdas rank 16", "cdas", {"rank": 16}),
    ArmPlan("cdas push", one_sided_of="cdas rank 4"),
    ArmPlan("cdas published", "cdas", {k: v for k, v in to_dict(CDAS.published()).items() if k not in ("site", "seed")}),
    ArmPlan("das", "das"), ArmPlan("kl_das", "kl_das"), ArmPlan("pdas", "pdas"),
    ArmPlan("diff_means", "diff_means"), ArmPlan("diff_means paired", "diff_means", {"pooling": "paired"}),
    ArmPlan("pca", "pca"), ArmPlan("probe", "probe"), ArmPlan("ablation", "ablation"),
    ArmPlan("random", "random"), ArmPlan("random clamp", "random", {"form": "clamp"}), ArmPlan("prompt", "prompt"),
)  # fmt: skip


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
    parser.add_argument("--site", help="block of every arm")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--variant", default="pilot")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--judges", action="store_true", help="the judges' check alone")
    given = parser.parse_args()
    if not given.judges:
        concepts = tuple(c.name for c in pilot.concepts(given.variant))[:: given.every]
        for part, tasks, pairs in (("both", BOTH, PAIRS_OF_BOTH), ("concepts", concepts, PAIRS_OF_CONCEPTS)):
            plan = Plan(
                arms=ARMS, tasks=tasks, seeds=tuple(range(given.seeds)), site=given.site, strengths=STRENGTHS,
                curves=False, dev=Amounts(10, 40, 2, 0, 64), test=Amounts(16, 60, 8, 8, 64), samples=1,
            )  # fmt: skip
            suite = PilotSuite(given.variant, pairs=pairs)
            folder = given.out / given.variant / part
            printed(measured(suite, plan, folder, workers=given.workers, title="Every method on the pilot"))
    fooled(given.variant)


if __name__ == "__main__":
    main()
