"""AxBench's dumps: `{Method}_weight.pt` `[n concepts, d]`, `{Method}_bias.pt` `[n]`, `metadata.jsonl`, a row for each concept.

AxBench steers by h + factor·max_act·w at a block's output, at every token. A row is read as `Shift(w)` (so that strength is
factor·max_act), and a vector is written as the row w at max_act 1. The block isn't in the tensors: this package writes it to
`config.json` beside them, and otherwise it must be told. The bias only shifts detection scores and is written as 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..edits import Shift
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..files import write_text
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from . import _torch
from .base import Hints, VectorFormat, Written, as_vector, imported, provenance_lost

CLAMPS = ("CDAS", "DAS", "KLDAS", "PDAS")  # how methods that clamp begin


class AxBench(VectorFormat):
    """A dump of vectors, one concept a row."""

    what: ClassVar[str] = "AxBench's dump of vectors (a folder)"
    holds: ClassVar[str] = "one vector at one block's output, at every token"
    single: ClassVar[bool] = True
    saved_as: ClassVar[str] = "DiffMean"

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        ((layer, vector),) = self.vectors(steering).items()
        weight, bias = path / f"{self.saved_as}_weight.pt", path / f"{self.saved_as}_bias.pt"
        _torch.save(vector[None], weight)
        _torch.save(torch.zeros(1), bias)
        concept = steering.meta.data.get("concept")
        row = {"concept_id": 0, "concept": concept or "unnamed", "ref": steering.digest}
        told = write_text(path / "metadata.jsonl", json.dumps(row) + "\n")
        config = {"layer": layer, "model_name": steering.meta.model, "component": "res", "method": self.saved_as}
        beside = write_text(path / "config.json", json.dumps(config, indent=1) + "\n")
        lost = [
            *provenance_lost(steering, kept=("model",)),
            "the block is in config.json, which AxBench doesn't read: its run's YAML names it",
        ]
        return Written((weight, bias, told, beside), tuple(lost))

    def claims(self, path: Path) -> bool:
        return any(not f.name.startswith(CLAMPS) for f in dumps(path))

    def read(self, path: Path, hints: Hints) -> Steering:
        file = one_dump([f for f in dumps(path) if not f.name.startswith(CLAMPS)], path)
        vector, layer, concept, model = row_of(file, hints)
        known = imported(file, self.name, method=method_of(file), concept=concept, model=model)
        return Steering((Intervention(Site(layer), Shift(vector), ALL),), meta=known)


def dumps(path: Path) -> list[Path]:
    """The weight files of a folder, or the one that was named."""
    if path.is_file():
        return [path] if path.name.endswith("_weight.pt") else []
    return sorted(path.glob("*_weight.pt")) if path.is_dir() else []


def one_dump(found: list[Path], path: Path) -> Path:
    """The one weight file meant. Raises `ArtefactError`."""
    ranks = [f.name for f in found if f.name.startswith("rank_")]
    if len(found) != 1 or ranks:
        told = [f.name for f in found] or "none"
        also = "; pieces of several ranks must be joined in rank order first" if ranks else ""
        raise ArtefactError(f"{path} holds the weight files {told}; expected one: name the file{also}.")
    return found[0]


def method_of(file: Path) -> str:
    """The name of the method that wrote a dump."""
    return file.name.removesuffix("_weight.pt")


def row_of(file: Path, hints: Hints) -> tuple[Tensor, int, str | None, str | None]:
    """The chosen concept's vector, its block, its words and its model. Raises `ArtefactError`."""
    weight = _torch.tensor(file)
    weight = weight[None] if weight.ndim == 1 else weight
    if weight.ndim != 2 or not 0 <= hints.concept < len(weight):
        raise ArtefactError(
            f"{file} has the shape {list(weight.shape)}; expected [concepts, width], with row {hints.concept} (--concept) in it."
        )
    config = _config(file.parent / "config.json")
    layer = hints.layer if hints.layer is not None else config.get("layer")
    if not isinstance(layer, int) or layer < 0:
        raise ArtefactError(f"{file} doesn't say which block it is for; say it with --layer (0-based).")
    vector = as_vector(weight[hints.concept].clone(), f"row {hints.concept}", file)
    model = config.get("model_name")
    return (
        vector,
        layer,
        _concept(file.parent / "metadata.jsonl", hints.concept),
        model if isinstance(model, str) else None,
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as problem:
        raise ArtefactError(f"{path} isn't readable JSON ({problem}).") from problem
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _concept(path: Path, row: int) -> str | None:
    """The concept's words, of the row whose number or `concept_id` it is."""
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, RecursionError) as problem:
        raise ArtefactError(f"{path} isn't readable JSON Lines ({problem}).") from problem
    mine = [r for r in rows if isinstance(r, dict) and r.get("concept_id") == row] or rows[row : row + 1]  # pyright: ignore[reportUnknownVariableType]
    concept = cast("dict[str, Any]", mine[0]).get("concept") if mine and isinstance(mine[0], dict) else None
    return None if concept is None else str(concept)
