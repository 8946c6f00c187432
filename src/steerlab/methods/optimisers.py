"""Optimisers of free parameters by name: Adam in a flat space, and on the geometry of an orthonormal basis.

Whoever holds an orthonormal basis leaves it orthonormal after every step, so that no loop has to restore anything.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

Decay = Literal["linear", "cosine", "none"]


class Optimiser(ABC):
    """Holds free parameters and moves them along gradients."""

    free: Mapping[str, Tensor]

    @abstractmethod
    def move(self, gradients: Mapping[str, Tensor]) -> None:
        """One step against the gradients."""


class Several(Optimiser):
    """Each parameter by an optimiser of its own."""

    def __init__(self, *parts: Optimiser) -> None:
        self._parts = parts

    @property
    def free(self) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {name: value for part in self._parts for name, value in part.free.items()}

    def move(self, gradients: Mapping[str, Tensor]) -> None:
        for part in self._parts:
            part.move({name: gradients[name] for name in part.free})


class Adam(Optimiser):
    """Adam (AdamW where `weight_decay`), gradients clipped at a norm, the step decayed to 0 after a linear warm-up."""

    def __init__(
        self,
        free: Mapping[str, Tensor],
        *,
        step: float,
        steps: int,
        decay: Decay = "linear",
        warmup: float = 0.0,
        clip: float | None = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self._leaves = {name: t.detach().clone().requires_grad_() for name, t in free.items()}
        self._adam = torch.optim.AdamW(self._leaves.values(), lr=step, betas=betas, weight_decay=weight_decay)
        self._step, self._steps, self._warm = step, max(steps, 1), int(warmup * steps)
        self._decay: Decay = decay
        self._clip, self._done = clip, 0

    @property
    def free(self) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {name: t.detach() for name, t in self._leaves.items()}

    def move(self, gradients: Mapping[str, Tensor]) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self._step * self._rate()
        self._done += 1
        for name, leaf in self._leaves.items():
            leaf.grad = gradients[name].clone()
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._leaves.values(), self._clip)
        self._adam.step()

    def change(self, how: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
        """Put the parameters elsewhere, as a proximal step does."""
        with torch.no_grad():
            for name, value in how({n: t.detach().clone() for n, t in self._leaves.items()}).items():
                self._leaves[name].copy_(value)

    def _rate(self) -> float:
        if self._done < self._warm:
            return (self._done + 1) / self._warm
        gone = min((self._done - self._warm) / max(self._steps - self._warm, 1), 1.0)
        return {"linear": 1 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone)), "none": 1.0}[self._decay]


class OnSphere(Optimiser):
    """A basis q [r, d] by momentum in the tangent space, one second moment for all, a step along the sphere, cosine decay.

    g ← ∇ − (∇·qᵀ)q; m ← .9m + .1g; v ← .95v + .05‖g‖²; u = m̂/√v̂; q turns by η_t‖u‖ against u. `step` η is an
    angle in radians. For rank r the turned rows are made orthonormal again by QR.
    """

    def __init__(self, start: Float[Tensor, "r d"], *, step: float, steps: int, name: str = "q") -> None:
        self._q, self._name = orthonormal(start), name
        self._step, self._steps, self._done = step, max(steps, 1), 0
        self._m = torch.zeros_like(self._q)
        self._v = 0.0

    @property
    def free(self) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {self._name: self._q}

    def move(self, gradients: Mapping[str, Tensor]) -> None:
        gradient, q = gradients[self._name], self._q
        g = gradient - (gradient @ q.T) @ q
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
        self._q = orthonormal(math.cos(angle) * q - math.sin(angle) * u / length)
        self._m = self._m - (self._m @ self._q.T) @ self._q


class Renormalised(Optimiser):
    """A basis q [r, d] by the published loop: Adam in the ambient space, clipped at norm 1, linear decay, renormalised.

    Rank 1 is exactly that. At a higher rank the published code renormalises each row alone, which is no interchange any
    more; here the rows are made orthonormal. With `tangent` the gradient's part along q is taken out first.
    """

    def __init__(
        self, start: Float[Tensor, "r d"], *, step: float, steps: int, tangent: bool = False, name: str = "q"
    ) -> None:
        self._w = orthonormal(start).requires_grad_()
        self._name, self._tangent = name, tangent
        self._adam = torch.optim.AdamW([self._w], lr=step, weight_decay=0.0)
        self._step, self._steps, self._done = step, max(steps, 1), 0

    @property
    def free(self) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {self._name: self._w.detach().clone()}

    def move(self, gradients: Mapping[str, Tensor]) -> None:
        gradient, q = gradients[self._name], self._w.detach()
        if self._tangent:
            gradient = gradient - (gradient @ q.T) @ q
        for group in self._adam.param_groups:
            group["lr"] = self._step * max(0.0, 1 - self._done / self._steps)
        self._done += 1
        self._w.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([self._w], 1.0)
        self._adam.step()
        with torch.no_grad():
            self._w.copy_(orthonormal(self._w))


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """The nearest rows in order that are orthonormal: the first keeps its direction, each next loses what it shares."""
    rows = rows.detach().double()
    if rows.shape[0] == 1:
        return (rows / rows.norm()).float()
    q, r = torch.linalg.qr(rows.T)
    return (q * torch.sign(torch.diagonal(r))).T.contiguous().float()
