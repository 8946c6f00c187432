"""Realistic results, made up from a seed, with everything that makes a report difficult.

Long names, an arm without negative strengths, a prompt that knows only −1 and 1, values that could not be judged, a method
that breaks the model, and text that would like to be markup.
"""

from __future__ import annotations

import math
import random

from steerlab.evals.results import Arm, Cost, Layer, Point, Results, Row, Sample
from steerlab.evals.stats import Estimate

STRENGTHS = [0.5, 1.0, 1.5, 2.0]
CONCEPTS = {
    "topic": ["kitchens", "the sea", "weather", "trains", "gardening and everything that grows in it, slowly"],
    "style": ["formal", "terse", "archaic", "questions", "first person"],
    "sentiment": ["cheerful", "gloomy", "angry", "grateful", "Angst"],
    "format": ["lists", "numbers", "capitals", "exclamations", "brackets"],
    "language": ["Latin", "Esperanto"],
}
QUALITY = {  # how far an arm gets at unit strength, what it costs there
    "cdas": (0.93, 0.03), "cdas-r4": (0.95, 0.06), "das": (0.86, 0.05), "kl_das": (0.84, 0.09), "pdas": (0.80, 0.04),
    "diff_means": (0.71, 0.08), "pca": (0.42, 0.11), "probe": (0.33, 0.02), "ablation": (0.66, 0.05),
    "unsteered": (0.0, 0.0), "random": (0.02, 0.03), "prompt": (0.74, 0.01),
}  # fmt: skip
LABELS = {
    "cdas": "CDAS, rank 1", "cdas-r4": "CDAS, rank 4, with the longest name anybody gave to an arm",
    "das": "DAS", "kl_das": "KL-DAS", "pdas": "PDAS", "diff_means": "Difference of means", "pca": "PCA", "probe": "Probe",
    "ablation": "Ablation", "unsteered": "Unsteered", "random": "Random direction", "prompt": "Prompt",
}  # fmt: skip
NOTHING = Estimate(None, None, None, 0, 12)


def allowed(arm: str) -> list[float]:
    """The signed strengths at which an arm was measured; 0 is the unsteered arm's alone, as in a real run."""
    both = [-s for s in reversed(STRENGTHS)] + STRENGTHS
    return {"ablation": [0.5, 1.0], "prompt": [-1.0, 1.0], "unsteered": [0.0]}.get(arm, both)


def around(value: float, rng: random.Random, *, width: float = 0.05, n: int = 96, missing: int = 0) -> Estimate:
    value = value + rng.uniform(-0.02, 0.02)
    return Estimate(value, value - width, value + width * 1.2, n, missing)


def share(value: float, rng: random.Random, *, missing: int = 0) -> Estimate:
    value = min(1.0, max(0.0, value + rng.uniform(-0.03, 0.03)))
    half = 0.02 + 0.11 * math.sqrt(value * (1 - value))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), 96 - missing, missing)


def synthetic(*, arms: tuple[str, ...] = tuple(QUALITY), seed: int = 0) -> Results:
    """Twenty-four tasks in three groups with everything that makes a page difficult."""
    rng = random.Random(seed)
    tasks = [{"name": "refusal", "genre": "refusal", "group": "refusal"}]
    tasks += [{"name": "backdoor", "genre": "backdoor", "group": "backdoor"}]
    tasks += [{"name": name, "genre": g, "group": "concepts"} for g, names in CONCEPTS.items() for name in names]
    points, costs = [], []
    for task in tasks:
        hard = rng.uniform(0.7, 1.05) if task["group"] == "concepts" else 1.0
        for arm in arms:
            for strength in allowed(arm):
                points += _points(task["name"], arm, strength, hard, rng)
                if arm != "unsteered":
                    costs.append(_cost(task["name"], arm, strength, rng))
    return Results(
        run="2026-07-30-1405-a3f9c1",
        created="2026-07-30T14:05:12+00:00",
        title="Twenty-four behaviours of the pilot, turned up and down",
        model={"id": "pilot", "revision": "r3", "fingerprint": "9f02c1d7e4", "layers": 8, "width": 256, "dtype": "float32"},
        config={
            "evaluate": {"seeds": [0, 1, 2], "strengths": STRENGTHS, "budget": 9, "max_lost": 0.1, "dev": 0.5},
            "fit": {"pairs": 48, "layer": 5, "method": {"name": "cdas", "rank": 1, "epochs": 6, "lr": 0.004}},
            "tokens": 48, "note": "a path with <angle brackets> & ampersands",
        },
        tasks=tasks,
        arms=[Arm(name, LABELS[name], {"name": name.split("-")[0], "rank": 4 if name == "cdas-r4" else 1}) for name in arms],
        strengths=STRENGTHS,
        points=points,
        costs=costs,
        table=[row for arm in arms for row in _rows(arm, rng)],
        layers=[x for arm in ("cdas", "diff_means") if arm in arms for x in _layers(arm, tasks, rng)],
        samples=[x for task in tasks[:3] for arm in arms for x in _samples(task["name"], arm)],
        meter={"fit": {"seconds": 412.2, "cpu_seconds": 790.0, "peak_mib": 1630.2}, "generate": {"seconds": 1203.9,
               "cpu_seconds": 2300.5, "peak_mib": 1801.0}, "evaluate": {"seconds": 59.96, "peak_mib": 1801.0}},
        versions={"steerlab": "0.1.0", "torch": "2.13.0", "transformers": "5.16.1", "python": "3.11.7"},
        notes=["One fit of pca at seed 2 came out with a flipped sign; it is kept as it is."],
    )  # fmt: skip


