"""Units become `Results`: averaged over prompts within fits within tasks, with intervals, and what is missing counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Protocol, cast

from ..artefact import plain
from .results import Arm, Cost, Direction, Layer, Point, Results, Row, Sample, Values
from .stats import Estimate, bootstrap, mean
from .suite import Suite, Task
from .unit import DIRECTIONS, Plan

Unit = dict[str, Any]
Pick = Callable[[Unit], "Sequence[float | None] | None"]  # one fit's values, or None where the fit has none


class Known(Protocol):
    """What a report says of the model: an engine, or what a worker told of its own."""

    @property
    def name(self) -> str:
        """Its name or folder."""
        ...

    @property
    def revision(self) -> str | None:
        """Of the hub."""
        ...

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells it from others."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Of what ran it."""
        ...


EFFECTS = ("effect", "joint", "degree", "follows", "fluent", "repetition")
COSTS = ("capability", "lost", "wrong", "refused", "perplexity", "kl")


def summarise(
    suite: Suite,
    plan: Plan,
    units: Sequence[Unit],
    engine: Known,
    *,
    run: str,
    title: str,
    meter: dict[str, Any],
    layers: Sequence[Layer] = (),
    notes: Sequence[str] = (),
    failed: Sequence[dict[str, Any]] = (),
) -> Results:
    """The results of a finished evaluation. An arm that a unit lacks has failed there, and is left out of its means."""
    tasks = {t.name: t for t in suite.tasks() if t.name in plan.tasks}
    by_task = {name: [u for u in units if u["task"] == name] for name in tasks}
    arms = [Arm("unsteered", "unsteered")]
    arms += [
        Arm(a.name, a.label or a.name, {"name": a.method, "file": a.file, "one_sided_of": a.one_sided_of, **a.settings})
        for a in plan.arms
    ]
    return Results(
        run=run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=title,
        model={"name": engine.name, "revision": engine.revision, "fingerprint": engine.fingerprint["shape"][:16]},
        config=cast("dict[str, Any]", plain(asdict(plan) | {"suite": suite.told()})),
        tasks=[asdict(t) for t in tasks.values()],
        arms=arms,
        strengths=list(plan.strengths),
        points=list(_points(plan, by_task)),
        costs=list(_costs(plan, by_task)),
        table=table(plan, tasks, by_task),
        samples=list(_samples(plan, by_task)),
        layers=list(layers),
        values=list(_values(plan, by_task)),
        meter=meter,
        notes=list(notes),
        failed=list(failed),
        versions=engine.versions,
    )


def table(plan: Plan, tasks: dict[str, Task], by_task: dict[str, list[Unit]]) -> list[Row]:
    """One line per arm, group of tasks, direction and setting, the unsteered model first."""
    groups: dict[str, list[str]] = {}
    for name, task in tasks.items():
        groups.setdefault(task.group, []).append(name)
    rows: list[Row] = []
    for group, names in groups.items():
        units = [by_task[name] for name in names]
        for direction in DIRECTIONS:
            rows.append(_plain_row(group, direction, units))
            for arm in plan.arms:
                for setting in ("unit", "tuned"):
                    row = _row(arm.name, group, direction, setting, units)
                    if row is not None:
                        rows.append(row)
    return rows


def cell(unit: Unit, arm: str, direction: str, split: str, setting: str | float) -> dict[str, Any] | None:
    """What one fit measured at unit strength, at the tuned one, or at a given strength; None where it has no such cell."""
    found = _directions(unit, arm).get(cast("Direction", direction))
    if found is None:
        return None
    strength = found[setting] if isinstance(setting, str) else setting
    return next((c for c in found[split] if strength is not None and abs(c["strength"] - strength) < 1e-9), None)


def _directions(unit: Unit, arm: str) -> dict[Direction, Any]:
    """What an arm did in a fit, by direction; nothing where the fit failed."""
    return unit["arms"][arm]["directions"] if arm in unit["arms"] else {}


