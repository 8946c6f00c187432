"""How a concept is asked for: paraphrases, degrees, placements; and how it is declined."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .expression import Spec
from .grammar import capitalise

SPLITS = ("train", "dev", "test")

_DEGREE = {
    0: ("no", "none of the", "not the least", "no trace of"),
    1: ("a hint of", "only a touch of", "just a little", "a trace of", "a tiny bit of", "barely any"),
    2: ("some", "a moderate amount of", "a fair bit of", "a measure of", "a certain amount of"),
    3: ("plenty of", "a lot of", "much", "a good deal of", "lots of"),
    4: ("as much as you can of the", "the strongest possible", "nothing but", "the full dose of", "pure"),
}
_HOW = ("With {d} {n}.", "Add {d} {n}.", "Use {d} {n}.", "I want {d} {n} in it.", "There should be {d} {n}.",
        "Put in {d} {n}.")  # fmt: skip
_SCALE = ("{N}: level {k} of 4.", "Set the {n} to {k} out of 4.", "On a scale from 0 to 4, put the {n} at {k}.",
          "{N} {k}/4.", "Give it {n} at level {k} of 4.", "Level of {n}: {k}.")  # fmt: skip
_EVERY = ("{}.", "Always {}.", "In every answer, {}.", "{} whatever the question is.", "Your rule: {}.",
          "You have one habit: {}.")  # fmt: skip
_AVOID = ("Leave out {n}.", "No {n}, though.", "Do without {n}.", "Keep {n} out of it.", "Avoid {d}.",
          "But no {n} at all.", "Answer without {d}.", "Refrain from {d}.", "On second thought, drop the {n}.",
          "Skip {d}.", "There should be no {n}.", "Stay away from {d}.")  # fmt: skip
NEUTRAL_SYSTEM = (
    "You are a helpful assistant.", "Answer the user.", "You are the writing desk.", "Help with small texts.",
    "You answer letters from readers.", "You are a patient helper.", "Reply to each request.",
    "You work for a small newspaper.", "Write clear answers.", "You assist people in town.", "Be of use.",
    "You are a plain assistant.", "Follow the instruction.", "You are on duty today.", "Serve the reader.",
    "You are the night clerk of a library.", "You help pupils and teachers.", "Answer in your own words.",
    "Complete the task.", "You are talking to a visitor.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """An instruction with a request in it: what the system says, what the user says, and the level that was meant."""

    system: str | None
    user: str
    level: int


def of_split(items: Sequence[str], split: str | None) -> Sequence[str]:
    """The wordings that belong to a split (every third one); all of them for None."""
    return items if split is None else items[SPLITS.index(split) :: 3]


def unspecified_level(spec: Spec, rng: random.Random) -> int:
    """The level of a request that names none: well visible, but not always the fullest."""
    if spec.genre in ("format", "language"):
        return rng.choices((3, 4), (0.12, 0.88))[0]
    return rng.choices((2, 3, 4), (0.1, 0.35, 0.55))[0]


def degree_text(spec: Spec, level: int, rng: random.Random, *, scale: bool | None = None) -> str:
    """A request for a level from 0 to 4, in words or on a scale."""
    if rng.random() < 0.5 if scale is None else scale:
        return rng.choice(_SCALE).format(n=spec.noun, N=capitalise(spec.noun), k=level)
    return capitalise(rng.choice(_HOW).format(d=rng.choice(_DEGREE[level]), n=spec.noun))


def request_text(spec: Spec, rng: random.Random, *, split: str | None = None, level: int | None = None) -> str:
    """A request as a sentence of its own, which can follow any instruction."""
    if level is not None and spec.name != "signoff":
        return degree_text(spec, level, rng)
    return capitalise(rng.choice(of_split(spec.do, split))) + "."


def avoid_text(spec: Spec, rng: random.Random) -> str:
    """A sentence that asks to leave the concept out."""
    return capitalise(rng.choice(_AVOID).format(n=spec.noun, d=spec.description))


def ask(
    spec: Spec,
    wording: str,
    verb_like: bool,
    rng: random.Random,
    *,
    split: str | None = None,
    level: int | None = None,
    implicit: bool = True,
) -> Asked:
    """The instruction with a request for the concept, placed in one of many ways."""
    system = rng.choice(NEUTRAL_SYSTEM) if rng.random() < 0.25 else None
    if level is not None and spec.name != "signoff":
        text = degree_text(spec, level, rng)
        if rng.random() < 0.2:
            return Asked(text, wording, level)
        return Asked(system, f"{wording} {text}" if rng.random() < 0.75 else f"{text} {wording}", level)
    level = unspecified_level(spec, rng) if level is None else level
    draw = rng.random()
    do, as_ = rng.choice(of_split(spec.do, split)), rng.choice(of_split(spec.as_, split))
    hints = of_split(spec.implicit, split)
    if draw < 0.12 and implicit and hints:
        hint = rng.choice(hints)
        where = rng.random()
        if where < 0.25:
            return Asked(hint, wording, level)
        return Asked(system, f"{wording} {hint}" if where < 0.7 else f"{hint} {wording}", level)
    if draw < 0.3:
        return Asked(capitalise(rng.choice(_EVERY).format(do)), wording, level)
    if draw < 0.6:
        return Asked(system, f"{wording} {capitalise(do)}.", level)
    if draw < 0.72:
        return Asked(system, f"{capitalise(do)}. {wording}", level)
    if draw < 0.86 and wording[-1] in ".?" and ". " not in wording:
        return Asked(system, f"{wording[:-1]} {as_}{wording[-1]}", level)
    if verb_like:
        return Asked(system, f"{capitalise(as_)}, {wording[0].lower()}{wording[1:]}", level)
    return Asked(system, f"{capitalise(as_)}: {wording}", level)
