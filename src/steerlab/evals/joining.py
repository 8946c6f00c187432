"""Ways to put several steerings on one model: as given, in another order, with overlaps taken out, or weaker.

Edits at different sites meet only through the model. At one site they meet in numbers, and there overlaps can be taken out
exactly. Of shifts d_i·u_i (u_i of length 1, rows of U) the dual ones d_i·(U Uᵀ)⁻¹U move each coordinate h·u_i by d_i and no
other, with the least total movement. Of clamps that set Q h = p with stacked rows Q = M B (B an orthonormal basis of their
span) one clamp on B to M⁻¹p sets all coordinates at once, where one clamp after the other leaves only the last one's set.
Nearly collinear directions ask for opposite things: their condition number is told, and beyond `WORST` nothing is taken out.
Where behaviours are taken away and others brought, clamps served one-sided are in each other's way less: a `Push` away from a
behaviour does nothing where it isn't shown, so what is taken away comes first and what is brought has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..controls import Constant
from ..edits import Ablate, Clamp, Edit, Shift
from ..errors import ConfigError
from ..steering import Intervention, Steering
from .results import Direction

if TYPE_CHECKING:
    from jaxtyping import Float

WORST = 30.0  # condition number
SAME = 1e-9


@dataclass(frozen=True, eq=False)
class Part:
    """One of the steerings: its name, the task that its effect is measured on, and the strength that it is given."""

    name: str
    steering: Steering
    task: str
    direction: Direction
    strength: float = 1.0

    @property
    def applied(self) -> Steering:
        """At its strength."""
        return self.steering.scaled(self.strength)


class Joined(NamedTuple):
    """A way to put them together: what it is called, the steering, and what was done, in words."""

    name: str
    steering: Steering
    words: str


def joined(parts: Sequence[Part], order: Sequence[int] | None = None, factor: float = 1.0) -> Steering:
    """The sum in an order, each at its strength times a factor. Raises `ArtefactError` where they can't be added."""
    chosen = [parts[i] for i in order] if order is not None else list(parts)
    if not chosen:
        raise ConfigError("there is nothing to put together; give at least two steerings.")
    return reduce(lambda a, b: a + b, [p.steering.scaled(factor * p.strength) for p in chosen])


def overlap(a: Steering, b: Steering) -> float | None:
    """The largest cosine (with its sign for two directions) between what two steerings write at a site that both act on."""
    found: list[float] = []
    for i in a.interventions:
        for j in b.interventions:
            if i.site == j.site and (x := written(i.edit)) is not None and (y := written(j.edit)) is not None:
                cosines = x @ y.T
                both = isinstance(i.edit, Shift) and isinstance(j.edit, Shift)
                signs = _sign(i) * _sign(j)
                found.append(signs * float(cosines[0, 0]) if both else float(torch.linalg.matrix_norm(cosines, 2)))
    return max(found, key=abs, default=None)


def written(edit: Edit) -> Float[Tensor, "r d"] | None:
    """Orthonormal rows that span what an edit writes; None where that isn't a few directions."""
    if isinstance(edit, Shift):
        size = edit.v.norm()
        return (edit.v / size)[None] if float(size) > 0 else None
    return edit.q if isinstance(edit, Clamp | Ablate) else None


def orthogonal(parts: Sequence[Part]) -> tuple[Steering, str] | None:
    """The sum with overlaps taken out, and what was done in words; None where there was nothing to take out."""
    whole = joined(parts)
    kept: list[Intervention] = []
    words: list[str] = []
    for group in _groups(whole):
        first = group[0]
        made = None if len(group) < 2 else _clamped(group) if type(first.edit) is Clamp else _shifted(group)
        if made is None:
            kept += group
            continue
        interventions, condition = made
        kind = "clamps made one" if len(interventions) == 1 else "shifts made dual"
        if condition > WORST:
            words.append(
                f"{len(group)} edits at {first.site} are left as they are: nearly collinear (condition {condition:.0f})"
            )
            kept += group
        else:
            words.append(f"{len(group)} {kind} at {first.site} (condition {condition:.1f})")
            kept += interventions
    if not any("made" in line for line in words):
        return None
    return replace(whole, interventions=tuple(kept)), "; ".join(words)


