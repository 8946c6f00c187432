"""The network of HyperSteer: a small transformer from what a model makes of a description to a vector, as a function.

Its parameters are a mapping of tensors, so that the shared loop trains it and a file holds it as it is. It reads hidden
states of the frozen model, which carry word order already, so it needs no positions of its own; padding is never attended to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

GROWTH = 4  # inner width of a block's MLP over its width


class Shape(NamedTuple):
    """Sizes of the network. Without layers it is the head alone: a linear map of the mean state that is read."""

    inputs: int  # width of what is read
    outputs: int
    layers: int
    heads: int
    width: int
    cross: bool  # whether each block also attends to the prompt's states

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Each parameter's shape, by name."""
        if not self.layers:
            return {"head.weight": (self.outputs, self.inputs), "head.bias": (self.outputs,)}
        w, made = self.width, {"in.weight": (self.width, self.inputs)}
        for n in range(self.layers):
            made |= {f"{n}.self.{part}": (w, w) for part in ("q", "k", "v", "out")}
            if self.cross:
                made |= {f"{n}.cross.q": (w, w), f"{n}.cross.out": (w, w)}
                made |= {f"{n}.cross.{part}": (w, self.inputs) for part in ("k", "v")}
            made |= {f"{n}.up": (GROWTH * w, w), f"{n}.down": (w, GROWTH * w)}
        return made | {"head.weight": (self.outputs, w), "head.bias": (self.outputs,)}


def begun(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Random parameters, with a head of zeros: the first vector is 0, and the model as it was."""
    return {
        name: torch.zeros(size)
        if name.startswith("head.")
        else torch.randn(size, generator=generator) / math.sqrt(size[1] * (2 * shape.layers if "out" in name else 1))
        for name, size in shape.parameters().items()
    }


def written(
    free: Mapping[str, Tensor],
    shape: Shape,
    states: Sequence[Float[Tensor, "k d"]],
    context: Sequence[Float[Tensor, "c d"]] | None = None,
) -> Float[Tensor, "n outputs"]:
    """A vector for each description: what the head makes of the last token's state after all blocks."""
    x, real = padded(states)
    if not shape.layers:
        return _head(free, x.sum(dim=1) / real.sum(dim=1, keepdim=True))
    other, there = padded(context or states)
    x = linear(x, free["in.weight"])
    for n in range(shape.layers):
        x = x + _attended(free, f"{n}.self", normed(x), normed(x), real, shape.heads)
        if shape.cross:
            x = x + _attended(free, f"{n}.cross", normed(x), other, there, shape.heads)
        x = x + linear(gelu(linear(normed(x), free[f"{n}.up"])), free[f"{n}.down"])
    last = x[torch.arange(len(x)), real.sum(dim=1) - 1]
    return _head(free, normed(last))


def _head(free: Mapping[str, Tensor], z: Float[Tensor, "n w"]) -> Float[Tensor, "n outputs"]:
    """A linear map of z/√w: one step of Adam, which is as long for each weight, moves what all concepts share and what each
    has of its own about alike. Without the root the shares of w inputs add up, and what is learned is the batch's concepts."""
    return linear(z / math.sqrt(z.shape[-1]), free["head.weight"], free["head.bias"])


def padded(states: Sequence[Float[Tensor, "k d"]]) -> tuple[Float[Tensor, "n k d"], Bool[Tensor, "n k"]]:
    """States one below the other, filled up with zeros on the right, and where they are real."""
    length = max(len(s) for s in states)
    x = torch.stack([pad(s, (0, 0, 0, length - len(s))) for s in states])
    lengths = torch.tensor([len(s) for s in states], device=x.device)
    return x, torch.arange(length, device=x.device) < lengths[:, None]


def normed(x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n w"]:
    """x over its root mean square."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


def _attended(
    free: Mapping[str, Tensor], name: str, asks: Tensor, holds: Tensor, real: Bool[Tensor, "n c"], heads: int
) -> Tensor:
    """Attention of one sequence `[n, k, w]` to the real states of another `[n, c, d]`."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (split(linear(x, free[f"{name}.{part}"])) for part, x in (("q", asks), ("k", holds), ("v", holds)))
    found = scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
    return linear(found.transpose(1, 2).flatten(-2), free[f"{name}.out"])
