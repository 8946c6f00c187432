"""An evaluation as one HTML file that a stranger understands: no network, no fonts to fetch, and it reads without scripts.

>>> from steerlab.evals.report import write
>>> write(results, "report.html")  # doctest: +SKIP

The figures stand beside it as JSON (`results.json`). The page is a function of the results alone, so the same results
give the same bytes. All text in it, steered or not, is escaped, and a content policy forbids the page to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

from ..errors import ArtefactError
from ..files import write_text
from .charts_markup import Markup, joined, tag
from .report_data import Figures
from .report_figures import dose_response, layers
from .report_frontier import frontier
from .report_samples import samples
from .report_script import SCRIPT
from .report_style import CSS
from .report_summary import head, in_short, link
from .report_table import comparison, missing
from .report_words import MISSING, definitions, flat, folded, nothing, plain, scrolled, section, signed
from .results import Arm, Results

_PARTS = (
    ("short", "In short"), ("table", "Comparison"), ("dose", "Dose and response"), ("frontier", "Effect against cost"),
    ("layers", "Layers"), ("samples", "Samples"), ("missing", "Missing"), ("setup", "Configuration"),
)  # fmt: skip


def write(results: Results, path: str | PathLike[str], *, data: str = "results.json") -> Path:
    """Write the report, and beside it the results as JSON under the name `data`; returns the report's path.

    Shares in the results (effect, joint success, capability lost, …) are fractions of 1. Raises `ArtefactError` where
    the folder can't be written, or where `data` is no plain file name or is the report's own.
    """
    path = Path(path)
    if data == path.name or Path(data).name != data:
        raise ArtefactError(
            f"the figures can't be written as {data!r}: expected a file name other than the report's ({path.name}), as they"
            " stand beside it. The usual one is results.json."
        )
    text = page(results, data)
    results.save(path.with_name(data))  # first, so that the page never links to nothing
    return write_text(path, text)


def page(results: Results, json_name: str) -> str:
    """The whole document; `json_name` is the file beside it that holds the same figures."""
    figures = Figures(results)
    nav = tag("nav", {"aria-label": "Sections"}, *[tag("a", {"href": f"#{key}"}, name) for key, name in _PARTS])
    main = tag(
        "main", None, head(figures, json_name), nav, in_short(figures), comparison(figures), dose_response(figures),
        frontier(figures), layers(figures), samples(figures), missing(figures), setup(figures, json_name),
        tag("footer", None, f"steerlab report of run {results.run}. The same figures as data: ", link(json_name)),
    )  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    top = tag(
        "head", None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", None, results.title or f"Evaluation {results.run}"),
        tag("style", None, Markup(CSS)),
    )  # fmt: skip
    body = tag("body", None, main, tag("script", None, Markup(SCRIPT)))
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, top, body)}\n"


def setup(figures: Figures, json_name: str) -> Markup:
    """Everything needed to run it again, what it took, and what the run wanted to say."""
    results = figures.results
    parts: list[Markup] = [_notes(results)]
    parts.append(_listed("Model", results.model, "The model was not described."))
    parts += [tag("h3", None, "Arms"), _arms(figures)]
    parts += [tag("h3", None, "Time and memory"), _meter(results.meter)]
    parts.append(_listed("Versions", results.versions, "No versions were recorded."))
    parts.append(_listed("Configuration", results.config, "No configuration was recorded."))
    if results.config:
        text = json.dumps(results.config, indent=2, ensure_ascii=False, default=str)
        parts.append(folded("The configuration as JSON", tag("pre", None, text)))
    data = tag("p", {"class": "data"}, "The configuration and every figure of this page, as data: ", link(json_name))
    return section("setup", "Configuration, time and memory", *parts, data)


def _notes(results: Results) -> Markup:
    if not results.notes:
        return joined([])
    lines = tag("ul", {"class": "notes"}, *[tag("li", {"dir": "auto"}, note) for note in results.notes])
    return joined([tag("h3", None, "Notes"), lines])


def _listed(name: str, settings: Mapping[str, Any], absent: str) -> Markup:
    lines = list(flat(settings))
    shown = definitions(lines, "settings") if lines else nothing(absent)
    return joined([tag("h3", None, name), shown])


def _arms(figures: Figures) -> Markup:
    if not figures.arms:
        return nothing("No arms were compared.")
    heads = tag("tr", None, *[tag("th", {"scope": "col"}, name) for name in ("Arm", "Key", "Settings")])
    lines = [
        tag("tr", None, tag("th", {"scope": "row"}, arm.label or arm.name), tag("td", None, arm.name),
            tag("td", {"class": "wrapped"}, _settings(arm)))
        for arm in figures.arms
    ]  # fmt: skip
    table = tag("table", {"class": "narrow"}, tag("thead", None, heads), tag("tbody", None, *lines))
    return scrolled("Arms and their settings", table)


def _settings(arm: Arm) -> str:
    return ", ".join(f"{key} {value}" for key, value in flat(arm.method) if value != MISSING) or MISSING


def _meter(meter: Mapping[str, Any]) -> Markup:
    """Seconds and peak memory, by stage where there are stages."""
    stages = {k: cast("Mapping[str, Any]", v) for k, v in meter.items() if isinstance(v, Mapping)}
    whole = {k: v for k, v in meter.items() if k not in stages}
    if whole:
        stages["in all" if stages else "whole run"] = whole
    if not stages:
        return nothing("Neither time nor memory was recorded.")
    keys = list(dict.fromkeys(key for stage in stages.values() for key in stage))
    heads = [tag("th", {"scope": "col"}, "Stage")]
    heads += [tag("th", {"scope": "col", "class": "num"}, _UNITS.get(key, _in_words(key))) for key in keys]
    lines = [
        tag(
            "tr",
            None,
            tag("th", {"scope": "row"}, name),
            *[tag("td", {"class": "num"}, _amount(k, of.get(k))) for k in keys],
        )
        for name, of in stages.items()
    ]
    table = tag("table", {"class": "narrow"}, tag("thead", None, tag("tr", None, *heads)), tag("tbody", None, *lines))
    return scrolled("Time and memory", table)


_UNITS = {"seconds": "Time", "cpu_seconds": "Processor time", "peak_mib": "Peak memory"}


def _in_words(key: str) -> str:
    return key.removesuffix("_seconds").replace("_", " ").capitalize()


def _amount(key: str, value: object) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return plain(value)
    if key.endswith("seconds"):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{signed(float(value), 1)} s"
    return f"{value:,.0f} MiB" if key.endswith("mib") else plain(value)
