"""What a steering reads: the one direction behind its edit, and the latent of each token along it.

A vector that is added reads along itself; a clamp along the line between its poles; an ablation along what it removes. What
changes weights, acts at several sites, or maps activations in more than one direction has no such direction, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...edits import Ablate, Affine, Clamp, Edit, OffsetShift, OneSided, Shift
from ...errors import DataError, UnsupportedError
from ...positions import NOT_TEMPLATE
from ...sites import Site
from ...steering import Steering
from .data import fitted

if TYPE_CHECKING:
    from ...contrast import Example
    from ...engines.hf import HFEngine

AT_ONCE = 64  # texts whose activations are held at a time


class Reading(NamedTuple):
    """Where to read, and along what, `[d]`."""

    site: Site
    direction: Tensor


def reading(steering: Steering) -> Reading:
    """The one direction of a steering. Raises `UnsupportedError` that says why there is none."""
    if not steering.interventions:
        raise UnsupportedError("it touches nothing inside the model")
    if any(site.on_weights for site in steering.sites):
        raise UnsupportedError("it changes weights, and no direction of activations is its own")
    if len(steering.interventions) > 1:
        raise UnsupportedError(f"it acts at {len(steering.sites)} sites, and no one direction is its own")
    one = next(iter(steering.interventions))
    return Reading(one.site, direction_of(one.edit))


def direction_of(edit: Edit) -> Tensor:
    """The direction in which strength 1 moves activations, `[d]`. Raises `UnsupportedError` where there is no one."""
    if isinstance(edit, OneSided):
        return direction_of(edit.inner)
    if isinstance(edit, OffsetShift):
        return (1 + edit.offset) * edit.v
    if isinstance(edit, Shift):
        return edit.v
    if isinstance(edit, Clamp):
        return (edit.positive - edit.negative) @ edit.q
    if isinstance(edit, Ablate) and edit.q.shape[0] == 1:
        return edit.q[0]
    if isinstance(edit, Affine) and edit.down is None and edit.diag is None:
        return edit.bias
    raise UnsupportedError(f"{type(edit).__name__} moves activations in no one direction")


class Latents(NamedTuple):
    """Of some texts: each token's latent along each direction, which text it is of, and how many texts had to be cut."""

    tokens: dict[str, Tensor]  # direction -> [tokens]
    row: Tensor
    rows: int
    cut: int

    def highest(self, name: str) -> list[float]:
        """The largest latent of each text."""
        found = torch.full((self.rows,), -torch.inf).scatter_reduce(0, self.row, self.tokens[name], "amax")
        if not bool(torch.isfinite(found).all()):
            raise DataError("a text has no token to read after the template's head.")
        return found.tolist()


def latents(engine: HFEngine, texts: Sequence[Example], along: Mapping[str, Reading], most: int) -> Latents:
    """The latents of texts (instruction and answer) along directions, from the first token after the template's head on.

    A text longer than `most` tokens, or than the model's context, is cut and counted.
    """
    shorter = [fitted(engine, e, most) for e in texts]
    sites = list(dict.fromkeys(r.site for r in along.values()))
    parts: dict[str, list[Tensor]] = {name: [] for name in along}
    rows: list[Tensor] = []
    for start in range(0, len(shorter), AT_ONCE):
        read = engine.capture([e for e, _ in shorter[start : start + AT_ONCE]], sites, NOT_TEMPLATE)
        for name, (site, direction) in along.items():
            parts[name].append(read[site].values @ direction.float())
        rows.append(read[sites[0]].row + start)
    whole = {name: torch.cat(pieces) for name, pieces in parts.items()}
    return Latents(whole, torch.cat(rows), len(texts), sum(cut > 0 for _, cut in shorter))
