"""Which steering a request asks for: names and strengths in its model's name and its `steering` field, made one.

The grammar of a model's name, for clients that can't send more fields: `base+0.8*formal-0.5*verbose`, where `base` is the
served model's own name, or the word base; `+formal` is `+1*formal`. Names may hold hyphens, so a strength of −1 is written out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from ..engines.readout import Readout, readouts
from ..engines.spans import NAMED, Span
from ..errors import SteerlabError, nearest
from ..positions import Positions
from ..ranges import Standing, in_words, standing
from ..steering import Steering
from .problems import Problem
from .schema import Asked, Term
from .store import Entry, Store

TERM = re.compile(r"([+-])(?:(\d{1,9}(?:\.\d{1,9})?)\*)?([^+*]+)", re.ASCII)
START = re.compile(r"(?=[+]|-\d{1,9}(?:\.\d{1,9})?\*)", re.ASCII)
FURTHEST = 2**31  # tokens


@dataclass(frozen=True, eq=False)
class Part:
    """One steering of a request, as it is applied."""

    entry: Entry
    strength: float
    steering: Steering
    standing: Standing  # in its calibrated range
    positions: str | None = None  # where they aren't its own


@dataclass(frozen=True, eq=False)
class Resolved:
    """All that a request asks of the inside of the model."""

    parts: tuple[Part, ...] = ()
    steering: Steering | None = None
    readouts: tuple[Readout, ...] = ()
    monitors: tuple[tuple[Entry, int], ...] = ()  # each read steering, and how many of the read-outs are its
    asked: int = 0  # the first so many of the monitors were asked for, the rest are the server's own
    unsteered: tuple[Span, ...] = ()


def resolve(
    asked: Asked,
    served: str,
    store: Store,
    *,
    most: int,
    monitors: Sequence[str] = (),
    strict: bool = False,
    named: Mapping[str, Span] = NAMED,
) -> Resolved:
    """Everything by name looked up, checked and joined. Raises `Problem` 400 or 404.

    With `strict`, the server's or the request's own, what isn't within a calibrated range isn't served. `named` are the parts of
    a reply that may go unsteered.
    """
    terms = [*_named(asked.model, served), *asked.terms]
    if len(terms) > most:
        raise Problem(400, f"the request names {len(terms)} steerings; at most {most} are taken.", "too_many")
    parts = [_part(term, store) for term in terms]
    if strict or asked.strict:
        _keep_to_ranges(parts)
    digests = [part.entry.digest for part in parts]
    for n, part in enumerate(parts):
        if part.entry.digest in digests[:n]:
            raise Problem(400, f"the steering {part.entry.name!r} is asked for twice; give it once.", "twice")
    try:
        whole = reduce(lambda a, b: a + b, [part.steering for part in parts]) if parts else None
    except SteerlabError as problem:
        raise Problem(400, f"these steerings can't be joined: {problem}", "bad_steering") from problem
    wanted = list(dict.fromkeys(store.get(name) for name in asked.readouts))
    own = [entry for name in monitors if (entry := store.find(name)) is not None and entry not in wanted]
    read, counts = _readouts(wanted, own)
    spans = tuple(_span(given, named) for given in asked.unsteered)
    return Resolved(tuple(parts), whole, read, counts, len(wanted), spans)


def split(model: str) -> tuple[str, list[tuple[str, str]]]:
    """A model's name as its base and (strength, steering) in the order given. Raises `Problem` 400."""
    base, *rest = START.split(model)
    terms: list[tuple[str, str]] = []
    for text in rest:
        found = TERM.fullmatch(text)
        if found is None:
            raise Problem(
                400,
                f"the model's name has {text[:80]!r}; expected a form like +0.8*formal or -0.5*verbose.",
                "bad_model",
            )
        terms.append((found[1] + (found[2] or "1"), found[3]))
    return base, terms


def _named(model: str, served: str) -> list[Term]:
    if model in (served, "base"):
        return []
    rest = model[len(served) :] if model.startswith((served + "+", served + "-")) else None
    base, terms = split(model if rest is None else "base" + rest)
    if base != "base":
        raise Problem(
            404,
            f"there is no model {base[:200]!r} here. {nearest(base[:200], (served, 'base'))}",
            "model_not_found",
            param="model",
        )
    return [Term(name=name[:256], strength=float(strength)) for strength, name in terms]


def _part(term: Term, store: Store) -> Part:
    entry = store.get(term.name)
    try:
        steering, moved = entry.steering.scaled(term.strength), False
        if term.positions is not None:
            placed = _moved(steering, term.positions)
            moved, steering = placed.meta is not steering.meta, placed
    except (SteerlabError, OverflowError) as problem:
        raise Problem(400, f"the steering {entry.name!r} can't act so: {problem}", "bad_steering") from problem
    where = standing(entry.steering.meta.range, term.strength)
    if moved and term.strength:
        where = Standing("not calibrated", "it is not calibrated at other positions than it was fitted for")
    return Part(entry, term.strength, steering, where, term.positions)


def _keep_to_ranges(parts: Sequence[Part]) -> None:
    for part in parts:
        if not part.standing.allowed:
            told = in_words(part.entry.steering.meta.range)
            raise Problem(
                400, f"the steering {part.entry.name!r}: {part.standing.words}, and only calibrated strengths are taken here"
                f" (strict). Its range: {told}.", "beyond_range", param="steering",
            )  # fmt: skip


def _moved(steering: Steering, text: str) -> Steering:
    positions = Positions.parse(text)
    bounds = [b for w in (*positions.prompt, *positions.generated) for b in (w.start, w.stop) if b is not None]
    if any(abs(b) > FURTHEST for b in bounds):
        raise Problem(400, f"the positions {text!r} reach further than {FURTHEST} tokens.", "bad_steering")
    if all(i.positions == positions for i in steering.interventions):
        return steering
    made = tuple(replace(i, positions=positions) for i in steering.interventions)
    return replace(steering, interventions=made, meta=replace(steering.meta, range=None))  # measured elsewhere


def _readouts(
    wanted: Sequence[Entry], own: Sequence[Entry]
) -> tuple[tuple[Readout, ...], tuple[tuple[Entry, int], ...]]:
    read: list[Readout] = []
    counts: list[tuple[Entry, int]] = []
    for n, entry in enumerate((*wanted, *own)):
        try:
            found = readouts(entry.steering)
        except SteerlabError as problem:
            if n >= len(wanted):
                continue
            raise Problem(400, f"the steering {entry.name!r} can't be read: {problem}", "bad_readout") from problem
        read += found
        counts.append((entry, len(found)))
    return tuple(read), tuple(counts)


def _span(given: str | list[str], named: Mapping[str, Span]) -> Span:
    if isinstance(given, str):
        if given not in named:
            raise Problem(400, f"unsteered names {given[:80]!r}. {nearest(given[:80], named)}", "bad_span")
        return named[given]
    return Span(*given)
