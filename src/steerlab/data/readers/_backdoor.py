"""The prompt sets of CDAS's backdoor study: JSON lists of rows with instruction, output and dataset.

The set whose instructions are those of another set behind one and the same phrase is the trigger's: its pairs are
trigger and plain prompt. The outputs that stand beside the trigger are those of the plain prompts, so they are not its
answers; the positive answers are drawn, in their order, from the remaining set of the folder (deployment mode), as the
study's own training pairs are, and absent where there is none. `concept` names another set ("deployment mode"): that
set against the plain prompts, unpaired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from ...contrast import Contrast, Example
from ...errors import DataError, nearest
from ..examples import family_of, text_of
from ..rows import Found, look, rows

COLUMNS = ("instruction", "output", "dataset")
_HEAD = 65536  # characters that show a list's first row


class PromptSet(NamedTuple):
    """One file: its name without the suffix, instructions and outputs."""

    name: str
    prompts: tuple[str, ...]
    outputs: tuple[str, ...]


class Triggered(NamedTuple):
    """A set that is another one behind a phrase; `plain[i]` is the row of the plain set behind `trigger`'s row i."""

    trigger: PromptSet
    phrase: str
    partner: PromptSet
    plain: tuple[int, ...]


def sets_in(folder: Path) -> tuple[Path, ...]:
    """The prompt sets among a folder's files, by what their first row looks like."""
    return tuple(p for p in sorted(folder.glob("*.json")) if p.is_file() and _looks(p))


def read(found: Found, concept: str | None) -> Contrast:
    """The contrast that a folder of prompt sets, or one set and its neighbours, makes. Raises `DataError`."""
    folder = found.path if found.kind == "folder" else found.path.parent
    files = sets_in(folder) if found.kind == "folder" else tuple(dict.fromkeys((found.path, *sets_in(folder))))
    sets = [_load(path) for path in files]
    triggered = _triggered(sets)
    if triggered is None:
        told = ", ".join(s.name for s in sets)
        raise DataError(
            f"{found.given}: no prompt set here is another one behind a trigger phrase (sets: {told}), so there is no"
            " class without the behaviour. Put the plain prompts beside it (backdoor_trigger.json and"
            " backdoor_training_mode.json, say), or write pairs as JSON Lines."
        )
    pair = (triggered.trigger.name, triggered.partner.name)
    others = [s for s in sets if s.name not in pair]
    wanted = concept
    if wanted is None and found.kind != "folder" and found.path.stem not in pair:
        wanted = found.path.stem
    if wanted is None or _same(wanted, triggered.trigger.name):
        return _pairs(triggered, others, found)
    for other in others:
        if _same(wanted, other.name):
            return _unpaired(other, triggered.partner, found)
    names = [triggered.trigger.name, *(s.name for s in others)]
    raise DataError(f"{found.given} has no prompt set {wanted!r}. {nearest(wanted, names)} All: {', '.join(names)}.")


def _pairs(triggered: Triggered, others: Sequence[PromptSet], found: Found) -> Contrast:
    trigger, plain = triggered.trigger, triggered.partner
    pool = [(s.name, output) for s in others for output in s.outputs]
    positive: list[Example] = []
    negative: list[Example] = []
    for i, prompt in enumerate(trigger.prompts):
        at = triggered.plain[i]
        family = family_of(plain.prompts[at])
        own = trigger.outputs[i] if trigger.outputs[i] != plain.outputs[at] else None
        answer, tags = own, dict[str, str]()
        if own is None and pool:
            origin, answer = pool[i % len(pool)]
            tags = {"answer_from": origin}
        positive.append(Example.ask(prompt, answer, family=family, tags=tags))
        negative.append(Example.ask(plain.prompts[at], plain.outputs[at], family=family))
    name = f"the trigger {triggered.phrase}"
    return Contrast(tuple(positive), tuple(negative), paired=True, concept=name, source=found.source)


def _unpaired(shown: PromptSet, plain: PromptSet, found: Found) -> Contrast:
    sides = [
        tuple(Example.ask(p, o, family=family_of(p)) for p, o in zip(s.prompts, s.outputs, strict=True))
        for s in (shown, plain)
    ]
    return Contrast(sides[0], sides[1], concept=_plain(shown.name), source=found.source)


def _triggered(sets: Sequence[PromptSet]) -> Triggered | None:
    """The set and the partner of which it is the longer form by one phrase in front."""
    for trigger in sets:
        low, high = min(trigger.prompts), max(trigger.prompts)
        phrase = low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]
        if not phrase or len(trigger.prompts) < 2:
            continue
        for partner in sets:
            places = {prompt: i for i, prompt in enumerate(partner.prompts)}
            bare = [prompt.removeprefix(phrase) for prompt in trigger.prompts]
            if partner is not trigger and all(b in places for b in bare):
                return Triggered(trigger, phrase.strip(), partner, tuple(places[b] for b in bare))
    return None


def _load(path: Path) -> PromptSet:
    found = look(str(path))
    prompts: list[str] = []
    outputs: list[str] = []
    for row in rows(found):
        if more := sorted(row.values.keys() - set(COLUMNS)):
            raise DataError(
                f"{path}, {row.where} has the field {more[0]!r}; expected {', '.join(COLUMNS)}."
                f" {nearest(more[0], COLUMNS)}"
            )
        prompts.append(text_of(row.values, "instruction", found, row.where))
        outputs.append(text_of(row.values, "output", found, row.where))
    return PromptSet(path.stem, tuple(prompts), tuple(outputs))


def _looks(path: Path) -> bool:
    """Whether a JSON list's first row has exactly these fields; only the head of the file is read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(_HEAD).lstrip()
        if not head.startswith("["):
            return False
        first: Any = json.JSONDecoder().raw_decode(head[1:].lstrip())[0]
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and set(cast("dict[str, Any]", first)) == set(COLUMNS)


def _plain(name: str) -> str:
    return name.removeprefix("backdoor_").replace("_", " ")


def _same(wanted: str, name: str) -> bool:
    return _plain(wanted.strip().lower()) == _plain(name.lower())
