"""lm-evaluation-harness's `steered` model: `lm_eval --model steered --model_args pretrained=M,steer_path=FILE.pt`.

A dictionary of module names below `model.base_model`; `add` adds a vector to the module's output, `clamp` sets the
coordinate along one, both at every token (padding, too, which a causal mask hides), in the model's dtype. One entry a module,
`bias` None (an `add` with one fails there). Tried with release 0.4.13; there are older ones whose hooks that add all use the
file's last entry, which is told where it would matter. The file is a `torch.save`, so it is never read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from ..edits import Ablate, Clamp, Push
from ..engines.hf import HFEngine
from ..errors import SiteError
from ..steering import Steering
from . import _torch
from .base import Format, Static, Written, provenance_lost, pure_bias, refit, static


class LMEval(Format):
    """A steered model of lm-evaluation-harness."""

    what: ClassVar[str] = "lm-evaluation-harness's steered file"
    holds: ClassVar[str] = "vectors added at, or a rank-1 Clamp or Ablate of, a module's output, at every token"
    suffix: ClassVar[str] = ".pt"
    reads: ClassVar[bool] = False
    why_not_read: ClassVar[str] = "the harness reads it as a pickle, which this package never does"
    needs_model: ClassVar[bool] = True

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        return self._entries(steering, engine)[1]

    def instead(self, steering: Steering) -> str | None:
        sites = sorted({i.site.layer for i in steering.interventions if i.site.layer is not None}) or [1]
        return refit(steering, "diff_means", str(sites[0]))

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        self.check(steering, engine)
        entries, _ = self._entries(steering, engine)
        _torch.save(entries, path)
        lost = provenance_lost(steering)
        if sum(entry["action"] == "add" for entry in entries.values()) > 1:
            lost.append(
                "it adds at several modules: use lm-eval 0.4.13 or newer (in older ones all of these add the last vector)"
            )
        return Written((path,), tuple(lost))

    def _entries(self, steering: Steering, engine: HFEngine | None) -> tuple[dict[str, dict[str, Any]], list[str]]:
        found, reasons = static(steering, self.name)
        made: dict[str, dict[str, Any]] = {}
        for one in found:
            entry, where = _entry(one), _hookpoint(one, engine)
            if where is None:
                reasons.append(f"{one.name} isn't what one module gives, and the harness hooks modules' outputs")
            elif entry is None:
                reasons.append(
                    f"{one.name} at strength {one.strength:g} is neither adding a vector nor setting one coordinate"
                )
            elif where not in made:
                made[where] = entry
            elif entry["action"] == made[where]["action"] == "add":
                made[where]["steering_vector"] = made[where]["steering_vector"] + entry["steering_vector"]
            else:
                reasons.append(f"two edits act at {where}, and the harness keeps one for each module")
        if not found and not reasons:
            reasons.append("it edits nothing (no intervention with a strength other than 0)")
        return made, reasons


def _hookpoint(one: Static, engine: HFEngine | None) -> str | None:
    """The module's name below `model.base_model`."""
    assert engine is not None, "this format needs the model"
    if one.site.on_weights:
        return None
    try:
        point = engine.anatomy.point(one.site)
    except SiteError:
        return None
    base: Any = engine.model.base_model
    names = {module: name for name, module in base.named_modules()}
    return names.get(point.module) if point.side == "output" and point.columns is None else None


def _entry(one: Static) -> dict[str, Any] | None:
    vector, coefficient, action = pure_bias(one.edit.affine(one.strength)), 1.0, "add"
    if vector is None and isinstance(one.edit, Clamp) and not isinstance(one.edit, Push) and abs(one.strength) >= 1:
        vector, action = one.edit.q[0] if one.edit.rank == 1 else None, "clamp"
        if vector is not None:
            coefficient = one.edit.target(torch.zeros(1), torch.tensor(one.strength)).item()
    elif vector is None and isinstance(one.edit, Ablate) and one.edit.rank == 1 and one.strength == 1:
        assert one.edit.centre is not None  # set when it is made
        vector, coefficient, action = one.edit.q[0], one.edit.centre.item(), "clamp"
    if vector is None:
        return None
    return {
        "action": action,
        "steering_vector": vector.clone(),
        "steering_coefficient": coefficient,
        "bias": None,
        "head_index": None,
    }
