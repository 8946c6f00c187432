"""How near a post-block adapter comes to the weight update that it stands for (arXiv 2603.00425). `make bench-weights`.

To first order, fine-tuning a block shifts its output by a function of the activation. One block of the pilot is fine-tuned
(`sft`, every matrix of that block) on a behaviour; its shift δh = h_tuned − h of the block's output is read at the tokens of
held-out examples; and what could stand for it is fitted to δh on the training examples: a constant (a steering vector), a
linear map of rank r (reduced-rank regression with a constant: the optimum), and the post-block adapter φ(h·downᵀ)·up of rank
r. Told are, on held-out examples: the share of ‖δh‖² that is left, and KL(tuned ‖ stand-in) of the answers' tokens as a share
of KL(tuned ‖ untouched). 0 is the weight update itself, 1 is nothing. Ends with `bar NAME VALUE` lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

import steerlab as sl
from steerlab.edits import Adapter, Affine, Edit, Shift
from steerlab.methods.objectives import kl
from steerlab.methods.sft import SFT
from steerlab.methods.vectors import elicited
from steerlab.progress import shown

RANKS = (1, 4, 8, 16, 32)


def shifts(engine, examples: Sequence[sl.Example], site: sl.Site, tuned: sl.Steering) -> tuple[Tensor, Tensor]:
    """The block's untouched outputs `[n, d]` and what fine-tuning adds to each: what reaches the block is the same."""
    plain, moved = (engine.capture(examples, [site], sl.ALL, s)[site].values for s in (None, tuned))
    return plain, moved - plain


def linear(h: Tensor, shift: Tensor, rank: int) -> Affine:
    """The rank-r linear map and constant with the least squared error (reduced-rank regression, a little ridge)."""
    mean, gap = h.double().mean(dim=0), shift.double().mean(dim=0)
    x, y = h.double() - mean, shift.double() - gap
    gram = x.T @ x
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)).double()
    whole = torch.linalg.solve(gram, x.T @ y)
    _, _, right = torch.linalg.svd(x @ whole, full_matrices=False)
    up = right[:rank]
    down = (whole @ up.T).T
    return Affine((gap - (mean @ down.T) @ up).float(), None, down.float(), up.float())


def adapter(h: Tensor, shift: Tensor, rank: int, steps: int) -> Adapter:
    """The post-block adapter, by Adam on the squared error over batches of tokens; activations are scaled to train."""
    generator = torch.Generator().manual_seed(0)
    scale = float(h.square().mean().sqrt())
    down = (torch.randn(rank, h.shape[1], generator=generator) / h.shape[1] ** 0.5).requires_grad_()
    up = torch.zeros(rank, h.shape[1]).requires_grad_()
    adam = torch.optim.Adam([down, up], lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        pick = torch.randint(len(h), (512,), generator=generator)
        loss = (torch.nn.functional.silu(h[pick] / scale @ down.T) @ up - shift[pick]).square().sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    return Adapter(down.detach() / scale, up.detach(), "silu")


def apart(engine, examples: Sequence[sl.Example], tuned: sl.Steering, other: sl.Steering | None) -> float:
    """KL(tuned ‖ other) over the answers' tokens, in nats."""
    pairs = zip(engine.logits(examples, tuned), engine.logits(examples, other), strict=True)
    return float(torch.cat([kl(a, b) for a, b in pairs]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pirate")
    parser.add_argument("--block", type=int, default=None, help="default: the block at half the depth")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--step", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=600, help="of an adapter's fit")
    asked = parser.parse_args()
    with shown():
        engine = sl.load("pilot")
        block = engine.depth // 2 if asked.block is None else asked.block
        data = sl.read_data(f"pilot:{asked.task}", n=asked.pairs + asked.pairs // 2, seed=0)
        examples = [elicited(pair) for pair in data.pairs]
        train, test = examples[: asked.pairs], examples[asked.pairs :]
        first = sl.Contrast(data.positive[: asked.pairs], data.negative[: asked.pairs], paired=True, concept=asked.task)
        tuned = SFT(site=str(block), epochs=asked.epochs, step=asked.step).fit(engine, first)
        site = sl.Site(block)
        (h, shift), (h_test, shift_test) = (shifts(engine, part, site, tuned) for part in (train, test))
        stand_ins: dict[str, Edit] = {"constant": Shift(shift.mean(dim=0))}
        for rank in RANKS:
            stand_ins[f"linear, rank {rank}"] = linear(h, shift, rank)
            stand_ins[f"adapter, rank {rank}"] = adapter(h, shift, rank, asked.steps)
        whole, size = apart(engine, test, tuned, None), float(shift_test.square().sum())
        trained = tuned.meta.figures["trained_numbers"]
        print(
            f"{asked.task}, block {block} of {engine.depth}: {trained} numbers of sft; {len(h)} tokens to fit on, {len(h_test)} held out"
        )
        print(
            f"‖δh‖ / ‖h‖ = {float((shift_test.norm(dim=1) / h_test.norm(dim=1)).mean()):.3f}; KL(tuned ‖ untouched) = {whole:.4f} nats"
        )
        for name, edit in stand_ins.items():
            left = float((edit(h_test, 1.0) - h_test - shift_test).square().sum()) / size
            steering = sl.Steering((sl.Intervention(site, edit, sl.ALL),))
            share = apart(engine, test, tuned, steering) / whole
            print(f"{name:18} δh left {left:.3f}   KL left {share:.3f}", flush=True)
            print(f"bar {name.replace(', rank ', '_').replace(' ', '_')}_kl_left {share:.3f}")


if __name__ == "__main__":
    main()
