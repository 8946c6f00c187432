"""Affect without emotion words (AIPsy-Affect's layout): texts that evoke an emotion, each with a matched neutral twin.

Reading: a direction (emotional less neutral, class means) from half of the pairs, scored on the other half by AUROC, beside
what a lexicon of emotion words scores: where that isn't near chance, the texts can't tell affect from words, and a note
says so. Steering: `lean` is the log-probability per token of the emotional text less its twin's; `shown` where replies to
neutral prompts lie on an emotion's direction, read by the model as it is: 0 like the neutral texts, 1 like the emotional
ones. All emotions are measured whichever is steered, so that the lines side by side are the specificity matrix.

https://huggingface.co/datasets/keidolabs/aipsy-affect (MIT). The built-in model: joyful, gloomy and angry texts of its
corpus, which are rich in emotion words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import pilot
from ..contrast import Contrast, Example
from ..errors import DataError, SiteError
from ..judges.sentiment import valence
from ..positions import GENERATED
from ..sites import Site
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean_of
from .choices import told
from .health import PROMPTS
from .measures import auroc
from .reading import table, text

EMOTIONS = ("joyful", "gloomy", "angry")
ASK = "Write a short text."
WORDS = 0.7  # AUROC of a lexicon from which on the texts are told apart by their words


class Twin(NamedTuple):
    """A text that evokes an emotion and its neutral twin, from a domain that is never split between fitting and scoring."""

    emotion: str
    text: str
    neutral: str
    domain: str


@dataclass(frozen=True)
class Affect(Suite[Twin]):
    """`layer` is the block whose output is read (none: at two thirds of the depth); `contrasted` the emotion to fit on."""

    about: ClassVar[str] = "affect without emotion words: read, evoked, and how specific"
    paper: ClassVar[str] = "https://huggingface.co/datasets/keidolabs/aipsy-affect"
    layout: ClassVar[str] = "id, emotion, intensity (none for the neutral ones), matched_control_id, domain, text"

    layer: int | None = None
    contrasted: str = "joyful"

    def of_pilot(self, variant: str) -> Sequence[Twin]:
        found: list[Twin] = []
        for emotion in EMOTIONS:
            if emotion not in {c.name for c in pilot.concepts(variant)}:
                continue
            pairs = pilot.contrast(emotion, n=self.n, seed=self.seed, split="test", variant=variant, neutral=1)
            found += [Twin(emotion, p.answer or "", q.answer or "", str(q.family)) for p, q in pairs.pairs]
        return found

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast(self.contrasted, n=64, seed=self.seed, variant=variant)

    def read(self, path: str) -> Sequence[Twin]:
        rows = {
            str(cells[1].get("id")): cells
            for cells in table(path, ("id", "emotion", "matched_control_id", "text"), self.layout)
        }
        found: list[Twin] = []
        for cells in rows.values():
            control = cells[1].get("matched_control_id")
            if str(cells[1].get("intensity")) == "none" or not control:
                continue
            if str(control) not in rows:
                raise DataError(f"{cells[0]}: its neutral twin {control!r} is not in the file.")
            twin = text(rows[str(control)], "text")
            found.append(
                Twin(text(cells, "emotion"), text(cells, "text"), twin, str(cells[1].get("domain") or len(found)))
            )
        if not found:
            raise DataError(f"{path} holds no text with a matched neutral twin. Expected {self.layout}.")
        return found

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Twin]) -> list[Row]:
        site = self._site(stage)
        sides = [Example.ask(ASK, t) for twin in items for t in (twin.text, twin.neutral)]
        read = _states(stage, site, sides)
        scores = [t.per_token for t in told(stage, condition, sides)]
        halves = _halves(items)
        found: list[Row] = []
        for emotion in dict.fromkeys(t.emotion for t in items):
            mine = [n for n, t in enumerate(items) if t.emotion == emotion]
            for half in (0, 1):
                fit, held = ([n for n in mine if (halves[n] == half) == own] for own in (False, True))
                if not fit or not held:
                    continue
                axis = Axis.of(read[[2 * n for n in fit]], read[[2 * n + 1 for n in fit]])
                found += [_pair(items, n, axis, read, scores) for n in held]
            axis = Axis.of(read[[2 * n for n in mine]], read[[2 * n + 1 for n in mine]])
            found += self._shown(stage, condition, site, emotion, axis)
        return found

    def _shown(self, stage: Stage, condition: Condition, site: Site, emotion: str, axis: Axis) -> list[Row]:
        prompts = [Example.ask(p) for p in PROMPTS]
        if stage.variant is not None:
            prompts = list(pilot.prompts("ordinary", n=24, seed=self.seed + 5, split="test", variant=stage.variant))
        replies = stage.replies(prompts, condition)
        kept = [n for n, r in enumerate(replies) if r.strip()]
        said = [Example.ask(ASK, replies[n]) for n in kept]
        places = dict(zip(kept, axis.place(_states(stage, site, said)), strict=True)) if kept else {}
        return [
            {
                "unit": f"reply {n}", "item": f"{emotion} {n}", "set": f"replies {emotion}", "shown": places.get(n),
                "prompt": prompts[n].instruction, "reply": replies[n],
            }
            for n in range(len(prompts))
        ]  # fmt: skip

    def _site(self, stage: Stage) -> Site:
        layer = stage.engine.depth * 2 // 3 if self.layer is None else self.layer
        if not 0 <= layer < stage.engine.depth:
            raise SiteError(f"the layer is {layer}; this model has the blocks 0 to {stage.engine.depth - 1}.")
        return Site(layer)

    def metrics(self, items: Sequence[Twin]) -> tuple[Metric, ...]:
        found: list[Metric] = []
        for emotion in dict.fromkeys(t.emotion for t in items):
            mine = {"set": emotion}
            found += [
                Metric(
                    f"read, {emotion}",
                    f"AUROC of the direction of {emotion} on pairs held out",
                    _auroc("high", "low"),
                    "high",
                    mine,
                    bounded=True,
                    still=True,
                ),
                Metric(
                    f"lexicon, {emotion}",
                    f"AUROC of emotion words on {emotion}: .5 is none",
                    _auroc("words", "plain_words"),
                    "words",
                    mine,
                    bounded=True,
                    still=True,
                ),
                mean_of(f"lean, {emotion}", "lean", f"nats per token of {emotion} texts over their twins", where=mine),
                mean_of(
                    f"shown, {emotion}",
                    "shown",
                    f"neutral replies along {emotion}: 0 neutral, 1 emotional",
                    where={"set": f"replies {emotion}"},
                ),
            ]
        return tuple(found)

    def notes(self, rows: Rows) -> list[str]:
        pairs = [r for r in rows if r.get("lean") is not None]
        told_apart = auroc([r["words"] for r in pairs], [r["plain_words"] for r in pairs])
        if told_apart is None or told_apart < WORDS:
            return []
        return [
            f"a lexicon tells these texts from their twins at AUROC {told_apart:.2f}: they are not without emotion words"
        ]


class Axis(NamedTuple):
    """An emotion's direction between the class means: 0 at the neutral one, 1 at the emotional one."""

    start: Tensor
    direction: Tensor

    @classmethod
    def of(cls, emotional: Tensor, neutral: Tensor) -> Axis:
        """From states `[n, d]` of both classes."""
        return cls(neutral.mean(0), emotional.mean(0) - neutral.mean(0))

    def place(self, states: Tensor) -> list[float]:
        """Where states `[n, d]` lie along it."""
        squared = float(self.direction @ self.direction) or 1.0
        return (((states - self.start) @ self.direction) / squared).tolist()


