"""The leaderboard: what a run found, as figures with intervals. Everything that the page shows and the JSON holds.

Steering scores are the second half's, at the factor that the first half chose. Intervals resample concepts, then prompts;
of figures with one value a concept (detection), concepts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

from ...config import to_dict
from ...errors import ArtefactError
from ...evals.stats import Estimate, bootstrap, median, paired_difference
from ...evals.unit import ArmPlan
from ...files import write_text
from ...methods.base import method
from .data import ATTACKS
from .metrics import Detected, Ratings, auroc, detected, scaled, verdict
from .rating import added
from .run import Ran, chosen_factor, scores
from .steer import reported
from .units import UNSTEERED

FORMAT = 1
Values = list[float | None]


class Column(NamedTuple):
    """A column of the leaderboard: its key, name, unit, scale and decimals, whether high is good, and what it means."""

    key: str
    name: str
    unit: str
    scale: float
    decimals: int
    high: bool
    meaning: str


STEERING = (
    Column(
        "score", "Score", "0–2", 1, 2, True, "harmonic mean of the three ratings of a reply, 0 where one of them is 0"
    ),
    Column("concept", "Concept", "0–2", 1, 2, True, "how much of the concept is in the reply"),
    Column("instruction", "Instruction", "0–2", 1, 2, True, "whether the reply is about what was asked"),
    Column("fluency", "Fluency", "0–2", 1, 2, True, "whether the reply reads like language"),
    Column("won", "Won", "%", 100, 0, True, "share of prompts on which its score is above that of prompting"),
    Column("lost", "Lost", "%", 100, 0, False, "share of prompts on which its score is below that of prompting"),
    Column(
        "difference", "Against prompting", "points", 1, 2, True, "its score less that of prompting, prompt by prompt"
    ),
)
AWAY = (
    Column(
        "suppression",
        "Suppression",
        "0–2",
        1,
        2,
        True,
        "asked for the concept and steered away: the score with 2 − concept",
    ),
    Column(
        "attacked",
        "Under attack",
        "0–2",
        1,
        2,
        True,
        "the same with text in the prompt that works against it; mean of three kinds",
    ),
)
DETECTION = (
    Column("auroc", "AUROC", "0–1", 1, 3, True, "chance that a text with the concept reads higher than one without"),
    Column(
        "macro",
        "Hard negatives",
        "0–1",
        1,
        3,
        True,
        "mean of the shares right among texts with the concept and among hard negatives",
    ),
    Column("f1", "F1", "0–1", 1, 3, True, "at as many negatives as positives, at Youden's threshold"),
    Column("f1_imbalanced", "F1, 1 in 101", "0–1", 1, 3, True, "the same with a hundred negatives for each positive"),
)
COLUMNS = (*STEERING, *AWAY, *DETECTION)


@dataclass
class Line:
    """An arm: its figures by column, its curve over factors, and the figures of each concept."""

    name: str
    label: str
    method: dict[str, Any]
    figures: dict[str, Estimate] = field(default_factory=dict[str, Estimate])
    pooled: float | None = None  # AUROC over the scores of all concepts, each brought to [0, 1]
    curve: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    attacks: dict[str, Estimate] = field(default_factory=dict[str, Estimate])
    concepts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    fit_seconds: float | None = None
    factor: float | None = None  # the median of those chosen
    none: str = ""  # why there is no direction to read

    @property
    def reference(self) -> bool:
        """Whether it is there to be compared with."""
        return self.name in ("prompt", UNSTEERED) or self.method.get("name") in ("prompt", "random")


@dataclass
class Board:
    """A leaderboard, best first."""

    title: str
    model: dict[str, Any]
    plan: dict[str, Any]
    suite: dict[str, Any]
    concepts: list[dict[str, str]]
    lines: list[Line]
    counts: dict[str, int]
    asked: dict[str, Any]
    failed: list[dict[str, Any]]
    meter: dict[str, Any]
    samples: list[dict[str, Any]]

    def line(self, name: str) -> Line | None:
        """The arm of that name."""
        return next((line for line in self.lines if line.name == name), None)

    def has(self, columns: Sequence[Column]) -> bool:
        """Whether anything was measured of these."""
        return any(
            line.figures[c.key].mean is not None for line in self.lines for c in columns if c.key in line.figures
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"format": FORMAT, "kind": "axbench", **asdict(self)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """What `to_json` wrote. Raises `ArtefactError`."""
        given = dict(row)
        if given.pop("kind", None) != "axbench" or given.pop("format", None) != FORMAT:
            raise ArtefactError(f"this is no leaderboard of AxBench in format {FORMAT}.")
        lines = [_line_of(row) for row in given.pop("lines")]
        return cls(lines=lines, **given)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """A leaderboard's file. Raises `ArtefactError`."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise ArtefactError(f"{path} can't be read as a leaderboard: {problem!r}.") from problem

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it as JSON."""
        return write_text(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")


def _line_of(row: Mapping[str, Any]) -> Line:
    told: dict[str, Any] = dict(row)
    for key in ("figures", "attacks"):
        told[key] = {name: Estimate.from_json(e) for name, e in row[key].items()}
    return Line(**told)


def board(ran: Ran, *, title: str, meter: Mapping[str, Any]) -> Board:
    """The leaderboard of a run."""
    names = {t.name: t for t in ran.suite.tasks()}
    concepts = [{"name": t, "words": ran.suite.words(t), "genre": names[t].genre} for t in ran.plan.tasks]
    lines = [_line(ran, arm) for arm in ran.plan.arms]
    base = next((line for line in lines if line.name == "prompt"), None)
    for line in lines:
        _against(line, base)
    lines.sort(key=lambda one: _rank(one))
    about = ran.about
    model = {"name": about.name, "revision": about.revision, "depth": about.depth, "versions": about.versions}
    failed = [
        {"unit": u.name, "tried": row.tried, "reason": row.reason or ""}
        for u in ran.units.all if (row := ran.rows[u.inputs]).state == "failed"
    ]  # fmt: skip
    failed += [
        {"unit": f"fit {arm} on {task}", "tried": 1, "reason": (ran.of(unit) or {})["reasons"][task]}
        for (arm, task), unit in ran.units.fits.items() if task in (ran.of(unit) or {}).get("reasons", {})
    ]  # fmt: skip
    asked = added([(ran.of(u) or {}).get("meter", {}).get("asked", {}) for u in ran.units.all])
    return Board(
        title, model, asdict(ran.plan), ran.suite.told(), concepts, lines, _counts(ran), asked, failed, dict(meter),
        _samples(ran),
    )  # fmt: skip


def _rank(line: Line) -> tuple[float, float]:
    def of(key: str) -> float:
        mean = line.figures[key].mean if key in line.figures else None
        return -1.0 if mean is None else mean

    return (-of("score"), -of("auroc"))


def _line(ran: Ran, arm: ArmPlan) -> Line:
    settings = {} if not arm.method else {"name": arm.method, **to_dict(method(arm.method, arm.settings))}
    line = Line(arm.name, arm.label or arm.name, settings)
    for task in ran.plan.tasks:
        line.concepts[task] = {}
        for kind in ("steer", "suppress"):
            result = ran.of(ran.units.said.get((kind, arm.name, task)))
            if result is not None and result["factors"]:
                line.concepts[task][kind] = _at_its_factor(result, suppress=kind == "suppress")
        attack = ran.of(ran.units.attacks.get((arm.name, task)))
        if attack is not None and attack["kinds"]:
            line.concepts[task]["attack"] = {
                k: [Ratings(*r).score(suppress=True) for r in attack["kinds"][k]["ratings"]] for k in ATTACKS
            }  # fmt: skip
        _note_detection(ran, line, arm.name, task)
    _summarise(line)
    line.curve = _curve(ran, arm)
    fits = {u.inputs: u for (a, _), u in ran.units.fits.items() if a == arm.name}
    took = [(result["meter"]["cpu_seconds"], len(u.tasks)) for u in fits.values() if (result := ran.of(u))]
    line.fit_seconds = sum(s for s, _ in took) / sum(n for _, n in took) if took else None
    return line


def _at_its_factor(result: dict[str, Any], *, suppress: bool) -> dict[str, Any]:
    """The reported half at the chosen factor; where nothing that chooses was rated, at none."""
    best = chosen_factor(result, suppress=suppress)
    if best is None:
        n = len(reported(result["prompts"]))
        gone: Values = [None] * n
        return {"factor": None, "score": gone, "concept": gone, "instruction": gone, "fluency": gone}
    rated = reported(result["ratings"][best])
    parts = {name: [r[k] for r in rated] for k, name in enumerate(("concept", "instruction", "fluency"))}
    return {
        "factor": result["factors"][best],
        "score": list(reported(scores(result, suppress=suppress)[best])),
        **parts,
    }


def _note_detection(ran: Ran, line: Line, arm: str, task: str) -> None:
    read = ran.of(ran.units.latents.get(task))
    if read is None:
        return
    told = read["concepts"][task]
    if arm not in told["arms"]:
        line.none = line.none or told["none"].get(arm, "")
        return
    of = told["arms"][arm]
    classes = {k: [v for v, label in zip(of["max"], told["labels"], strict=True) if label == k] for k in (0, 1, 2)}
    found: Detected = detected(classes[1], classes[0], classes[2], of.get("shared", ()))
    line.concepts[task]["detected"] = {**found._asdict(), "site": of["site"]}
    line.concepts[task]["scores"] = {"positive": classes[1], "negative": classes[0]}


def _summarise(line: Line) -> None:
    """The columns from the concepts, intervals by resampling these."""
    of = list(line.concepts.values())

    def estimate(kind: str, key: str) -> Estimate:
        return bootstrap([[c[kind][key]] for c in of if kind in c])

    for key in ("score", "concept", "instruction", "fluency"):
        line.figures[key] = estimate("steer", key)
    line.figures["suppression"] = estimate("suppress", "score")
    line.attacks = {k: estimate("attack", k) for k in ATTACKS}
    line.figures["attacked"] = bootstrap([[_each(c["attack"])] for c in of if "attack" in c])
    for column in DETECTION:
        line.figures[column.key] = bootstrap([[[c["detected"][column.key]]] for c in of if "detected" in c])
    line.pooled = _pooled([c.pop("scores") for c in of if "scores" in c])
    factors = [c["steer"]["factor"] for c in of if "steer" in c and c["steer"]["factor"] is not None]
    line.factor = median(factors)


def _each(attack: Mapping[str, Values]) -> Values:
    """Every attacked reply's score, whatever the kind."""
    return [value for values in attack.values() for value in values]


