"""Effect against cost over all methods of an evaluation: which of them nobody beats in both, as a picture and in words.

A method stands twice in a panel: at unit strength and at the strength chosen on dev. On the frontier is what has more
effect than everything that costs no more. A cost below 0 is luck of the draw and counts as none, and what isn't above the
unsteered model with its whole interval wins nothing. Who wins by less than the interval is told with those it leaves behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .charts import SHAPES, Axis, Chart, Mark, Series
from .charts_style import ARM_TONES
from .report_frontier import undominated
from .results import Direction, Row
from .stats import Estimate

Cost = Literal["lost", "kl", "perplexity"]
COSTS: dict[Cost, tuple[str, float, float]] = {  # in words, the scale, and what costs nothing
    "lost": ("capability lost, points", 100.0, 0.0),
    "kl": ("KL from unsteered on neutral prompts, nats a token", 1.0, 0.0),
    "perplexity": ("perplexity of held-out text, times the unsteered", 1.0, 1.0),
}
NAMED = 8  # marks of a panel that are named


class Spot(NamedTuple):
    """A method at a setting: joint success in percent with the lower end of its interval, and what it costs."""

    arm: str
    setting: str
    cost: float
    gain: float
    low: float
    words: str

    @property
    def name(self) -> str:
        """As it is written beside its mark."""
        return self.arm if self.setting == "tuned" else f"{self.arm}, unit"


def spots(rows: Sequence[Row], group: str, direction: Direction, cost: Cost = "lost") -> list[Spot]:
    """Every method with both figures in a group and direction, the unsteered model left out."""
    label, scale, nothing = COSTS[cost]
    found: list[Spot] = []
    for row in rows:
        paid: Estimate = getattr(row, cost)
        if (row.group, row.direction) != (group, direction) or None in (paid.mean, row.joint.mean):
            continue
        if row.arm == "unsteered" or paid.mean is None or row.joint.mean is None:
            continue
        spent, gain = max(scale * paid.mean, nothing), 100 * row.joint.mean
        words = f"{row.arm}, {row.setting} (strength {row.strength}): joint success {gain:.0f} %, {label}: {spent:.3g}"
        low = gain if row.joint.low is None else 100 * row.joint.low
        found.append(Spot(row.arm, row.setting, spent, gain, low, words))
    return found


def frontier(found: Sequence[Spot], plain: float | None = None) -> list[Spot]:
    """Those that nobody beats, from the cheapest on, of all that do better than the unsteered (joint success in percent).

    Where that wasn't judged (`plain` is None), nothing can be said to be better than it, and all take part.
    """
    better = [s for s in found if plain is None or s.low > plain]
    return [better[n] for n in undominated([(s.cost, s.gain) for s in better])]


def near(spot: Spot, found: Sequence[Spot]) -> list[str]:
    """The other methods that cost no more and whose effect lies within the interval of this one's."""
    others = [s.arm for s in found if s.arm != spot.arm and s.cost <= spot.cost and s.gain >= spot.low]
    return list(dict.fromkeys(others))


def unsteered(rows: Sequence[Row], group: str, direction: Direction) -> float | None:
    """The unsteered model's joint success in percent; None where it wasn't judged."""
    mine = [r.joint.mean for r in rows if (r.arm, r.group, r.direction) == ("unsteered", group, direction)]
    return 100 * mine[0] if mine and mine[0] is not None else None


def panel(rows: Sequence[Row], group: str, direction: Direction, title: str = "", cost: Cost = "lost") -> Chart | None:
    """One group and direction: all methods faint, those on the frontier named and joined; None where nothing has both figures."""
    found = spots(rows, group, direction, cost)
    if not found:
        return None
    plain = unsteered(rows, group, direction)
    edge = frontier(found, plain)
    label, _, nothing = COSTS[cost]
    reach = max([s.cost for s in edge], default=nothing)
    most = max(1.25 * reach, nothing + {"lost": 10.0, "kl": 0.1, "perplexity": 0.2}[cost])
    rest = [s for s in found if s not in edge]
    series = [
        Series([Mark(s.cost, s.gain, note=s.words) for s in rest if s.setting == setting], "ref", line=False, band=False,
               shape="circle", hollow=setting == "unit", faint=True)
        for setting in ("unit", "tuned")
    ]  # fmt: skip
    series.append(Series([Mark(s.cost, s.gain) for s in edge], "soft", band=False, shape=None, dotted=True))
    for n, spot in enumerate(edge):
        named = spot.name if n >= len(edge) - NAMED else ""  # where there are too many, the cheapest go without
        series.append(
            Series([Mark(spot.cost, spot.gain, note=spot.words)], ARM_TONES[n % len(ARM_TONES)], named, line=False, band=False,
                   shape=SHAPES[n % 6], hollow=spot.setting == "unit", size=3.4)
        )  # fmt: skip
    x = Axis.over([nothing, most], label=f"{label} →", count=6, room=0.03)
    y = Axis(-3, 103, (0, 25, 50, 75, 100), "joint success, %")
    told = "; ".join(s.words for s in edge) or "nothing does better than the unsteered model"
    told += "" if plain is not None else "; the unsteered model wasn't judged"
    words = f"Joint success against {label}; nobody beats: {told}"
    drawn = [s for s in series if s.marks]
    return Chart(x, y, drawn, title or f"{group}, {direction}", words, width=430, height=250, aside=True, upright=())


def in_words(rows: Sequence[Row], group: str, direction: Direction, cost: Cost = "lost") -> str:
    """The frontier of a group and direction, from the cheapest on, as a line."""
    found = spots(rows, group, direction, cost)
    if not found:
        return "nothing has both figures"
    plain = unsteered(rows, group, direction)
    edge = frontier(found, plain)
    unit = {"lost": " points", "kl": " nats", "perplexity": " times"}[cost]
    told = [f"{s.name} ({s.gain:.0f} % for {s.cost:.2g}{unit}{_beside(near(s, found))})" for s in edge]
    if plain is None:
        return f"{', then '.join(told)} (the unsteered model wasn't judged)"
    return ", then ".join(told) or f"nothing does better than the unsteered model ({plain:.0f} %)"


def _beside(names: Sequence[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"; within its interval {', '.join(names[:most])}{more}"
