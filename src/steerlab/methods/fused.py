"""Objectives from what the output head reads, a few tokens at a time: values and their gradient in one go.

A chunk of tokens goes through the head, its objective and the objective's own derivative while its scores are at hand;
what is kept is one value and one gradient row per token. So memory is a chunk times the vocabulary, whatever the number
of tokens, and the backward pass is a product. Equal to the objectives of `objectives` on whole scores.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..engines.head import Head
from . import objectives

if TYPE_CHECKING:
    from jaxtyping import Float, Int

AT_ONCE = 2**21  # scores in a chunk
NEAR = 2**17  # of them, those that stay in a processor's cache while an objective goes over them


class Told(NamedTuple):
    """An objective of a chunk: each token's value, and the derivative of each in its own scores (None: not asked)."""

    value: Float[Tensor, " n"]
    gradient: Float[Tensor, "n v"] | None


class Objective(ABC):
    """What each answer token costs, from its scores."""

    @abstractmethod
    def told(self, scores: Float[Tensor, "n v"], here: slice, derive: bool) -> Told:
        """Of a chunk's scores: `here` says which tokens they are. May overwrite nothing."""

    @abstractmethod
    def plain(self, scores: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
        """The definition: of all scores at once, differentiable by autograd."""


def fused(hidden: Float[Tensor, "n d"], head: Head, objective: Objective) -> Float[Tensor, " n"]:
    """The objective of each token, differentiable once in `hidden`."""
    found: Tensor = _Fused.apply(hidden, head, objective)  # pyright: ignore[reportAssignmentType, reportUnknownMemberType]
    return found


def chunk(head: Head) -> int:
    """Tokens whose scores are held at once."""
    return max(32, AT_ONCE // head.vocabulary)  # fewer would read a large head anew too often


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, objective: Objective) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted, size = ctx.needs_input_grad[0], chunk(head)
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradients = torch.empty_like(hidden) if wanted else None
        for at in range(0, len(hidden), size):
            end = min(at + size, len(hidden))
            raw = head.raw(hidden[at:end])
            few = max(1, NEAR // head.vocabulary) if raw.device.type == "cpu" else size
            for first in range(at, end, few):
                here = slice(first, min(first + few, end))
                mine = raw[first - at : here.stop - at]
                scores = head.shaped(mine)
                told = objective.told(scores, here, wanted)
                values[here] = told.value
                if told.gradient is not None:
                    mine.copy_(head.straight(told.gradient, scores))
            if gradients is not None:
                gradients[at:end] = head.back(raw)
        ctx.save_for_backward(gradients)
        return values

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradients,) = ctx.saved_tensors
        return (given[:, None] * gradients).to(gradients.dtype), None, None


class Softmax(NamedTuple):
    """Probabilities and their logarithms."""

    p: Float[Tensor, "n v"]
    log: Float[Tensor, "n v"]

    @classmethod
    def of(cls, scores: Float[Tensor, "n v"]) -> Softmax:
        log = torch.log_softmax(scores, dim=-1)
        return cls(log.exp(), log)


LogProbs = Callable[[slice], Tensor]  # of some of the tokens


@dataclass(frozen=True)
class JensenShannon(Objective):
    """½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2; its derivative in p's scores is ½ p (a − p·a), a = log p − log m.

    That is next to nothing where p and q share no token: the value is at its bound ln 2, and flat. Tokens whose value is
    above `flat` get the derivative of KL(q‖p) instead, p − q, which shows the way from there.
    """

    target: LogProbs
    flat: float = math.inf

    def told(self, scores: Tensor, here: slice, derive: bool) -> Told:
        p, log_q = Softmax.of(scores), self.target(here)
        q = log_q.exp()
        m = (p.p + q).clamp_min_(1e-38).log_().sub_(math.log(2))
        a = p.log.sub_(m)
        mine = _sums(p.p, a)
        value = 0.5 * (mine + _sums(q, log_q - m))
        if not derive:
            return Told(value, None)
        gradient = a.sub_(mine[:, None]).mul_(p.p).mul_(0.5)
        if bool((lost := value > self.flat).any()):
            gradient[lost] = p.p[lost] - q[lost]
        return Told(value, gradient)

    def plain(self, scores: Tensor) -> Tensor:
        target = self.target(slice(None))
        value, way = objectives.jensen_shannon(scores, target), objectives.kl(target, scores)
        return torch.where(value > self.flat, value.detach() + way - way.detach(), value)


@dataclass(frozen=True)
class KL(Objective):
    """KL(target‖p), the derivative p − q; with `reverse` KL(p‖target), the derivative p (a − p·a), a = log p − log q."""

    target: LogProbs
    reverse: bool = False

    def told(self, scores: Tensor, here: slice, derive: bool) -> Told:
        p, log_q = Softmax.of(scores), self.target(here)
        if not self.reverse:
            q = log_q.exp()
            return Told(_sums(q, log_q - p.log), p.p.sub_(q) if derive else None)
        a = p.log.sub_(log_q)
        value = _sums(p.p, a)
        return Told(value, a.sub_(value[:, None]).mul_(p.p) if derive else None)

    def plain(self, scores: Tensor) -> Tensor:
        target = self.target(slice(None))
        return objectives.kl(scores, target) if self.reverse else objectives.kl(target, scores)


def _sums(a: Float[Tensor, "n v"], b: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """Each row's inner product, without the products in memory."""
    return torch.bmm(a[:, None], b[:, :, None])[:, 0, 0]


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """−log p(token); the derivative p − 1 at the token."""

    tokens: Int[Tensor, " n"]

    def told(self, scores: Tensor, here: slice, derive: bool) -> Told:
        p = Softmax.of(scores)
        mine = self.tokens[here, None].to(scores.device)
        value = -p.log.gather(1, mine)[:, 0]
        return Told(value, p.p.scatter_add_(1, mine, torch.full_like(mine, -1.0, dtype=p.p.dtype)) if derive else None)

    def plain(self, scores: Tensor) -> Tensor:
        return objectives.cross_entropy(scores, self.tokens.to(scores.device))
