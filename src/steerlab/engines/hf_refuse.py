"""Why a steering isn't run here: another model or template, a site that doesn't exist, a width that differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..deltas import WeightEdit
from ..errors import SiteError, UnsupportedError
from ..steering import Steering, same_model

if TYPE_CHECKING:
    from .hf import HFEngine


def refused(engine: HFEngine, steering: Steering) -> list[str]:
    """Every reason for which an engine would not run a steering exactly, in words."""
    reasons: list[str] = []
    known = steering.meta.fingerprint
    if known is not None and not same_model(known, engine.fingerprint):
        reasons.append(
            f"it was fitted on {steering.meta.model or 'another model'}, whose shape or weights differ from"
            f" {engine.name}'s (refit it here, or say so with steering.adopted(engine))"
        )
    fitted = steering.meta.template
    if fitted is not None and fitted != engine.template and known is not None:
        what = {"plain": "plain text"}
        reasons.append(
            f"it was fitted with {what.get(fitted, 'a chat template')} and this engine writes prompts as"
            f" {what.get(engine.template, 'another chat template')} (use the same template, or steering.adopted(engine))"
        )
    for i in steering.interventions:
        try:
            width = engine.width(i.site)
            for site in i.control.reads:
                engine.width(site)
        except SiteError as problem:
            reasons.append(str(problem).rstrip("."))
            continue
        if isinstance(i.edit, WeightEdit):
            shape = (engine.anatomy.matrix(i.site).height, width)
            if (i.edit.height, i.edit.width) != shape:
                reasons.append(
                    f"its {i.edit.kind} at {i.site} changes a matrix of {i.edit.height} × {i.edit.width} (out × in), and the"
                    f" one here is {shape[0]} × {shape[1]}"
                )
        elif width != i.edit.width:
            reasons.append(f"its {i.edit.kind} at {i.site} has the width {i.edit.width}, and the site here {width}")
    return reasons


def without_prompts(steerings: Sequence[Steering | None], why: str) -> None:
    """Raise `UnsupportedError` where a steering's prompt would have to be left out."""
    if any(s is not None and s.prompt is not None and s.prompt.strength for s in steerings):
        raise UnsupportedError(f"this steering has a prompt, which can't be run here: {why}.")
    if any(s is not None and s.ahead for s in steerings):
        raise UnsupportedError(f"this steering has a control that decides ahead, which can't be run here: {why}.")
