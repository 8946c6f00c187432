"""CDAS through the engine against an independent plain loop, written here from the paper's description alone.

The loop knows nothing of the engine: its own rendering, its own hook, column indices instead of masks, batch after batch
as published (random start, Adam, linear decay, renormalise, two micro-batches). Same data order, start and schedule.
"""

from __future__ import annotations

import math

import pytest
import torch

from steerlab.methods.cdas import CDAS
from steerlab.testing import planted, tiny
from steerlab.testing.precision import MANY

EPOCHS, LR, BATCH = 6, 0.04, 8


def token_ids(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def rendered(instruction: str) -> list[int]:
    return token_ids(f"<bos> <user> {instruction} <end> <assistant>")


class PlainLoop:
    """Rank-1 distributed interchange, one padded batch at a time."""

    prefix = 2  # <bos> <user>

    def __init__(self, model, layer, start):
        self.model, self.block, self.w = model, model.model.layers[layer], start.clone()

    def forward(self, rows, edit=None, read=None):
        width = max(map(len, rows))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
        seen = {}

        def hook(_m, _a, out):
            seen["h"] = out
            return edit(out) if edit else None

        handle = self.block.register_forward_hook(hook)
        try:
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        finally:
            handle.remove()
        if read is not None:
            return logits, torch.stack([seen["h"][i, c] for i, c in enumerate(read)])
        return logits

    def loss(self, w, part):
        bases = [rendered(b) + token_ids(a) for b, _, a in part]
        sources = [rendered(s) + token_ids(a) for _, s, a in part]
        ends = [len(rendered(s)) - 1 for _, s, _ in part]
        with torch.no_grad():
            source_logits, h_source = self.forward(sources, read=ends)

        def swap(h):
            out = []
            for i, row in enumerate(bases):
                mine = h[i].clone()
                d = h_source[i] @ w - h[i, self.prefix : len(row)] @ w
                mine = torch.cat([h[i, : self.prefix], h[i, self.prefix : len(row)] + d[:, None] * w, h[i, len(row) :]])
                out.append(mine)
            return torch.stack(out)

        logits = self.forward(bases, edit=swap)
        terms = []
        for i, (b, s, a) in enumerate(part):
            n = len(token_ids(a))
            lp = logits[i, len(rendered(b)) - 1 : len(rendered(b)) - 1 + n].log_softmax(-1)
            lq = source_logits[i, len(rendered(s)) - 1 : len(rendered(s)) - 1 + n].log_softmax(-1)
            lm = torch.logaddexp(lp, lq) - math.log(2)
            terms.append(0.5 * (lp.exp() * (lp - lm)).sum(-1) + 0.5 * (lq.exp() * (lq - lm)).sum(-1))
        return torch.cat(terms).mean()

    def train(self, pairs, seed):
        w = torch.nn.Parameter(self.w.clone())
        optimiser = torch.optim.AdamW([w], lr=LR, weight_decay=0.0)
        steps = EPOCHS * math.ceil(len(pairs) / BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: max(0.0, 1 - k / steps))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS):
            order = torch.randperm(len(pairs), generator=generator).tolist()
            for at in range(0, len(order), BATCH):
                expanded = []
                for i in order[at : at + BATCH]:
                    positive, negative = pairs[i]
                    expanded.append((negative.instruction, positive.instruction, positive.answer))
                    expanded.append((positive.instruction, negative.instruction, negative.answer))
                half = len(expanded) // 2
                optimiser.zero_grad()
                for part in (expanded[:half], expanded[half:]):
                    (self.loss(w, part) / 2).backward()
                torch.nn.utils.clip_grad_norm_([w], 1.0)
                optimiser.step()
                schedule.step()
                with torch.no_grad():
                    w.div_(w.norm())
        return w.detach()

    def factor(self, w, instructions):
        reads = []
        for text in instructions:
            ids = rendered(text)
            with torch.no_grad():
                _, h = self.forward([ids], read=[len(ids) - 1])
            reads.append(float(h[0] @ w))
        return sum(reads) / len(reads)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_published_recipe_equals_an_independent_plain_loop(layer):
    engine, contrast, seed = planted.engine(), planted.contrast(20), 42
    made = CDAS.published(site=str(layer), step=LR, epochs=EPOCHS, seed=seed)
    steering = made.fit(engine, contrast)
    clamp = steering.interventions[0].edit
    start = torch.randn(1, 48, generator=torch.Generator().manual_seed(seed))[0]
    loop = PlainLoop(engine.model, layer, start / start.norm())
    w = loop.train(list(contrast.pairs), seed)
    assert float(clamp.q[0] @ w) >= 0.9999
    assert float(clamp.positive) == pytest.approx(loop.factor(w, [e.instruction for e in contrast.positive]), abs=MANY)
    assert float(clamp.negative) == pytest.approx(loop.factor(w, [e.instruction for e in contrast.negative]), abs=MANY)
    assert abs(float(clamp.q[0] @ (start / start.norm()))) < 0.99, "the direction moved"
