"""Is it better? Arms of one or more evaluations, compared pair by pair, answered in a sentence with its interval.

Two arms are pairs where they met the same prompts of the same task with the same seed. What is asked is one `Question`; many
questions at once are adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import ConfigError, DataError, nearest
from .inference import Difference, Level, benjamini_hochberg, difference, holm
from .power import Components, Design, concepts_needed, prompts_needed, smallest
from .results import Direction, Results, Values
from .stats import Clusters, Sets

Setting = Literal["unit", "tuned"]
Correction = Literal["holm", "bh", "none"]
HIGHER = {"joint": "joint success", "effect": "the effect", "degree": "the degree", "follows": "following the instruction",
          "fluent": "fluency", "capability": "capability"}  # fmt: skip
LOWER = {"lost": "capability lost", "wrong": "wrong answers", "refused": "refused items", "repetition": "repetition",
         "kl": "KL", "perplexity": "the perplexity ratio"}  # fmt: skip
MEASURES = {**HIGHER, **LOWER}
OF_ITEMS = ("capability", "lost", "wrong", "refused", "kl", "perplexity")
UNBOUNDED = {"kl": "nats", "perplexity": ""}
VERB: dict[Direction, str] = {"elicit": "eliciting", "suppress": "suppressing"}
CORRECTIONS = {"holm": "Holm", "bh": "Benjamini-Hochberg"}


@dataclass(frozen=True)
class Side:
    """An arm of a run."""

    results: Results
    arm: str
    name: str

    def values(self, direction: Direction, setting: Setting) -> dict[tuple[str, int], Values]:
        """Its fits by task and seed; the unsteered model has no other setting than its own."""
        at = "unit" if self.arm == "unsteered" else setting
        rows = (v for v in self.results.values if (v.arm, v.direction, v.setting) == (self.arm, direction, at))
        return {(v.task, v.seed): v for v in rows}


@dataclass(frozen=True)
class Ask:
    """What is compared: measures, directions, at unit strength or the one tuned on dev, and how it is judged.

    `see` is the difference that planning is told for, in the measure's unit (0.05 is five points of a share). Tasks or groups
    narrow it.
    """

    measures: tuple[str, ...] = ("joint", "lost")
    directions: tuple[Direction, ...] = ("elicit", "suppress")
    setting: Setting = "tuned"
    level: Level | None = None
    correction: Correction = "holm"
    tasks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    alpha: float = 0.05
    see: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        for measure in self.measures:
            if measure not in MEASURES:
                raise ConfigError(f"there is no measure {measure!r}. {nearest(measure, MEASURES)}")
        if not 0 < self.alpha < 0.5 or not 0 < self.power < 1 or self.see <= 0:
            raise ConfigError(
                f"alpha is {self.alpha}, power {self.power}, the difference to see {self.see}; expected alpha in"
                " (0, 0.5), power in (0, 1) and a positive difference."
            )


@dataclass(frozen=True)
class Compared:
    """The answer to one question: `a` against `b` on one measure in one direction.

    `adjusted` is p for the number of questions.
    """

    a: str
    b: str
    direction: Direction
    measure: str
    found: Difference
    adjusted: float
    design: Design
    of: Components | None
    ask: Ask = field(repr=False)
    questions: int = 1
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Of `a`, by the adjusted p."""
        if self.adjusted >= self.ask.alpha:
            return "not told apart"
        return "better" if (self.found.mean > 0) == (self.measure in HIGHER) else "worse"

    @cached_property
    def smallest(self) -> float | None:
        """The difference that such a comparison sees as often as `ask.power` says, before any adjustment."""
        return None if self.of is None else smallest(self.design, self.of, wanted=self.ask.power, alpha=self.ask.alpha)

    @cached_property
    def prompts_needed(self) -> int | None:
        """Prompts a fit that it takes to see `ask.see`; None where no number will do."""
        if self.of is None:
            return None
        return prompts_needed(self.ask.see, self.design, self.of, wanted=self.ask.power, alpha=self.ask.alpha)

    @cached_property
    def concepts_needed(self) -> int | None:
        """Concepts that it takes with as many fits and prompts each."""
        if self.of is None:
            return None
        return concepts_needed(self.ask.see, self.design, self.of, wanted=self.ask.power, alpha=self.ask.alpha)

    @property
    def sentence(self) -> str:
        """The answer, with all that it rests on."""
        f, what = self.found, MEASURES[self.measure]
        at = f"at {VERB[self.direction]}"
        size = f"{self._told(abs(f.mean))} {'higher' if f.mean > 0 else 'lower'}"
        if self.verdict == "not told apart":
            lead = f"{self.a} and {self.b} can't be told apart {at}: {what} is {size} under {self.a}"
        else:
            lead = f"{self.a} is {self.verdict} than {self.b} {at}: {what} is {size}"
        low, high = self._told(f.low, unit=False), self._told(f.high)
        p = "p < .001" if self.adjusted < 0.001 else f"p = {self.adjusted:.3f}".replace("0.", ".", 1)
        if self.questions > 1 and self.ask.correction != "none":
            p += f" by {CORRECTIONS[self.ask.correction]} over {self.questions} questions"
        d = self.design
        count = f"{_many(d.concepts, 'task')} × {_many(d.fits, 'fit')} × {_many(d.prompts, 'value')}"
        missing = f", {f.missing} pairs not judged" if f.missing else ""
        reach = _REACH[f.level, f.items > 0].format("items" if self.measure in OF_ITEMS else "prompts")
        interval = f"{1 - self.ask.alpha:.0%} interval {low} to {high}"
        return f"{lead} ({interval}; {p}; {count}{missing}). {reach}"

    @property
    def plan(self) -> str:
        """What such a comparison sees, and how much it takes to see the wanted difference."""
        if self.of is None or self.smallest is None:
            return "There is too little to say what this comparison could see."
        sees = f"Such a comparison sees {self._told(self.smallest)} in {self.ask.power:.0%} of the cases"
        wanted = self._told(self.ask.see)
        if self.smallest <= self.ask.see:
            return f"{sees}; {wanted} is within its reach."
        n = self.prompts_needed
        if n is not None:
            return f"{sees}; to see {wanted} it takes {n} values a fit (here {self.design.prompts})."
        concepts = self.concepts_needed if self.design.concepts > 1 else None
        more = f", and it takes {concepts} tasks" if concepts else ""
        return f"{sees}; to see {wanted} no number of prompts will do: {_VARY[self.found.level]} vary too much{more}."

    def _told(self, value: float, *, unit: bool = True) -> str:
        if self.measure in UNBOUNDED:
            return f"{value:.3f} {UNBOUNDED[self.measure] if unit else ''}".strip()
        return f"{100 * value:.1f}{' points' if unit else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "a": self.a, "b": self.b, "direction": self.direction, "measure": self.measure, "verdict": self.verdict,
            **self.found.to_json(), "adjusted": self.adjusted, "questions": self.questions, "smallest": self.smallest,
            "prompts_needed": self.prompts_needed, "notes": list(self.notes), "sentence": self.sentence, "plan": self.plan,
        }  # fmt: skip


