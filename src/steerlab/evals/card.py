"""A model card for a steering: what it does, its range, what it costs, where it fails, samples, where it comes from.

Markdown for a repository and one self-contained HTML page; both say the same and both are a function of the steering and of
what `checked` measured. Texts of models and data are shown as they are and never as markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

from ..files import write_text
from ..ranges import Side, in_words, sides
from ..steering import Steering
from .charts_markup import Markup, joined, tag
from .charts_style import PALETTE_CSS, SANS

Rows = list[tuple[str, ...]]
CARD_CSS = (
    f"body{{margin:0 auto;max-width:62rem;padding:1.5rem 1rem;background:var(--paper);color:var(--ink);font:16px/1.5 {SANS}}}\n"
    "h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.15rem;margin:2em 0 .4em}p{margin:.5em 0}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "td,th{padding:.35em .7em .35em 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}"
    "th{color:var(--soft);font-weight:600}.scroll{overflow-x:auto}td{overflow-wrap:anywhere}.say{white-space:pre-wrap}"
    "pre{background:var(--wash);padding:.8em;overflow-x:auto}"
    "td:first-child{min-width:6.5em}"
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A section: sentences, then a table (its heads and rows), then code."""

    title: str
    lines: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    code: str = ""


def card(steering: Steering, told: Mapping[str, Any] | None, *, name: str, description: str = "") -> tuple[str, str]:
    """The card in Markdown and in HTML; `told` is what `checked` measured, None where nobody has."""
    what = description or str(steering.meta.data.get("concept") or name)
    sections = parts(steering, told, name)
    title = f"A steering: {what}"
    return _markdown(title, sections), _html(title, sections)


def write(
    steering: Steering, told: Mapping[str, Any] | None, folder: str | PathLike[str], *, name: str, description: str = ""
) -> tuple[Path, Path]:
    """Write card.md and card.html into a folder; returns both."""
    markdown, html = card(steering, told, name=name, description=description)
    return write_text(Path(folder) / "card.md", markdown), write_text(Path(folder) / "card.html", html)


def parts(steering: Steering, told: Mapping[str, Any] | None, name: str) -> list[Part]:
    """The card's sections."""
    directions = cast("Mapping[str, Any]", (told or {}).get("directions", {}))
    return [
        _does(steering, directions), _range(steering), _costs(directions), *_samples(directions), _limits(steering, directions),
        _provenance(steering), _use(steering, name),
    ]  # fmt: skip


def _does(steering: Steering, directions: Mapping[str, Any]) -> Part:
    lines: list[str] = []
    for name, row in directions.items():
        at = next((a for a in row["at"] if a["strength"] == row["default"]), None)
        if at is None:
            lines.append(f"{name}: nothing useful within the budget.")
            continue
        before, after = _percent(row["unsteered"]["joint"]), _percent(at["joint"])
        verb = "brings it out" if name == "elicit" else "takes it away"
        lines.append(
            f"At strength {at['strength']:+.3g} it {verb}: joint success (the behaviour, the instruction followed, fluent"
            f" language) {after} of test replies, {before} without steering (n = {at['joint']['n']}, {at['joint']['missing']}"
            " not judged)."
        )  # fmt: skip
    rows = tuple((i.edit.kind, str(i.site), str(i.positions), i.control.kind) for i in steering.interventions)
    lines = lines or ["Nobody has measured what it does."]
    return Part("What it does", tuple(lines), ("edit", "where", "when", "how much"), rows)


def _range(steering: Steering) -> Part:
    told = steering.meta.range
    if told is None:
        return Part("Range", ("Not calibrated.",))
    rows: Rows = []
    known = sides(told)
    for name, side in known.items():
        cells = (_strength(v) for v in (side.min_useful, side.default, *_tops(side)))
        rows.append((name, *cells))
    budget = ", ".join(_limit(k, v) for k, v in told.get("budget", {}).items() if v is not None)
    measured = told.get("measured", {})
    n = ", ".join(f"{v} {k}" for k, v in measured.get("n", {}).items())
    lines = [f"{in_words(told)}.", f"Budget: {budget}. {_certified(known, measured)} on dev ({n})."]
    for name, side in told.get("directions", {}).items():
        for cost, r in side.get("unresolved", {}).items():
            takes = "too close to the budget for any number" if r["needed"] is None else f"it takes about {r['needed']}"
            lines.append(f"Unresolved ({name}): {cost}, ± {r['half'] or 0:.3g} from {r['n']}; {takes}.")
    if measured.get("unmeasured"):
        lines.append(
            f"Not in the budget, as there was nothing to measure it with: {', '.join(measured['unmeasured'])}."
        )
    heads = ("direction", "useful from", "default", "safe up to", "unresolved up to")
    return Part("Range", tuple(lines), heads, tuple(rows))


def _tops(side: Side) -> tuple[float, float | None]:
    most, open_to = side.tops
    return math.copysign(most, side.sign) if most else 0.0, math.copysign(
        open_to, side.sign
    ) if open_to > most else None


def _certified(known: Mapping[str, Side], measured: Mapping[str, Any]) -> str:
    if not all(side.certified for side in known.values()):
        return "Measured, and not certified by today's rule,"
    return f"Certified at level {measured.get('delta')}"


def _limit(name: str, most: float) -> str:
    words = {
        "lost": ("at most {:g} points of capability", 100),
        "kl": ("{:g} nats of KL a token", 1),
        "perplexity": ("{:g} % of perplexity", 100),
    }
    form, scale = words.get(name, (name + " {:g}", 1))
    return form.format(round(scale * most, 6))


