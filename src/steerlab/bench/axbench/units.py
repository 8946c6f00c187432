"""The pieces of a run of AxBench, and the work of each.

- `fit`: one arm for a group of concepts (a trained method fits them in one pass).
- `latents`: every arm's direction read on the texts of a group of concepts.
- `steer`, `suppress`: one arm on one concept at every factor, rated; towards the concept, and away from it.
- `attack`: what is left of the suppression, at the factor chosen for it, under prompts that work against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from ...contrast import Contrast
from ...engines.hf import HFEngine
from ...errors import ConfigError, DataError, UnsupportedError
from ...evals.unit import ArmPlan, method_of
from ...evals.unit import Plan as EvalPlan
from ...evals.workers import Bench, Job
from ...files import code_digest, digest
from ...meter import Meter
from ...methods.base import Method
from ...methods.prompt import PromptArm
from ...methods.trained import Trained
from ...steering import Steering
from ...sweep.units import Unit, loaded, saved
from .data import AxSuite, answered, within
from .folder import own_answers
from .latents import latents, reading

FACTORS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0)  # AxBench's
SUPPRESS_FACTORS = (0.6, 1.0, 1.4, 2.0, 3.0)
PARTS = ("detection", "steering", "suppression", "attack")
UNSTEERED = "unsteered"


class Unsteered(ArmPlan):
    """The model as it is, among the arms."""

    def __post_init__(self) -> None:
        """It has neither method nor file."""


@dataclass(frozen=True)
class AxPlan:
    """What is measured, and how much of it.

    `factors` are strengths: 1 is the effect as fitted. `suppress_factors` are tried the other way round. `rows`, `hard` and
    `shared` texts detect a concept; `most` tokens of each are read. `together` concepts are fitted and read at a time.
    """

    arms: tuple[ArmPlan, ...]
    tasks: tuple[str, ...]
    parts: tuple[str, ...] = PARTS
    factors: tuple[float, ...] = FACTORS
    suppress_factors: tuple[float, ...] = SUPPRESS_FACTORS
    prompts: int = 10
    tokens: int = 128
    temperature: float = 1.0
    rows: int = 36
    hard: int = 24
    shared: int = 400
    most: int = 512
    shots: int = 2
    site: str | None = None
    together: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.arms or not self.tasks:
            raise ConfigError("AxBench needs at least one arm and one concept.")
        if len({a.name for a in self.arms}) < len(self.arms):
            raise ConfigError("two arms have the same name; give each its own.")
        if unknown := [p for p in self.parts if p not in PARTS]:
            raise ConfigError(f"AxBench has no part {unknown[0]!r}; expected {', '.join(PARTS)}.")
        if "attack" in self.parts and "suppression" not in self.parts:
            raise ConfigError("the attack is on a suppression; measure both parts (--parts suppression,attack).")
        counts = (self.rows, self.together, self.tokens, self.most)
        if self.prompts < 2 or min(counts) < 1 or min(self.hard, self.shared, self.shots) < 0:
            raise ConfigError(
                f"prompts is {self.prompts}, rows {self.rows}, tokens {self.tokens}, most {self.most}, together {self.together},"
                f" hard {self.hard}, shared {self.shared}, shots {self.shots}; expected at least 2 prompts (one half chooses the"
                " factor, the other is reported), at least 1 of the next four, and no negative number."
            )
        for factors in (self.factors, self.suppress_factors):
            if not factors or not all(0 < f < float("inf") for f in factors):
                raise ConfigError(f"factors are {factors}; expected positive numbers.")

    def arm(self, name: str) -> ArmPlan:
        """The arm of that name."""
        return next(a for a in self.arms if a.name == name)


@dataclass(frozen=True)
class AxUnits:
    """A run's units by kind, and where each result belongs."""

    fits: dict[tuple[str, str], Unit] = field(default_factory=dict[tuple[str, str], Unit])  # arm, task
    latents: dict[str, Unit] = field(default_factory=dict[str, Unit])  # task
    said: dict[tuple[str, str, str], Unit] = field(default_factory=dict[tuple[str, str, str], Unit])  # kind, arm, task
    attacks: dict[tuple[str, str], Unit] = field(default_factory=dict[tuple[str, str], Unit])

    @property
    def phases(self) -> tuple[tuple[Unit, ...], ...]:
        """Fits; what needs fits; what needs these. Each unit once."""
        every = (self.fits.values(), [*self.latents.values(), *self.said.values()], self.attacks.values())
        return tuple(tuple({u.inputs: u for u in units}.values()) for units in every)

    @property
    def all(self) -> tuple[Unit, ...]:
        """Every unit, in the order in which they are worth doing."""
        return tuple(unit for phase in self.phases for unit in phase)


