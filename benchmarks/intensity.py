"""An attribute in a wanted intensity from 0 to 4: asked, reached, and how far off. `make intensity`.

The pilot was trained on answers in five intensities. Four ways to get one from a plain prompt: nothing; a prompt that
asks for it in words or on a scale; a difference of means whose strength was chosen on dev for each target; re_control's
target (a value network reads each token's activation, and the edit brings its score to the target, with no strength to
choose; its site was chosen on dev). The intensity of a reply is its judge's degree on a scale from 0 to 4 that puts the
mean degree of gold answers of each level (of the training split) at that level. Errors are |asked − reached|, with 95 %
intervals over concepts, fits and prompts; replies that can't be judged are counted. Other gold answers on the same scale
say how exact the scale is.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from dataclasses import replace

import numpy as np
import torch

import steerlab as sl
from steerlab import pilot
from steerlab.engines.base import Sampling
from steerlab.evals.stats import bootstrap
from steerlab.methods.base import method
from steerlab.methods.re_control import towards
from steerlab.progress import shown

CONCEPTS = ("sea", "formal", "pirate", "joyful", "excited", "winter")
TARGETS = (0, 1, 2, 3, 4)
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
GREEDY = Sampling(max_new_tokens=72)
MEANS = {"site": "5", "pooling": "last", "positions": "not_template"}
CONTROL = {
    "site": "5,final", "positions": "decoding", "hidden": 32, "activation": "silu", "rate": 0.003, "epochs": 20, "lam": 1.0,
    "rule": "newton", "steps": 8, "step": 1.0,
}  # fmt: skip


class Scale:
    """A concept's intensity from its judge's degree, by the mean degrees of gold answers of the training split."""

    def __init__(self, concept: str) -> None:
        self.concept, self.judge = concept, pilot.concept(concept).judge
        gold = levels(concept, "train", 12, 902)
        found = {
            k: statistics.mean(
                v for e in gold if e.score == k and (v := self.judge(e.answer or "", e).value) is not None
            )
            for k in TARGETS
        }
        self.degrees = np.maximum.accumulate([found[k] for k in TARGETS])

    def __call__(self, reply: str, example: sl.Example) -> float | None:
        degree = self.judge(reply, example).value
        return None if degree is None else float(np.interp(degree, self.degrees, TARGETS))


def levels(concept: str, split: str, each: int, seed: int) -> list[sl.Example]:
    """Prompts that ask for a concept at each level, with gold answers, `each` of every level; the level is the score."""
    known = len(pilot.concepts()) - 1  # without the one that has no levels
    found = pilot.abilities(n=known * len(TARGETS) * each, seed=seed, split=split)["levels"]
    return [replace(e, score=float(e.tags["level"])) for e in found if e.tags["concept"] == concept]


def contrast(concept: str, n: int, seed: int) -> sl.Contrast:
    """Answers with their levels: pairs of asked and plain prompts, and prompts that ask for each level."""
    pairs = pilot.contrast(concept, n=n, seed=seed, neutral=0)
    every = [replace(e, score=float(e.tags["level"])) for e in pairs.positive] + levels(
        concept, "train", max(2, n // 8), seed
    )
    plain = tuple(replace(e, score=0.0) for e in pairs.negative) + tuple(e for e in every if not e.score)
    return sl.Contrast(tuple(e for e in every if e.score), plain, concept=concept, source=f"{pairs.source}, in levels")


def reached(engine, scale: Scale, prompts, steerings) -> list[float | None]:
    replies = engine.generate(prompts, steerings, GREEDY)
    return [scale(r.text, p) for r, p in zip(replies, prompts, strict=True)]


def chosen(engine, scale: Scale, steering, prompts) -> list[float]:
    """For each target the strength with the least mean error on dev."""
    rows = [(p, s) for s in STRENGTHS for p in prompts]
    got = reached(engine, scale, [p for p, _ in rows], [steering.scaled(s) for _, s in rows])
    by = {s: [g for (_, t), g in zip(rows, got, strict=True) if t == s and g is not None] for s in STRENGTHS}
    return [
        min((s for s in STRENGTHS if by[s]), key=lambda s: statistics.mean(abs(g - k) for g in by[s])) for k in TARGETS
    ]


def placed(engine, scale: Scale, steering, prompts) -> sl.Steering:
    """The one of its sites whose targets are met with the least mean error on dev."""
    each = [replace(steering, interventions=(i,)) for i in steering.interventions]
    rows = [(p, n, k) for n in range(len(each)) for k in TARGETS for p in prompts]
    under = {(n, k): towards(one, float(k)) for n, one in enumerate(each) for k in TARGETS}
    got = reached(engine, scale, [p for p, _, _ in rows], [under[n, k] for _, n, k in rows])
    off = [
        [abs(g - k) for (_, m, k), g in zip(rows, got, strict=True) if m == n and g is not None]
        for n in range(len(each))
    ]
    return each[min(range(len(each)), key=lambda n: statistics.mean(off[n] or [4.0]))]


def asking(concept: str, prompt: sl.Example, level: int, seed: int) -> sl.Example:
    """The same prompt with a request for the level after it."""
    *before, last = prompt.messages
    text = f"{last.content} {pilot.request(concept, intensity=level, seed=seed)}"
    return replace(prompt, messages=(*before, sl.Message("user", text)))


def unit(engine, concept: str, seed: int, n: int, data: int, means: dict, control: dict, split: str) -> dict:
    """For one concept and fit: each arm's reached intensity for each target and prompt."""
    scale, train = Scale(concept), contrast(concept, data, seed)
    test = list(pilot.prompts("ordinary", n=n, seed=10 + seed, split=split))
    dev = list(pilot.prompts("ordinary", n=max(4, n // 2), seed=20 + seed, split="dev"))
    vector = method("diff_means", means).fit(engine, train)
    strengths = chosen(engine, scale, vector, dev)
    fitted = method("re_control", {**control, "target": 0.0, "seed": seed}).fit(engine, train)
    net = placed(engine, scale, fitted, dev)
    aimed = [towards(net, float(k)) for k in TARGETS]
    weighed = [vector.scaled(s) for s in strengths]
    rows = [(p, k) for k in TARGETS for p in test]
    prompts = [p for p, _ in rows]
    plain = reached(engine, scale, test, None)
    found = {
        "unsteered": plain * len(TARGETS),
        "prompt": reached(engine, scale, [asking(concept, p, k, i) for i, (p, k) in enumerate(rows)], None),
        "diff_means": reached(engine, scale, prompts, [weighed[k] for _, k in rows]),
        "re_control": reached(engine, scale, prompts, [aimed[k] for _, k in rows]),
    }
    gold = levels(concept, "train", 4, 500 + seed)
    return {
        "concept": concept, "targets": [k for _, k in rows], "found": found, "strengths": strengths,
        "gold": [(e.score, scale(e.answer or "", e)) for e in gold],
        "site": str(net.interventions[0].site), "off": net.meta.figures["value"][str(net.interventions[0].site)],
    }  # fmt: skip


def told(units: list[dict], run: str) -> None:
    names = sorted({u["concept"] for u in units})
    print(f"{'arm':12} {'mean |asked − reached|, 0–4':32} " + "".join(f"{f'reached at {k}':>14}" for k in TARGETS))

    def clusters(of) -> list[list[list[float | None]]]:
        return [[of(u) for u in units if u["concept"] == c] for c in names]

    errors = {}
    for arm in units[0]["found"]:

        def off(u: dict, arm: str = arm) -> list[float | None]:
            return [None if g is None else abs(g - k) for g, k in zip(u["found"][arm], u["targets"], strict=True)]

        e = errors[arm] = bootstrap(clusters(off))
        cells = []
        for k in TARGETS:
            got = bootstrap(
                clusters(
                    lambda u, k=k, arm=arm: [g for g, t in zip(u["found"][arm], u["targets"], strict=True) if t == k]
                )
            )
            cells.append(f"{got.mean:14.2f}")
        print(
            f"{arm:12} {f'{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}] n={e.n} missing={e.missing}':32} " + "".join(cells)
        )
    gold = bootstrap(clusters(lambda u: [None if g is None else abs(g - k) for k, g in u["gold"]]))
    print(f"other gold answers on the same scale: {gold.mean:.3f} [{gold.low:.3f}, {gold.high:.3f}] n={gold.n}")
    for u in units:
        print(
            f"  {u['concept']:10} strengths of diff_means {u['strengths']}; re_control at {u['site']}, its value network off by {u['off']['off']:.2f} (scores' spread {u['off']['spread']:.2f})"
        )
    ours = errors["re_control"].mean
    for arm in ("unsteered", "diff_means"):
        goal = errors[arm].mean
        if ours is None or goal is None:
            print(f"no bar for re_control against {arm}: nothing judged")
            continue
        short = "" if ours <= goal else "   (short)"
        print(f"bar intensity_re_control_within_{arm} {-ours:.3f} {-goal:.3f} {run}{short}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=10, help="test prompts of each concept, target and fit")
    parser.add_argument("--data", type=int, default=96, help="pairs of each fit")
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--split", default="test", choices=("dev", "test"), help="dev: for choosing settings")
    parser.add_argument("--means", default="{}", help="other settings of diff_means, as YAML")
    parser.add_argument("--control", default="{}", help="other settings of re_control, as YAML")
    given = parser.parse_args()
    import yaml

    torch.set_num_threads(1)
    means, control = {**MEANS, **yaml.safe_load(given.means)}, {**CONTROL, **yaml.safe_load(given.control)}
    run, begun, units = uuid.uuid4().hex[:8], time.perf_counter(), []
    engine = sl.load("pilot", batch_size=64)
    with shown():
        for concept in given.concepts.split(","):
            for seed in range(given.seeds):
                units.append(unit(engine, concept, seed, given.prompts, given.data, means, control, given.split))
    print(
        f"run {run}: {len(units)} fits of {given.data} pairs, {given.prompts} prompts of {given.split} a target; diff_means {means}; re_control {control}"
    )
    told(units, run)
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
