"""What a finished comparison says: the tables as Markdown, the frontier, what fits take, and the order of methods.

python benchmarks/table.py --short                 what is here, of a finished run
python benchmarks/table.py --against second        the order of methods on two models
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import BASELINES, OWN, family

from steerlab.errors import ArtefactError
from steerlab.evals import charts, frontier
from steerlab.evals.order import Agreement, Cell, agreement
from steerlab.evals.results import Results, Row
from steerlab.evals.stats import Estimate, median
from steerlab.evals.summarise import values
from steerlab.evals.unit import DIRECTIONS
from steerlab.files import write_text

DONE = {"elicit": "elicited", "suppress": "suppressed"}
SETTINGS = ("unit", "tuned")
MEASURES = (("effects", "effect"), ("effects", "joint"), ("costs", "lost"), ("costs", "kl"))


# --- what a run leaves for later ------------------------------------------------------------------------------------


def extracted(units: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> dict[str, Any]:
    """Prompt by prompt what later comparisons resample: arm, task, seed, direction, setting, measure."""
    found: dict[str, Any] = {}
    for unit in units:
        for arm in unit["arms"]:
            for direction in DIRECTIONS:
                for setting in SETTINGS:
                    told = {n: values(kind, n, arm, direction, setting)(unit) for kind, n in MEASURES}
                    if told["joint"] is not None:
                        place = found.setdefault(arm, {}).setdefault(groups[unit["task"]], {})
                        seeds = place.setdefault(unit["task"], {}).setdefault(str(unit["seed"]), {})
                        seeds.setdefault(direction, {})[setting] = told
    return found


@dataclass(frozen=True)
class Fits:
    """What an arm's fits took: processor seconds, the memory added at the peak, the file's size; and measuring, in seconds."""

    seconds: list[float]
    added_mib: list[float]
    kib: list[float]
    measuring: list[float]

    def told(self) -> list[str]:
        """As cells: the median fit, the longest, the most memory, the file, the median of measuring."""
        if not self.seconds:
            return ["–"] * 5
        worst = f"{max(self.added_mib):.0f}" if self.added_mib else "–"
        return [
            f"{median(self.seconds):.1f}", f"{max(self.seconds):.1f}", worst, f"{max(self.kib, default=0):.0f}",
            f"{median(self.measuring) or 0:.1f}",
        ]  # fmt: skip


# --- reading it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A finished run of one world: its rows, the values behind them, what fits took, and the block of each family."""

    world: str
    rows: list[Row]
    values: dict[str, Any]
    fits: dict[str, Fits]
    blocks: dict[str, int]
    missing: list[str]

    @property
    def places(self) -> list[Cell]:
        """Groups and directions, in the order of the tables."""
        return list(dict.fromkeys((row.group, row.direction) for row in self.rows))

    @property
    def arms(self) -> list[str]:
        """In the order of the tables."""
        return list(dict.fromkeys(row.arm for row in self.rows))

    def row(self, arm: str, place: Cell, setting: str) -> Row | None:
        """A line of the table."""
        mine = (r for r in self.rows if (r.arm, (r.group, r.direction), r.setting) == (arm, place, setting))
        return next(mine, None)

    def clusters(self, setting: str) -> dict[str, dict[Cell, list[list[list[float | None]]]]]:
        """Joint success of each arm in each cell, by task, fit and prompt."""
        found: dict[str, dict[Cell, list[list[list[float | None]]]]] = {}
        for arm, groups in self.values.items():
            for group, tasks in groups.items():
                for direction in DIRECTIONS:
                    fits = [
                        [f[direction][setting]["joint"] for f in seeds.values() if setting in f.get(direction, {})]
                        for seeds in tasks.values()
                    ]
                    if any(fits):
                        found.setdefault(arm, {})[group, direction] = [f for f in fits if f]
        return found


