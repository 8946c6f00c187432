"""The CDAS release's dumps: AxBench's pair of files, steered by setting h·w to a factor rather than adding.

h + (max_act·mag − h·w)·w at a block's output, with the first `prefix` tokens of the prompt left alone. A row is read as a
clamp whose poles are told (`--positive`, `--negative`: the factors of eliciting and suppressing, max_act·mag). Written are
rank-1 clamps at one block; the poles and the prefix go to `config.json`, since the release takes them from its run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..controls import Constant
from ..edits import Clamp, Push
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..files import write_text
from ..positions import Positions, Window
from ..sites import Site
from ..steering import Intervention, Steering
from . import _torch
from .axbench import CLAMPS, _config, dumps, method_of, one_dump, row_of  # pyright: ignore[reportPrivateUsage]
from .base import Format, Hints, Written, imported, provenance_lost


class CDASDump(Format):
    """A dump of clamped directions."""

    what: ClassVar[str] = "the CDAS release's dump (a folder)"
    holds: ClassVar[str] = "a rank-1 Clamp at one block's output, from some token of the prompt on"

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        reasons: list[str] = []
        if steering.prompt is not None and steering.prompt.strength:
            reasons.append("it has a prompt, which is text in the conversation")
        if len(steering.interventions) != 1:
            return [*reasons, f"it has {len(steering.interventions)} interventions, and a row of the dump is one"]
        (i,) = steering.interventions
        if type(i.edit) is not Clamp or i.edit.rank != 1 or i.site.part != "resid":
            rank = f" of rank {i.edit.rank}" if isinstance(i.edit, Clamp) else ""
            only = " (one-sided)" if isinstance(i.edit, Push) else ""
            reasons.append(f"{i.edit.kind}{rank}{only} at {i.site} is no clamp of rank 1 at a block's output")
        if not isinstance(i.control, Constant):
            reasons.append(f"its {i.control.kind} control decides while the model runs, and a factor is fixed")
        elif abs(i.control.value) < 1 and i.control.value:
            reasons.append(
                f"at strength {i.control.value:g} it moves a coordinate part of the way, and the dump's clamp sets it"
            )
        if _prefix(i.positions) is None:
            reasons.append(
                f"it acts at the positions {i.positions}; the dump's clamp acts on all but the prompt's first tokens"
            )
        return reasons

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        self.check(steering)
        (i,) = steering.interventions
        assert isinstance(i.edit, Clamp)  # refused otherwise
        weight, bias = path / "CDASVector_weight.pt", path / "CDASVector_bias.pt"
        _torch.save(i.edit.q.clone(), weight)
        _torch.save(torch.zeros(1), bias)
        concept = steering.meta.data.get("concept") or "unnamed"
        told = write_text(
            path / "metadata.jsonl", json.dumps({"concept_id": 0, "concept": concept, "ref": steering.digest}) + "\n"
        )
        held = {
            "layer": i.site.layer, "model_name": steering.meta.model, "method": "CDASVector", "max_act": 1.0,
            "positive": i.edit.positive.item(), "negative": i.edit.negative.item(), "prefix_length": _prefix(i.positions),
        }  # fmt: skip
        config = write_text(path / "config.json", json.dumps(held, indent=1) + "\n")
        lost = [t for t in provenance_lost(steering, kept=("model",)) if "folded" not in t]
        if isinstance(i.control, Constant) and i.control.value != 1:
            zero = torch.zeros(1)
            factor = i.edit.target(zero, torch.tensor(i.control.value)).item()
            lost.append(f"the strength {i.control.value:g}: give the factor mag = {factor:g} to the release's run")
        return Written(
            (weight, bias, told, config),
            (*lost, "block, poles and prefix are in config.json, which the release doesn't read"),
        )

    def claims(self, path: Path) -> bool:
        return any(f.name.startswith(CLAMPS) for f in dumps(path))

    def read(self, path: Path, hints: Hints) -> Steering:
        file = one_dump([f for f in dumps(path) if f.name.startswith(CLAMPS)] or dumps(path), path)
        vector, layer, concept, model = row_of(file, hints)
        config: dict[str, Any] = _config(file.parent / "config.json")
        poles = [config.get(n) if given is None else given
                 for n, given in (("positive", hints.positive), ("negative", hints.negative))]  # fmt: skip
        if not all(isinstance(p, (int, float)) for p in poles):
            raise ArtefactError(
                f"{file} doesn't say where its clamp sets the coordinate; say both with --positive and --negative (max_act·mag,"
                " as the release's run had them)."
            )
        length = float(vector.norm())
        if abs(length - 1) > 1e-3:
            raise ArtefactError(
                f"{file} row {hints.concept} has the norm {length:.4g}; a clamped direction has norm 1."
            )
        prefix = hints.prefix or int(config.get("prefix_length") or 0)
        positive, negative = (torch.tensor([float(p)]) for p in poles)  # pyright: ignore[reportArgumentType]
        edit = Clamp((vector / length)[None] if abs(length - 1) > 1e-6 else vector[None], positive, negative)
        where = Positions((Window(prefix),), (Window(0),))
        known = imported(file, self.name, method=method_of(file), concept=concept, model=model)
        return Steering((Intervention(Site(layer), edit, where),), meta=known)


def _prefix(positions: Positions) -> int | None:
    """How many of the prompt's first tokens are left alone, where everything else is touched."""
    if positions.generated != (Window(0),) or len(positions.prompt) != 1:
        return None
    (window,) = positions.prompt
    return window.start if window.start >= 0 and window.stop is None and window.anchor == "start" else None