def _states(stage: Stage, site: Site, examples: Sequence[Example]) -> Tensor:
    """The mean state over each answer's tokens, `[n, d]`, of the model as it is."""
    return stage.engine.capture(examples, [site], GENERATED)[site].mean_by_row(len(examples)).to(torch.float64)


def _halves(items: Sequence[Twin]) -> list[int]:
    """Which half each pair is in: a domain's pairs all in one."""
    domains = {d: n % 2 for n, d in enumerate(dict.fromkeys(t.domain for t in items))}
    return [domains[t.domain] for t in items]


def _pair(items: Sequence[Twin], n: int, axis: Axis, read: Tensor, scores: Sequence[float]) -> Row:
    twin = items[n]
    high, low = axis.place(read[2 * n : 2 * n + 2])
    return {
        "unit": f"{twin.emotion} {n}", "item": n, "set": twin.emotion, "high": high, "low": low,
        "words": float(valence(twin.text)[1]), "plain_words": float(valence(twin.neutral)[1]),
        "lean": scores[2 * n] - scores[2 * n + 1], "prompt": twin.text, "reply": None,
    }  # fmt: skip


def _auroc(high: str, low: str) -> Callable[[Rows], float | None]:
    def of(rows: Rows) -> float | None:
        return auroc([float(r[high]) for r in rows], [float(r[low]) for r in rows])

    return of
