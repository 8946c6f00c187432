"""What a client writes under `steerlab`, as plain data: names, strengths, positions, and what is to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from ..errors import DataError, nearest
from ..positions import Positions

TERMS = 64
TERM = re.compile(r"\s*([+-]?)\s*(?:(\d+(?:\.\d+)?)\s*\*)?\s*([^+*\s]+?)\s*(?=[+]|-\s*\d+(?:\.\d+)?\s*\*|$)")
LEGAL = ("steering", "head", "prompted", "readouts", "each")


class Wanted(NamedTuple):
    """What a request asks for, before anything is looked up."""

    terms: list[tuple[str, float, str | None]]  # names, strengths, and positions instead of the steering's own
    head: int | None = None
    prompted: bool = False  # the steerings' prompts are in the conversation already
    readouts: tuple[str, ...] = ()
    each: bool = False  # read-outs are told with each token, and not once at the end


def wanted(given: object) -> Wanted:
    """What is written, as text or JSON. Raises `DataError` with a sentence."""
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as problem:
            raise DataError(f"the steering isn't valid JSON: {problem}.") from problem
    if not isinstance(given, Mapping):
        return Wanted(_terms(given))
    row = dict(cast("Mapping[str, Any]", given))
    for name in row:
        if name not in LEGAL:
            raise DataError(f"the steering has the field {str(name)[:80]!r}. {nearest(str(name)[:80], LEGAL)}")
    head = row.get("head")
    if head is not None and (not isinstance(head, int) or isinstance(head, bool) or head < 0):
        raise DataError(f"head is {head!r}; expected how many of the prompt's tokens are the template's.")
    for name in ("prompted", "each"):
        if not isinstance(row.get(name, False), bool):
            raise DataError(f"{name} is {row[name]!r}; expected true or false.")
    readouts = row.get("readouts", [])
    names = cast("Sequence[object]", readouts) if isinstance(readouts, (list, tuple)) else [None]
    if len(names) > TERMS or not all(isinstance(name, str) for name in names):
        raise DataError(f"readouts is {str(readouts)[:80]!r}; expected a list of up to {TERMS} names of steerings.")
    read = tuple(dict.fromkeys(str(name) for name in names))
    terms = [] if read and row.get("steering") in (None, [], "") else _terms(row.get("steering"))
    return Wanted(terms, head, row.get("prompted", False), read, row.get("each", False))


def _terms(given: object) -> list[tuple[str, float, str | None]]:
    if isinstance(given, str):
        terms = _grammar(given)
    elif isinstance(given, (list, tuple)):
        terms = [_term(one) for one in cast("Sequence[object]", given)]
    else:
        raise DataError(
            f"the steering is {str(given)[:80]!r}; expected a name, a form like '0.8*formal-0.5*verbose', or JSON with"
            " the field 'steering'."
        )
    if not terms or len(terms) > TERMS:
        raise DataError(f"the request names {len(terms)} steerings; expected 1 to {TERMS}.")
    return terms


def _grammar(text: str) -> list[tuple[str, float, str | None]]:
    terms: list[tuple[str, float, str | None]] = []
    at = 0
    while at < len(text):
        found = TERM.match(text, at)
        if found is None or found.end() == at or (terms and not found[1]):
            raise DataError(f"the steering has {text[at : at + 80]!r}; expected a form like 0.8*formal-0.5*verbose.")
        if found[1] == "-" and not found[2]:
            raise DataError(
                f"the steering has {text[at : at + 80]!r}; names may hold hyphens, so write -1*{found[3][:40]}."
            )
        terms.append((found[3], float(found[1] + (found[2] or "1")), None))
        at = found.end()
    return terms


def _term(one: object) -> tuple[str, float, str | None]:
    if isinstance(one, str):
        return one, 1.0, None
    row = cast("Mapping[str, Any]", one) if isinstance(one, Mapping) else None
    legal = ("name", "strength", "positions")
    if row is None or not isinstance(row.get("name"), str):
        raise DataError(
            f"a steering is {str(one)[:80]!r}; expected its name, or an object with name, strength, positions."
        )
    for name in row:
        if name not in legal:
            raise DataError(f"a steering has the field {str(name)[:80]!r}. {nearest(str(name)[:80], legal)}")
    strength, positions = row.get("strength", 1.0), row.get("positions")
    finite = isinstance(strength, (int, float)) and not isinstance(strength, bool) and abs(strength) < 1e6
    if not finite:
        raise DataError(f"the strength of {row['name'][:80]!r} is {strength!r}; expected a finite number.")
    if positions is not None and not isinstance(positions, str):
        raise DataError(
            f"the positions of {row['name'][:80]!r} are {positions!r}; expected a name or a form like 'f3+l2'."
        )
    if positions is not None:
        Positions.parse(positions)
    return row["name"], float(strength), positions
