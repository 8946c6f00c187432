"""A steering as changes of weight matrices, where it is one exactly.

An affine edit of what a matrix gives or reads is a change of it: with y = W·x + b, reading N(x) = x + (x·downᵀ)·up + diag⊙x + n
and giving O(y) the same way, W' = (I + O)(W + ΔW)(I + N) and b' = O((W + ΔW)·n + b). So are `Delta`s. A block's output is a sum
that no one matrix gives, and only a pure addition moves to the matrix that writes to it last, where what that writes is added to
the stream as it is (no norm between: tried on the model). Everything else is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..deltas import WeightEdit
from ..edits import AffineMap
from ..engines.hf import HFEngine
from ..engines.hf_offload import own
from ..errors import SiteError
from ..sites import Site
from ..steering import Steering
from .base import Static, pure_bias, static

if TYPE_CHECKING:
    from jaxtyping import Float

NONE = AffineMap(None, None, None, None)


@dataclass
class Change:
    """What becomes of one linear module: changes of its weight, then of what it reads, then of what it gives."""

    path: str
    module: nn.Module
    model: nn.Module
    deltas: list[tuple[WeightEdit, float]] = field(default_factory=list[tuple[WeightEdit, float]])
    reads: AffineMap = NONE
    gives: AffineMap = NONE

    @property
    def stored(self) -> Float[Tensor, "out in"]:
        """W as x·Wᵀ uses it, in float32 (a Conv1D keeps it the other way round)."""
        weight = own(self.module, "weight", self.model)
        assert weight is not None  # it is among the matrices of a block
        w = weight.detach().float()
        return w if isinstance(self.module, nn.Linear) else w.T

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """W', in float32."""
        w = self._with_deltas()
        return _from_left(self.gives, _from_right(self.reads, w))

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """b', in float32; None where there is none and none comes."""
        mine = own(self.module, "bias", self.model)
        if mine is None and self.reads.bias is None and self.gives.bias is None:
            return None
        w = self._with_deltas()
        b = w.new_zeros(len(w)) if mine is None else mine.detach().float()
        return self.gives(b if self.reads.bias is None else b + w @ self.reads.bias)

    @property
    def new_bias(self) -> Float[Tensor, " out"] | None:
        """b' − b where it isn't 0."""
        mine, bias = own(self.module, "bias", self.model), self.bias
        if bias is None:
            return None
        off = bias if mine is None else bias - mine.detach().float()
        return off if bool(off.any()) else None

    def factors(self) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]] | None:
        """W' − W as left·right; None where they are equal. A change of full rank is taken apart by its singular values."""
        parts = list(self._factors())
        if not parts:
            return None
        left, right = torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts])
        least = min(left.shape[0], right.shape[1])
        if left.shape[1] > least:
            left, right = apart(left @ right)
        return left.contiguous(), right.contiguous()

    def _factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        for edit, strength in self.deltas:
            left, right = getattr(edit, "left", None), getattr(edit, "right", None)
            if left is None or right is None:
                yield apart(strength * edit.change())
            else:
                yield strength * left, right
        w = self._with_deltas()
        if self.reads.diag is not None:
            yield apart(w * self.reads.diag)
        if self.reads.down is not None and self.reads.up is not None:
            yield w @ self.reads.up.T, self.reads.down
        w = _from_right(self.reads, w)
        if self.gives.diag is not None:
            yield apart(self.gives.diag[:, None] * w)
        if self.gives.down is not None and self.gives.up is not None:
            yield self.gives.up.T, self.gives.down @ w

    def _with_deltas(self) -> Tensor:
        w = self.stored
        for edit, strength in self.deltas:
            w = edit(w, strength)
        return w


def changes(
    steering: Steering, engine: HFEngine, name: str, *, embedding: bool = False
) -> tuple[dict[str, Change], AffineMap | None, list[str]]:
    """The changes by module path, that of the embedding's rows where `embedding` allows one, and why other edits aren't any."""
    found, reasons = static(steering, name)
    made: dict[str, Change] = {}
    rows: AffineMap | None = None
    paths = {module: path for path, module in engine.model.named_modules()}
    for one in found:
        try:
            if one.site.part == "embed" and embedding:
                rows = _then(rows or NONE, _affine(one))
                continue
            module, side = _module(one, engine)
            mine = made.setdefault(paths[module], Change(paths[module], module, engine.model))
            if isinstance(one.edit, WeightEdit):
                mine.deltas.append((one.edit, one.strength))
            elif side == "input":
                mine.reads = _then(mine.reads, _lifted(_affine(one), one.site, engine))
            else:
                mine.gives = _then(mine.gives, _lifted(_affine(one), one.site, engine))
        except SiteError as problem:
            reasons.append(str(problem).rstrip("."))
    if not found and not reasons:
        reasons.append("it edits nothing (no intervention with a strength other than 0)")
    return made, rows, reasons