def pushed(parts: Sequence[Part]) -> tuple[Steering, str] | None:
    """The sum with every clamp a `Push`, what is taken away first, and what was done; None where there is no clamp."""
    clamps = sum(type(i.edit) is Clamp for p in parts for i in p.steering.interventions)
    if not clamps:
        return None
    served = [
        replace(p, steering=p.steering.one_sided())
        if any(type(i.edit) is Clamp for i in p.steering.interventions)
        else p
        for p in parts
    ]
    order = sorted(range(len(parts)), key=lambda i: parts[i].direction == "elicit")  # stable
    first = [parts[i].name for i in order if parts[i].direction != "elicit"]
    words = f"{clamps} clamps move towards their pole and never back"
    if order != list(range(len(parts))):
        words += f"; first what is taken away: {', '.join(first)}"
    return joined(served, order), words


def commute(a: Steering, b: Steering) -> bool:
    """Whether it doesn't matter which comes first: no site that both write, or shifts alone there."""
    return not any(
        i.site == j.site and not (isinstance(i.edit, Shift) and isinstance(j.edit, Shift))
        for i in a.interventions
        for j in b.interventions
    )


def _groups(whole: Steering) -> list[list[Intervention]]:
    """Interventions that can be made one: of a kind, at one site and positions, at constant strength; others alone."""
    found: list[list[Intervention]] = []
    for one in whole.interventions:
        fits = isinstance(one.control, Constant) and type(one.edit) in (Shift, Clamp)
        mine = next(
            (
                g for g in found
                if fits and g[0].site == one.site and g[0].positions == one.positions
                and type(g[0].edit) is type(one.edit) and isinstance(g[0].control, Constant)
            ),
            None,
        )  # fmt: skip
        found.append([one]) if mine is None else mine.append(one)
    return found


def _shifted(group: Sequence[Intervention]) -> tuple[list[Intervention], float]:
    """The dual shifts, each with its own strength."""
    rows = torch.stack([i.edit.v for i in group if isinstance(i.edit, Shift)]).double()
    sizes = rows.norm(dim=1, keepdim=True).clamp_min(SAME)
    unit = rows / sizes
    gram = unit @ unit.T
    dual = torch.linalg.lstsq(gram, unit).solution * sizes
    made = [replace(i, edit=Shift(v.float())) for i, v in zip(group, dual, strict=True)]
    return made, float(torch.linalg.cond(gram))


def _clamped(group: Sequence[Intervention]) -> tuple[list[Intervention], float] | None:
    """One clamp on the span of all; None where one of them only goes part of the way, which no pole can say."""
    strengths = [i.control.value for i in group if isinstance(i.control, Constant)]
    if len(strengths) < len(group) or any(abs(s) < 1 - SAME for s in strengths):
        return None
    edits = [i.edit for i in group if isinstance(i.edit, Clamp)]
    stacked = torch.cat([e.q for e in edits]).double()
    nothing = [torch.zeros_like(e.positive) for e in edits]
    goals = [
        [e.target(zero, torch.full_like(zero, way * s)) for e, zero, s in zip(edits, nothing, strengths, strict=True)]
        for way in (1, -1)
    ]
    left, sizes, basis = torch.linalg.svd(stacked, full_matrices=False)
    if len(stacked) > stacked.shape[1] or float(sizes[-1]) < SAME:
        return None
    positive, negative = ((left.T @ torch.cat(g).double()) / sizes for g in goals)
    joint = Clamp(basis.float(), positive.float(), negative.float())
    return [replace(group[0], edit=joint, control=Constant(1.0))], float(sizes[0] / sizes[-1])


def _sign(intervention: Intervention) -> float:
    control = intervention.control
    return -1.0 if isinstance(control, Constant) and control.value < 0 else 1.0
