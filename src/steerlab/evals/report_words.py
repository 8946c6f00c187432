"""How figures and settings are written in a report: units, signs, intervals, and a dash for what is missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from .charts_markup import Markup, joined, tag
from .results import Row
from .stats import Estimate

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Measure:
    """A column: what it is called, its unit, how it is written, which way is better, and what it means."""

    key: str
    name: str
    unit: str
    scale: float
    decimals: int
    high_is_better: bool
    of: Callable[[Row], Estimate]
    meaning: str

    def text(self, value: float | None) -> str:
        """A value without its unit."""
        return MISSING if value is None else signed(value * self.scale, self.decimals)

    def interval(self, estimate: Estimate) -> str:
        """The 95 % interval, or nothing."""
        if estimate.low is None or estimate.high is None:
            return ""
        return f"[{self.text(estimate.low)}, {self.text(estimate.high)}]"


MEASURES = (
    Measure("effect", "Effect", "%", 100, 1, True, lambda r: r.effect,
            "the share of replies in which the behaviour is there (eliciting) or gone (suppressing)"),
    Measure("joint", "Joint success", "%", 100, 1, True, lambda r: r.joint,
            "the share of replies that show the effect and, besides, still follow their instruction and are fluent"),
    Measure("degree", "Degree", "0–1", 1, 2, True, lambda r: r.degree,
            "how much of the behaviour there is in a reply; less is better when suppressing"),
    Measure("lost", "Capability lost", "points", 100, 1, False, lambda r: r.lost,
            "percentage points fewer right answers than the unsteered model gives to the same capability items"),
    Measure("wrong", "Wrong", "%", 100, 1, False, lambda r: r.wrong,
            "the share of capability items that the model answers, and not rightly"),
    Measure("refused", "Refused", "%", 100, 1, False, lambda r: r.refused,
            "the share of capability items that the model declines to answer"),
    Measure("perplexity", "Perplexity", "ratio", 1, 2, False, lambda r: r.perplexity,
            "of held-out text, as a ratio to the unsteered model's (1 = unchanged)"),
    Measure("kl", "KL", "nats", 1, 3, False, lambda r: r.kl,
            "divergence from the unsteered model per response token on neutral prompts"),
    Measure("repetition", "Repetition", "%", 100, 1, False, lambda r: r.repetition,
            "the share of a reply that repeats itself"),
)  # fmt: skip
EFFECT, JOINT, LOST = MEASURES[0], MEASURES[1], MEASURES[3]


def signed(value: float, decimals: int) -> str:
    """A number with a true minus sign and no minus zero."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else MISSING
    if abs(value) >= 10**6:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:.{decimals}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def strength_text(strength: float) -> str:
    """A strength with its sign."""
    return signed(strength, 2).rstrip("0").rstrip(".") if strength <= 0 else f"+{strength:g}"


def strengths_text(given: str) -> str:
    """A range of strengths as the table has it, with true minus signs."""
    return re.sub(r"-(?=[\d.])", "−", given)


def percent(value: float | None) -> str:
    """A share in words' company."""
    return "not measured" if value is None else f"{signed(value * 100, 1)}\u00a0%"


def points(value: float | None) -> str:
    """A difference of shares."""
    return "an unmeasured number of points" if value is None else f"{signed(value * 100, 1)}\u00a0points"


def counted(estimate: Estimate) -> str:
    """n, and what is missing where something is; a figure without values is one by definition."""
    if estimate.mean is not None and not estimate.n:
        return "by definition"
    return f"n {estimate.n:,}" + (f", {estimate.missing:,} missing" if estimate.missing else "")


def note(measure: Measure, strength: float, estimate: Estimate) -> str:
    """What pointing at a mark tells."""
    unit = "" if estimate.mean is None else f" {measure.unit} {measure.interval(estimate)}"
    value = "missing" if estimate.mean is None else measure.text(estimate.mean)
    return f"{measure.name} at {strength_text(strength)}: {value}{unit}, {counted(estimate)}"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """Words in a row: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def date_text(created: str) -> str:
    """An ISO time for a reader; anything else as it stands."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = when.strftime(" %Z") if when.tzinfo else ""
    clock = when.strftime(", %H:%M") + zone if "T" in created or " " in created else ""
    return f"{when.day} {when.strftime('%B %Y')}{clock}"


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines of a dotted key and its value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def plain(value: object) -> str:
    """A setting's value as a person would write it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        if any(isinstance(item, Mapping) for item in items):
            return plural(len(items), "entry", "entries") + ", in the JSON below"
        return ", ".join(plain(item) for item in items) if items else MISSING
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)


def found(settings: Mapping[str, Any], *names: str) -> Any:
    """The first setting of one of these names, at whatever depth; None where there is none."""
    for name in names:
        if settings.get(name) is not None:
            return settings[name]
    for value in settings.values():
        if isinstance(value, Mapping):
            inner = found(cast("Mapping[str, Any]", value), *names)
            if inner is not None:
                return inner
    return None


def definitions(pairs: Sequence[tuple[str, str]], style: str = "facts") -> Markup:
    """A definition list."""
    return tag("dl", {"class": style}, *[tag("div", None, tag("dt", None, k), tag("dd", None, v)) for k, v in pairs])


def scrolled(label: str, inner: Markup) -> Markup:
    """Something wide that scrolls by itself, by keyboard too, and never widens the page."""
    return tag("div", {"class": "wide", "role": "region", "aria-label": label, "tabindex": "0"}, inner)


def section(key: str, heading: str, *parts: Markup | str) -> Markup:
    """A part of the report with its heading."""
    head = tag("h2", {"id": f"{key}-h"}, heading)
    return tag("section", {"id": key, "aria-labelledby": f"{key}-h"}, head, *parts)


def lede(*parts: Markup | str) -> Markup:
    """The sentences that say what a section shows and how to read it."""
    return tag("p", {"class": "lede"}, *parts)


def nothing(sentence: str) -> Markup:
    """The one line of a section that has nothing to show."""
    return tag("p", {"class": "nothing"}, sentence)


def folded(summary: str, *parts: Markup | str, opened: bool = False) -> Markup:
    """A part that opens on demand, without scripts."""
    return tag("details", {"open": opened}, tag("summary", None, summary), joined(parts))