def values(kind: str, name: str, arm: str, direction: str, setting: str | float, split: str = "test") -> Pick:
    """Picks the values of one measure (`effects` or `costs`) from a unit."""

    def pick(unit: Unit) -> Sequence[float | None] | None:
        found = cell(unit, arm, direction, split, setting)
        return None if found is None else found[kind][name]

    return pick


def _plain(split: str, direction: str, name: str) -> Pick:
    """Picks what the unsteered model gave."""
    return lambda unit: unit["plain"][split][direction][name]


def estimate(units: Sequence[Sequence[Unit]], pick: Pick, names: Callable[[Unit], str]) -> Estimate:
    """Over tasks, fits and values. A fit without the cell is left out. `names` tells draws of items or prompts apart."""
    there = [[(u, v) for u in fits if (v := pick(u)) is not None] for fits in units]
    return bootstrap([[v for _, v in fits] for fits in there], items=[[names(u) for u, _ in fits] for fits in there])


def asked_items(split: str) -> Callable[[Unit], str]:
    """What names a draw of items: the unsteered model's answers to them tell it from another one."""
    return _once(lambda unit: _short([unit["base"][split]["capability"], unit["base"][split]["refused"]]))


def asked_prompts(split: str, direction: str) -> Callable[[Unit], str]:
    """What names a draw of prompts."""
    return _once(lambda unit: _short(unit["plain"][split][direction]["prompts"]))


def _once(name: Callable[[Unit], str]) -> Callable[[Unit], str]:
    """The same, worked out once for each unit."""
    known: dict[int, tuple[Unit, str]] = {}  # the unit is held, so that no other one takes its place

    def named(unit: Unit) -> str:
        if id(unit) not in known:
            known[id(unit)] = (unit, name(unit))
        return known[id(unit)][1]

    return named


def _row(arm: str, group: str, direction: Direction, setting: str, units: Sequence[Sequence[Unit]]) -> Row | None:
    names = {"costs": asked_items("test"), "effects": asked_prompts("test", direction)}

    def told(kind: str, name: str) -> Estimate:
        return estimate(units, values(kind, name, arm, direction, setting), names[kind])

    cells = [c for fits in units for u in fits if (c := cell(u, arm, direction, "test", setting)) is not None]
    if not cells:
        return None
    strengths = sorted({c["strength"] for c in cells})
    means = [m for c in cells if (m := mean(c["effects"]["effect"])) is not None]
    return Row(
        arm=arm, group=group, direction=direction, setting="unit" if setting == "unit" else "tuned",
        strength=f"{strengths[0]:g}" if len(strengths) == 1 else f"{strengths[0]:g} to {strengths[-1]:g}",
        effect=told("effects", "effect"), joint=told("effects", "joint"), degree=told("effects", "degree"),
        lost=told("costs", "lost"), wrong=told("costs", "wrong"), refused=told("costs", "refused"),
        perplexity=told("costs", "perplexity"),
        kl=told("costs", "kl"), repetition=told("effects", "repetition"), worst=min(means, default=None),
    )  # fmt: skip


def _plain_row(group: str, direction: Direction, units: Sequence[Sequence[Unit]]) -> Row:
    prompts, items = asked_prompts("test", direction), asked_items("test")

    def told(name: str) -> Estimate:
        return estimate(units, _plain("test", direction, name), prompts)

    nothing = Estimate(None, None, None, 0)
    means = [m for fits in units for u in fits if (m := mean(u["plain"]["test"][direction]["effect"])) is not None]
    return Row(
        arm="unsteered", group=group, direction=direction, setting="unit", strength="0",
        effect=told("effect"), joint=told("joint"), degree=told("degree"), lost=nothing,
        wrong=estimate(units, lambda u: u["base"]["test"]["wrong"], items),
        refused=estimate(units, lambda u: u["base"]["test"]["refused"], items), perplexity=nothing, kl=nothing,
        repetition=told("repetition"), worst=min(means, default=None),
    )  # fmt: skip