def _pooled(concepts: Sequence[Mapping[str, list[float]]]) -> float | None:
    """AUROC over all concepts' scores, each concept's brought to [0, 1] by its least and greatest (AxBench's overall curve)."""
    positive: list[float] = []
    negative: list[float] = []
    for of in concepts:
        both = scaled([*of["positive"], *of["negative"]]).tolist()
        positive += both[: len(of["positive"])]
        negative += both[len(of["positive"]) :]
    return auroc(positive, negative)


def _against(line: Line, base: Line | None) -> None:
    """Prompt by prompt against prompting, on the concepts that both have."""
    mine: list[list[Values]] = []
    theirs: list[list[Values]] = []
    for task, of in line.concepts.items():
        other = None if base is None else base.concepts[task].get("steer")
        if "steer" in of and other is not None and line is not base:
            mine.append([of["steer"]["score"]])
            theirs.append([other["score"]])
    verdicts = [[[verdict(a, b) for a, b in zip(x[0], y[0], strict=True)]] for x, y in zip(mine, theirs, strict=True)]

    def share(sign: int) -> Estimate:
        return bootstrap([[[None if v is None else float(v == sign) for v in fit] for fit in c] for c in verdicts])

    line.figures |= {
        "won": share(1),
        "lost": share(-1),
        "tied": share(0),
        "difference": paired_difference(mine, theirs),
    }