def planned(suite: AxSuite, plan: AxPlan) -> AxUnits:
    """Every unit of a plan."""
    units = AxUnits()
    fitted_, rated = basis(suite, rated=False), basis(suite, rated=True)

    def unit(kind: str, arm: str, tasks: Sequence[str], asked: Mapping[str, Any], needs: Unit | None = None) -> Unit:
        inputs = {
            "basis": rated if kind in ("steer", "suppress", "attack") else fitted_, "kind": kind, "tasks": list(tasks),
            "asked": asked, "needs": None if needs is None else needs.inputs, "seed": plan.seed,
        }  # fmt: skip
        return Unit(kind, _digest(inputs), arm, tuple(tasks), plan.seed, None if needs is None else needs.inputs)

    for arm in plan.arms:
        for tasks, made in groups(suite, plan, arm) if arm.method else ():
            fit = unit("fit", arm.name, tasks, {"method": made.name, **asdict(made), "answers": plan.tokens})
            units.fits.update({(arm.name, task): fit for task in tasks})
    if "detection" in plan.parts:
        asked = {name: getattr(plan, name) for name in ("rows", "hard", "shared", "most")}
        for start in range(0, len(plan.tasks), plan.together):
            tasks = plan.tasks[start : start + plan.together]
            fits = sorted({f"{a} {u.inputs}" for (a, t), u in units.fits.items() if t in tasks})
            units.latents.update(dict.fromkeys(tasks, unit("latents", "", tasks, {**asked, "fits": fits})))
    said = {"prompts": plan.prompts, "tokens": plan.tokens, "temperature": plan.temperature}
    kinds = [k for k, part in (("steer", "steering"), ("suppress", "suppression")) if part in plan.parts]
    for arm in plan.arms:
        for task in plan.tasks:
            fit = units.fits.get((arm.name, task))
            for kind in kinds:
                factors = plan.factors if kind == "steer" else plan.suppress_factors
                units.said[kind, arm.name, task] = unit(kind, arm.name, (task,), {**said, "factors": factors}, fit)
            if "attack" in plan.parts and arm.method:
                suppressed = units.said["suppress", arm.name, task]
                units.attacks[arm.name, task] = unit(
                    "attack", arm.name, (task,), {**said, "shots": plan.shots}, suppressed
                )
    return units


def groups(suite: AxSuite, plan: AxPlan, arm: ArmPlan) -> list[tuple[tuple[str, ...], Method]]:
    """The concepts that an arm fits in one pass, with its method."""
    made = _method(suite, plan, arm, plan.tasks[0])
    size = plan.together if isinstance(made, Trained) else 1
    parts = [plan.tasks[at : at + size] for at in range(0, len(plan.tasks), size)]
    return [(part, _method(suite, plan, arm, part[0]) if isinstance(made, PromptArm) else made) for part in parts]


def _method(suite: AxSuite, plan: AxPlan, arm: ArmPlan, task: str) -> Method:
    return method_of(suite, EvalPlan((arm,), (task,), (plan.seed,), site=plan.site), arm, task, plan.seed)


