"""The drawings of a report over strength and over layers: what steering does, and what it costs, on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .charts import Axis, Chart, Mark, Rule, Series, nice_ticks, svg
from .charts_markup import Markup, tag
from .report_data import DIRECTIONS, Figures, Level, average
from .report_words import (
    EFFECT,
    JOINT,
    LOST,
    Measure,
    folded,
    lede,
    note,
    nothing,
    plural,
    scrolled,
    section,
    strength_text,
)  # fmt: skip
from .results import Direction, Layer
from .stats import Estimate

_FLOOR = -6.0  # the percent axis begins below 0, so that marks at 0 and slightly negative losses show where they are


def marks(levels: Sequence[Level], measure: Measure, of: str = "") -> list[Mark]:
    """Levels in percent, with the words of each."""
    found: list[Mark] = []
    for level in levels:
        e = level.estimate
        words = note(measure, level.strength, e)
        if level.of > 1 and level.there < level.of:
            words += f"; {level.there} of {level.of} {of or 'tasks'}"
        low, high = (None, None) if e.low is None or e.high is None else (100 * e.low, 100 * e.high)
        found.append(Mark(level.strength, None if e.mean is None else 100 * e.mean, low, high, words))
    return found


def figure(chart: Chart, caption: str = "", aside: str = "") -> Markup:
    """A chart with its name above it."""
    label = tag("figcaption", None, caption, tag("small", None, f" {aside}") if aside else "") if caption else ""
    return tag("figure", None, label, Markup(svg(chart)))


def panels(width: int, figures: Sequence[Markup]) -> Markup:
    """Small multiples: as many columns, each at least `width` pixels, as the page is wide."""
    return tag("div", {"class": "panels", "style": f"--w:{width}px"}, *figures)


# dose and response


def dose_response(figures: Figures) -> Markup:
    """Effect and capability lost over strength: means by group, then task by task."""
    heading = "Dose and response"
    arms = [arm for arm in figures.ordered if _moves(figures, arm)]
    if not arms:
        return section("dose", heading, nothing("No strength other than 0 was measured."))
    text = (
        "Left of 0 the behaviour is suppressed, right of 0 it is elicited: ",
        _key("effect", "solid"), " is the share of replies in which that succeeds, ", _key("joint success", "dotted joint"),
        " the share that besides follow their instruction and are fluent, ", _key("capability lost", "dashed"),
        " is the cost, on the same axis. Bands are 95 % intervals; the thin rule is the effect with nothing"
        " steered; a × on the floor marks a strength whose replies could not be judged.",
    )  # fmt: skip
    parts: list[Markup] = []
    for group, tasks in figures.groups.items():
        name = f"{group}: mean of {len(tasks)}" if len(tasks) > 1 else group
        drawn = [_dose_figure(figures, arm, tasks, figures.label(arm), wide=True) for arm in arms]
        parts += [tag("h3", None, name), panels(230, drawn), _dose_table(figures, arms, tasks, name)]
    return section("dose", heading, lede(*text), *parts, _task_by_task(figures, arms))


def _key(name: str, style: str) -> Markup:
    tone = "cost" if style == "dashed" else "effect"
    return tag("span", {"class": f"key {style} t-{tone}"}, name)


def _moves(figures: Figures, arm: str) -> bool:
    return any(p.arm == arm and p.strength != 0 and p.split == figures.split for p in figures.results.points)


def _dose_figure(figures: Figures, arm: str, tasks: Sequence[str], name: str, *, wide: bool) -> Markup:
    chart, span = dose_chart(figures, arm, tasks, wide=wide)
    return figure(chart, name, span)


def dose_chart(figures: Figures, arm: str, tasks: Sequence[str], *, wide: bool) -> tuple[Chart, str]:
    """One panel, and in words where the arm's strengths end short of the others'. Wide: with joint success and labels."""
    series: list[Series] = []
    rules: list[Rule] = []
    reached: list[float] = []
    for direction in DIRECTIONS:
        levels = figures.levels(arm, tasks, direction, lambda p: p.effect)
        reached += [level.strength for level in levels]
        if all(level.strength == 0 for level in levels):
            continue
        label = _where(figures, arm, direction) if wide else ""
        series.append(Series(marks(levels, EFFECT), "effect", label, size=2.1 if wide else 1.8))
        if wide:
            joint = marks(figures.levels(arm, tasks, direction, lambda p: p.joint), JOINT)
            label = "joint" if direction == "elicit" or label else ""
            series.append(Series(joint, "joint", label, dotted=True, band=False, shape=None))
        level = figures.unsteered(arm, tasks, direction)
        if level is not None:
            end = figures.sign(arm, direction) * _reach(figures)[1]
            rules.append(Rule(100 * level, 0, end, note=f"unsteered: {EFFECT.text(level)} %"))
    lost = figures.lost(arm, tasks)
    reached += [level.strength for level in lost]
    label = "lost" if wide else ""
    series.append(Series(marks(lost, LOST), "cost", label, dashed=True, shape="square", size=1.5 if wide else 1.2))
    series = [s for s in series if s.marks]
    low, high = _reach(figures)
    x = Axis(low - 0.1, high + 0.1, nice_ticks(low, high, 5), "← suppress · strength · elicit →" if wide else "")
    words = f"Effect and capability lost by strength, {_said(series)}"
    size = (250, 168) if wide else (172, 112)
    chart = Chart(x, _percent_axis(series), series, "", words, rules, (0.0,), *size)
    return chart, _span(reached, low, high)


def _where(figures: Figures, arm: str, direction: Direction) -> str:
    """The label of an effect's line: at the right end only, unless an arm suppresses on the right or nothing elicits."""
    if direction == "elicit":
        return "effect"
    right = figures.sign(arm, "suppress") > 0
    both = any(p.arm == arm and p.direction == "elicit" and p.strength > 0 for p in figures.results.points)
    return "suppressed" if right else "" if both else "effect"


