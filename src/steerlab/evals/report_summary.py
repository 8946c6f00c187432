"""The head of a report: what was evaluated, what came out in one paragraph, and who won each comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from .charts_markup import Markup, tag
from .report_data import Cell, Figures, judged
from .report_words import (
    JOINT,
    LOST,
    MEASURES,
    MISSING,
    Measure,
    date_text,
    definitions,
    folded,
    found,
    lede,
    listed,
    nothing,
    percent,
    plain,
    plural,
    points,
    scrolled,
    section,
    strength_text,
    strengths_text,
)
from .results import Row
from .stats import Estimate


def head(figures: Figures, json_name: str) -> Markup:
    """Title, facts and summary."""
    results = figures.results
    n, missing = judged(p.joint for p in results.points if p.split == figures.split)
    replies = plural(n, "reply", "replies") + " judged" + (f", {missing:,} could not be" if missing else "")
    methods = [arm for arm in figures.compared if not figures.is_reference(arm)]
    references = [figures.label(arm) for arm in figures.compared if figures.is_reference(arm)]
    arms = plural(len(methods), "method") + (f" beside {listed(references)}" if references else "")
    facts = [
        ("Model", model_name(results.model)),
        ("Tasks", _tasks(figures)),
        ("Arms", arms),
        ("Strengths", ", ".join(strength_text(s) for s in figures.strengths) or MISSING),
        ("Seeds", _seeds(found(results.config, "seeds", "seed"))),
        ("Replies", f"{replies} ({figures.split} split)"),
        ("Date", date_text(results.created)),
        ("Run", results.run),
    ]
    title = tag("h1", None, results.title or "Evaluation")
    summary = tag("p", {"class": "summary", "id": "in-words"}, *summary_sentences(figures))
    data = tag("p", {"class": "data"}, "All figures as data: ", link(json_name))
    return tag("header", None, title, definitions(facts), summary, data)


def link(name: str) -> Markup:
    """A file beside the report."""
    from urllib.parse import quote

    return tag("a", {"href": "./" + quote(name)}, name)


def model_name(model: dict[str, Any]) -> str:
    """The model's id, or what stands in its place."""
    named = found(model, "id", "name", "model")
    return plain(named if named is not None else next(iter(model.values()), None))


def _seeds(given: object) -> str:
    if isinstance(given, (list, tuple)):
        seeds = cast("Sequence[object]", given)
        return f"{len(seeds)} ({plain(seeds)})"
    return "not recorded" if given is None else plain(given)


def _tasks(figures: Figures) -> str:
    tasks = sum(len(names) for names in figures.groups.values())
    groups = [f"{group} ({len(names)})" if len(names) > 1 else group for group, names in figures.groups.items()]
    return f"{tasks}: {listed(groups)}" if tasks else MISSING


def summary_sentences(figures: Figures) -> list[Markup | str]:
    """The outcome in plain words, from the figures alone."""
    if not figures.standings:
        return ["No method's joint success was measured, so there is nothing to rank."]
    sentences = [*_winner(figures), *_how_references_do(figures), *_what_to_mind(figures)]
    spaced: list[Markup | str] = []
    for sentence in sentences:
        spaced += [sentence, " "]
    return spaced[:-1]


def _winner(figures: Figures) -> list[Markup | str]:
    best, *others = figures.standings
    at = "at the strength chosen on dev" if figures.setting == "tuned" else "at unit strength, nothing tuned"
    cells = plural(len(figures.cells), "comparison")
    over = f"Over {cells} ({_cells(figures.cells)})" if len(figures.cells) > 1 else f"For {_cells(figures.cells)}"
    parts: list[Markup | str] = [
        f"{over}, ",
        tag("strong", None, figures.label(best.arm)),
        f" has the highest {'mean ' if len(figures.cells) > 1 else ''}joint success {at}: ",
        tag("strong", None, percent(best.joint)),
        f" of replies show the effect, follow their instruction and are fluent, for {points(best.lost)} of capability lost.",
    ]
    sentences: list[Markup | str] = [tag("span", None, *parts)]
    if others and others[0].cells == best.cells:
        second = others[0]
        text = f"Next is {figures.label(second.arm)} with {percent(second.joint)}, for {points(second.lost)}."
        sentences.append(text + _settled(figures, best.arm, second.arm))
    unit = figures.standing(best.arm, "unit")
    if figures.setting == "tuned" and unit is not None:
        text = f"At unit strength, nothing tuned, the first stands at {percent(unit.joint)}, for {points(unit.lost)}."
        sentences.append(text)
    return sentences


