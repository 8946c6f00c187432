"""Read-outs: where a steering's own axis is at a token, read without steering.

For a clamp −1 and +1 are its two poles; for a shift by v it is h·v/‖v‖², so that adding v moves it by 1. Both are
weight·h + offset, one number per token and intervention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..edits import Ablate, Clamp, Edit, Shift
from ..errors import UnsupportedError
from ..sites import Site
from ..steering import Steering

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Readout:
    """One number of an activation at a site: weight·h + offset."""

    site: Site
    weight: Float[Tensor, " d"]
    offset: float

    def __call__(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """The read-out at activations, in float32."""
        return h.float() @ self.weight.to(h.device) + self.offset


def readouts(steering: Steering) -> tuple[Readout, ...]:
    """One for each of a steering's interventions. Raises `UnsupportedError` for an edit that has no axis."""
    made: list[Readout] = []
    for i in steering.interventions:
        axis = _axis(i.edit)
        if axis is None:
            raise UnsupportedError(
                f"{i.edit.kind} at {i.site} has no single axis to read; Shift, Clamp, Push and rank-1 Ablate have one."
            )
        made.append(Readout(i.site, *axis))
    if not made:
        raise UnsupportedError("this steering has no interventions, so there is nothing to read.")
    return tuple(made)


def _axis(edit: Edit) -> tuple[Tensor, float] | None:
    if isinstance(edit, Clamp):  # a Push is one, too
        middle, half = (edit.positive + edit.negative) / 2, (edit.positive - edit.negative) / 2
        size = half @ half
        return ((half @ edit.q) / size, -float(middle @ half / size)) if size > 0 else None
    if isinstance(edit, Shift):
        size = edit.v @ edit.v
        return (edit.v / size, 0.0) if size > 0 else None
    if isinstance(edit, Ablate) and len(edit.q) == 1 and edit.centre is not None:
        return edit.q[0], -float(edit.centre[0])
    return None
