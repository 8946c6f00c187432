"""GLP ("GGUF Layer Projection", msuiche/weightless, spec/GLP.md): h − α·Σ (h·d)·d on block outputs, or a plain addition.

llama.cpp's tensors with the operation in the metadata: `glp.mode`, the hook point, α apart from the unit directions (a
projection is quadratic in their length). `direction.N` acts on the output of block N ≥ 1; rank k > 1 adds
`direction.N.j` (version 2). α may be anything: 1 removes the component, published files use 4. Version 2 also has factors
for each block and each direction.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..controls import Constant
from ..edits import TOLERANCE, Ablate, Affine, Edit
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from . import _gguf
from .base import Format, Hints, Written, imported, provenance_lost, refit, static
from .gguf import GGUF

HOOKS = {"residual_stream_post_layer": "resid", "ffn_out_pre_residual": "mlp", "attn_out_pre_residual": "attn"}
DIRECTION = re.compile(r"direction\.([1-9]\d{0,5})(?:\.([1-9]\d{0,3}))?")


class GLP(Format):
    """Projections of block outputs."""

    what: ClassVar[str] = "GGUF Layer Projection"
    holds: ClassVar[str] = "Ablate (centre 0) at block outputs from block 1 on, at every token"
    suffix: ClassVar[str] = ".gguf"

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        return self._projections(steering)[2]

    def instead(self, steering: Steering) -> str | None:
        layers = sorted({max(i.site.layer or 1, 1) for i in steering.interventions}) or [1]
        return refit(steering, "ablation", ",".join(map(str, layers)))

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        self.check(steering)
        bases, part, _ = self._projections(steering)
        rank = max(len(q) for q, _ in bases.values())
        tensors = {
            f"direction.{layer}" + (f".{j}" if j else ""): row
            for layer, (q, _) in bases.items()
            for j, row in enumerate(q)
        }
        alphas = {layer: alpha for layer, (_, alpha) in bases.items()}
        alike = len(set(alphas.values())) == 1
        first = next(iter(alphas.values()))
        metadata: dict[str, str | float | bool | _gguf.U32] = {
            "glp.mode": "project",
            "glp.spec_version": _gguf.U32(1 if rank == 1 and alike else 2),
            "glp.alpha_default": float(first if alike else 1.0),
            "glp.rank": _gguf.U32(rank),
            "glp.orthonormal": True,
            "glp.hook_point": next(hook for hook, name in HOOKS.items() if name == part),
            "glp.layer_ids_zero_based": ",".join(map(str, bases)),
            "glp.content_sha256": _sha256(tensors),
            **_gguf.told(steering),
        }
        if not alike:
            metadata["glp.layer_scales"] = ",".join(f"{layer}:{alpha!r}" for layer, alpha in alphas.items())
        for key, value in {"glp.method": steering.meta.method.get("name"), "glp.contrast": steering.meta.data.get("concept"),
                           "general.base_model.0.name": steering.meta.model,
                           "general.base_model.0.version": steering.meta.revision}.items():  # fmt: skip
            if value:
                metadata[key] = str(value)
        _gguf.write(path, tensors, metadata, "controlvector")
        lost = [t for t in provenance_lost(steering, kept=("model", "method", "data")) if "folded" not in t]
        return Written((path,), tuple(lost))

    def claims(self, path: Path) -> bool:
        return _gguf.looks(path) and _gguf.read(path)[1].get("glp.mode", "add") != "add"

    def read(self, path: Path, hints: Hints) -> Steering:
        tensors, metadata = _gguf.read(path)
        if "glp.mode" not in metadata and any(key.startswith("dspark.") for key in metadata):
            raise ArtefactError(
                f"{path} has dspark.* keys alone: a file from before GLP, which its specification says not to read."
            )
        mode, version = metadata.get("glp.mode", "add"), metadata.get("glp.spec_version", 1)
        if mode == "add":
            return GGUF().read(path, hints)
        if mode != "project" or version not in (1, 2):
            raise ArtefactError(
                f"{path} says glp.mode={mode!r} of version {version!r}; expected project or add, version 1 or 2."
            )
        part = HOOKS.get(metadata.get("glp.hook_point", "residual_stream_post_layer"))
        if part is None:
            raise ArtefactError(f"{path} acts at {metadata['glp.hook_point']!r}; known: {', '.join(HOOKS)}.")
        if metadata.get("glp.content_sha256", _sha256(tensors)) != _sha256(tensors):
            raise ArtefactError(f"{path} holds other tensors than its glp.content_sha256 says; fetch it again.")
        made = [
            Intervention(Site(layer, part), edit, ALL, Constant(strength))
            for layer, (edit, strength) in _edits(tensors, metadata, path).items()
        ]
        known = imported(path, self.name, model=metadata.get("general.base_model.0.name"), method=metadata.get("glp.method"),
                         concept=metadata.get("glp.contrast"))  # fmt: skip
        return Steering(tuple(made), meta=_gguf.meta_of(metadata, known, path))

    def _projections(self, steering: Steering) -> tuple[dict[int, tuple[Tensor, float]], str, list[str]]:
        """Each block's directions and its α, the part where they act, and why something can't be held."""
        found, reasons = static(steering, self.name)
        made: dict[int, tuple[Tensor, float]] = {}
        parts = {one.site.part for one in found}
        if len(parts) > 1:
            reasons.append(f"it edits {' and '.join(sorted(parts))}, and a file has one hook point")
        for one in found:
            given = _projection(one.edit)
            if one.site.part not in HOOKS.values() or one.site.layer is None:
                reasons.append(f"{one.name} isn't at the output of a block, of attention or of an MLP")
            elif one.site.layer == 0:
                reasons.append(f"{one.name} is at block 0, and there is no direction.0")
            elif given is None:
                reasons.append(
                    f"{one.name} is no projection h − α·(h·d)·d (a centre or a pole other than 0 isn't one either)"
                )
            elif one.site.layer in made:
                reasons.append(f"two projections act at {one.site}, and a file has one for each block")
            else:
                made[one.site.layer] = (given[0], given[1] * one.strength)
        if len({len(q) for q, _ in made.values()}) > 1:
            reasons.append("its projections differ in rank, and a file has one rank")
        if not found and not reasons:
            reasons.append("it edits nothing (no intervention with a strength other than 0)")
        return made, next(iter(parts), "resid"), reasons


def _projection(edit: Edit) -> tuple[Tensor, float] | None:
    """Orthonormal rows and α where the edit is h − s·α·Σ (h·d)·d."""
    if isinstance(edit, Ablate):
        return None if edit.centre is None or bool(edit.centre.any()) else (edit.q, 1.0)
    if not isinstance(edit, Affine) or edit.down is None or edit.up is None:
        return None
    if bool(edit.bias.any()) or (edit.diag is not None and bool(edit.diag.any())):
        return None
    alpha = -float(edit.up[0] @ edit.down[0])
    gram = edit.down @ edit.down.T
    unit = float((gram - torch.eye(len(gram))).abs().max()) <= TOLERANCE
    same = float((edit.up + alpha * edit.down).abs().max()) <= 1e-6 * max(abs(alpha), 1.0)
    return (edit.down, alpha) if unit and same else None


def _edits(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> dict[int, tuple[Edit, float]]:
    """Each block's edit and its strength."""
    rows: dict[int, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        found = DIRECTION.fullmatch(name)
        if not found:
            raise ArtefactError(
                f"{path} holds the tensor {name!r}; expected direction.N or direction.N.j with N and j from 1."
            )
        rows.setdefault(int(found[1]), {})[int(found[2] or 0)] = tensor
    rank = int(metadata.get("glp.rank", 1))
    alpha = float(metadata.get("glp.alpha_default", 1.0))
    each = _numbers(metadata.get("glp.dir_scales"), path) or [1.0] * rank
    layers = (
        dict(_pair(p, path) for p in str(metadata["glp.layer_scales"]).split(","))
        if "glp.layer_scales" in metadata
        else {}
    )
    made: dict[int, tuple[Edit, float]] = {}
    for layer, mine in sorted(rows.items()):
        if sorted(mine) != list(range(rank)) or len(each) != rank:
            raise ArtefactError(
                f"{path} holds directions {sorted(mine)} of block {layer}; its rank {rank} wants as many."
            )
        q = torch.stack([mine[j] for j in range(rank)])
        off = float((q @ q.T - torch.eye(rank)).abs().max())
        if off > TOLERANCE or (rank > 1 and not metadata.get("glp.orthonormal")):
            raise ArtefactError(
                f"{path}: the directions of block {layer} aren't orthonormal (off by {off:.2g}); they must be."
            )
        strengths = [alpha * e * layers.get(layer, 1.0) for e in each]
        if not all(math.isfinite(s) for s in strengths):
            raise ArtefactError(f"{path}: the strengths {strengths} of block {layer} aren't finite.")
        if len(set(strengths)) == 1 and 0 <= strengths[0] <= 1:
            made[layer] = (Ablate(q), strengths[0])
        else:  # beyond removing: h − α·(h·d)·d as a map of its own
            made[layer] = (Affine(torch.zeros(q.shape[1]), down=q, up=-torch.tensor(strengths)[:, None] * q), 1.0)
    return made


def _numbers(text: Any, path: Path) -> list[float]:
    try:
        return [float(piece) for piece in str(text).split(",")] if text else []
    except ValueError as problem:
        raise ArtefactError(f"{path} says glp.dir_scales={text!r}; expected numbers with commas between.") from problem


def _pair(text: str, path: Path) -> tuple[int, float]:
    try:
        layer, value = text.split(":")
        return int(layer), float(value)
    except ValueError as problem:
        raise ArtefactError(f"{path} has the piece {text!r} in glp.layer_scales; expected like 12:0.5.") from problem


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors' bytes in the file's order."""
    h = hashlib.sha256()
    for tensor in tensors.values():
        h.update(tensor.contiguous().numpy().tobytes())
    return h.hexdigest()
