"""The comparison table, one per group and direction, and the table of what could not be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .charts_markup import Markup, joined, tag
from .report_data import DIRECTIONS, Cell, Figures, judged
from .report_words import MEASURES, MISSING, Measure, counted, lede, nothing, scrolled, section, signed, strengths_text
from .results import Cost, Point, Row
from .stats import Estimate

_SETTINGS = ("unit", "tuned")
_WORST = "worst"


def comparison(figures: Figures) -> Markup:
    """All arms, in unit and tuned setting, one table per group and direction."""
    heading = "All methods compared"
    if not figures.cells:
        return section("table", heading, nothing("The table is empty: no comparisons were made."))
    text = (
        "Small figures below are 95 % intervals. ",
        tag("span", {"class": "best"}, "Bold and underlined"),
        " is the best method of its column, among unit and among tuned rows apart; the references (unsteered, random,"
        " prompt), set in italics below the line, don't compete.",
    )
    panels = [_panel(figures, cell, k) for k, cell in enumerate(figures.cells)]
    return section("table", heading, lede(*text), tag("div", {"class": "tabbed", "data-tabs": "table"}, *panels))


def _panel(figures: Figures, cell: Cell, number: int) -> Markup:
    name = f"{cell.group} · {cell.direction}"
    kept = [row for row in figures.results.table if (row.group, row.direction) == cell]
    order = {arm: k for k, arm in enumerate(figures.ordered)}
    kept = sorted(kept, key=lambda r: (order[r.arm], _SETTINGS.index(r.setting)))
    methods = [row for row in kept if not figures.is_reference(row.arm)]
    references = [row for row in kept if figures.is_reference(row.arm)]
    best = {setting: _best([r for r in methods if r.setting == setting], cell) for setting in _SETTINGS}
    bodies = [
        tag("tbody", {"class": style}, *[_line(figures, row, best[row.setting] if style == "methods" else {}) for row in rows])
        for style, rows in (("methods", methods), ("references", references))
        if rows
    ]  # fmt: skip
    table = tag("table", {"class": "figures"}, tag("caption", {"class": "unseen"}, name), _heads(), *bodies)
    attributes = {"class": "panel", "id": f"table-{number}", "data-name": name}
    return tag("div", attributes, tag("h3", None, name), scrolled(f"Comparison table: {name}", table))


def _heads() -> Markup:
    heads = [tag("th", {"scope": "col"}, "Arm"), tag("th", {"scope": "col"}, "Strength")]
    for measure in MEASURES:
        attributes = {"scope": "col", "class": "num", "title": measure.meaning}
        heads.append(tag("th", attributes, measure.name, _unit(measure.unit)))
        if measure.key == "effect":
            attributes = {"scope": "col", "class": "num", "title": "the effect of the seed that came out worst"}
            heads.append(tag("th", attributes, "Worst fit", _unit("%")))
    heads.append(tag("th", {"scope": "col", "class": "num", "title": "replies judged"}, "n"))
    heads.append(tag("th", {"scope": "col", "class": "num", "title": "replies that could not be judged"}, "Missing"))
    return tag("thead", None, tag("tr", None, *heads))


def _unit(unit: str) -> Markup:
    return tag("span", {"class": "unit"}, f" {unit}")


def _better(measure: Measure, cell: Cell) -> bool:
    """Whether high is good: of the degree it depends on the direction."""
    return cell.direction == "elicit" if measure.key == "degree" else measure.high_is_better


def _best(rows: Sequence[Row], cell: Cell) -> dict[str, str]:
    """The best value of each column as it is shown, so that equal figures are equally good. One row has no rival."""
    best: dict[str, str] = {}
    for measure in MEASURES:
        means = [e.mean for e in map(measure.of, rows) if e.mean is not None]
        if len(means) > 1:
            best[measure.key] = measure.text(max(means) if _better(measure, cell) else min(means))
    worst = [row.worst for row in rows if row.worst is not None]
    if len(worst) > 1:
        best[_WORST] = MEASURES[0].text(max(worst))
    return best


def _line(figures: Figures, row: Row, best: dict[str, str]) -> Markup:
    strength = tag("span", {"class": "setting"}, row.setting)
    cells = [
        tag("th", {"scope": "row"}, figures.label(row.arm)),
        tag("td", None, strength, " ", strengths_text(row.strength)),
    ]
    for measure in MEASURES:
        estimate = measure.of(row)
        cells.append(_value(measure, estimate, best.get(measure.key)))
        if measure.key == "effect":
            alone = Estimate(row.worst, None, None, 0)
            cells.append(_value(measure, alone, best.get(_WORST)))
    cells.append(_count(row.joint.n, row.joint.n))
    cells.append(_count(row.joint.missing, row.joint.missing))
    return tag("tr", {"data-setting": row.setting}, *cells)


def _value(measure: Measure, estimate: Estimate, best: str | None) -> Markup:
    text = measure.text(estimate.mean)
    sort = None if estimate.mean is None else f"{estimate.mean:.9g}"
    attributes = {
        "class": "num",
        "data-sort": sort,
        "title": counted(estimate) if estimate.n or estimate.missing else None,
    }
    if estimate.mean is None:
        told = f"{estimate.missing:,} missing" if estimate.missing else ""
        absent = tag("span", {"class": "absent"}, MISSING)
        return tag("td", attributes, absent, tag("span", {"class": "interval"}, told) if told else "")
    figure = tag("span", {"class": "best"}, text, tag("span", {"class": "unseen"}, " (best)")) if text == best else text
    interval = measure.interval(estimate)
    return tag("td", attributes, figure, tag("span", {"class": "interval"}, interval) if interval else "")


def _count(count: int, sort: int) -> Markup:
    return tag("td", {"class": "num", "data-sort": sort}, f"{count:,}")


_OF_POINTS: tuple[tuple[str, Callable[[Point], Estimate]], ...] = (
    ("Effect", lambda p: p.effect),
    ("Follows the instruction", lambda p: p.follows),
    ("Fluent", lambda p: p.fluent),
    ("Joint success", lambda p: p.joint),
)
_OF_COSTS: tuple[tuple[str, Callable[[Cost], Estimate]], ...] = (
    ("Capability items", lambda c: c.capability),
    ("Perplexity", lambda c: c.perplexity),
    ("KL", lambda c: c.kl),
)


def missing(figures: Figures) -> Markup:
    """Per arm, how many values could not be judged, of how many."""
    heading = "Missing and counted"
    replies = [p for p in figures.results.points if p.split == figures.split]
    costs = [c for c in figures.results.costs if c.split == figures.split]
    if not replies and not costs:
        return section(
            "missing", heading, nothing("Nothing was measured, so nothing can be missing."), _failed(figures)
        )
    text = (
        "How many replies, items and texts could not be judged, over all tasks, directions and strengths of the"
        f" {figures.split} split, and how many could. What is missing is left out of every mean; it never counts as zero."
    )
    heads = [tag("th", {"scope": "col"}, "Arm")]
    heads += [tag("th", {"scope": "col", "class": "num"}, name) for name, _ in (*_OF_POINTS, *_OF_COSTS)]
    lines: list[Markup] = []
    for arm in figures.compared:
        counts = [judged(of(p) for p in replies if p.arm == arm) for _, of in _OF_POINTS]
        counts += [judged(of(c) for c in costs if c.arm == arm) for _, of in _OF_COSTS]
        cells = [_missing_cell(n, lost) for n, lost in counts]
        lines.append(tag("tr", None, tag("th", {"scope": "row"}, figures.label(arm)), *cells))
    caption = tag("caption", {"class": "unseen"}, "Missing / judged, by arm")
    head = tag("thead", None, tag("tr", None, *heads))
    table = tag("table", {"class": "figures"}, caption, head, tag("tbody", None, *lines))
    gaps = _undefined(figures)
    return section("missing", heading, _failed(figures), lede(text), scrolled("Missing values by arm", table), gaps)


def _failed(figures: Figures) -> Markup:
    """Units that gave no result, and why."""
    failed = figures.results.failed
    if not failed:
        return Markup("")
    text = (
        f"{len(failed)} units failed, each tried as often as it says. What depends on them is missing from the figures of"
        " this page: a mean is over the fits that there are."
    )
    heads = tag("tr", None, *[tag("th", {"scope": "col"}, name) for name in ("Unit", "Tried", "Reason")])
    lines = [
        tag("tr", None, tag("th", {"scope": "row"}, str(f["unit"])), tag("td", {"class": "num"}, str(f["attempts"])),
            tag("td", {"class": "wrapped", "dir": "auto"}, str(f["reason"])))
        for f in failed
    ]  # fmt: skip
    table = tag("table", {"class": "narrow"}, tag("thead", None, heads), tag("tbody", None, *lines))
    return joined([lede(text), scrolled("Failed units", table)])


def _missing_cell(n: int, lost: int) -> Markup:
    if not n + lost:
        return tag("td", {"class": "num"}, tag("span", {"class": "absent"}, MISSING))
    share = f"{signed(100 * lost / (n + lost), 1)} %" if lost else ""
    figure: Markup | str = tag("strong", None, f"{lost:,}") if lost else "0"
    return tag("td", {"class": "num"}, figure, f" / {n:,}", tag("span", {"class": "interval"}, share) if share else "")


def _undefined(figures: Figures) -> Markup:
    """Arms that have no value in a cell of the table at all."""
    told = [f"{figures.label(arm)}: {', '.join(cells)}" for arm, cells in _gaps(figures) if cells]
    if not told or not figures.cells:
        return Markup("")
    items = [tag("li", None, line) for line in told]
    intro = tag("p", {"class": "lede"}, "Not measured at all, because the method doesn't act there or wasn't run:")
    return tag("div", None, intro, tag("ul", {"class": "notes"}, *items))


def _gaps(figures: Figures) -> Iterable[tuple[str, list[str]]]:
    for arm in figures.compared:
        there = {Cell(r.group, r.direction) for r in figures.results.table if r.arm == arm and r.joint.mean is not None}
        gone = [c for c in figures.cells if c not in there]
        groups = list(dict.fromkeys(c.group for c in gone))
        whole = [d for d in DIRECTIONS if all(Cell(g, d) not in there for g in {c.group for c in figures.cells})]
        names = [f"{d} (everywhere)" for d in whole if any(c.direction == d for c in gone)]
        names += [f"{c.group} · {c.direction}" for c in gone if c.direction not in whole and c.group in groups]
        yield arm, names
