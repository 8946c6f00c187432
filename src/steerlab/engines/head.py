"""The output head as a function, so that a loss can take it a few tokens at a time and never hold all scores at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Head:
    """scores = softcap·tanh(scale·(hidden·weightᵀ + bias)/softcap); without `softcap`, scale·(hidden·weightᵀ + bias).

    Runs in the model's dtype, as the model itself does; scores are given in float32.
    """

    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Number of scores."""
        return self.weight.shape[0]

    def __call__(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """The scores of these tokens, differentiable in `hidden`."""
        return self.shaped(self.raw(hidden))

    def raw(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """The product with the weight, as a tensor of its own."""
        return linear(hidden, self.weight, self.bias)

    def shaped(self, raw: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """The scores that a product becomes."""
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw.float()

    def straight(self, gradient: Float[Tensor, "n v"], scores: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """The gradient in the product from one in the scores, which it may overwrite."""
        if self.softcap is not None:
            gradient.addcmul_(gradient * scores, scores, value=-1 / self.softcap**2)
        if self.scale != 1.0:
            gradient *= self.scale
        return gradient

    def back(self, gradient: Float[Tensor, "n v"]) -> Float[Tensor, "n d"]:
        """The gradient in `hidden` from one in the product."""
        return gradient.to(self.weight.dtype) @ self.weight