def apart(full: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """A matrix as left·right, of as many columns as it has singular values above rounding."""
    u, s, v = torch.linalg.svd(full.double(), full_matrices=False)
    keep = max(int((s > s.max() * 1e-9).sum()), 1)
    root = s[:keep].sqrt()
    return (u[:, :keep] * root).float(), (root[:, None] * v[:keep]).float()


def _affine(one: Static) -> AffineMap:
    made = one.edit.affine(one.strength)
    if made is None:
        raise SiteError(f"{one.name} isn't affine in the activation, and matrices are")
    return AffineMap(*(None if t is None else t.detach().cpu() for t in made))


def _module(one: Static, engine: HFEngine) -> tuple[nn.Module, str]:
    """The linear module that an edit changes, and whether it edits what that reads or gives. Raises `SiteError`."""
    site = one.site
    if site.on_weights:
        return engine.anatomy.matrix(site).module, "weight"
    if site.layer is None or site.part.startswith("norm_"):
        raise SiteError(f"{one.name} isn't what one matrix of a block reads or gives")
    if site.part == "resid" and pure_bias(one.edit.affine(one.strength)) is None:
        raise SiteError(
            f"{one.name} changes the block's output, a sum that no one matrix gives, by more than adding a vector; edit what is"
            " written to the stream instead (the sites embed, attn@L and mlp@L of every block), or serve it with a hook"
        )
    point = engine.anatomy.point(site)
    module, side = point.module, point.side
    if site.part in ("attn", "mlp", "resid"):
        last = {"attn": "heads"}.get(site.part, "neurons")
        module, side = engine.anatomy.point(Site(site.layer, last)).module, "output"
        _check_writes(one, module, engine)
    name = next((n for n, m in engine.anatomy.blocks[site.layer].named_modules() if m is module), "")
    engine.anatomy.matrix(Site(site.layer, f"w:{name}"))  # raises where it is no plain matrix of its own
    return module, side


def _check_writes(one: Static, module: nn.Module, engine: HFEngine) -> None:
    """That what the matrix gives is what the site holds: with something added to it, just that is added there."""
    assert one.site.layer is not None
    gap = torch.sin(torch.arange(engine.width(one.site)) + 1.0)

    def pushed(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output + gap.to(output)

    read = [_read(engine, one.site)]
    handle = module.register_forward_hook(pushed)
    try:
        read.append(_read(engine, one.site))
    finally:
        handle.remove()
    off = float((read[1] - read[0] - gap.to(read[0])).abs().max())
    if off > 1e-3 * max(1.0, float(read[0].abs().max())):
        raise SiteError(
            f"{one.name} can't move into a matrix: what the last matrix before it gives passes a norm or a scale on its way"
            f" (adding to it arrives changed, by {off:.2g}); keep the hook"
        )


def _read(engine: HFEngine, site: Site) -> Tensor:
    """A site's activations in a pass of two tokens."""
    from ..engines.base import Batch

    ids = torch.arange(2)[None]
    batch = Batch(ids, ids.clone(), torch.tensor([1]), torch.tensor([0])).to(engine.device)
    with torch.no_grad():
        return engine.resume(batch, sites=[site], logits=False).at[site].float()


def _lifted(made: AffineMap, site: Site, engine: HFEngine) -> AffineMap:
    """A map on some columns of a tensor as one on all of them."""
    columns = engine.anatomy.point(site).columns if site.part not in ("attn", "mlp", "resid") else None
    if columns is None:
        return made
    point, at = engine.anatomy.point(site), columns.cpu()
    mine = next(m for m in engine.anatomy.matrices(site.layer or 0).values() if m.module is point.module)
    width = mine.width if point.side == "input" else mine.height

    def whole(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.new_zeros(*part.shape[:-1], width).index_copy(-1, at, part)

    return AffineMap(*(whole(t) for t in made))


def _then(first: AffineMap, after: AffineMap) -> AffineMap:
    return after if first is NONE else first.then(after)


def _from_right(made: AffineMap, w: Tensor) -> Tensor:
    """W·(I + N), where N is the linear part of what the matrix reads: W + W⊙diag + (W·upᵀ)·down."""
    out = w if made.diag is None else w + w * made.diag
    return out if made.down is None or made.up is None else out + (w @ made.up.T) @ made.down


def _from_left(made: AffineMap, w: Tensor) -> Tensor:
    """(I + O)·W, where O is the linear part of what becomes of what the matrix gives: W + diag⊙W + upᵀ·(down·W)."""
    out = w if made.diag is None else w + made.diag[:, None] * w
    return out if made.down is None or made.up is None else out + made.up.T @ (made.down @ w)