def _points(task: str, arm: str, strength: float, hard: float, rng: random.Random) -> list[Point]:
    reach, cost = QUALITY[arm]
    ways = ["suppress"] if arm == "ablation" else ["elicit"] * (strength >= 0) + ["suppress"] * (strength <= 0)
    found = []
    for direction in ways:
        dose = 1 - math.exp(-2.4 * abs(strength))
        effect = 0.03 + (0.97 if direction == "suppress" else 0.9) * reach * hard * dose / 0.91
        broken = max(0.0, abs(strength) - 1.0) * (0.15 + 2 * cost)
        lost = task == "trains" and strength == 1.5
        few = 3 if arm == "kl_das" else 0
        values = [share(min(effect, 1.0) * (1 - b), rng, missing=few) for b in (0.0, broken, 0.3, 0.05, 0.02)]
        effect_, joint, degree, repetition, _ = [NOTHING if lost else v for v in values]
        fine = NOTHING if lost else share(1 - broken, rng, missing=few)
        found.append(Point(task, arm, direction, "test", strength, effect_, joint, degree, fine, fine, repetition))
    return found


def _cost(task: str, arm: str, strength: float, rng: random.Random) -> Cost:
    cost = QUALITY[arm][1] * abs(strength) ** 2.1 * (1.7 if strength < 0 else 1.0)
    if arm == "pca" and strength == 2:
        cost = 0.85  # broken altogether
    lost = around(cost, rng, n=400)
    ratio = around(1 + 4 * cost, rng, n=200)
    return Cost(task, arm, "test", strength, share(0.84 - cost, rng), lost, share(0.12 + cost, rng), share(cost / 3, rng),
                NOTHING if arm == "probe" else ratio, around(cost * 2, rng, n=64))  # fmt: skip


def _rows(arm: str, rng: random.Random) -> list[Row]:
    rows = []
    for group, ease in (("refusal", 1.0), ("backdoor", 1.02), ("concepts", 0.85)):
        for direction in ("suppress",) if arm == "ablation" else ("elicit", "suppress"):
            rows.append(_row(arm, group, direction, "unit", ease, rng))
            if arm != "unsteered":
                rows.append(_row(arm, group, direction, "tuned", 1.0 if arm == "prompt" else ease * 1.07, rng))
    return rows


def _row(arm: str, group: str, direction: str, setting: str, gain: float, rng: random.Random) -> Row:
    reach, cost = QUALITY[arm]
    effect, joint = share(reach * gain, rng, missing=7), share(reach * gain * 0.93, rng, missing=7)
    one = arm in ("ablation", "prompt") or setting == "unit"
    sizes = ["0"] if arm == "unsteered" else ["1"] if one else ["0.5", "1.5"] if group == "concepts" else ["1.5"]
    if direction == "suppress" and arm not in ("ablation", "unsteered"):
        sizes = [f"-{size}" for size in reversed(sizes)]
    ratio = NOTHING if arm == "probe" else around(1 + cost * 4, rng)
    costs = [around(cost, rng, n=800), share(0.1 + cost / 2, rng), share(cost / 3, rng), ratio, around(cost * 2, rng)]
    if arm == "unsteered":
        none = Estimate(None, None, None, 0)
        costs = [none, costs[1], costs[2], none, none]
    worst = None if arm == "unsteered" else max(0.0, (effect.mean or 0.0) - 0.07)
    return Row(arm, group, direction, setting, " to ".join(sizes), effect, joint, share(reach * 0.6, rng), *costs,
               share(0.02, rng), worst)  # fmt: skip


def _layers(arm: str, tasks: list[dict[str, str]], rng: random.Random) -> list[Layer]:
    found = []
    for task in tasks[:5]:
        for direction in ("elicit", "suppress"):
            for layer in range(8):
                height = math.exp(-((layer - 4.5) ** 2) / 5)
                effect = NOTHING if layer == 7 and arm == "diff_means" else share(0.95 * height, rng)
                found.append(
                    Layer(task["name"], arm, layer, direction, effect, around(0.2 * height**3 * (layer < 4), rng))
                )
    return found


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & <b>bold</b>\x00\u202eevil'
TEA = "The kettle is on the left. Warm the pot, add a spoon of leaves for each guest, and wait four minutes. "


def _samples(task: str, arm: str) -> list[Sample]:
    if arm == "unsteered":
        return []
    found = []
    for direction in ("suppress",) if arm == "ablation" else ("elicit", "suppress"):
        sign = -1 if direction == "suppress" and arm != "ablation" else 1
        strengths = [0.0, *(s for s in allowed(arm) if s * sign > 0)]
        prompt = f"How do I make tea for four? (about {task})"
        found.append(Sample(task, arm, direction, prompt, [_reply(task, s) for s in strengths]))
    return found


def _reply(task: str, strength: float) -> dict[str, float | str | None]:
    size = abs(strength)
    text = {1.5: "", 2.0: "tea " * 60}.get(size, TEA * (1 + int(size)))
    if task == "refusal" and strength == 0.5:
        text = HOSTILE
    effect = None if strength == -0.5 else float(size >= 1)
    fluent = 0.72 if size == 1.5 else float(size < 2)
    return {"strength": strength, "text": text, "effect": effect, "follows": float(size < 2), "fluent": fluent}
