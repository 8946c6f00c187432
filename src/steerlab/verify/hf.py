"""The Hugging Face engine: batches, masks, padding and caches against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..engines.base import Sampling
from ..engines.hf import HFEngine
from ..steering import Steering
from . import _plain
from .base import Check, Options, Probe, Target, apart, scored, with_prompt, within

CACHED = "replies decoded with a cache have the log-probabilities of one whole pass"


class HF(Target):
    """Hooks on a transformers model."""

    what: ClassVar[str] = "the Hugging Face engine (hooks)"

    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        engine.accept(steering)
        rows = _mixed(steering, probes)
        together = engine.logprobs([p.example for p, _ in rows], [s for _, s in rows])
        alone = [engine.logprobs([p.example], s)[0] for p, s in rows]
        wanted = [_scored(engine, p, s) for p, s in rows]
        examples = [p.example for p in probes]
        off = [list(engine.logits(examples, s)) for s in (None, steering.scaled(0))]
        most, line = self.most(engine, probes, options)
        return [
            within("reference", "rows at several strengths are what the definition says", apart(alone, wanted), most),
            within("mixed", "a row among rows of other strengths is the row alone", apart(together, alone), most),
            within("neighbours", "unsteered rows beside them are the bare model's", apart(together[1::2], wanted[1::2]), most),
            within("cache", CACHED, _cached(engine, steering, probes, options), most),
            within("off", "strength 0 leaves the model bit-identical", apart(*off), 0.0),
            Check("effect", None, "how far it moves a log-probability at most", apart(wanted[::2], wanted[1::2])),
            line,
        ]  # fmt: skip


def _mixed(steering: Steering, probes: Sequence[Probe]) -> list[tuple[Probe, Steering | None]]:
    """Each probe steered, at several strengths in turn, and after it untouched."""
    low, high = steering.domain
    strengths = [s for s in (1.0, 0.5, -1.0) if low <= s <= high and (steering.prompt is None or s != 0.5)]
    each = [steering.scaled(strengths[n % len(strengths)]) for n in range(len(probes))]
    return [row for p, s in zip(probes, each, strict=True) for row in ((p, s), (p, None))]


def _scored(engine: HFEngine, probe: Probe, steering: Steering | None) -> Tensor:
    """The reference's log-probabilities of the answer."""
    asked = with_prompt(engine, probe, steering)
    return scored(_plain.logits(engine, asked, steering), asked)


def _cached(engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> float:
    """How far greedy replies' own log-probabilities are from one pass of the reference over the whole of each."""
    replies = engine.generate([p.example.without_answer() for p in probes], steering, Sampling(options.tokens))
    most = 0.0
    for probe, reply in zip(probes, replies, strict=True):
        asked = with_prompt(engine, probe, steering)
        if not reply.ids:
            continue
        whole = asked._replace(ids=(*asked.ids[: asked.prompt_length], *reply.ids))
        got = torch.tensor(reply.logprobs[: len(reply.ids)])
        most = max(most, apart([got], [scored(_plain.logits(engine, whole, steering), whole)]))
    return most
