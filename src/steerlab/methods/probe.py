"""The normal of a logistic probe (ITI, arXiv 2306.03341; the probe of AxBench, arXiv 2501.17148).

Standardised activations, ridge chosen on a held-out fifth (the strongest of those with the best accuracy), refitted on
all rows; the weight is folded back to raw activations. Its length is the gap between the class means along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import softplus

from ..edits import Shift
from ..errors import DataError
from .base import FromActivations, along

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Probe(FromActivations):
    """Add the direction that a linear classifier reads."""

    symmetric: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2306.03341"
    ridges: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    held_out: float = 0.2

    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Shift:
        weight, _, _ = fit_probe(positive, negative, self.ridges, self.held_out, self.seed)
        return Shift(along(weight, positive, negative))


def fit_probe(
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "m d"],
    ridges: Sequence[float],
    held_out: float,
    seed: int,
    calibrated: bool = False,
) -> tuple[Float[Tensor, " d"], float, float]:
    """Weight and bias of the classes' log-odds in raw activations, and the accuracy on held-out rows of the ridge chosen.

    Standardised on the rows that are fitted on, refitted on all with the ridge of the best held-out accuracy. Ties go to
    the strongest, which is best for a direction; where its probabilities count (`calibrated`), to the likeliest: of classes
    that are told apart by every ridge the strongest says of each row that it is hardly likelier one than the other.
    Raises `DataError` for fewer than four rows of a class.
    """
    if min(len(positive), len(negative)) < 4:
        raise DataError(
            f"a probe needs at least 4 rows of each class to choose its ridge; got {len(positive)} and {len(negative)}."
        )
    x = torch.cat([positive, negative]).double()
    y = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double()
    train, test = split_rows(len(positive), len(negative), held_out, seed)
    centre, spread = x[train].mean(dim=0), x[train].std(dim=0)
    spread = torch.where(spread > 1e-8, spread, torch.ones_like(spread))
    z = (x - centre) / spread
    best, chosen = (-1.0, -math.inf), ridges[0]
    for ridge in sorted(ridges, reverse=True):
        weight, bias = fit_logistic(z[train], y[train], ridge)
        margins = (z[test] @ weight + bias) * y[test]
        accuracy = float((margins > 0).double().mean())
        found = (round(accuracy, 9), -float(softplus(-margins).mean()) if calibrated else 0.0)
        if found > best:
            best, chosen = found, ridge
    weight, bias = fit_logistic(z, y, chosen)
    raw = weight / spread
    return raw.float(), float(bias - raw @ centre), best[0]


def split_rows(n: int, m: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit and rows to choose on, the same share of each class, drawn alike for both."""
    parts: list[tuple[Tensor, Tensor]] = []
    for size, offset in ((n, 0), (m, n)):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)) + offset
        cut = max(1, round(size * held_out))
        parts.append((order[cut:], order[:cut]))
    return torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]])


def fit_logistic(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight and bias that minimise the mean of log(1 + exp(−y·(x·w + b))) + ridge/2·‖w‖², y in {−1, 1}."""
    weight = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = softplus(-y * (x @ weight + bias)).mean() + ridge / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()
