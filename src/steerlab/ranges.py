"""The calibrated range that travels in a steering's file, and where a strength stands in it.

`Meta.range` is plain data, written by `steerlab.evals.calibrate`:

    {"rule": 2, "directions": {"elicit": {"min_useful": 0.5, "default": 1.0, "max_safe": 1.3, "max_unresolved": 1.5}, ...},
     "budget": {"lost": 0.02, "kl": 0.1, "perplexity": 0.05}, "measured": {...}}

Strengths have their sign, and a direction holds for strengths of the sign of its `max_safe`. Up to `max_safe` every cost in the
budget is certified; from there to `max_unresolved` none was seen to be over, and not all are certified. A `default` of None says
that nothing useful is safe. A file without a range is not calibrated, and is said to be so.

Rule 1 (of ranges that name none) took a mean within the budget for safe where there were too few prompts to certify anything, and
certified with the prompts that strengths were chosen by. What it called safe is unresolved by today's rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast

from .errors import ArtefactError

State = Literal["inside", "weak", "unresolved", "beyond", "not calibrated"]
RULE = 2  # by which ranges are made
OLD = "an older rule, which took costs for safe that were measured on too little; calibrate it again"
DIRECTIONS = ("elicit", "suppress")
SLACK = 1e-6  # strengths are written and multiplied


@dataclass(frozen=True, slots=True)
class Side:
    """A direction's strengths: the weakest that is of use, the one to take, and the strongest within the budget.

    None where there is no such strength; a `max_safe` of 0 says that not even the weakest that was tried is certified.
    Beyond it, up to `max_unresolved`, no cost was seen to be over. Where the range was made by an older rule (`certified` is
    False), nothing is certified, whatever `max_safe` says.
    """

    sign: int
    min_useful: float | None
    default: float | None
    max_safe: float
    max_unresolved: float = 0.0
    certified: bool = True

    @property
    def tops(self) -> tuple[float, float]:
        """The greatest size of a strength that is certified, and of one that is at least unresolved."""
        most = abs(self.max_safe)
        return (most if self.certified else 0.0), max(most, abs(self.max_unresolved))

    def scaled(self, k: float) -> Side:
        """The same strengths as multiples of k times what they were multiples of."""
        turned = self.sign if k > 0 else -self.sign
        low, best = (None if v is None else v / k for v in (self.min_useful, self.default))
        return Side(turned, low, best, self.max_safe / k, self.max_unresolved / k, self.certified)


class Standing(NamedTuple):
    """Where a strength stands in a range, and a sentence about it (empty inside)."""

    state: State
    words: str = ""

    @property
    def allowed(self) -> bool:
        """Whether it is known to keep the budget."""
        return self.state in ("inside", "weak")


def sides(told: Mapping[str, Any] | None) -> dict[str, Side]:
    """Each direction's strengths; none of a steering that isn't calibrated. Raises `ArtefactError` for what is no range."""
    if told is None:
        return {}
    found: dict[str, Side] = {}
    given = told.get("directions")
    if not isinstance(given, Mapping):
        raise ArtefactError(
            f"a range has the directions {_short(given)}; expected elicit and suppress, each with its strengths."
        )
    for name, row in cast("Mapping[str, Any]", given).items():
        if name not in DIRECTIONS or not isinstance(row, Mapping):
            raise ArtefactError(
                f"a range has the direction {name!r} as {_short(row)}; expected elicit or suppress, and strengths."
            )
        values = [
            cast("Mapping[str, Any]", row).get(key) for key in ("min_useful", "default", "max_safe", "max_unresolved")
        ]
        if not all(v is None or _number(v) for v in values) or values[2] is None:
            raise ArtefactError(f"a range's {name} is {_short(row)}; expected numbers, and a max_safe.")
        sign = cast("Mapping[str, Any]", row).get("sign")
        if sign not in (-1, 1):
            sign = _sign_of(values[:3], name)
        open_to = values[2] if values[3] is None else values[3]
        found[name] = Side(sign, values[0], values[1], float(values[2]), float(open_to), told.get("rule") == RULE)
    return found


def standing(told: Mapping[str, Any] | None, strength: float = 1.0) -> Standing:
    """Where a strength stands. 0 leaves a model untouched and is always inside."""
    if strength == 0:
        return Standing("inside")
    try:
        known = sides(told)
    except ArtefactError as problem:
        return Standing("not calibrated", f"its range can't be read ({problem})")
    if not known:
        return Standing("not calibrated", "it is not calibrated: nobody has measured which strengths keep a budget")
    sign = 1 if strength > 0 else -1
    mine = next((s for s in known.values() if s.sign == sign), None)
    if mine is None:
        return Standing("not calibrated", f"strengths {'above' if sign > 0 else 'below'} 0 are not calibrated")
    size, (most, open_to) = abs(strength), mine.tops
    if size > most + SLACK * max(1.0, most):
        if size > open_to + SLACK * max(1.0, open_to):
            within = f"up to {math.copysign(open_to, mine.sign):+.3g}" if open_to else "none"
            return Standing(
                "beyond",
                f"strength {strength:+.3g} is beyond its calibrated range ({within}): what it costs is over budget or unknown",
            )
        if not mine.certified:
            return Standing("unresolved", f"strength {strength:+.3g} is not certified: its range was made by {OLD}")
        return Standing(
            "unresolved",
            f"strength {strength:+.3g} is unresolved: what was measured neither certifies that it keeps the budget nor shows that"
            f" it doesn't (certified {f'up to {mine.max_safe:+.3g}' if most else 'is none'})",
        )
    if mine.min_useful is not None and size < abs(mine.min_useful) * (1 - SLACK) - SLACK:
        return Standing(
            "weak", f"strength {strength:+.3g} is weaker than the {mine.min_useful:+.3g} from which on it was of use"
        )
    return Standing("inside")


def rescaled(told: Mapping[str, Any] | None, k: float) -> dict[str, Any] | None:
    """The range of a steering whose strengths have become k times what they were; None of one that can't be read, or at 0."""
    if told is None or k == 0:
        return None
    if k == 1:
        return dict(told)
    try:
        known = sides(told)
    except ArtefactError:
        return None
    rows = cast("Mapping[str, Mapping[str, Any]]", told["directions"])
    moved = {name: {**rows[name], **_measured(rows[name], k), **asdict(side.scaled(k))} for name, side in known.items()}
    return {**told, "directions": moved}


