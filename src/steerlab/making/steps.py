"""The steps from a sentence to a checked artefact, each journalled in the folder, so that the same call goes on where it was.

data → yes → fit and calibrate → gate, where it pays → evaluate → card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .. import pilot, progress
from ..contrast import Contrast, Example
from ..data import MakeOptions
from ..data.requests import ELICIT
from ..errors import ConfigError, DataError
from ..evals import card
from ..evals.asked import Asked, Setting
from ..evals.calibrate import calibrate, neutral_apart
from ..evals.checked import checked
from ..evals.measure import Amounts
from ..evals.unit import ArmPlan
from ..files import digest, whole, write_text
from ..judges.endpoint import Endpoint
from ..methods.gates import gated
from ..ranges import sides
from ..steering import Steering
from .data import sample, written
from .instructions import plain
from .suite import MadeSuite
from .writer import EndpointWriter

if TYPE_CHECKING:
    from ..engines.base import Runner, Trainable

FILES = {
    "data": "data.jsonl", "calibrate": "calibrated.safetensors", "gate": "steering.safetensors", "evaluate": "evaluation.json",
    "card": "card.md",
}  # fmt: skip
SHOWN = 4
MEASURED = Asked(prompts=12, items=2000, lot=100, choosing=96, pairs=12)


@dataclass(frozen=True)
class Job:
    """What is to be made, of what, and how much of everything is measured."""

    description: str
    model: str = "pilot"
    method: str = "cdas"
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    tried: tuple[dict[str, Any], ...] = ()
    rule: str | None = None
    instructions: tuple[Example, ...] = ()
    neutral: str | None = None
    items: str | None = None
    text: str | None = None
    writer: str | None = None  # URL of an endpoint
    writer_model: str = ""
    pairs: int = 192
    tokens: int = 64
    gate: Literal["auto", "yes", "no"] = "auto"
    asked: Asked = field(default_factory=lambda: MEASURED)
    test: int = 24
    seed: int = 0
    loaded: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not self.description.strip():
            raise ConfigError("the description is empty; say in a few words what the replies should show.")
        if self.writer and not self.writer_model:
            raise ConfigError("the endpoint that writes needs the name of its model (--writer-model).")
        if self.pairs < 16:
            raise ConfigError(
                f"{self.pairs} pairs are too few to be split for judges, fit, dev and test; ask for at least 16."
            )

    def told(self) -> dict[str, Any]:
        """What tells this job from another, as plain data."""
        row = {k: v for k, v in asdict(self).items() if k not in ("instructions", "loaded")}
        prompts = json.dumps([e.to_json() for e in self.instructions], sort_keys=True)
        return json.loads(
            json.dumps({**row, "instructions": hashlib.sha256(prompts.encode()).hexdigest()[:16]}, default=str)
        )


class Folder:
    """The finished steps of a job, each with the digest of its file."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self._file = path, path / "make.json"
        self.job = job.told()
        self.steps: dict[str, Any] = {}
        if self._file.is_file():
            try:
                before = json.loads(self._file.read_text(encoding="utf-8"))
                known, steps = before["job"], before["steps"]
            except (ValueError, KeyError, TypeError) as problem:
                raise DataError(
                    f"{self._file} can't be read ({problem!r}); remove the folder to start anew."
                ) from problem
            if known != self.job:
                apart = [k for k in self.job if known.get(k) != self.job[k]]
                raise DataError(
                    f"{path} holds another job (they differ in {', '.join(apart[:4])}); give another folder, or the same words"
                    " and settings to go on with it."
                )
            self.steps = steps

    def done(self, step: str) -> dict[str, Any] | None:
        """What a finished step noted; None where it isn't done, or its file isn't what it wrote."""
        row, file = self.steps.get(step), FILES.get(step)
        if row is None or (file and not (self.path / file).is_file()):
            return None
        return row if not file or digest(self.path / file) == row.get("digest") else None

    def note(self, step: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Note a step; what came after it is void."""
        order = [*FILES]
        file = FILES.get(step)
        row = {**told, **({"digest": digest(self.path / file)} if file else {})}
        later = set(order[order.index(step) + 1 :]) if step in order else set[str]()
        self.steps = {k: v for k, v in self.steps.items() if k not in later} | {step: row}
        write_text(self._file, json.dumps({"job": self.job, "steps": self.steps}, indent=1, default=str) + "\n")
        return row


@dataclass(frozen=True)
class Made:
    """The artefact, and what each step said."""

    steering: Steering
    folder: Path
    evaluation: Mapping[str, Any]
    steps: Mapping[str, Any]


Agree = Callable[[Contrast, Mapping[str, Any], Sequence[Mapping[str, str]]], bool]


def make_steering(job: Job, folder: Path, engine: Trainable, agree: Agree) -> Made:
    """Everything, or what is left of it. `agree` is shown the data, and says whether to go on.

    Raises `ConfigError` where it says no, `DataError` for a folder of another job, or data that can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = Folder(folder, job)
    with progress.task("making a steering", 5) as bar:
        for step in (_data, _calibrated, _gated, _evaluated, _card):
            bar.tell(step.__name__.strip("_"))
            step(job, kept, engine)
            if step is _data and not kept.steps.get("yes"):
                told = kept.steps["data"]
                if not agree(contrast := Contrast.read(folder / FILES["data"]), told, sample(contrast, SHOWN)):
                    raise ConfigError(f"not agreed: the data is in {folder / FILES['data']}; nothing was fitted to it.")
                kept.note("yes", {"agreed": True})
            bar.advance()
    evaluation = json.loads((folder / FILES["evaluate"]).read_text(encoding="utf-8"))
    return Made(Steering.load(folder / FILES["gate"]), folder, evaluation, kept.steps)


def suite_of(job: Job, folder: Path, rule: str, wordings: tuple[str, ...] = ELICIT) -> MadeSuite:
    """What the made behaviour is measured on."""
    from ..loading import load

    variant = job.model if job.model in pilot.VARIANTS else None
    return MadeSuite(
        str(folder / FILES["data"]), rule, job.model, load, neutral_file=job.neutral, items_file=job.items, text_file=job.text,
        name=job.description, variant=variant, wish=job.description, wordings=wordings, **job.loaded,
    )  # fmt: skip


def instructions_of(job: Job) -> list[Example]:
    """The job's own, the built-in model's, or the common ones."""
    if job.instructions:
        return list(job.instructions)
    if job.model in pilot.VARIANTS:
        return list(pilot.prompts("ordinary", n=2 * job.pairs + 32, seed=job.seed, split="train", variant=job.model))
    return plain()


def _data(job: Job, kept: Folder, engine: Trainable) -> None:
    if kept.done("data"):
        return
    writer: Runner = engine
    if job.writer:
        writer = cast("Runner", EndpointWriter(Endpoint(job.writer, job.writer_model)))
    options = MakeOptions(pairs=job.pairs, max_new_tokens=job.tokens, seed=job.seed)
    found = written(writer, job.description, instructions_of(job), kept.path, options, job.rule)
    kept.steps.pop("yes", None)
    kept.note("data", {**found.told, "rule": found.rule, "writer": job.writer_model or job.model})


def _suite(job: Job, kept: Folder) -> MadeSuite:
    told = kept.steps["data"]
    return suite_of(job, kept.path, str(told["rule"]), tuple(told["wordings"]))


def _calibrated(job: Job, kept: Folder, engine: Trainable) -> None:
    if kept.done("calibrate"):
        return
    arm = ArmPlan(job.method, job.method, job.settings)
    asked = _measured(job)
    found = calibrate(
        _suite(job, kept), job.description, arm, asked, settings=[Setting(s) for s in job.tried], engine=engine
    )
    found.steering.save(kept.path / FILES["calibrate"])
    kept.note("calibrate", {"setting": dict(found.setting.settings), "took": found.ledger.told()})


def _measured(job: Job) -> Asked:
    """What a calibration is asked for; where one with a gate may be taken for it, each is held to half of the level."""
    shared = job.asked.delta / 2 if job.gate == "auto" else job.asked.delta
    return replace(job.asked, seed=job.seed, tokens=job.tokens, delta=shared)


def _gated(job: Job, kept: Folder, engine: Trainable) -> None:
    """The same behind a gate where that makes more of it useful within the budget; else as it was."""
    if kept.done("gate"):
        return
    bare = Steering.load(kept.path / FILES["calibrate"])
    best, told = (
        bare,
        {"gate": "not asked for" if job.gate == "no" else "not needed: both directions are useful within the budget"},
    )
    lacking = [d for d, s in sides(bare.meta.range).items() if s.default is None]
    if job.gate == "yes" or (job.gate == "auto" and lacking):
        suite = _suite(job, kept)
        data = suite.contrast(job.description, job.seed)
        try:
            asked = _measured(job)
            # those that certify have no part in a fit
            neutral = neutral_apart(suite, job.description, asked, len(job.tried)).choose
            made = gated(
                engine, bare, data, [e.without_answer() for e in neutral], opens="both", rate=0.02, seed=job.seed
            )
            other = calibrate(suite, job.description, made, asked, engine=engine).steering
            pays = worth(other) > worth(bare)
            best = other if pays or job.gate == "yes" else bare
            words = "it pays" if pays else "it doesn't pay"
            told = {"gate": f"{words}: useful directions {worth(bare)[0]} without, {worth(other)[0]} with"}
        except (DataError, ConfigError) as problem:
            if job.gate == "yes":
                raise
            told = {"gate": f"none could be fitted: {problem}"}
    best.save(kept.path / FILES["gate"])
    kept.note("gate", told)


def worth(steering: Steering) -> tuple[int, float]:
    """In how many directions a calibrated steering is useful, and its mean joint success on dev there."""
    rows = [r for r in (steering.meta.range or {}).get("directions", {}).values() if r.get("default") is not None]
    joint = [float(r.get("joint") or 0.0) for r in rows]
    return len(rows), sum(joint) / len(joint) if joint else 0.0


def _evaluated(job: Job, kept: Folder, engine: Trainable) -> None:
    if kept.done("evaluate"):
        return
    steering = Steering.load(kept.path / FILES["gate"])
    amounts = Amounts(job.test, min(200, job.asked.items), 32, 32, job.tokens)
    found = checked(_suite(job, kept), job.description, steering, engine, amounts, seed=job.seed)
    with whole(kept.path / FILES["evaluate"]) as part:
        part.write_text(json.dumps(found, indent=1, ensure_ascii=True), encoding="ascii")
    kept.note("evaluate", {})


def _card(job: Job, kept: Folder, engine: Trainable) -> None:
    if kept.done("card"):
        return
    steering = Steering.load(kept.path / FILES["gate"])
    found = json.loads((kept.path / FILES["evaluate"]).read_text(encoding="utf-8"))
    card.write(steering, found, kept.path, name=FILES["gate"], description=job.description)
    kept.note("card", {})