def _cells(cells: Sequence[Cell]) -> str:
    words = {"elicit": "elicited", "suppress": "suppressed"}
    by_group: dict[str, list[str]] = {}
    for cell in cells:
        by_group.setdefault(cell.group, []).append(words[cell.direction])
    if len(by_group) > 1 and len({tuple(ways) for ways in by_group.values()}) == 1:
        ways = next(iter(by_group.values()))
        return f"{listed(list(by_group))}, {'each ' if len(ways) > 1 else ''}{listed(ways)}"
    return listed([f"{group} {listed(ways)}" for group, ways in by_group.items()])


def _settled(figures: Figures, first: str, second: str) -> str:
    """How often the two intervals of joint success overlap."""
    pairs = [(figures.seen(cell, first), figures.seen(cell, second)) for cell in figures.cells]
    both = [(a.joint, b.joint) for a, b in pairs if a is not None and b is not None]
    close = sum(overlap(a, b) for a, b in both)
    if not close:
        return ""
    if len(both) == 1:
        return " Their intervals overlap, so the order of these two isn't settled."
    many = f"all {close}" if close == len(both) else f"{close} of {len(both)}"
    return f" In {many} comparisons their intervals overlap."


def overlap(a: Estimate, b: Estimate) -> bool:
    """Whether two intervals have a value in common."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def _how_references_do(figures: Figures) -> list[Markup | str]:
    words = {
        "unsteered": "the model left alone",
        "random": "a random direction",
        "prompt": "asking for it in the prompt",
    }
    clauses: list[str] = []
    for kind, who in words.items():
        arm = figures.reference(kind)
        standing = figures.standing(arm, figures.setting) if arm else None
        if standing is None:
            clauses.append(f"{who} was not measured")
            continue
        lost = (
            f" (capability lost: {points(standing.lost)})" if kind != "unsteered" and standing.lost is not None else ""
        )
        clauses.append(f"{who} reaches {percent(standing.joint)}{lost}")
    sentences: list[Markup | str] = [f"For comparison: {'; '.join(clauses)}."]
    ahead = _prompt_ahead(figures)
    if ahead:
        sentences.append(f"The prompt does better than every method for {_cells(ahead)}.")
    return sentences


def _prompt_ahead(figures: Figures) -> list[Cell]:
    prompt = figures.reference("prompt")
    ahead: list[Cell] = []
    for cell in figures.cells:
        row, contest = figures.seen(cell, prompt) if prompt else None, figures.contest(cell)
        if row and row.joint.mean is not None and contest and row.joint.mean > (contest[0].joint.mean or 0.0):
            ahead.append(cell)
    return ahead


def _what_to_mind(figures: Figures) -> list[Markup | str]:
    sentences: list[Markup | str] = []
    cells = len(figures.cells)
    partial = [figures.label(s.arm) for s in figures.standings if s.cells < cells]
    if partial:
        verb = "was" if len(partial) == 1 else "were"
        sentences.append(f"{listed(partial)} {verb} not measured in every comparison and can't be ranked by the mean.")
    n, missing = judged(p.joint for p in figures.results.points if p.split == figures.split)
    if missing:
        share = percent(missing / (n + missing))
        sentences.append(f"{share} of all replies could not be judged; they are counted, and averaged nowhere.")
    return sentences


def in_short(figures: Figures) -> Markup:
    """One line per comparison: the best method, the next, and the references."""
    if not figures.cells:
        return section("short", "In short", nothing("No comparisons were made."))
    row = tag("tr", None, *[_short_head(*head) for head in _SHORT_HEADS])
    body = tag("tbody", None, *[_short_row(figures, cell) for cell in figures.cells])
    at = "chosen on dev" if figures.setting == "tuned" else "1 (unit)"
    text = (
        f"The method with the highest joint success in each comparison, at the strength {at}."
        " ≈ marks a next best whose interval overlaps with the best one's."
    )
    caption = tag("caption", {"class": "unseen"}, "The best method of each comparison")
    table = tag("table", {"class": "short"}, caption, tag("thead", None, row), body)
    return section("short", "In short", lede(text), scrolled("In short", table), how_to_read())


_SHORT_HEADS = (
    ("Comparison", ""), ("Best method", ""), ("Joint success", "%"), ("Capability lost", "points"), ("At strength", ""),
    ("Next best", ""), ("Joint success", "%"), ("Unsteered", "%"), ("Random", "%"), ("Prompt", "%"),
)  # fmt: skip


def _short_head(name: str, unit: str) -> Markup:
    if not unit:
        return tag("th", {"scope": "col", "class": "at" if name == "At strength" else None}, name)
    return tag("th", {"scope": "col", "class": "num"}, name, tag("span", {"class": "unit"}, f" {unit}"))


def _short_row(figures: Figures, cell: Cell) -> Markup:
    name = tag("th", {"scope": "row"}, f"{cell.group} · {cell.direction}")
    contest = figures.contest(cell)
    best = contest[0] if contest else None
    second = contest[1] if len(contest) > 1 else None
    cells = [name, tag("td", {"class": "who"}, figures.label(best.arm) if best else MISSING)]
    cells += [_figure(JOINT, best), _figure(LOST, best)]
    cells.append(tag("td", {"class": "at"}, strengths_text(best.strength) if best else MISSING))
    close = "≈ " if best and second and overlap(best.joint, second.joint) else ""
    cells.append(tag("td", {"class": "who"}, f"{close}{figures.label(second.arm)}" if second else MISSING))
    cells.append(tag("td", {"class": "num"}, JOINT.text(second.joint.mean if second else None)))
    for kind in ("unsteered", "random", "prompt"):
        arm = figures.reference(kind)
        row = figures.seen(cell, arm) if arm else None
        cells.append(tag("td", {"class": "num"}, JOINT.text(row.joint.mean if row else None)))
    return tag("tr", None, *cells)


def _figure(measure: Measure, row: Row | None) -> Markup:
    if row is None:
        return tag("td", {"class": "num"}, MISSING)
    estimate = measure.of(row)
    interval = tag("span", {"class": "interval"}, measure.interval(estimate))
    return tag("td", {"class": "num"}, measure.text(estimate.mean), " ", interval)


def how_to_read() -> Markup:
    """The words of the report, explained once."""
    strength = (
        "0 leaves the model untouched, +1 is the effect as fitted, −1 its opposite where there is one. Some methods act"
        " in one direction or between 0 and 1 only; elsewhere they have no value."
    )
    words = [
        (
            "Elicit, suppress",
            "bring a behaviour out on prompts that don't ask for it; take it away where it would come",
        ),
        ("Strength", strength),
        (
            "Unit, tuned",
            "at strength 1, nothing chosen; and at the strength chosen on the dev split, the same budget for all",
        ),
        *((measure.name, measure.meaning) for measure in MEASURES),
        ("Worst fit", "the effect of the seed that came out worst"),
        ("[a, b], bands", "95 % bootstrap intervals, over concepts, fits and prompts"),
        ("n, missing", "values behind a figure, and values that could not be judged; – means that there is no value"),
    ]
    return folded("How to read this report", definitions(words, "words"), opened=True)
