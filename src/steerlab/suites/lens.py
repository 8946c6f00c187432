"""Lenses: what a block's output would say if the model ended there, as it is (logit lens) or after a trained map (tuned
lens).

The model itself reads the state: a forward pass that begins with it as the last block's output, so that the final norm, the
head and any soft cap are the model's own, whatever its architecture.

nostalgebraist 2020 (logit lens); Belrose et al. 2023 (tuned lens), https://arxiv.org/abs/2303.08112: h + W·h + b with W and
b from zero, trained by KL(final ‖ lens) at the same positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from ..engines.base import Batch, Start, Trainable
from ..sites import Site


def logit_lens(engine: Trainable, states: Tensor) -> Tensor:
    """The scores `[n, v]` that the model would give at states `[n, d]` of any block."""
    with torch.no_grad():
        return _read(engine, states, None)


@dataclass(frozen=True, eq=False)
class TunedLens:
    """h + W·h + b before the model's own reading, for one block."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def start(cls, width: int) -> TunedLens:
        """The logit lens."""
        return cls(torch.zeros(width, width), torch.zeros(width))

    def __call__(self, engine: Trainable, states: Tensor) -> Tensor:
        """The scores `[n, v]` at states `[n, d]`."""
        with torch.no_grad():
            return _read(engine, states, self)

    def moved(self, h: Tensor) -> Tensor:
        """States after the map."""
        return h + h @ self.weight.to(h.device).T + self.bias.to(h.device)


def fit_tuned(
    engine: Trainable,
    states: Tensor,
    final: Tensor,
    *,
    steps: int = 120,
    rows: int = 256,
    rate: float = 2e-3,
    seed: int = 0,
) -> tuple[TunedLens, float, float]:
    """The lens of a block from its states `[n, d]` and those of the last block at the same tokens.

    Returns it with the mean KL in nats before and after. Adam where the reference has SGD with momentum: few tokens, few
    steps.
    """
    generator = torch.Generator().manual_seed(seed)
    lens = TunedLens(
        *(t.requires_grad_() for t in (torch.zeros(states.shape[1], states.shape[1]), torch.zeros(states.shape[1])))
    )
    optimiser = torch.optim.AdamW([lens.weight, lens.bias], lr=rate, weight_decay=1e-3)
    before = _gap(engine, states, final, TunedLens.start(states.shape[1]), rows)
    for step in range(steps):
        pick = torch.randperm(len(states), generator=generator)[:rows]
        target = log_softmax(logit_lens(engine, final[pick]), dim=-1)
        loss = kl_div(
            log_softmax(_read(engine, states[pick], lens), dim=-1), target, reduction="batchmean", log_target=True
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([lens.weight, lens.bias], 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.step()
    done = TunedLens(lens.weight.detach(), lens.bias.detach())
    return done, before, _gap(engine, states, final, done, rows)


def _gap(engine: Trainable, states: Tensor, final: Tensor, lens: TunedLens, rows: int) -> float:
    """The mean KL(final ‖ lens) over the first tokens, in nats."""
    here = slice(0, 4 * rows)
    target = log_softmax(logit_lens(engine, final[here]), dim=-1)
    return float(
        kl_div(log_softmax(lens(engine, states[here]), dim=-1), target, reduction="batchmean", log_target=True)
    )


def _read(engine: Trainable, states: Tensor, lens: TunedLens | None) -> Tensor:
    """The model's scores at states that stand for the last block's output, one row for each."""
    last = Site(engine.depth - 1)
    n = len(states)
    batch = Batch(
        torch.zeros(n, 2, dtype=torch.long), torch.tensor([[0, 1]]).expand(n, 2), torch.ones(n, dtype=torch.long),
        torch.zeros(n, dtype=torch.long),
    )  # fmt: skip
    held = torch.stack([states, states], dim=1).to(engine.device)
    edits = None if lens is None else {last: lens.moved}
    run = engine.resume(batch.to(engine.device), edits, start=Start(engine.depth - 1, held))
    assert run.logits is not None
    return run.logits.cpu()