def _points(plan: Plan, by_task: dict[str, list[Unit]]) -> Iterable[Point]:
    for task, fits in by_task.items():
        for direction in DIRECTIONS:
            for split in ("dev", "test"):
                names = asked_prompts(split, direction)
                plain = {n: estimate([fits], _plain(split, direction, n), names) for n in EFFECTS}
                yield Point(task, "unsteered", direction, split, 0.0, **plain)
                for arm in plan.arms:
                    for strength in _strengths(fits, arm.name, direction, split):
                        told = {
                            n: estimate([fits], values("effects", n, arm.name, direction, strength, split), names)
                            for n in EFFECTS
                        }
                        yield Point(task, arm.name, direction, split, strength, **told)


def _costs(plan: Plan, by_task: dict[str, list[Unit]]) -> Iterable[Cost]:
    for task, fits in by_task.items():
        for direction in DIRECTIONS:
            for split in ("dev", "test"):
                names = asked_items(split)
                for arm in plan.arms:
                    for strength in _strengths(fits, arm.name, direction, split):
                        told = {
                            n: estimate([fits], values("costs", n, arm.name, direction, strength, split), names)
                            for n in COSTS
                        }
                        yield Cost(task, arm.name, split, strength, **told)


def _strengths(fits: Sequence[Unit], arm: str, direction: str, split: str) -> list[float]:
    """Strengths at which every fit was measured (tuned ones differ from fit to fit, and belong to the table)."""
    there = [u for u in fits if arm in u["arms"]]
    each = [
        {c["strength"] for c in _directions(u, arm).get(cast("Direction", direction), {}).get(split, [])} for u in there
    ]
    return sorted(set.intersection(*each)) if each else []


def _samples(plan: Plan, by_task: dict[str, list[Unit]]) -> Iterable[Sample]:
    """The first fit's first prompts of each task, side by side over strengths."""
    for task, fits in by_task.items():
        for arm in plan.arms:
            for direction, found in _directions(fits[0], arm.name).items() if fits else ():
                plain = fits[0]["plain"]["test"][direction]
                for n in range(min(plan.samples, len(found["test"][0]["effects"]["texts"]))):
                    cells = [(0.0, plain), *((c["strength"], c["effects"]) for c in found["test"])]
                    yield Sample(task, arm.name, direction, plain["prompts"][n], [_reply(s, e, n) for s, e in cells])


def _values(plan: Plan, by_task: dict[str, list[Unit]]) -> Iterable[Values]:
    """Every fit's values at unit strength and at the tuned one, the unsteered model's first."""
    items = asked_items("test")
    prompts = {direction: asked_prompts("test", direction) for direction in DIRECTIONS}
    for task, fits in by_task.items():
        for unit in fits:
            for direction in DIRECTIONS:
                plain, base = unit["plain"]["test"][direction], unit["base"]["test"]
                on = (prompts[direction](unit), items(unit))  # capability is the unsteered model's less `lost`
                told = {**{k: plain[k] for k in EFFECTS}, **{k: base[k] for k in ("capability", "wrong", "refused")}}
                yield Values(task, "unsteered", direction, "unit", unit["seed"], 0.0, *on, told)
                for arm in plan.arms:
                    for setting in ("unit", "tuned"):
                        found = cell(unit, arm.name, direction, "test", setting)
                        if found is not None:
                            told = {
                                **{k: found["effects"][k] for k in EFFECTS},
                                **{k: found["costs"][k] for k in COSTS if k != "capability"},
                            }
                            strength = found["strength"]
                            yield Values(task, arm.name, direction, setting, unit["seed"], strength, *on, told)


def _short(thing: object) -> str:
    return sha256(json.dumps(thing, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()[:12]


def _reply(strength: float, effects: dict[str, Any], n: int) -> dict[str, Any]:
    told: dict[str, Any] = {"strength": strength, "text": effects["texts"][n], "effect": effects["effect"][n]}
    for name in ("follows", "fluent"):
        told[name] = effects[name][n] if effects[name] else None
    return told