def read(folder: Path) -> Finished:
    """A finished run. Raises `ArtefactError` where there is none."""
    parts = [p for p in (folder / "both", folder / "concepts") if (p / "extra.json").is_file()]
    if not parts:
        raise ArtefactError(
            f"there is no finished comparison in {folder}; run `python benchmarks/table.py --world {folder.name}`."
        )
    rows: list[Row] = []
    found: dict[str, Any] = {}
    fits: dict[str, Fits] = {}
    missing: list[str] = []
    for part in parts:
        results = Results.load(part / "results.json")
        rows += results.table
        missing += [f"{f['unit']}: {f['reason']}" for f in results.failed]
        extra = json.loads((part / "extra.json").read_text(encoding="utf-8"))
        for arm, groups in extra["values"].items():
            found.setdefault(arm, {}).update(groups)
        for arm, told in extra["fits"].items():
            old = fits.get(arm, Fits([], [], [], []))
            fits[arm] = Fits(**{k: getattr(old, k) + v for k, v in told.items()})
    path = folder / "blocks.json"
    blocks = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Finished(folder.name, rows, found, fits, blocks, missing)


# --- as Markdown ----------------------------------------------------------------------------------------------------


def markdown(done: Finished) -> str:
    """All of it: an overview, every measure of every cell, the frontier in words, and what fits take."""
    parts = [f"# Every method on {done.world}", "", *_overview(done), ""]
    for place in done.places:
        parts += [f"## {place[0]}, {DONE[place[1]]}", "", *_details(done, place), ""]
    parts += ["## What wins where", "", *_winners(done), "", "## What a fit takes", "", *_costs_of_fits(done), ""]
    if done.missing:
        parts += ["## Missing", "", *[f"- {line}" for line in done.missing], ""]
    return "\n".join(parts)


def short(done: Finished) -> str:
    """The overview without intervals, and what wins where."""
    return "\n".join([re.sub(r" \[[^]]*\]", "", line) for line in _overview(done)[2:]] + ["", *_winners(done)])


def _overview(done: Finished) -> list[str]:
    said = "joint success in percent [95 %], at unit strength / tuned on dev; in round brackets what is lost tuned, in points of capability (where there are no items: KL in nats)"
    heads = ["", *(f"{group} {DONE[direction]}" for group, direction in done.places), "fit s", "MiB"]
    lines = [said, "", *_table(heads)]
    for arm in done.arms:
        cells = [_pair(done.row(arm, place, "unit"), done.row(arm, place, "tuned")) for place in done.places]
        took = done.fits.get(arm, Fits([], [], [], [])).told()
        lines.append(_line([arm, *cells, took[0], took[2]]))
    return lines


def _pair(unit: Row | None, tuned: Row | None) -> str:
    if unit is None or unit.joint.mean is None:
        return "–"
    best = tuned or unit
    cost = "" if best.lost.mean is None else f" ({100 * best.lost.mean:.0f})".replace("(-0)", "(0)")
    if best.lost.mean is None and best.kl.mean is not None:
        cost = f" ({best.kl.mean:.2f})"
    return f"{_percent(unit.joint)} / {_percent(best.joint)}{cost}"


def _details(done: Finished, place: Cell) -> list[str]:
    heads = [
        "arm",
        "strength",
        "effect",
        "joint",
        "lost",
        "wrong",
        "refused",
        "KL",
        "perplexity",
        "repeats",
        "n",
        "worst fit",
    ]
    lines = [*_table(heads)]
    for arm in done.arms:
        unit, tuned = (done.row(arm, place, setting) for setting in SETTINGS)
        same = unit is not None and tuned is not None and unit.strength == tuned.strength
        for row in (unit, None if same else tuned):
            if row is None:
                continue
            missing = f" +{row.effect.missing}" if row.effect.missing else ""
            worst = "–" if row.worst is None else f"{100 * row.worst:.0f}"
            setting = "unit and tuned" if same else row.setting if row.strength != "0" else ""
            lines.append(_line([
                arm, f"{row.strength} {setting}".strip(), _percent(row.effect), _percent(row.joint), _percent(row.lost),
                _percent(row.wrong), _percent(row.refused), _number(row.kl, 3), _number(row.perplexity, 2),
                _percent(row.repetition), f"{row.effect.n}{missing}", worst,
            ]))  # fmt: skip
    return lines


def _winners(done: Finished) -> list[str]:
    lines: list[str] = []
    for group, direction in done.places:
        cost = priced(done.rows, group)
        lines.append(f"- {group} {DONE[direction]}: {frontier.in_words(done.rows, group, direction, cost)}")
    return lines


def _costs_of_fits(done: Finished) -> list[str]:
    said = "processor seconds of one fit (median, longest), MiB added at its peak (the most of all fits), KiB of the file, seconds to measure a fit in one task"
    lines = [said, "", *_table(["arm", "where", "fit s", "longest", "MiB", "KiB", "measuring s"])]
    for arm in done.arms:
        mine = family(arm)
        where = OWN if mine is None else f"block {done.blocks[mine.name]}" if mine.name in done.blocks else mine.name
        if arm in done.fits:
            lines.append(_line([arm, where, *done.fits[arm].told()]))
    return lines


