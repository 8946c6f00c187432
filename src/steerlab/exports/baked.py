"""A checkpoint of the model with the steering in its weights: it loads in plain transformers, and nothing else is needed.

Exact are: vectors added to what a matrix reads or gives, or to a block's output (a bias of the matrix that writes there last);
affine edits of what one matrix reads or gives, directional ablation of attention's and the MLP's output among them (a change of
rank 1 of the matrix that writes it, Arditi et al. 2024, and of its bias); affine edits of the embedding (its rows; a tied head
is untied first and keeps its own); changes of weights. Every token is steered, BOS and template included, with one strength.
The checkpoint is in the dtype that the model was loaded in: in 16 bits the changed matrices are rounded once more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..edits import AffineMap, Shift
from ..engines.hf import HFEngine
from ..engines.hf_checkpoint import places, save
from ..engines.hf_offload import own, owners_of
from ..positions import ALL
from ..sites import Site
from ..steering import Steering
from .base import Format, Written, provenance_lost, refit
from .linear import Change, _read, changes  # pyright: ignore[reportPrivateUsage]

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARD = 4 * 2**30  # bytes


class Baked(Format):
    """A whole model (a folder)."""

    what: ClassVar[str] = "a checkpoint for plain transformers (a folder)"
    holds: ClassVar[str] = (
        "what one matrix can do at every token: added vectors, Ablate of what attention and MLP write, Delta"
    )
    reads: ClassVar[bool] = False
    why_not_read: ClassVar[str] = (
        "a model's weights don't say what was steered; steerlab.json in the folder names the digest"
    )
    needs_model: ClassVar[bool] = True

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        assert engine is not None, "this format needs the model"
        made, rows, reasons = changes(steering, engine, self.name, embedding=True)
        if rows is not None:
            reasons += _embedding_problem(engine, rows)
        if not reasons:
            found = places(engine.model, _biases(made), untied=rows is not None and _is_tied(engine.model))
            reasons += [found] if isinstance(found, str) else []
        return reasons

    def instead(self, steering: Steering) -> str | None:
        if all(i.positions == ALL and isinstance(i.edit, Shift) for i in steering.interventions):
            return None  # it is what this would fit
        layers = sorted({i.site.layer for i in steering.interventions if i.site.layer is not None}) or [1]
        return refit(steering, "diff_means", ",".join(map(str, layers)))

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        assert engine is not None, "this format needs the model"
        engine.accept(steering)
        self.check(steering, engine)
        made, rows, _ = changes(steering, engine, self.name, embedding=True)
        untied = rows is not None and _is_tied(engine.model)
        found = places(engine.model, _biases(made), untied=untied)
        assert not isinstance(found, str)  # checked just now
        config, names = found
        notes = {
            "digest": steering.digest,
            "model": steering.meta.model or engine.name,
            "revision": engine.revision,
            "changed": sorted(made) + (["the embedding's rows"] if rows is not None else []),
            "positions": "every token",
        }
        changed = _tensors(made, engine, rows)
        files = save(path, engine.model, engine.tokenizer, config, names, changed, shard_bytes=SHARD, notes=notes)
        return Written(
            tuple(files),
            (*provenance_lost(steering, kept=("model",)), "it can't be turned off or down any more"),
        )


def _tensors(made: dict[str, Change], engine: HFEngine, rows: AffineMap | None) -> dict[str, Callable[[], Tensor]]:
    """What becomes of each tensor that changes, by its name in the checkpoint; computed when it is asked for."""
    found: dict[str, Callable[[], Tensor]] = {}
    for path, change in made.items():
        found[f"{path}.weight"] = _stored_as(change)
        if (bias := change.bias) is not None:
            found[f"{path}.bias"] = lambda bias=bias: bias
    if rows is not None:
        embedding = engine.model.get_input_embeddings()
        name = next(n for n, m in engine.model.named_modules() if m is embedding)
        scale = _scale(engine) or 1.0
        weight = _rows(engine)
        found[f"{name}.weight"] = lambda: rows(weight.detach().float().cpu() * scale) / scale
    return found


def _stored_as(change: Change) -> Callable[[], Tensor]:
    """W' the way round in which the module keeps it."""
    linear = isinstance(change.module, torch.nn.Linear)
    return lambda: change.weight if linear else change.weight.T


def _biases(made: dict[str, Change]) -> list[str]:
    """The biases that must exist."""
    return [
        f"{path}.bias"
        for path, c in made.items()
        if own(c.module, "bias", c.model) is not None or c.new_bias is not None
    ]


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    held = owners_of(model)
    return head is not None and len(held.get(head, ())) > 1 and held.get(head) == held.get(model.get_input_embeddings())


def _embedding_problem(engine: HFEngine, rows: AffineMap) -> list[str]:
    if _scale(engine) is None:
        return [
            "its edit at embed can't move into the embedding's rows: the first block reads more than them (position vectors?)"
        ]
    return []


def _scale(engine: HFEngine) -> float | None:
    """The number by which the first block reads the embedding's rows; None where it reads anything else."""
    read = _read(engine, Site(part="embed"))[0].cpu()
    rows = _rows(engine)[: len(read)].detach().float().cpu()
    scale = float((read * rows).sum() / rows.square().sum())
    off = float((read - scale * rows).abs().max())
    return scale if off <= 1e-3 * float(read.abs().max()) else None


def _rows(engine: HFEngine) -> Tensor:
    """The embedding's rows, `[vocabulary, d]`."""
    weight = own(engine.model.get_input_embeddings(), "weight", engine.model)
    assert weight is not None  # an embedding has one
    return weight
