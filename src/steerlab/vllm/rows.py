"""What a token's row of the tables says at one block: every edit that acts there, folded into one form.

With x the block's output, c_j = start_j + down_j·x + Σ_i<j coupling_ji·f_i and f_j = c_j, or 0 where side_j·c_j < 0:

    x + diag⊙x + bias + Σ_j f_j·up_j

An affine edit is folded in without any further rank where it can be (its coordinates of what stood before are worked into bias
and up); a Push, which isn't affine, has a side. Edits at one block act in list order, and the order is kept exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..controls import Constant, Gate
from ..deltas import WeightEdit
from ..edits import Edit, Push
from ..steering import Intervention

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass
class Line:
    """One direction that is read and one that is written: the number read is `start` + `down`·x, and couples to earlier ones."""

    down: Float[Tensor, " d"]
    up: Float[Tensor, " d"]
    start: float = 0.0
    side: float = 0.0
    coupling: dict[int, float] = field(default_factory=dict[int, float])


@dataclass
class Row:
    """All that is done to a token at one block, in double precision."""

    width: int
    bias: Float[Tensor, " d"] | None = None
    diag: Float[Tensor, " d"] | None = None
    lines: list[Line] = field(default_factory=list[Line])

    @classmethod
    def of(cls, width: int, interventions: Sequence[Intervention]) -> Row:
        """The row of interventions at one block, in the order given."""
        row = cls(width)
        for i in interventions:
            row.then(i.edit, _strength(i))
        return row

    @property
    def coupled(self) -> bool:
        """Whether a line reads what an earlier one has written."""
        return any(line.coupling for line in self.lines)

    def then(self, edit: Edit, strength: float) -> None:
        """Do one edit more, after what is there."""
        if strength == 0:
            return
        if isinstance(edit, Push):
            self._push(edit, strength)
            return
        form = edit.affine(strength)
        assert form is not None, "what has no normal form is refused before"
        if form.down is not None and form.up is not None:
            added = [self._line(down.double(), up.double()) for down, up in zip(form.down, form.up, strict=True)]
        else:
            added = []
        if form.diag is not None:
            self._scale(form.diag.double())
        if form.bias is not None:
            self._add(form.bias.double())
        for _, bias, ups in added:
            self._add(bias)
            for earlier, up in zip(self.lines, ups, strict=True):
                earlier.up = earlier.up + up
        self.lines += [line for line, _, _ in added]

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The formula above, plainly, in the dtype of x."""
        out = x if self.diag is None else x + x * self.diag.to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        found: list[Tensor] = []
        for line in self.lines:
            c = line.start + x @ line.down.to(x.dtype)
            for i, weight in line.coupling.items():
                c = c + weight * found[i]
            found.append(torch.where(line.side * c < 0, 0.0, c))
            out = out + found[-1][..., None] * line.up.to(x.dtype)
        return out

    def _line(self, down: Tensor, up: Tensor) -> tuple[Line, Tensor, list[Tensor]]:
        """down·x′ of what stands now: a line that reads x, what it adds to the bias, and to each earlier line's up."""
        reads = down if self.diag is None else down * (1 + self.diag)
        at = 0.0 if self.bias is None else float(down @ self.bias)
        return Line(reads, up), at * up, [float(down @ earlier.up) * up for earlier in self.lines]

    def _scale(self, diag: Tensor) -> None:
        self.diag = diag if self.diag is None else self.diag + diag + self.diag * diag
        if self.bias is not None:
            self.bias = self.bias + self.bias * diag
        for line in self.lines:
            line.up = line.up + line.up * diag

    def _add(self, bias: Tensor) -> None:
        self.bias = bias if self.bias is None else self.bias + bias

    def _push(self, edit: Push, strength: float) -> None:
        """c = target(a) − a along each direction, kept where it goes towards the pole."""
        s = torch.tensor(strength, dtype=torch.float32)
        zero, q = torch.zeros_like(edit.positive), edit.q.double()
        goal = super(Push, edit).target(zero, s.expand_as(zero)).double()
        moves, away = -min(abs(strength), 1.0), torch.sign(edit.positive - edit.negative) * torch.sign(s)
        lines: list[Line] = []
        for j in range(len(q)):
            down = moves * q[j]
            start = float(goal[j]) + (0.0 if self.bias is None else float(down @ self.bias))
            coupling = {i: w for i, line in enumerate(self.lines) if abs(w := float(down @ line.up)) > 0}
            side = float(away[j])
            if side == 0.0:
                continue  # its two poles are one, and it moves nothing
            lines.append(Line(down if self.diag is None else down * (1 + self.diag), q[j], start, side, coupling))
        self.lines += lines


def refused(i: Intervention) -> str | None:
    """Why an intervention can't be put into a row, in words, or None."""
    if i.site.part != "resid":
        return f"it acts at {i.site}, and vLLM is steered at block outputs (resid@0, resid@1, …) alone"
    if isinstance(i.edit, WeightEdit):
        return f"{i.edit.kind} changes weights, and vLLM is steered at block outputs alone"
    if not isinstance(i.control, (Constant, Gate)):
        return f"its {i.control.kind} at {i.site} says how strongly by what the model computes; here a gate can, open or closed"
    if isinstance(i.control, Gate):
        if i.control.ahead:
            return (
                f"its gate at {i.site} decides ahead, by a pass of its own, and vLLM makes none; fit it held (at the last prompt"
                " token) or for each token"
            )
        if i.control.site.part != "resid":
            return f"its gate reads {i.control.site}, and vLLM is read at block outputs (resid@0, resid@1, …) alone"
    if not isinstance(i.edit, Push) and _form_missing(i.edit, i.control.value):
        return f"{i.edit.kind} at {i.site} is not affine at a strength, so it can't be put into a table"
    return None


def _form_missing(edit: Edit, strength: float) -> bool:
    return edit.affine(strength) is None


def _strength(i: Intervention) -> float:
    assert isinstance(i.control, (Constant, Gate)), "another control is refused before"
    return i.control.value  # of a gate: where it is open
