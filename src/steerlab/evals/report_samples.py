"""Sample texts side by side. Everything here was written by a model or a user and is shown as text, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .charts_markup import Markup, tag
from .report_data import Figures
from .report_words import folded, lede, nothing, section, signed, strength_text
from .results import Sample

_VERDICTS = (("effect", "effect"), ("follows", "follows"), ("fluent", "fluent"))


def samples(figures: Figures) -> Markup:
    """One prompt's replies at each strength, by task."""
    heading = "Sample texts"
    if not figures.results.samples:
        return section("samples", heading, nothing("No sample texts were kept."))
    by_task: dict[str, list[Sample]] = {}
    for sample in figures.results.samples:
        by_task.setdefault(sample.task, []).append(sample)
    text = (
        "The same prompt at each strength, as the model wrote it. Below each reply stands what the judges found: whether the"
        " behaviour is there when eliciting, or gone when suppressing (effect), whether the reply follows its instruction,"
        " and whether it is fluent."
    )
    order = {arm: k for k, arm in enumerate(figures.ordered)}
    parts = [
        folded(task, *_by_arm(figures, sorted(found, key=lambda s: order[s.arm])), opened=k == 0)
        for k, (task, found) in enumerate(by_task.items())
    ]
    return section("samples", heading, lede(text), tag("div", {"class": "by-task"}, *parts))


def _by_arm(figures: Figures, found: Sequence[Sample]) -> list[Markup]:
    """The first arm's replies open, the others' folded."""
    groups = [(arm, list(of)) for arm, of in groupby(found, key=lambda s: s.arm)]
    return [
        tag("div", {"class": "arm"}, folded(figures.label(arm), *[_sample(figures, s) for s in of], opened=k == 0))
        for k, (arm, of) in enumerate(groups)
    ]


def _sample(figures: Figures, sample: Sample) -> Markup:
    label = figures.label(sample.arm)
    head = tag("p", {"class": "prompt"}, tag("span", {"class": "way"}, f"{sample.direction}"),
               tag("q", {"dir": "auto"}, sample.prompt))  # fmt: skip
    replies = sorted(sample.replies, key=lambda r: float(r.get("strength", 0)))
    row = tag("ol", {"class": "replies", "tabindex": "0", "aria-label": f"{label}, {sample.direction}: replies by strength"},
              *[_reply(reply) for reply in replies])  # fmt: skip
    shown = row if replies else nothing("No replies were kept for this prompt.")
    return tag("article", {"class": "sample"}, head, shown)


def _reply(reply: dict[str, Any]) -> Markup:
    strength = float(reply.get("strength", 0))
    text = reply.get("text")
    if text is None:
        words = tag("div", {"class": "text absent"}, "(no reply)")
    elif not str(text).strip():
        words = tag("div", {"class": "text absent"}, "(an empty reply)")
    else:
        words = tag("div", {"class": "text", "dir": "auto"}, str(text))
    badges = [_badge(name, reply.get(key)) for key, name in _VERDICTS]
    style = "untouched" if strength == 0 else None
    head = tag("h4", None, strength_text(strength), tag("small", None, " unsteered") if strength == 0 else "")
    return tag("li", {"class": style}, head, words, tag("p", {"class": "badges"}, *badges))


def _badge(name: str, verdict: object) -> Markup:
    """A verdict that is told by sign and word, not by colour alone."""
    if verdict is None:
        return tag("span", {"class": "badge unjudged"}, f"? {name}: unjudged")
    if isinstance(verdict, (int, float)) and not isinstance(verdict, bool) and verdict not in (0, 1):
        return tag("span", {"class": "badge"}, f"{name} {signed(float(verdict), 2)}")
    said = f"✓ {name}" if verdict else f"✗ no {name}" if name == "effect" else f"✗ not {name}"
    said = said.replace("not follows", "doesn’t follow")
    return tag("span", {"class": f"badge {'yes' if verdict else 'no'}"}, said)