def _table(heads: Sequence[str]) -> list[str]:
    return [_line(heads), "|" + "---|" * len(heads)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(e: Estimate) -> str:
    if e.mean is None:
        return "–"
    if e.low is None or e.high is None:
        return f"{100 * e.mean:.0f}"
    mean, low, high = (f"{round(100 * v) + 0}" for v in (e.mean, e.low, e.high))
    return f"{mean} [{low}, {high}]"


def _number(e: Estimate, decimals: int) -> str:
    if e.mean is None:
        return "–"
    form = f".{decimals}f" if e.mean < 100 else ".2g"
    if e.low is None or e.high is None:
        return format(e.mean, form)
    return f"{e.mean:{form}} [{e.low:{form}}, {e.high:{form}}]"


# --- the frontier ---------------------------------------------------------------------------------------------------


def priced(rows: Sequence[Row], group: str) -> frontier.Cost:
    """What a group's cost is measured by: capability, or KL where there are no items."""
    return "lost" if any(r.lost.mean is not None for r in rows if r.group == group and r.arm != "unsteered") else "kl"


def drawn(done: Finished, folder: Path) -> Path:
    """The frontier of every group and direction as one SVG."""
    panels = [
        panel
        for group, direction in done.places
        if (
            panel := frontier.panel(
                done.rows, group, direction, f"{group}, {DONE[direction]}", priced(done.rows, group)
            )
        )
    ]
    title = (
        f"Effect against cost on {done.world} (hollow: unit strength; full: tuned): named is what nobody beats in both"
    )
    return charts.save(panels, folder / "frontier.svg", columns=2, title=title)


# --- the order of methods -------------------------------------------------------------------------------------------


def agreements(a: Finished, b: Finished) -> list[tuple[str, str, Agreement]]:
    """Kendall's tau for each setting: over arms that go both ways, and for each direction on its own."""
    cells = [place for place in a.places if place in b.places]
    wanted = {"both ways": cells}
    wanted |= {DONE[d]: [c for c in cells if c[1] == d] for d in DIRECTIONS}
    found: list[tuple[str, str, Agreement]] = []
    for setting in SETTINGS:
        mine, other = a.clusters(setting), b.clusters(setting)
        learned = {n: v for n, v in mine.items() if n not in BASELINES}
        for name, chosen in wanted.items():
            found.append((setting, name, agreement(mine, other, chosen)))
            found.append((setting, f"{name}, learned methods alone", agreement(learned, other, chosen)))
    return found


def compared(a: Finished, b: Finished) -> str:
    """As Markdown, with `bar` lines at the end."""
    lines = [
        f"# The order of methods on {a.world} and on {b.world}",
        "",
        "Kendall's tau-b over joint success, 95 % by resampling tasks, fits and prompts of both",
        "",
    ]
    lines += _table(["setting", "over", "methods", "tau"])
    found = agreements(a, b)
    lines += [_line([setting, name, str(got.tau.n), _tau(got.tau)]) for setting, name, got in found]
    setting, _, overall = next(f for f in found if f[0] == "tuned")
    lines += [
        "",
        f"each method's joint success in percent, {setting}, mean of the cells",
        "",
        *_table(["", a.world, b.world]),
    ]
    for arm, (x, y) in sorted(overall.scores.items(), key=lambda item: -item[1][0]):
        lines.append(_line([arm, f"{100 * x:.0f}", f"{100 * y:.0f}"]))
    lines.append("")
    for setting, name, got in found:
        if got.tau.low is not None and "alone" not in name:
            lines.append(
                f"bar order_agrees_{setting}_{name.replace(' ', '_')} {got.tau.low:.3f} 0.000 {a.world}-{b.world}"
            )
    return "\n".join(lines)


def _tau(e: Estimate) -> str:
    return "–" if e.mean is None or e.low is None or e.high is None else f"{e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]"


def written(folder: Path) -> str:
    """The Markdown and the picture of a finished run, in its folder; gives the Markdown."""
    done = read(folder)
    text = markdown(done)
    write_text(folder / "table.md", text)
    drawn(done, folder)
    return text