def basis(suite: AxSuite, *, rated: bool) -> dict[str, Any]:
    """What a unit rests on; who rates counts for what is rated alone."""
    told = {k: v for k, v in suite.told().items() if rated or k != "judged_by"}
    return {
        "suite": told, "files": [digest(file) for file in suite.files()], "code": code_digest(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }  # fmt: skip


def _digest(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]


# --- fits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """An arm for some concepts. Where a group can't be fitted because of one concept, each is fitted alone."""

    plan: AxPlan
    arm: ArmPlan
    tasks: tuple[str, ...]

    def __call__(self, bench: Bench) -> dict[str, Any]:
        found: dict[str, Steering] = {}
        reasons: dict[str, str] = {}
        cut: dict[str, int] = {}
        with Meter(apart=True) as meter:
            try:
                found = self._fitted(bench, self.tasks, cut)
            except DataError as problem:
                if len(self.tasks) == 1:
                    reasons[self.tasks[0]] = f"DataError: {problem}"
                for task in self.tasks if len(self.tasks) > 1 else ():
                    try:
                        found |= self._fitted(bench, (task,), cut)
                    except DataError as alone:
                        reasons[task] = f"DataError: {alone}"
        return {
            "digests": {task: steering.digest for task, steering in found.items()}, "reasons": reasons, "cut": cut,
            "files": {task: saved(steering) for task, steering in found.items()}, "meter": meter.figures(),
        }  # fmt: skip

    def _fitted(self, bench: Bench, tasks: Sequence[str], cut: dict[str, int]) -> dict[str, Steering]:
        suite, engine = cast("AxSuite", bench.suite), cast("HFEngine", bench.engine)
        made = _method(suite, self.plan, self.arm, tasks[0])
        data: list[Contrast] = []
        for task in tasks:
            contrast, cut[task] = within(engine, data_for(bench, made, task, self.plan))
            data.append(contrast)
        if isinstance(made, Trained):
            return dict(zip(tasks, made.fit_many(bench.engine, data), strict=True))
        return {task: made.fit(bench.engine, contrast) for task, contrast in zip(tasks, data, strict=True)}


def data_for(bench: Bench, made: Method, task: str, plan: AxPlan) -> Contrast:
    """A concept's data in the form that a method reads.

    What reads answers gets AxBench's form: plain instructions whose answers differ. All else gets pairs, the concept asked for
    in the one's instruction; where the data has none, the model's own answers make them.
    """
    contrast = bench.suite.contrast(task, plan.seed)
    if getattr(made, "pooling", "") in ("token", "response"):
        return answered(contrast)
    if contrast.paired or isinstance(made, PromptArm):
        return contrast
    engine = cast("HFEngine", bench.engine)
    kept = _paired.setdefault(engine, {})
    key = (contrast.digest(), plan.tokens)
    if key not in kept:
        kept[key] = own_answers(engine, contrast, plan.tokens)
    return kept[key]


_paired: WeakKeyDictionary[HFEngine, dict[tuple[str, int], Contrast]] = WeakKeyDictionary()


# --- detection ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """Every arm's direction on the texts of some concepts. `steerings` are files of fits, by arm and concept."""

    plan: AxPlan
    tasks: tuple[str, ...]
    steerings: Mapping[tuple[str, str], bytes]

    def __call__(self, bench: Bench) -> dict[str, Any]:
        from safetensors.torch import save
        from torch import tensor

        suite, engine = cast("AxSuite", bench.suite), cast("HFEngine", bench.engine)
        along: dict[tuple[str, str], Any] = {}
        none: dict[str, dict[str, str]] = {task: {} for task in self.tasks}
        with Meter(apart=True) as meter:
            for (arm, task), data in self.steerings.items():
                try:
                    along[arm, task] = reading(loaded(data))
                except UnsupportedError as problem:
                    none[task][arm] = str(problem)
            told: dict[str, Any] = {}
            tensors: dict[str, Any] = {}
            for task in self.tasks:
                mine = {arm: r for (arm, of), r in along.items() if of == task}
                rows = suite.rows(task, self.plan.rows, self.plan.hard)
                labels = [1] * len(rows.positive) + [0] * len(rows.negative) + [2] * len(rows.hard)
                told[task] = {"labels": labels, "none": none[task], "arms": {}, "cut": 0}
                if mine:
                    found = latents(engine, rows.all, mine, self.plan.most)
                    told[task]["cut"] = found.cut
                    told[task]["arms"] = {
                        arm: {"site": str(r.site), "max": found.highest(arm)} for arm, r in mine.items()
                    }
                    tensors |= {f"{task}/{arm}": values.contiguous() for arm, values in found.tokens.items()}
                    tensors |= {f"{task}/row": found.row, f"{task}/label": tensor(labels)}
            shared = suite.shared(self.plan.shared)
            if shared and along:
                found = latents(engine, shared, {f"{a}\0{t}": r for (a, t), r in along.items()}, self.plan.most)
                for arm, task in along:
                    told[task]["arms"][arm]["shared"] = found.highest(f"{arm}\0{task}")
        data = save(tensors) if tensors else b""
        return {
            "concepts": told, "tokens": hashlib.sha256(data).hexdigest(), "files": {"latents": data},
            "meter": meter.figures(),
        }  # fmt: skip


class Ready(NamedTuple):
    """A unit's work, or why there is none to do."""

    job: Job | None
    reason: str = ""
