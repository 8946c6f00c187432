"""What an evaluation found, as data: everything the report draws and the JSON file holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, cast

from ..errors import ArtefactError
from ..files import write_text
from .stats import Estimate

Direction = Literal["elicit", "suppress"]
FORMAT = 2


@dataclass(frozen=True)
class Arm:
    """One thing that was compared: a method with its settings, or `unsteered`."""

    name: str
    label: str
    method: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Point:
    """One arm on one task at one strength: the effect on prompts of its direction, averaged over fits and prompts.

    `effect` is the share of replies in which the behaviour is there (elicit) or gone (suppress); `degree` how much of it
    there is; `joint` the share in which, besides, the reply follows its instruction and is fluent. Missing is not zero.
    """

    task: str
    arm: str
    direction: Direction
    split: str
    strength: float
    effect: Estimate
    joint: Estimate
    degree: Estimate
    follows: Estimate
    fluent: Estimate
    repetition: Estimate


@dataclass(frozen=True)
class Cost:
    """One arm on one task at one strength: what else changed.

    `capability`, `wrong` and `refused` are shares of the capability items; `lost` is the points lost against the
    unsteered model on the same items; `perplexity` is of held-out text, as a ratio to the unsteered model's; `kl` is
    KL(unsteered‖steered) per response token on neutral prompts, in nats.
    """

    task: str
    arm: str
    split: str
    strength: float
    capability: Estimate
    lost: Estimate
    wrong: Estimate
    refused: Estimate
    perplexity: Estimate
    kl: Estimate


@dataclass(frozen=True)
class Row:
    """A line of the table: one arm on a group of tasks in one direction, at unit strength or at the one chosen on dev."""

    arm: str
    group: str
    direction: Direction
    setting: Literal["unit", "tuned"]
    strength: str
    effect: Estimate
    joint: Estimate
    degree: Estimate
    lost: Estimate
    wrong: Estimate
    refused: Estimate
    perplexity: Estimate
    kl: Estimate
    repetition: Estimate
    worst: float | None = None  # the worst fit's effect


@dataclass(frozen=True)
class Layer:
    """One arm at one layer at unit strength, on dev: the profile from which a layer is chosen."""

    task: str
    arm: str
    layer: int
    direction: Direction
    effect: Estimate
    lost: Estimate


@dataclass(frozen=True)
class Sample:
    """One prompt's replies side by side, one per strength."""

    task: str
    arm: str
    direction: Direction
    prompt: str
    replies: list[dict[str, Any]]  # strength, text, effect, follows, fluent (None where unjudged)


@dataclass(frozen=True)
class Values:
    """What one fit gave on test, value by value, so that arms can be compared in pairs (`evals.compare`).

    `measures` are lists, None where nothing could be judged. `prompts` and `items` name what they were measured on (a digest):
    values are pairs only where these are the same.
    """

    task: str
    arm: str
    direction: Direction
    setting: Literal["unit", "tuned"]
    seed: int
    strength: float
    prompts: str
    items: str
    measures: dict[str, list[float | None]]


@dataclass(frozen=True)
class Results:
    """An evaluation: its configuration, its figures, and what it took."""

    run: str
    created: str
    title: str
    model: dict[str, Any]
    config: dict[str, Any]
    tasks: list[dict[str, Any]]  # name, genre, group
    arms: list[Arm]
    strengths: list[float]
    points: list[Point]
    costs: list[Cost]
    table: list[Row]
    layers: list[Layer] = field(default_factory=list[Layer])
    samples: list[Sample] = field(default_factory=list[Sample])
    meter: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    failed: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # of a sweep: unit, reason, attempts
    values: list[Values] = field(default_factory=list[Values])

    def save(self, path: str | PathLike[str]) -> Path:
        """As JSON, written beside and renamed; a line for each fit's values, which are many."""
        plain = _plain(self)
        rows = ",\n  ".join(
            json.dumps(_short(row), ensure_ascii=False, separators=(",", ":")) for row in plain.pop("values")
        )
        head = json.dumps({"format": FORMAT, **plain}, indent=1, ensure_ascii=False).removesuffix("\n}")
        return write_text(path, f'{head},\n "values": [{rows}]\n}}\n')

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """What `save` wrote. Raises `ArtefactError`."""
        try:
            row = json.loads(Path(path).read_text(encoding="utf-8"))
            if row.pop("format") != FORMAT:
                raise ArtefactError(f"{path} holds results of another format; expected {FORMAT}.")
            row.setdefault("values", [])  # of a run before they were kept
            for name, kind in _LISTS.items():
                row[name] = [_built(kind, r) for r in row[name]]
            return cls(**row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ArtefactError(
                f"{path} doesn't hold results that `steerlab evaluate` wrote: {problem!r}."
            ) from problem


_LISTS: dict[str, type[Any]] = {
    "arms": Arm, "points": Point, "costs": Cost, "table": Row, "layers": Layer, "samples": Sample,
    "values": Values,
}  # fmt: skip


def _plain(thing: object) -> Any:
    if isinstance(thing, Estimate):
        return thing.to_json()
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: _plain(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, list):
        return [_plain(v) for v in cast("list[object]", thing)]
    return thing


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """With whole numbers as such: most values are 0 or 1, and there are many."""
    told = {name: [int(v) if v is not None and v == int(v) else v for v in vs] for name, vs in row["measures"].items()}
    return {**row, "measures": told}


def _built(kind: type[Any], row: Mapping[str, Any]) -> Any:
    estimates = {f.name for f in dataclasses.fields(kind) if f.type == "Estimate"}
    return kind(**{k: Estimate.from_json(v) if k in estimates else v for k, v in row.items()})
