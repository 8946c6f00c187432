"""Optimisers for an orthonormal basis q [r, d]: on its own geometry, and the published loop for reproduction.

Both leave q orthonormal after every step, so that no loop has to restore anything.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


class Optimiser(ABC):
    """Holds q and moves it along gradients, `steps` times in all."""

    def __init__(self, start: Float[Tensor, "r d"], *, step: float, steps: int) -> None:
        self.q = orthonormal(start)
        self._step, self._steps, self._done = step, max(steps, 1), 0

    @abstractmethod
    def move(self, gradient: Float[Tensor, "r d"]) -> None:
        """One step against the gradient; q stays orthonormal."""


class OnSphere(Optimiser):
    """Momentum in the tangent space, one second moment for all, a step along the sphere, cosine decay.

    g ← ∇ − (∇·qᵀ)q; m ← .9m + .1g; v ← .95v + .05‖g‖²; u = m̂/√v̂; q turns by η_t‖u‖ against u. `step` η is an
    angle in radians. For rank r the turned rows are made orthonormal again by QR.
    """

    def __init__(self, start: Tensor, *, step: float, steps: int) -> None:
        super().__init__(start, step=step, steps=steps)
        self._m = torch.zeros_like(self.q)
        self._v = 0.0

    def move(self, gradient: Tensor) -> None:
        g = gradient - (gradient @ self.q.T) @ self.q
        self._done += 1
        t = self._done
        self._m = 0.9 * self._m + 0.1 * g
        self._v = 0.95 * self._v + 0.05 * float(g.square().sum())
        u = (self._m / (1 - 0.9**t)) / math.sqrt(max(self._v / (1 - 0.95**t), 1e-30))
        length = float(u.norm())
        if length == 0:
            return
        rate = self._step * 0.5 * (1 + math.cos(math.pi * (t - 1) / self._steps))
        angle = min(rate * length, math.pi / 2)
        self.q = orthonormal(math.cos(angle) * self.q - math.sin(angle) * u / length)
        self._m = self._m - (self._m @ self.q.T) @ self.q


class Published(Optimiser):
    """The published loop: AdamW without decay in the ambient space, clipping at norm 1, linear decay to 0, renormalise.

    Rank 1 is exactly that. At a higher rank the published code renormalises each row alone, which is no interchange any
    more; here the rows are made orthonormal.
    """

    def __init__(self, start: Tensor, *, step: float, steps: int) -> None:
        super().__init__(start, step=step, steps=steps)
        self._w = self.q.clone().requires_grad_(True)
        self._adam = torch.optim.AdamW([self._w], lr=step, weight_decay=0.0)

    def move(self, gradient: Tensor) -> None:
        rate = self._step * max(0.0, 1 - self._done / self._steps)
        self._done += 1
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._w.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([self._w], 1.0)
        self._adam.step()
        with torch.no_grad():
            self._w.copy_(orthonormal(self._w))
        self.q = self._w.detach().clone()


class Moved:
    """How far two poles have moved in each coordinate, by Adam with cosine decay; in distances between the classes."""

    def __init__(self, rank: int, *, steps: int, step: float = 0.03) -> None:
        self.values = torch.zeros(2, rank, requires_grad=True)
        self._adam = torch.optim.Adam([self.values], lr=step)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._adam, max(steps, 1))

    def move(self, gradient: Float[Tensor, "2 r"]) -> None:
        """One step against the gradient."""
        self.values.grad = gradient.clone()
        self._adam.step()
        self._schedule.step()


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """The nearest rows in order that are orthonormal: the first keeps its direction, each next loses what it shares."""
    rows = rows.detach().double()
    if rows.shape[0] == 1:
        return (rows / rows.norm()).float()
    q, r = torch.linalg.qr(rows.T)
    return (q * torch.sign(torch.diagonal(r))).T.contiguous().float()