def _measured(row: Mapping[str, Any], k: float) -> dict[str, Any]:
    """The strengths that were measured, as multiples of k times what they were multiples of."""
    given = row.get("strengths")
    if not isinstance(given, list):
        return {}
    each = [cast("dict[str, Any]", one) if isinstance(one, dict) else {} for one in cast("list[Any]", given)]
    return {
        "strengths": [{**one, "strength": one["strength"] / k} if _number(one.get("strength")) else one for one in each]
    }


class Phrase(NamedTuple):
    """What a range says of a direction (or of itself), and how far it is to be trusted."""

    state: Literal["safe", "unresolved", "over", "not calibrated"]
    words: str


def phrases(told: Mapping[str, Any] | None) -> list[Phrase]:
    """The range for a person, direction by direction."""
    try:
        known = sides(told)
    except ArtefactError as problem:
        return [Phrase("not calibrated", f"can't be read: {problem}")]
    if not known:
        return [Phrase("not calibrated", "not calibrated")]
    found = [_phrase(told, name, side) for name, side in known.items()]
    return found if all(side.certified for side in known.values()) else [*found, Phrase("unresolved", f"made by {OLD}")]


def _phrase(told: Mapping[str, Any] | None, name: str, side: Side) -> Phrase:
    most, open_to = side.tops
    far = f"unresolved up to {math.copysign(open_to, side.sign):+.3g}" if open_to > most else ""
    if side.default is None:
        kept = (
            f"strengths up to {side.max_safe:+.3g} keep it"
            if most
            else ""
            if far
            else "no strength that was tried does"
        )
        why = ", ".join(w for w in (kept, far) if w)
        unsettled = _unsettled(told, name, side)
        state = "safe" if most else "unresolved" if far or unsettled else "over"
        told_of = ", ".join(w for w in (kept if most else "", unsettled) if w) if unsettled else why
        return Phrase(state, f"{name}: nothing useful within the budget ({told_of})")
    low = "" if side.min_useful is None else f"useful from {side.min_useful:+.3g}"
    safe = f"safe up to {side.max_safe:+.3g}" if most else ""
    return Phrase(
        "safe" if most else "unresolved", f"{name}: {side.default:+.3g} ({', '.join(w for w in (low, safe, far) if w)})"
    )


def in_words(told: Mapping[str, Any] | None) -> str:
    """The range in a line, for a person."""
    return "; ".join(phrase.words for phrase in phrases(told))


def _unsettled(told: Mapping[str, Any] | None, name: str, side: Side) -> str:
    """Where the first strength beyond the safe ones isn't known to be over the budget, but was measured on too little to tell."""
    rows: Any = cast("Any", told)["directions"][name].get("strengths")
    for row in cast("list[Any]", rows) if isinstance(rows, list) else []:
        given = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
        one: Any = given.get("strength")
        verdicts, many = given.get("verdicts"), given.get("n")
        if not _number(one) or not isinstance(verdicts, dict) or not isinstance(many, dict):
            continue
        if abs(one) <= side.tops[0]:
            continue
        found = cast("dict[str, Any]", verdicts)
        if "open" not in found.values() or "broken" in found.values():
            return ""
        what = ", ".join(f"{cast('Any', many).get(k)} readings of {k}" for k, v in found.items() if v == "open")
        return f"unresolved: at {one:+.3g} it isn't settled by {what}; measure more"
    return ""


def _sign_of(values: list[Any], name: str) -> int:
    known = [v for v in values if v]
    if not known:
        return 1 if name == "elicit" else -1
    return 1 if known[-1] > 0 else -1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