def _curve(ran: Ran, arm: ArmPlan) -> list[dict[str, Any]]:
    """Means over concepts and all prompts at each factor, for looking at; nothing is chosen or reported by it."""
    rows: list[dict[str, Any]] = []
    found: dict[float, list[tuple[list[Values], list[Ratings]]]] = {}
    for task in ran.plan.tasks:
        result = ran.of(ran.units.said.get(("steer", arm.name, task)))
        if result is not None:
            for factor, score, rated in zip(
                result["factors"], scores(result, suppress=False), result["ratings"], strict=True
            ):
                found.setdefault(factor, []).append(([score], [Ratings(*r) for r in rated]))
    for factor in sorted(found):
        of = found[factor]
        parts = {
            name: bootstrap([[[r[k] for r in rated]] for _, rated in of], draws=200) for k, name in enumerate(Ratings._fields)
        }  # fmt: skip
        rows.append({"factor": factor, "score": bootstrap([s for s, _ in of], draws=200).to_json()}
                    | {name: e.to_json() for name, e in parts.items()})  # fmt: skip
    return rows


def _counts(ran: Ran) -> dict[str, int]:
    """What was measured: how much of each, and what is missing of it. `cut_fitted` counts an example once for each fit."""
    fits = [r for u in {u.inputs: u for u in ran.units.fits.values()}.values() if (r := ran.of(u))]
    said = [r for u in ran.units.said.values() if (r := ran.of(u))]
    attacks = [kind for u in ran.units.attacks.values() for kind in (ran.of(u) or {}).get("kinds", {}).values()]
    rated = [tuple(r) for result in said for row in result["ratings"] for r in row]
    rated += [tuple(r) for kind in attacks for r in kind["ratings"]]
    read = [
        told
        for u in {u.inputs: u for u in ran.units.latents.values()}.values()
        for told in (ran.of(u) or {}).get("concepts", {}).values()
    ]
    return {
        "arms": len(ran.plan.arms), "concepts": len(ran.plan.tasks), "factors": len(ran.plan.factors),
        "prompts": ran.plan.prompts,
        "fits": sum(len(r["digests"]) for r in fits),
        "texts": sum(len(told["labels"]) for told in read), "cut": sum(told["cut"] for told in read),
        "cut_fitted": sum(sum(r["cut"].values()) for r in fits),
        "cut_prompts": sum(result["cut"] for result in said),
        "replies": sum(len(row) for result in said for row in result["texts"]) + sum(len(kind["texts"]) for kind in attacks),
        "ratings": 3 * len(rated), "missing": sum(value is None for r in rated for value in r),
        "units": len(ran.units.all),
    }  # fmt: skip


def _samples(ran: Ran, few: int = 2) -> list[dict[str, Any]]:
    """The first reported reply of every arm at its factor, for the first concepts of different genres."""
    genres = {t.name: t.genre for t in ran.suite.tasks()}
    firsts = list({genres[t]: t for t in reversed(ran.plan.tasks)}.values())[::-1][:few]
    found: list[dict[str, Any]] = []
    for task in firsts:
        for arm in ran.plan.arms:
            result = ran.of(ran.units.said.get(("steer", arm.name, task)))
            best = None if result is None or not result["factors"] else chosen_factor(result, suppress=False)
            if result is None or best is None:
                continue
            k = len(result["prompts"]) // 2
            found.append({
                "concept": task, "words": ran.suite.words(task), "arm": arm.name, "factor": result["factors"][best],
                "prompt": result["prompts"][k], "text": result["texts"][best][k], "ratings": result["ratings"][best][k],
                "score": scores(result, suppress=False)[best][k],
            })  # fmt: skip
    return found
