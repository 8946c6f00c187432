"""The baked checkpoint, loaded in plain transformers, against the hook on the model that it was made of."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from .. import exports
from ..engines.base import Sampling
from ..engines.hf import HFEngine
from ..steering import Steering
from . import _plain
from .base import Check, Options, Probe, Target, apart, scored, within


class Baked(Target):
    """A checkpoint with the steering in its weights."""

    what: ClassVar[str] = "the baked checkpoint in plain transformers"

    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        examples = [p.example for p in probes]
        before = list(engine.logits(examples))
        with tempfile.TemporaryDirectory(prefix="steerlab-") as folder:
            path = Path(folder) / "baked"
            exports.write(steering, path, "baked", engine=engine)
            dtype = str(engine.model.dtype).removeprefix("torch.")
            loaded = HFEngine.load(str(path), dtype=dtype, template=engine.renderer.template, label="baked")
            loaded.model.to(engine.device)  # pyright: ignore[reportArgumentType]
            wanted = [scored(_plain.logits(engine, p, steering), p) for p in probes]
            alone = [scored(_plain.logits(loaded, p), p) for p in probes]
            together = loaded.logprobs(examples)
            cached = _cached(loaded, probes, options)
        same = all(torch.equal(a, b) for a, b in zip(before, engine.logits(examples), strict=True))
        most, line = self.most(engine, probes, options)
        return [
            within("reference", "the checkpoint has the log-probabilities of the hook", apart(alone, wanted), most),
            within("mixed", "a row in a padded batch is the row alone", apart(together, alone), most),
            Check("neighbours", None, "every row of the checkpoint is steered"),
            within("cache", "replies decoded with a cache have the log-probabilities of one whole pass", cached, most),
            Check("off", same, "the model that it was made of is bit-identical after the export"),
            Check("template", loaded.template == engine.template, "the checkpoint writes conversations the same way"),
            line,
        ]


def _cached(engine: HFEngine, probes: Sequence[Probe], options: Options) -> float:
    replies = engine.generate([p.example.without_answer() for p in probes], None, Sampling(options.tokens))
    most = 0.0
    for probe, reply in zip(probes, replies, strict=True):
        if reply.ids:
            whole = probe._replace(ids=(*probe.ids[: probe.prompt_length], *reply.ids))
            got = torch.tensor(reply.logprobs[: len(reply.ids)])
            most = max(most, apart([got], [scored(_plain.logits(engine, whole), whole)]))
    return most