def _reach(figures: Figures) -> tuple[float, float]:
    """The strengths that every panel shows: the same on both sides."""
    top = max((abs(s) for s in figures.strengths), default=0.0) or 1.0
    return -top, top


def _span(reached: Sequence[float], low: float, high: float) -> str:
    if not reached or (min(reached) <= low and max(reached) >= high):
        return ""
    return f"{strength_text(min(reached))} to {strength_text(max(reached))} only"


def _percent_axis(series: Sequence[Series]) -> Axis:
    values = [m.y for s in series for m in s.marks if m.y is not None]
    low, high = min([_FLOOR, *[v - 3 for v in values]]), max([103.0, *[v + 3 for v in values]])
    step = 50 if high - low < 160 else 100
    first = int(low // step + 1) * step
    return Axis(low, high, tuple(float(t) for t in range(first, int(high) + 1, step)), unit="%")


def _said(series: Sequence[Series]) -> str:
    """What a listener gets of a chart: each line's ends."""
    told: list[str] = []
    for s in series:
        there = [m for m in s.marks if m.y is not None]
        if there and s.shape is not None:
            name = "capability lost" if s.tone == "cost" else "effect"
            ends = [there[0], there[-1]] if len(there) > 1 else there
            told.append(f"{name} " + ", ".join(f"{m.y:.0f} % at {strength_text(m.x)}" for m in ends))
    return "; ".join(told) or "no values"


def _dose_table(figures: Figures, arms: Sequence[str], tasks: Sequence[str], name: str) -> Markup:
    """The same figures as a table, for whoever can't see the drawing or wants the numbers."""
    strengths = figures.strengths
    heads = [tag("th", {"scope": "col"}, "Arm"), tag("th", {"scope": "col"}, "")]
    heads += [tag("th", {"scope": "col", "class": "num"}, strength_text(s)) for s in strengths]
    lines: list[Markup] = []
    for arm in arms:
        rows: list[tuple[str, list[Level]]] = []
        for direction in DIRECTIONS:
            rows.append((f"{direction}, effect", figures.levels(arm, tasks, direction, lambda p: p.effect)))
            rows.append((f"{direction}, joint", figures.levels(arm, tasks, direction, lambda p: p.joint)))
        rows.append(("lost", figures.lost(arm, tasks)))
        for kind, levels in rows:
            if levels:
                at = {level.strength: level.estimate for level in levels}
                cells = [tag("td", {"class": "num"}, EFFECT.text(at[s].mean) if s in at else "") for s in strengths]
                head = tag("th", {"scope": "row"}, figures.label(arm))
                lines.append(tag("tr", None, head, tag("td", None, kind), *cells))
    caption = tag("caption", {"class": "unseen"}, f"{name}: figures by strength")
    table = tag(
        "table", {"class": "figures"}, caption, tag("thead", None, tag("tr", None, *heads)), tag("tbody", None, *lines)
    )
    return folded(f"The figures behind these charts, in % and points ({name})", scrolled(f"Figures: {name}", table))


def _task_by_task(figures: Figures, arms: Sequence[str]) -> Markup:
    tasks = [task for names in figures.groups.values() for task in names]
    if len(tasks) <= len(figures.groups):
        return Markup("")  # every group is one task, drawn above
    text = "The same for each task on its own; the axes are those above, without labels."
    parts = [
        folded(f"{figures.label(arm)}, {plural(len(tasks), 'task')}",
               panels(150, [_dose_figure(figures, arm, [task], task, wide=False) for task in tasks]), opened=k == 0)
        for k, arm in enumerate(arms)
    ]  # fmt: skip
    return tag("div", {"class": "by-task"}, tag("h3", None, "Task by task"), lede(text), *parts)


# layers


def layers(figures: Figures) -> Markup:
    """Effect and capability lost by layer, at unit strength."""
    heading = "Layer by layer"
    if not figures.results.layers:
        return section("layers", heading, nothing("No layer profile was measured."))
    drawn: list[Markup] = []
    for arm in figures.ordered:
        for group, tasks in figures.groups.items():
            for direction in DIRECTIONS:
                of = [x for x in figures.results.layers if (x.arm, x.direction) == (arm, direction) and x.task in tasks]
                if of:
                    there = len({x.task for x in of})
                    aside = f"{group} · {direction}" + (f", mean of {there}" if there > 1 else "")
                    drawn.append(figure(layer_chart(of), figures.label(arm), aside))
    text = "At unit strength on the dev split: what one layer (counted from 0) does, and what it costs. Bands as above."
    return section("layers", heading, lede(text), panels(250, drawn))


def layer_chart(found: Sequence[Layer]) -> Chart:
    """One arm in one direction, by layer."""
    numbers = sorted({x.layer for x in found})

    def line(of: Callable[[Layer], Estimate], measure: Measure) -> list[Mark]:
        levels = [Level(float(n), average([of(x) for x in found if x.layer == n]), 1, 1) for n in numbers]
        return [
            Mark(m.x, m.y, m.low, m.high, m.note.replace(f"at {strength_text(m.x)}:", f"at layer {m.x:g}:"))
            for m in marks(levels, measure)
        ]

    series = [
        Series(line(lambda x: x.effect, EFFECT), "effect", "effect"),
        Series(line(lambda x: x.lost, LOST), "cost", "lost", dashed=True, shape="square", size=1.6),
    ]
    ticks = tuple(t for t in nice_ticks(numbers[0], numbers[-1], 8) if t == int(t))
    room = 0.4 if len(numbers) > 1 else 1.0
    x = Axis(numbers[0] - room, numbers[-1] + room, ticks, "layer")
    words = "Effect and capability lost by layer; effect " + ", ".join(
        f"{m.y:.0f} % at {m.x:g}" for m in series[0].marks if m.y is not None
    )
    return Chart(x, _percent_axis(series), series, "", words, (), (), 260, 168)
