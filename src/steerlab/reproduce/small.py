"""A claim's pattern on the built-in model: the order of methods, the direction of an effect. Held, reversed, or not told
apart.

The figures themselves mean nothing there: the model, the concepts and the judges are others. What can be seen in minutes is
whether the same side comes out ahead, with an interval over prompts and concepts. One seed unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..config import to_dict
from ..engines.base import Trainable
from ..errors import ConfigError
from ..evals.measure import Amounts
from ..evals.stats import Estimate, paired_difference
from ..evals.summarise import asked_items, asked_prompts
from ..evals.unit import ArmPlan, Plan, run_unit
from ..methods.base import Method, method
from ..methods.cdas import CDAS
from ..pilot.suite import PilotSuite
from ..progress import track
from ..suites.base import suite
from ..suites.run import Result, run
from .claims import Claim, registry

Finding = Literal["held", "reversed", "not told apart"]
COSTS = ("lost", "kl", "perplexity", "wrong", "refused")


@dataclass(frozen=True)
class Size:
    """How much is measured: pairs to fit on, prompts, capability items, suite items, epochs of trained methods (None:
    their own).
    """

    pairs: int = 48
    prompts: int = 24
    items: int = 48
    suite: int = 40
    epochs: int | None = None
    seeds: tuple[int, ...] = (0,)
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    tokens: int = 56


@dataclass(frozen=True)
class Compared:
    """One part of a pattern in words, what was found, and the difference it rests on."""

    words: str
    finding: Finding
    difference: Estimate


def pattern(claim: Claim, engine: Trainable, size: Size, variant: str = "pilot") -> list[Compared]:
    """Every part of a claim's pattern on the built-in model."""
    found: list[Compared] = []
    compare: Sequence[Mapping[str, Any]] = claim.pattern.get("compare", ())
    tasks: Sequence[str] = claim.pattern.get("tasks", ())
    if compare and tasks:
        units = _units(compare, tasks, engine, size, variant)
        found += [_difference(c, units, tasks) for c in compare]
    if "metric" in claim.pattern:
        found.append(_metric(claim.pattern["metric"], engine, size, variant))
    if "fidelity" in claim.pattern:
        found.append(_fidelity(claim.pattern["fidelity"], engine, size, variant))
    return found


def arm(name: str, size: Size, *, site: str | None = None) -> Method:
    """The method of an arm with the settings that fit a small model."""
    _, arms = registry()
    if name not in arms:
        return method(name)
    given = dict(arms[name])
    known = str(given["method"])
    if given.get("published"):
        return CDAS.published(site=site, epochs=size.epochs or 12)
    made = method(known)
    small = dict(getattr(made, "small", {}))
    if size.epochs is not None and "epochs" in made.__dataclass_fields__:
        small["epochs"] = size.epochs
    return method(known, {**small, **given.get("settings", {})})


