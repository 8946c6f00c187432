"""What several steerings do to each other, and how best to put them together.

The interference matrix has a row for what acts as well and a column for whose effect is looked at: how much of a steering's
own effect is left when another one acts beside it, pair by pair, on dev prompts; and cross-talk, what one alone does to the
prompts and the judge of another. Then the whole composition: as given, reordered where order counts, with overlaps taken out or
one-sided (`joining`), and weaker, each with what it keeps of every effect, what it costs together, and intervals on test prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import progress
from ..engines.base import Trainable
from ..errors import ConfigError, EditError
from ..steering import Steering
from .guarantee import Budget
from .joining import Joined, Part, commute, joined, orthogonal, overlap, pushed
from .measure import Amounts, Values, capability, measure_effects
from .results import Direction
from .search import halving
from .signals import Signals
from .stats import Estimate, bootstrap, mean, paired_difference
from .suite import Split, Suite

COLLINEAR, CANCELS = 0.3, 0.5
LEAST = 0.05  # of what they do alone; less is none


@dataclass(frozen=True)
class Asked:
    """How much is measured: prompts of each effect on dev and on test, neutral prompts, texts, capability items.

    `matrix` measures every pair; without it only the whole compositions are.
    """

    budget: Budget = field(default_factory=Budget)
    prompts: int = 12
    test: int = 24
    neutral: int = 64
    texts: int = 32
    items: int = 200
    tokens: int = 64
    seed: int = 0
    matrix: bool = True


@dataclass(frozen=True)
class Whole:
    """A composition on test: what each steering's effect is alone and here, how much of it is kept, and the joint costs.

    `kept` is effect here over effect alone (both above the unsteered model's), over all steerings that have one alone.
    """

    name: str
    words: str
    steering: Steering
    effects: tuple[Estimate, ...]
    kept: Estimate
    costs: Mapping[str, Estimate]
    over: tuple[str, ...]
    chosen: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name, "what": self.words, "digest": self.steering.digest, "over_budget": list(self.over),
            "effects": [e.to_json() for e in self.effects], "kept": self.kept.to_json(), "chosen": self.chosen,
            "costs": {name: e.to_json() for name, e in self.costs.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Interference:
    """All that was found. Matrices have a row for what acts as well (or alone), a column for whose effect it is."""

    parts: tuple[Part, ...]
    plain: tuple[float | None, ...]
    solo: tuple[Estimate, ...]
    beside: tuple[tuple[Estimate | None, ...], ...]  # effect of the column's with the row's beside it
    change: tuple[tuple[Estimate | None, ...], ...]  # the same less the column's alone
    cross: tuple[tuple[Estimate | None, ...], ...]  # the column's behaviour under the row's alone, less unsteered
    cosine: tuple[tuple[float | None, ...], ...]
    costs: tuple[Mapping[str, Estimate], ...]
    wholes: tuple[Whole, ...]
    warnings: tuple[str, ...]
    budget: Budget

    @property
    def best(self) -> Whole:
        """The composition that is proposed."""
        return next(w for w in self.wholes if w.chosen)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "steerings": [
                {"name": p.name, "task": p.task, "direction": p.direction, "strength": p.strength, "digest": p.steering.digest}
                for p in self.parts
            ],
            "unsteered": list(self.plain), "alone": [e.to_json() for e in self.solo],
            **{
                name: [[None if e is None else e.to_json() for e in row] for row in matrix]
                for name, matrix in (("beside", self.beside), ("change", self.change), ("cross", self.cross))
            },
            "cosine": [list(row) for row in self.cosine],
            "costs_alone": [{n: e.to_json() for n, e in c.items()} for c in self.costs],
            "compositions": [w.to_json() for w in self.wholes], "warnings": list(self.warnings), "budget": self.budget.told(),
        }  # fmt: skip


def interference(
    suite: Suite, parts: Sequence[Part], asked: Asked = Asked(), *, engine: Trainable | None = None
) -> Interference:
    """Measure them alone, two by two and all together. Raises `ConfigError` for fewer than two."""
    if len(parts) < 2:
        raise ConfigError(f"{len(parts)} steering can't interfere; give two or more.")
    if len({p.name for p in parts}) < len(parts):
        raise ConfigError("two steerings have the same name; give each its own.")
    run = _Run(suite, tuple(parts), asked, engine or suite.engine())
    count = len(parts)
    with progress.task("composing", count + count * (count - 1) * int(asked.matrix) + 4) as bar:
        return run.all(bar)


class _Run:
    """One composition, measured step by step."""

    def __init__(self, suite: Suite, parts: tuple[Part, ...], asked: Asked, engine: Trainable) -> None:
        self.suite, self.parts, self.asked, self.engine = suite, parts, asked, engine
        self.signals = Signals(
            suite, engine, parts[0].task, "dev", pairs=0, neutral=asked.neutral, texts=asked.texts, seed=asked.seed
        )

    def all(self, bar: progress.Task) -> Interference:
        """Everything, in the order in which it is needed."""
        parts, range_ = self.parts, range(len(self.parts))
        plain = [self.effect(p, None, "dev") for p in parts]
        alone = [self.effect(p, p.applied, "dev") for p in parts]
        costs = [self.cheap(p.applied) for p in parts]
        bar.advance(len(parts))
        beside: list[list[Values | None]] = [[None] * len(parts) for _ in range_]
        cross: list[list[Values | None]] = [[None] * len(parts) for _ in range_]
        for i in range_ if self.asked.matrix else ():
            for j in range_:
                if i != j:
                    both = joined([parts[min(i, j)], parts[max(i, j)]])
                    beside[i][j] = self.effect(parts[j], both, "dev")
                    cross[i][j] = self.effect(parts[j], parts[i].applied, "dev")
                    bar.advance()
        change = [[_less(beside[i][j], alone[j]) for j in range_] for i in range_]
        talk = [[_less(cross[i][j], plain[j]) for j in range_] for i in range_]
        cosine = [[None if i == j else overlap(parts[i].applied, parts[j].applied) for j in range_] for i in range_]
        wholes = self.wholes(change, bar)
        return Interference(
            parts, tuple(mean(v) for v in plain), tuple(_estimate(v) for v in alone),
            tuple(tuple(None if v is None else _estimate(v) for v in row) for row in beside), _tuples(change), _tuples(talk),
            _tuples(cosine), tuple(costs), wholes,
            tuple(self.warnings(alone, plain, change, cosine, costs, wholes)), self.asked.budget,
        )  # fmt: skip

    def effect(self, part: Part, under: Steering | None, split: Split) -> Values:
        """Whether a part's behaviour is there (or gone), prompt by prompt."""
        n = self.asked.prompts if split == "dev" else self.asked.test
        amounts = Amounts(n, 0, 0, 0, self.asked.tokens)
        found = measure_effects(
            self.suite, self.engine, part.task, part.direction, split, [under], amounts, self.asked.seed
        )
        return found[0].effect

    def cheap(self, under: Steering) -> dict[str, Estimate]:
        """KL and perplexity."""
        found = {"kl": self.signals.kl(under), "perplexity": self.signals.perplexity(under)}
        return {n: bootstrap([[[float(x) for x in np.minimum(v, 1e3)]]]) for n, v in found.items() if len(v)}

    # --- compositions -------------------------------------------------------------------------------------------------

    def wholes(self, change: Sequence[Sequence[Estimate | None]], bar: progress.Task) -> tuple[Whole, ...]:
        """Every way to put them together, measured on test, the proposed one marked."""
        plain = [self.effect(p, None, "test") for p in self.parts]
        alone = [self.effect(p, p.applied, "test") for p in self.parts]
        base = self.capability(None)
        bar.advance()
        found = [self.whole(way, plain, alone, base) for way in self.ways(change)]
        bar.advance()
        best = proposed(found)
        return tuple(replace(w, chosen=w is best) for w in found)

    def ways(self, change: Sequence[Sequence[Estimate | None]]) -> list[Joined]:
        """As given; reordered, where order counts; without overlaps; one-sided; weaker, where the cost asks for it."""
        found = [Joined("as given", joined(self.parts), "added in the order given")]
        order = self.order(change)
        if order != list(range(len(self.parts))):
            names = ", ".join(self.parts[i].name for i in order)
            found.append(Joined("reordered", joined(self.parts, order), f"the most disturbed last: {names}"))
        made = (("overlaps taken out", orthogonal(self.parts)), ("one-sided", pushed(self.parts)))
        others = [Joined(name, *way) for name, way in made if way is not None]
        found += others
        factor = self.factor()
        if factor is not None:
            found.append(Joined("weaker", joined(self.parts, None, factor), f"all strengths times {factor:.3g}"))
        return found + [weaker for way in others if (weaker := self.shrunk(way)) is not None]

    def order(self, change: Sequence[Sequence[Estimate | None]]) -> list[int]:
        """Those that lose most beside others act last; those that commute with all others stay where they are."""
        parts = self.parts
        moved = [
            i for i, p in enumerate(parts)
            if any(not commute(p.steering, q.steering) for q in parts if q is not p)
        ]  # fmt: skip
        suffers = {i: sum(e.mean or 0.0 for row in change if (e := row[i]) is not None) for i in moved}
        order = iter(sorted(moved, key=lambda i: (-suffers[i], i)))
        return [next(order) if i in suffers else i for i in range(len(parts))]

    def factor(self) -> float | None:
        """What all strengths are to be multiplied with so that KL and perplexity keep the budget; None where they do."""

        def at(size: float) -> Steering:
            return joined(self.parts, None, size)

        return self._edge(at)

    def shrunk(self, way: Joined) -> Joined | None:
        """A composition at a strength that keeps the budget; None where it needn't be weaker."""
        factor = self._edge(way.steering.scaled)
        if factor is None:
            return None
        return Joined(f"{way.name}, weaker", way.steering.scaled(factor), f"the whole at {factor:.3g} of its strength")

    def _edge(self, at: Callable[[float], Steering]) -> float | None:
        def read(arm: int, direction: Direction, size: float, share: float) -> tuple[float | None, float]:
            return None, self.signals.read(at(size), "elicit", share).strain(self.asked.budget)

        try:
            found = halving(1, {(0, "elicit"): 1.0}, ("elicit",), read)
        except EditError:  # a prompt, that can't be weaker
            return None
        size = found.edges[0, "elicit"].strength
        return None if size >= 1 or size <= 0 else size

    def whole(self, way: Joined, plain: Sequence[Values], alone: Sequence[Values], base: Values) -> Whole:
        """A composition on test."""
        here = [self.effect(p, way.steering, "test") for p in self.parts]
        costs = self.cheap(way.steering)
        if base:
            now = self.capability(way.steering)
            lost = [None if b is None or v is None else b - v for b, v in zip(base, now, strict=True)]
            costs["lost"] = bootstrap([[lost]])
        limits = self.asked.budget.limits()
        over = tuple(n for n, e in costs.items() if n in limits and e.mean is not None and e.mean > limits[n])
        return Whole(
            way.name, way.words, way.steering, tuple(_estimate(v) for v in here), kept(plain, alone, here), costs, over
        )

    def capability(self, under: Steering | None) -> Values:
        """Right or wrong, item by item."""
        items = self.suite.items("test", self.asked.items, self.asked.seed) if self.asked.items else ()
        return capability(self.suite, self.engine, items, [under], self.asked.tokens)[0].capability if items else []

    # --- warnings -----------------------------------------------------------------------------------------------------

    def warnings(
        self, alone: Sequence[Values], plain: Sequence[Values], change: Sequence[Sequence[Estimate | None]],
        cosine: Sequence[Sequence[float | None]], costs: Sequence[Mapping[str, Estimate]], wholes: Sequence[Whole],
    ) -> list[str]:  # fmt: skip
        """Where two cancel, overlap or overdose, in sentences."""
        parts, found = self.parts, list[str]()
        for j, part in enumerate(parts):
            here, there = mean(alone[j]), mean(plain[j])
            own = 0.0 if here is None or there is None else here - there
            if here is None or there is None:
                found.append(
                    f"{part.name}'s effect of its own couldn't be judged here: nothing can be said of what is kept"
                )
            elif own <= 0.05:
                found.append(
                    f"{part.name} has no effect of its own here ({100 * own:+.0f} points): nothing of it can be kept"
                )
            for i, other in enumerate(parts):
                moved = change[i][j]
                gone = 0.0 if moved is None or moved.high is None or moved.high >= 0 else -(moved.mean or 0.0)
                if gone > CANCELS * own > 0:
                    left = 100 * (own - gone)
                    found.append(f"{other.name} cancels {part.name}: {100 * own:.0f} points alone, {left:.0f} with it")
                close = cosine[i][j]
                if i < j and close is not None and abs(close) > COLLINEAR:
                    words = "push against each other" if close < 0 else "push the same way"
                    found.append(f"{other.name} and {part.name} {words} at one site (cosine {close:+.2f})")
        limits, given = self.asked.budget.limits(), wholes[0]
        for name in given.over:
            singly = [c[name].mean for c in costs if name in c]
            if singly and all(v is not None and v <= limits[name] for v in singly):
                found.append(f"together they overdose: each keeps the {name} budget alone, and all of them don't")
        return found


def proposed(ways: Sequence[Whole]) -> Whole:
    """What keeps most of the effects among those within the budget; of all, where nothing within it keeps any worth having."""
    size = {id(w): -1.0 if w.kept.mean is None else w.kept.mean for w in ways}
    within = [w for w in ways if not w.over and size[id(w)] > LEAST] or ways
    return max(within, key=lambda w: size[id(w)])


def kept(plain: Sequence[Values], alone: Sequence[Values], here: Sequence[Values]) -> Estimate:
    """Σ(effect here − unsteered) / Σ(effect alone − unsteered) over the steerings that have an effect alone, with its interval.

    A bootstrap over prompts within steerings; a prompt that one of the three lacks is left out.
    """
    rows = [
        np.asarray([(p, a, h) for p, a, h in zip(*triple, strict=True) if None not in (p, a, h)], dtype=float)
        for triple in zip(plain, alone, here, strict=True)
    ]
    own = [r for r in rows if len(r) and r[:, 1].mean() - r[:, 0].mean() > 0.05]
    missing = sum(len(v) for v in here) - sum(len(r) for r in rows)
    if not own:
        return Estimate(None, None, None, 0, missing)
    rng = np.random.default_rng(0)

    def share(drawn: Sequence[np.ndarray]) -> float:
        means = np.stack([r.mean(axis=0) for r in drawn])
        below = float((means[:, 1] - means[:, 0]).sum())
        return float((means[:, 2] - means[:, 0]).sum()) / below if below > 1e-9 else float("nan")

    draws = np.asarray([share([r[rng.integers(len(r), size=len(r))] for r in own]) for _ in range(1000)])
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(share(own), float(low), float(high), sum(len(r) for r in own), missing)


def _less(a: Values | None, b: Values) -> Estimate | None:
    return None if a is None else paired_difference([[a]], [[b]])


def _estimate(values: Values) -> Estimate:
    return bootstrap([[values]])


def _tuples(matrix: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in matrix)