def _costs(directions: Mapping[str, Any]) -> Part:
    rows: Rows = []
    for name, row in directions.items():
        for at in row["at"]:
            kept = ", ".join(f"{k} {'kept' if v else 'OVER'}" for k, v in at["kept"].items()) or "–"
            rows.append((
                name, f"{at['strength']:+.3g}", _percent(at["effect"]), _percent(at["joint"]), _points(at["lost"]),
                _plain(at["kl"]), _percent(at["perplexity"]), kept,
            ))  # fmt: skip
    heads = (
        "direction",
        "strength",
        "effect",
        "joint",
        "capability lost, points",
        "KL, nats",
        "perplexity added",
        "budget on test",
    )
    lines = ("On test prompts and items, with 95 % intervals.",) if rows else ("Nothing was measured on test.",)
    return Part("Effect and cost", lines, heads if rows else (), tuple(rows))


def _samples(directions: Mapping[str, Any]) -> list[Part]:
    found: list[Part] = []
    heads = ("prompt", "unsteered", "steered")
    for key, title in (("samples", "Samples"), ("failures", "Failures")):
        for name, row in directions.items():
            rows = tuple(
                (r["prompt"], r["unsteered"] or "(empty)", r["steered"] or "(empty)") for r in row.get(key, ())
            )
            if rows:
                found.append(
                    Part(f"{title}: {name}, strength {_strength(row['default'] or row['max_safe'])}", (), heads, rows)
                )
    return found


def _limits(steering: Steering, directions: Mapping[str, Any]) -> Part:
    lines = [
        "The range holds for prompts like those that it was measured on, and for this model and template alone.",
        "Strengths beyond it cost more than the budget, or nobody knows what.",
    ]
    if not directions:
        lines.append("Nothing was measured on test prompts.")
    if (gate := steering.meta.figures.get("gate")) is not None:
        lines.append(
            f"It acts behind a gate, which opened on {100 * gate['open_where_meant']:.0f} % of held-out prompts where it is meant"
            f" to, and on {100 * gate['open_elsewhere']:.0f} % of others."
        )
    return Part("Limits", tuple(lines))


def _provenance(steering: Steering) -> Part:
    meta = steering.meta
    measured = (meta.range or {}).get("measured", {})
    facts = {
        "model": " ".join(str(v) for v in (meta.model, meta.revision) if v), "template": meta.template,
        "method": ", ".join(f"{k}={v}" for k, v in meta.method.items()),
        "data": ", ".join(f"{k}={v}" for k, v in meta.data.items() if v not in (None, "")),
        "calibrated": ", ".join(f"{k}={v}" for k, v in measured.items() if k not in ("n", "search")),
        "versions": ", ".join(f"{k} {v}" for k, v in meta.versions.items()), "digest": steering.digest,
    }  # fmt: skip
    return Part("Provenance", (), ("", ""), tuple((k, str(v)) for k, v in facts.items() if v))


def _use(steering: Steering, name: str) -> Part:
    known = [s for s in (steering.meta.range or {}).get("directions", {}).values() if s.get("default")]
    strengths = " ".join(f"-s {s['default']:g}" for s in known) or "-s 1"
    return Part(
        "How to use it",
        code=f"steerlab show {name}\nsteerlab generate {name} --strict -p 'Tell me about tea.' -s 0 {strengths}",
    )


# --- both forms -----------------------------------------------------------------------------------------------------


def _markdown(title: str, sections: Sequence[Part]) -> str:
    out = [f"# {_line(title)}", ""]
    for part in sections:
        out += [f"## {_line(part.title)}", ""]
        out += [line for text in part.lines for line in (_line(text), "")]
        if part.rows:
            out += ["| " + " | ".join(part.heads) + " |", "|" + "---|" * len(part.heads)]
            out += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in part.rows] + [""]
        if part.code:
            out += ["```bash", part.code, "```", ""]
    return "\n".join(out)


def _html(title: str, sections: Sequence[Part]) -> str:
    body: list[Markup] = [tag("h1", None, title)]
    for part in sections:
        body.append(tag("h2", None, part.title))
        body += [tag("p", None, line) for line in part.lines]
        if part.rows:
            head = (
                tag("tr", None, *[tag("th", {"scope": "col"}, h) for h in part.heads])
                if any(part.heads)
                else Markup("")
            )
            rows = [tag("tr", None, *[tag("td", {"class": "say"}, cell) for cell in row]) for row in part.rows]
            body.append(tag("div", {"class": "scroll"}, tag("table", None, head, *rows)))
        if part.code:
            body.append(tag("pre", None, part.code))
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    top = tag(
        "head", None, tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("title", None, title), tag("style", None, Markup(PALETTE_CSS + CARD_CSS)),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, top, tag('body', None, tag('main', None, joined(body))))}\n"


def _line(text: str) -> str:
    """One line without what Markdown or HTML would act on."""
    return re.sub(r"\s+", " ", text).replace("<", "&lt;").replace("`", "'")


def _cell(text: str) -> str:
    return re.sub(r"([\\|*_\[\]#!])", r"\\\1", _line(text))[:1500]


def _percent(e: Mapping[str, Any]) -> str:
    return _written(e, 100, ".0f", " %")


def _points(e: Mapping[str, Any]) -> str:
    return _written(e, 100, "+.1f", "")


def _plain(e: Mapping[str, Any]) -> str:
    return _written(e, 1, ".3f", "")


def _written(e: Mapping[str, Any], scale: float, form: str, unit: str) -> str:
    if e.get("mean") is None:
        return "not measured"
    mean, low, high = (format(scale * e[k], form) for k in ("mean", "low", "high"))
    return f"{mean}{unit} [{low}, {high}]"


def _strength(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g}"
