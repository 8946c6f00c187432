"""The checks: each looks for one kind of trouble and says how often it is there, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import DataError
from .check import Finding, Place, Severity, View, short
from .examples import squash
from .giveaway import Clue, Giveaway, Labelled, Where, certain, giveaway

_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
_MOJIBAKE = re.compile(r"�|Ã[\x80-\xbf]|â€|Â[\xa0-\xbf]|ï»¿")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LOST_VALUES = ("nan", "null", "none", "n/a", "undefined")
_LONG = 5  # words from which on the same answer on both sides is no coincidence


def run(view: View) -> tuple[list[Finding], tuple[Giveaway, ...]]:
    """Every finding, and the giveaways with their figures."""
    found = [finding for look in _CHECKS for finding in look(view)]
    clues, told = _giveaways(view)
    return [*found, *told], clues


def _finding(name: str, severity: Severity, places: Iterable[Place | str], told: str, advice: str) -> Iterator[Finding]:
    """One finding for places, none for none."""
    held = list(places)
    if held:
        shown = tuple(p if isinstance(p, str) else p.shown for p in held[:2])
        yield Finding(name, severity, len(held), told, shown, advice)


def _text(place: Place) -> str:
    """All that an example says, for comparing."""
    e = place.example
    said = "\n".join(f"{m.role}: {m.content}" for m in e.messages)
    return said if e.answer is None else f"{said}\nanswer: {e.answer}"


def _duplicates(view: View) -> Iterator[Finding]:
    exact: list[Place] = []
    near: list[Place] = []
    for side in (view.positive, view.negative, view.neutral):
        seen: set[str] = set()
        alike: set[str] = set()
        for place in side:
            text = _text(place)
            folded = squash(text)
            if text in seen:
                exact.append(place)
            elif folded in alike:
                near.append(place)
            seen.add(text)
            alike.add(folded)
    advice = "Keep one of each: repeated rows weigh double in a fit, and make a test look easier."
    yield from _finding("duplicates", "warn", exact, "rows that repeat an earlier row of their class exactly", advice)
    told = "rows that repeat an earlier row of their class but for case and white space"
    yield from _finding("near duplicates", "warn", near, told, advice)


def _class_leaks(view: View) -> Iterator[Finding]:
    negatives = {squash(_text(p)): p for p in view.negative}
    both = [p for p in view.positive if squash(_text(p)) in negatives]
    yield from _finding(
        "class leak", "error", both, "positive rows that stand on the negative side, too (prompt and answer)",
        "Decide what they show and leave them on one side; a row on both teaches nothing.",
    )  # fmt: skip
    answers = {squash(p.example.answer) for p in view.negative if p.example.answer}
    leaked = {id(p) for p in both}
    shared = [p for p in view.positive if id(p) not in leaked and _long(p.example.answer) in answers]
    yield from _finding(
        "shared answers", "warn", shared, "positive answers that are word for word the answer of a negative row",
        "Check which side they belong to; an answer can't show the concept and lack it.",
    )  # fmt: skip
    known = {squash(p.example.instruction) for p in (*view.positive, *view.negative)}
    neutral = [p for p in view.neutral if squash(p.example.instruction) in known]
    yield from _finding(
        "neutral leak", "warn", neutral, "neutral prompts that are prompts of a class, too",
        "Leave them out of the neutral rows: they are to stand for prompts that the concept has nothing to do with.",
    )  # fmt: skip


def _long(answer: str | None) -> str | None:
    """An answer for comparing, where it is long enough for a coincidence to be none."""
    return squash(answer) if answer is not None and len(answer.split()) >= _LONG else None


def _split_leaks(view: View) -> Iterator[Finding]:
    groups: dict[str, set[str]] = {}
    first: dict[str, Place] = {}
    for place in (*view.positive, *view.negative):
        key = squash(place.example.instruction)
        groups.setdefault(key, set()).add(place.group)
        first.setdefault(key, place)
    loose = [key for key, held in groups.items() if len(held) > 1]
    if loose:
        apart = _apart(view, set(loose))
        told = (
            "instructions under several families (or in rows without one), which a split may put on both sides; a split"
            f" into halves does so with {apart}"
        )
        advice = "Give all rows of one instruction the same 'family': a split keeps a family whole."
        yield from _finding("split leak", "warn", [first[key] for key in loose], told, advice)


def _apart(view: View, instructions: set[str]) -> int:
    """How many of the instructions a split into halves puts on both sides."""
    try:
        parts = view.contrast.split(0.5, 0.5, seed=view.options.seed)
    except DataError:
        return 0
    sides = [{squash(e.instruction) for e in (*part.positive, *part.negative)} for part in parts]
    return len(sides[0] & sides[1] & instructions)


def _families(view: View) -> Iterator[Finding]:
    rows = [*view.positive, *view.negative]
    without = [p for p in rows if not p.group.startswith("family ")]
    advice = "Name the wording that a row was made from in its 'family', so that no wording of dev comes again in test."
    if len(without) == len(rows):
        yield Finding("families", "note", len(rows), "no row names a family: a split goes row by row", (), advice)
        return
    told = "rows without a family, where others have one: a split treats each of them as its own"
    yield from _finding("families", "warn", without, told, advice)
    sizes: dict[str, list[Place]] = {}
    for place in rows:
        sizes.setdefault(place.group, []).append(place)
    name, largest = max(sizes.items(), key=lambda item: len(item[1]))
    if len(largest) * 2 > len(rows):
        told = f"one family ({short(name.removeprefix('family '), 40)!r}) holds {len(largest)} of {len(rows)} rows"
        told += ": no split can be even" if len(sizes) > 1 else ": no split is possible"
        yield from _finding("one family", "warn", largest, told, "Use finer families, or collect more wordings.")
    elif problem := _unsplit(view):
        told = f"a split into halves fails: {problem}"
        yield from _finding("split", "warn", largest[:1], told, "Spread each class over more families.")


def _unsplit(view: View) -> str:
    try:
        view.contrast.split(0.5, 0.5, seed=view.options.seed)
    except DataError as problem:
        return str(problem)
    return ""


def _sizes(view: View) -> Iterator[Finding]:
    n = {"positive": len(view.positive), "negative": len(view.negative)}
    small, large = sorted(n, key=lambda side: n[side])
    if n[large] > view.options.imbalance * n[small]:
        told = f"{n[large]} {large} rows stand against {n[small]} {small} ones"
        yield Finding(
            "class imbalance", "warn", n[large] - n[small], told, (),
            f"Add {small} rows, or draw as many of each (contrast.sample({n[small]})).",
        )  # fmt: skip
    if n[small] < view.options.few:
        told = f"there are only {n[small]} {small} rows: a fit will vary much with which ones they are"
        yield Finding("few rows", "note", n[small], told, (), f"Collect at least {view.options.few} of each class.")


def _answers(view: View) -> Iterator[Finding]:
    rows = [*view.positive, *view.negative]
    empty = [p for p in rows if p.example.answer is not None and not p.example.answer.strip()]
    yield from _finding(
        "empty answers", "error", empty, "answers without any text", "Fill them in, or leave the rows out."
    )
    missing = [p for p in rows if p.example.answer is None]
    if 0 < len(missing) < len(rows):
        sides = {p.side for p in missing}
        where = f"all on the {sides.pop()} side" if len(sides) == 1 else "on both sides"
        yield from _finding(
            "missing answers", "warn", missing, f"rows without an answer, of {len(rows)} ({where})",
            "Methods that match answers (cdas, das) need them; those that read prompts (diff_means) don't. Fill them"
            " in, or drop the others' answers.",
        )  # fmt: skip
    blank = [p for p in (*rows, *view.neutral) if not p.example.instruction.strip()]
    yield from _finding(
        "empty prompts", "error", blank, "prompts without any text", "Fill them in, or leave the rows out."
    )
    lost = [p for p in rows if (p.example.answer or "").strip().lower() in _LOST_VALUES]
    yield from _finding(
        "lost values", "warn", lost, "answers that look like a missing value written as text ('nan', 'None' …)",
        "Restore them from where the table was made, or leave the rows out.",
    )  # fmt: skip


def _characters(view: View) -> Iterator[Finding]:
    broken = _around(view.rows, _MOJIBAKE)
    yield from _finding(
        "broken characters", "warn", broken, "rows with characters that were decoded wrongly (Ã©, â€™, �)",
        "Read the source again as UTF-8; the text was decoded with another encoding.",
    )  # fmt: skip
    control = _around(view.rows, _CONTROL)
    yield from _finding(
        "control characters", "warn", control, "rows with control characters (NUL, escape …)", "Remove them."
    )


def _around(rows: list[Place], pattern: re.Pattern[str]) -> list[str]:
    """The places of a pattern, with the words around it."""
    hits = ((p, pattern.search(_text(p))) for p in rows)
    return [p.quoting(hit.string[max(hit.start() - 20, 0) : hit.end() + 20]) for p, hit in hits if hit is not None]


def _special_tokens(view: View) -> Iterator[Finding]:
    own = _own_specials(view)
    sure = [p for p in view.rows if any(token in _text(p) for token in own)]
    advice = "Remove them from the texts; the engine writes the template's tokens itself, in one place."
    told = "rows with special tokens of this model, which are read as control and not as text"
    yield from _finding("special tokens", "error", sure, told, advice)
    known = {id(p) for p in sure}
    maybe = _around([p for p in view.rows if id(p) not in known], _SPECIAL)
    told = "rows with what looks like the special tokens of a chat template"
    yield from _finding("template tokens", "warn", maybe, told, advice)


def _own_specials(view: View) -> set[str]:
    if view.engine is None:
        return set()
    tokenizer: Any = view.engine.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_tokens, *(str(t) for t in added.values() if t.special)} - {""}


def _engine(view: View) -> Iterator[Finding]:
    if view.engine is None:
        return
    rows = list(zip(view.rows, view.written, strict=True))
    refused = [f"{p.shown}: {w.problem}" for p, w in rows if w.problem]
    yield from _finding(
        "template", "error", refused, "conversations that can't be written with this model's template",
        "Use roles that the template knows (many have no system role), or another template.",
    )  # fmt: skip
    lost = [p.quoting(w.lost) for p, w in rows if w.lost]
    yield from _finding(
        "lost text", "warn", lost, "texts that don't come back from their tokens as they were written",
        "The template or the tokenizer drops or changes a part (a system message, special tokens, unknown characters):"
        " look at what is written, and change the text.",
    )  # fmt: skip
    room = view.engine.context
    long = [p for p, w in rows if w.prompt + (w.answer or 0) > room]
    yield from _finding(
        "too long", "error", long, f"rows that are longer than the model's context of {room} tokens",
        "Shorten them, or leave them out; a fit on this model raises at the first of them.",
    )  # fmt: skip


def _giveaways(view: View) -> tuple[tuple[Giveaway, ...], list[Finding]]:
    places = [*view.positive, *view.negative]
    prompts = [Labelled(p.example.instruction, p.side == "positive", p.group) for p in places]
    replies = [(p.example.answer, p) for p in places]
    answers = [Labelled(text, p.side == "positive", p.group) for text, p in replies if text is not None]
    texts: tuple[tuple[Where, list[Labelled]], ...] = (("answers", answers), ("prompts", prompts))
    both: tuple[Clue, ...] = ("first word", "length")
    clues: list[Giveaway] = []
    found: list[Finding] = []
    for where, rows in texts:
        if where == "answers" and not view.answered:
            continue
        for clue in both:
            got = giveaway(rows, clue, where, folds=view.options.folds, seed=view.options.seed)
            clues.append(got)
            if got.accuracy is not None and certain(got, rows, view.options.giveaway):
                found.append(_given_away(got, view))
    return tuple(clues), found


def _given_away(got: Giveaway, view: View) -> Finding:
    by_design = got.where == "prompts" and view.answered and view.contrast.paired
    advice = (
        "That may be meant: the positive prompts ask for the concept. Vary the wording of the requests."
        if by_design
        else "A fit may learn that and not the concept: vary it on both sides, or choose rows that are alike in it."
    )
    told = f"the {got.clue} of the {got.where} alone tells the classes apart in {got.accuracy:.0%} (50% is chance)"
    return Finding(
        f"giveaway: {got.name}", "note" if by_design else "warn", len(view.positive) + len(view.negative),
        told, (got.told,), advice,
    )  # fmt: skip


_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _duplicates,
    _class_leaks,
    _split_leaks,
    _families,
    _sizes,
    _answers,
    _characters,
    _special_tokens,
    _engine,
)