_REACH = {
    ("concepts", False): "It holds for tasks like these.",
    ("concepts", True): "It holds for tasks and {0} like these; tasks share their {0}, which count as drawn once.",
    ("fits", False): "It holds for these tasks and further fits.",
    ("fits", True): "It holds for these tasks, further fits, and {0} like these, which tasks or fits share.",
    ("prompts", False): "It holds for these fits alone, on prompts like these; another fit may differ.",
    ("prompts", True): "It holds for these fits alone, on {0} like these, which they share; another fit may differ.",
}
_VARY = {"concepts": "tasks", "fits": "fits", "prompts": "prompts"}


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def sides(runs: Sequence[str | PathLike[str]]) -> list[Side]:
    """Arms from `RUN` (all of its arms) or `RUN:ARM`, where RUN is a results.json or its folder.

    Raises `ConfigError` for an arm that the run lacks. Names carry the run's where one arm stands in several.
    """
    loaded: dict[Path, Results] = {}
    found: list[tuple[Path, Results, str]] = []
    for given in runs:
        path, arm = _run(str(given))
        results = loaded.setdefault(path, Results.load(path))
        arms = [a.name for a in results.arms]
        if arm and arm not in arms:
            raise ConfigError(f"{path} has no arm {arm!r}. {nearest(arm, arms)}")
        found += [(path, results, name) for name in ([arm] if arm else [a for a in arms if a != "unsteered"])]
    names = [arm for _, _, arm in found]
    many = len(loaded) > 1

    def called(path: Path, arm: str) -> str:
        return f"{path.parent.name or path.stem}:{arm}" if many and names.count(arm) > 1 else arm

    return [Side(results, arm, called(path, arm)) for path, results, arm in found]


