"""Why a steering isn't run here: another model or template, a site that doesn't exist, a width that differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..deltas import WeightEdit
from ..errors import SiteError, UnsupportedError
from ..steering import Steering
from .likeness import misfits

if TYPE_CHECKING:
    from .hf import HFEngine


def refused(engine: HFEngine, steering: Steering) -> list[str]:
    """Every reason for which an engine would not run a steering exactly, in words."""
    reasons = misfits(steering.meta, engine.name, engine.fingerprint, engine.template)
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
