"""The published training loops, transcribed: what they run, in the order in which they run it.

Sources: colored-dye/concept_das @21a4c9b (`cdas/models/cdas_model.py`, `interventions.py`) for CDAS, and stanfordnlp/axbench
(`models/lsreft.py`, `models/preference_model.py`, `models/sv.py`) for the others. Each step of CDAS runs the source twice (once
to read its activation, as pyvene does, once for its logits) and the base once, all with every logit in float32, and takes
the divergence from whole tensors. Data order, start, number of steps and arithmetic are those of `steerlab.methods`, so that
results can be held equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Rows = list[tuple[list[int], int]]  # token ids, and how many of them are the prompt's


class Loop:
    """A frozen model, and a hook on one block's output."""

    def __init__(self, model: nn.Module, block: nn.Module, head: int) -> None:
        self.model, self.block, self.head = model, block, head  # tokens of the template's head, which stay as they are

    def padded(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and labels (−100 on prompts and padding), padded on the right."""
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r + [0] * (width - len(r)) for r, _ in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in rows])
        labels = torch.tensor([[-100] * p + r[p:] + [-100] * (width - len(r)) for r, p in rows])
        return ids, mask, labels

    @contextmanager
    def hooked(self, edit: Callable[[Tensor], Tensor | None]):
        def hook(_module, _args, output):
            if isinstance(output, Tensor):
                return edit(output)
            changed = edit(output[0])
            return None if changed is None else (changed, *output[1:])

        handle = self.block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()

    def touched(self, mask: Tensor) -> Tensor:
        """All tokens after the template's head."""
        position = mask.cumsum(1) - 1
        return ((position >= self.head) & mask.bool())[..., None]


def divergence(scores: Tensor, target: Tensor, labels: Tensor, target_labels: Tensor) -> Tensor:
    """Mean Jensen–Shannon divergence over answer tokens, as the published code takes it (in float32)."""
    here, there = (given[:, 1:].reshape(-1) != -100 for given in (labels, target_labels))
    scores = scores[:, :-1].contiguous().view(-1, scores.size(-1))[here]
    target = target[:, :-1].contiguous().view(-1, target.size(-1))[there]
    log_p, log_q = scores.log_softmax(-1), target.log_softmax(-1)
    log_m = (0.5 * (scores.softmax(-1) + target.softmax(-1))).log()
    one = nn.functional.kl_div(log_m, log_p, log_target=True, reduction="none")
    other = nn.functional.kl_div(log_m, log_q, log_target=True, reduction="none")
    return (0.5 * (one + other)).sum(-1).mean()


def cdas_loss(loop: Loop, w: Tensor, bases: Rows, sources: Rows) -> Tensor:
    """One micro-batch: three whole passes."""
    ids, mask, labels = loop.padded(bases)
    source_ids, source_mask, source_labels = loop.padded(sources)
    read: dict[str, Tensor] = {}

    def look(h: Tensor) -> None:
        read["h"] = h[range(len(sources)), [p - 1 for _, p in sources]]

    with loop.hooked(look):  # pyvene runs the source through the whole model to collect one activation
        loop.logits(source_ids, source_mask)
    touched = loop.touched(mask)

    def swap(h: Tensor) -> Tensor:
        difference = (read["h"] @ w)[:, None] - h @ w
        return torch.where(touched, h + difference[..., None] * w, h)

    with loop.hooked(swap):
        scores = loop.logits(ids, mask)
    with torch.no_grad():
        target = loop.logits(source_ids, source_mask)
    return divergence(scores, target, labels, source_labels)


def train_cdas(
    loop: Loop, pairs: list[tuple[Rows, Rows]], start: Tensor, order: list[list[int]], *, step: float, batch: int
) -> Tensor:
    """`pairs[i]` are both ways' base and source rows; `order` the items of each epoch. Returns the direction."""
    w = nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([w], lr=step, weight_decay=0.0)
    steps = sum(math.ceil(len(epoch) / batch) for epoch in order)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: max(0.0, 1 - k / steps))
    for epoch in order:
        for at in range(0, len(epoch), batch):
            bases = [row for i in epoch[at : at + batch] for row in pairs[i][0]]
            sources = [row for i in epoch[at : at + batch] for row in pairs[i][1]]
            half = len(bases) // 2
            for part in (slice(0, half), slice(half, None)):
                (cdas_loss(loop, w, bases[part], sources[part]) / 2).backward()
            nn.utils.clip_grad_norm_([w], 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            with torch.no_grad():
                w.div_(w.norm())
    return w.detach()


def language_loss(loop: Loop, edit: Callable[[Tensor, Tensor], Tensor], rows: Rows) -> Tensor:
    """Mean cross-entropy of the answers under an edit, from whole logits."""
    ids, mask, labels = loop.padded(rows)
    touched = loop.touched(mask)
    with loop.hooked(lambda h: edit(h, touched)):
        scores = loop.logits(ids, mask)
    return nn.functional.cross_entropy(
        scores[:, :-1].reshape(-1, scores.size(-1)), labels[:, 1:].reshape(-1), ignore_index=-100
    )


def summed(loop: Loop, edit: Callable[[Tensor, Tensor], Tensor] | None, rows: Rows) -> tuple[Tensor, Tensor]:
    """Each row's log-probability of its answer, and its number of tokens."""
    ids, mask, labels = loop.padded(rows)
    touched = loop.touched(mask)
    with loop.hooked(lambda h: None if edit is None else edit(h, touched)):
        scores = loop.logits(ids, mask)
    labels = labels[:, 1:].clone()
    chosen = labels != -100
    labels[~chosen] = 0
    each = torch.gather(scores[:, :-1].log_softmax(-1), 2, labels[..., None])[..., 0]
    return (each * chosen).sum(-1), chosen.sum(-1)


def descend(free: dict[str, Tensor], loss: Callable[[dict[str, Tensor], list[int], float], Tensor], order: list[list[int]],
            *, step: float, batch: int, after: Callable[[dict[str, Tensor]], None] | None = None,
            before: Callable[[dict[str, Tensor]], None] | None = None) -> dict[str, Tensor]:  # fmt: skip
    """AdamW with clipping at norm 1 and linear decay, as all of these loops have it; `before` and `after` each step."""
    leaves = {name: nn.Parameter(t.clone()) for name, t in free.items()}
    optimiser = torch.optim.AdamW(leaves.values(), lr=step, weight_decay=0.0)
    steps, done = sum(math.ceil(len(epoch) / batch) for epoch in order), 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: max(0.0, 1 - k / steps))
    for n, epoch in enumerate(order):
        for at in range(0, len(epoch), batch):
            loss(leaves, epoch[at : at + batch], n / len(order) + at / len(epoch) / len(order)).backward()
            if before is not None:
                before(leaves)
            nn.utils.clip_grad_norm_(leaves.values(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            if after is not None:
                with torch.no_grad():
                    after(leaves)
            done += 1
    return {name: t.detach() for name, t in leaves.items()}


def added(v: Tensor, factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """h + factor·v at the touched tokens."""
    return lambda h, touched: torch.where(touched, h + factor * v, h)


def nulled(v: Tensor, b: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """RePS's null: positive activations along v are taken out."""

    def edit(h: Tensor, touched: Tensor) -> Tensor:
        over = torch.relu(h @ v + b) / v.square().sum()
        return torch.where(touched, h - over[..., None] * v, h)

    return edit


def topped(w: Tensor, k: int, seen: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """ReFT-r1's edit; `seen` gets the latents outside the top k."""

    def edit(h: Tensor, touched: Tensor) -> Tensor:
        latent = torch.relu(h @ w) * touched[..., 0]
        most = latent.topk(k, dim=1).values.sum(dim=1) / k
        for row, here in zip(latent, touched[..., 0], strict=True):
            seen.append(row[here].sort(descending=True).values[k:])
        return torch.where(touched, h + most[:, None, None] * w, h)

    return edit