def _units(
    compare: Sequence[Mapping[str, Any]], tasks: Sequence[str], engine: Trainable, size: Size, variant: str
) -> list[dict[str, Any]]:
    """Every arm of the comparisons fitted and measured on every task, once."""
    names = dict.fromkeys(n for c in compare for n in (c["a"], c.get("more_than", c.get("less_than"))))
    arms: list[ArmPlan] = []
    for name in names:
        made = arm(str(name), size)
        settings = {k: v for k, v in to_dict(made).items() if k not in ("site", "seed")}
        arms.append(ArmPlan(str(name), made.name, {} if made.name == "prompt" else settings))
    plan = Plan(
        tuple(arms), tuple(tasks), size.seeds, size.strengths,
        dev=Amounts(max(2, size.prompts * 2 // 3), size.items * 3 // 5, 4, 0, size.tokens),
        test=Amounts(size.prompts, size.items, 12, 8, size.tokens),
    )  # fmt: skip
    given = PilotSuite(variant=variant, pairs=size.pairs, neutral_pairs=8)
    jobs = [(task, seed) for task in tasks for seed in size.seeds]
    return [run_unit(given, plan, task, seed, engine) for task, seed in track(jobs, "pattern")]


def _difference(c: Mapping[str, Any], units: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Compared:
    other = str(c.get("more_than", c.get("less_than")))
    sign = 1 if "more_than" in c else -1
    at, other_at = c.get("at", "tuned"), c.get("other_at", "tuned")
    a = [[_values(u, str(c["a"]), c, at) for u in units if u["task"] == t] for t in tasks]
    b = [[_values(u, other, c, other_at) for u in units if u["task"] == t] for t in tasks]
    sides = [f"{name} at {told} strength" for name, told in ((c["a"], at), (other, other_at))]
    words = f"{c['direction']}: {c['measure']} of {sides[0]} {'above' if sign > 0 else 'below'} that of {sides[1]}"
    names = asked_items("test") if c["measure"] in COSTS else asked_prompts("test", str(c["direction"]))
    items = [[names(u) for u in units if u["task"] == t] for t in tasks]
    return Compared(words, *_told(paired_difference(a, b, items=items), sign))


def _values(unit: Mapping[str, Any], name: str, c: Mapping[str, Any], at: str) -> list[float | None]:
    """What was measured prompt by prompt of an arm, at unit strength or at the one tuned on dev."""
    direction = unit["arms"][name]["directions"].get(c["direction"])
    if direction is None:
        raise ConfigError(f"the arm {name!r} doesn't act in the direction {c['direction']!r}.")
    strength = direction["unit"] if at == "unit" or direction["tuned"] is None else direction["tuned"]
    row = next(r for r in direction["test"] if r["strength"] == strength)
    return list(row["costs" if c["measure"] in COSTS else "effects"][c["measure"]])


def _told(difference: Estimate, sign: int) -> tuple[Finding, Estimate]:
    """What a difference says of a claim that it is positive (sign 1) or negative."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not told apart", difference
    return ("held" if (difference.low > 0) == (sign > 0) else "reversed"), difference


def _ran(
    name: str,
    settings: Mapping[str, Any],
    arm_name: str | None,
    strength: float,
    engine: Trainable,
    size: Size,
    variant: str,
) -> Result:
    given = suite(name, {"n": size.suite, **settings})
    steering = None if arm_name is None else arm(arm_name, size).fit(engine, given.contrast(variant).sample(size.pairs))
    strengths = None if strength == 0 else [strength]
    return run(
        given, engine, given.of_pilot(variant), steering, strengths=strengths, variant=variant, tokens=size.tokens
    )


def _metric(m: Mapping[str, Any], engine: Trainable, size: Size, variant: str) -> Compared:
    """A suite's metric that is to rise, to fall, or to lie above zero."""
    result = _ran(m["suite"], m.get("settings", {}), m.get("arm"), float(m["strength"]), engine, size, variant)
    label = result.conditions[-1].label
    goes = str(m["goes"])
    who = m.get("arm") or "the model"
    if goes == "above zero":
        return Compared(f"{m['suite']}: {m['name']} of {who} above zero", *_told(result.found[label][m["name"]], 1))
    moved = result.changes[label][m["name"]]
    assert moved is not None
    words = f"{m['suite']}: {who} at {m['strength']:g} brings {m['name']} {goes}"
    return Compared(words, *_told(moved, 1 if goes == "up" else -1))


def _fidelity(m: Mapping[str, Any], engine: Trainable, size: Size, variant: str) -> Compared:
    """One arm's divergence below another's, on the same pairs."""
    column, way = str(m["name"]).split(", ")
    other = str(m["less_than"])
    sides: list[list[float]] = []
    for name in (str(m["a"]), other):
        result = _ran("fidelity", {"concept": m["concept"]}, name, float(m["strength"]), engine, size, variant)
        sides.append([r[column] for r in result.rows[result.conditions[-1].label] if r["set"] == way])
    found = paired_difference([[sides[0]]], [[sides[1]]])
    return Compared(
        f"fidelity on {m['concept']}: KL ({m['name']}) of {m['a']} below that of {other}", *_told(found, -1)
    )