def _run(given: str) -> tuple[Path, str]:
    """The results file and the arm that a word names."""
    path, arm = Path(given), ""
    if not path.exists() and ":" in given:
        head, _, arm = given.rpartition(":")
        path = Path(head)
    if path.is_dir():
        path /= "results.json"
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(
            f"there is no run {given}: {path} doesn't exist. {nearest(path.name, beside)} Give RUN or RUN:ARM."
        )
    return path, arm


def compare(first: Side, others: Sequence[Side], ask: Ask = Ask()) -> list[Compared]:
    """`first` against each of the others, on every measure and direction; p adjusted over all of these questions.

    A direction in which either has no values is left out. Raises `DataError` where two arms met other prompts, or have nothing in
    common at all.
    """
    if not others:
        raise ConfigError(f"there is only {first.name} to compare; name another arm or another run.")
    open_: list[Compared] = []
    for other in others:
        for direction in ask.directions:
            for measure in ask.measures:
                one = _one(first, other, direction, measure, ask)
                if one is not None:
                    open_.append(one)
    if not open_:
        told = (
            f"{first.name} and {', '.join(o.name for o in others)} have no values in common ({', '.join(ask.measures)})"
        )
        raise DataError(
            f"{told}. A run of an older version keeps none: evaluate again, or ask for another measure or setting."
        )
    ps = [c.found.p for c in open_]
    adjusted = {"holm": holm, "bh": benjamini_hochberg, "none": list}[ask.correction](ps)
    return [
        Compared(c.a, c.b, c.direction, c.measure, c.found, p, c.design, c.of, ask, len(ps), c.notes)
        for c, p in zip(open_, adjusted, strict=True)
    ]


class Pairs(NamedTuple):
    """The differences a − b by task, fit and value, what was left out, and the draw of items or prompts that each fit met."""

    clusters: Clusters
    notes: tuple[str, ...]
    items: Sets


def _one(a: Side, b: Side, direction: Direction, measure: str, ask: Ask) -> Compared | None:
    clusters, notes, items = paired(a, b, direction, measure, ask)
    if not clusters:
        return None
    share = measure not in UNBOUNDED
    answer = difference(clusters, level=ask.level, share=share, confidence=1 - ask.alpha, items=items)
    if answer is None:
        return None
    try:
        of = Components.of(clusters, items)
    except ConfigError:
        of = None
    design = Design.of(clusters, answer.level, items)
    return Compared(a.name, b.name, direction, measure, answer, answer.p, design, of, ask, 1, notes)


def paired(a: Side, b: Side, direction: Direction, measure: str, ask: Ask) -> Pairs:
    """Two arms' differences on one measure. Raises `DataError` where they met other prompts."""
    mine, theirs = a.values(direction, ask.setting), b.values(direction, ask.setting)
    asked = {t["name"] for t in a.results.tasks if _asked(t, ask)}
    both = [key for key in mine if key in theirs and key[0] in asked]
    left = sorted({key[0] for key in {*mine, *theirs} if key[0] in asked and key not in both})
    by_task: dict[str, list[list[float | None]]] = {}
    met: dict[str, list[str]] = {}
    for key in both:
        x, y = mine[key], theirs[key]
        if measure not in x.measures or measure not in y.measures or not x.measures[measure] or not y.measures[measure]:
            continue
        same = (x.items == y.items) if measure in OF_ITEMS else (x.prompts == y.prompts)
        if not same or len(x.measures[measure]) != len(y.measures[measure]):
            raise DataError(
                f"{a.name} and {b.name} met other prompts on {key[0]!r} with seed {key[1]}, and can't be compared in pairs."
                " Evaluate both with the same seeds, amounts and data."
            )
        pairs = zip(x.measures[measure], y.measures[measure], strict=True)
        by_task.setdefault(key[0], []).append([None if v is None or w is None else v - w for v, w in pairs])
        met.setdefault(key[0], []).append(x.items if measure in OF_ITEMS else x.prompts)
    notes = (
        (f"only one of {a.name} and {b.name} was measured in some fits of {', '.join(left)}: left out",) if left else ()
    )
    return Pairs(list(by_task.values()), notes, list(met.values()))


def _asked(task: Mapping[str, Any], ask: Ask) -> bool:
    return (not ask.tasks or task["name"] in ask.tasks) and (not ask.groups or task["group"] in ask.groups)
