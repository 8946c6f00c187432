"""The decoding loop: prefill (whole or in chunks), then one token a step; rows that are done leave the batch.

It works on token ids alone. Each row has its own steering, seed and stop strings, and what it says doesn't depend on
who else is in the batch (up to the rounding of kernels by batch shape).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..controls import Tokens
from ..errors import DataError
from ..steering import Steering
from .base import Finish, Sampling
from .hf_hooks import Hooks, Plan
from .hf_sites import Anatomy, quiet
from .render import Rendered, Renderer

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass
class Row:
    """One reply in the making."""

    number: int
    prompt: Rendered
    steering: Steering | None
    generator: torch.Generator
    limit: int
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    text: str = ""
    told: int = 0  # characters that have been streamed
    finish: Finish | None = None


class Decoder:
    """Decodes one batch of rows."""

    def __init__(
        self,
        model: Any,
        anatomy: Anatomy,
        renderer: Renderer,
        rows: Sequence[Row],
        sampling: Sampling,
        *,
        chunk: int | None,
        pad: int,
    ) -> None:
        from transformers import DynamicCache

        self._model, self._renderer, self._sampling = model, renderer, sampling
        self._rows = list(rows)
        self._chunk, self._pad = chunk, pad
        self._plan = Plan([row.steering for row in rows])
        self._hooks = Hooks(anatomy, self._plan)
        self._cache = DynamicCache(config=model.config)
        self._takes = set(inspect.signature(model.forward).parameters)
        self._device = model.device

    def steps(self) -> Iterator[list[Row]]:
        """After each step the rows that got a token, in the order of the batch; rows that end say so in `finish`.

        Nothing stands on the model while the caller has the floor.
        """
        scores = self._prefill()
        while True:
            self._draw(scores)
            yield list(self._rows)
            staying = [n for n, row in enumerate(self._rows) if row.finish is None]
            if not staying:
                return
            if len(staying) < len(self._rows):
                self._leave(staying)
            scores = self._step()

    # --- the model ------------------------------------------------------------------------------------------------

    def _prefill(self) -> Float[Tensor, "b v"]:
        """Left-padded, so that every row's last prompt token is the last column."""
        width = max(len(row.prompt.ids) for row in self._rows)
        ids = torch.full((len(self._rows), width), self._pad)
        position = torch.full((len(self._rows), width), -1)
        for n, row in enumerate(self._rows):
            length = len(row.prompt.ids)
            ids[n, width - length :] = torch.tensor(row.prompt.ids)
            position[n, width - length :] = torch.arange(length)
        self._attention = (position >= 0).long().to(self._device)
        self._lengths = torch.tensor([len(row.prompt.ids) for row in self._rows], device=self._device)
        self._heads = torch.tensor([row.prompt.head for row in self._rows], device=self._device)
        self._last = self._lengths - 1
        size = self._chunk or width
        scores = None
        for start in range(0, width, size):
            stop = min(start + size, width)
            scores = self._forward(ids[:, start:stop], position[:, start:stop], stop)
        assert scores is not None
        return scores

    def _step(self) -> Float[Tensor, "b v"]:
        ids = torch.tensor([[row.ids[-1]] for row in self._rows])
        self._last = self._last + 1
        self._attention = torch.cat([self._attention, torch.ones_like(self._attention[:, :1])], dim=1)
        return self._forward(ids, self._last[:, None], self._attention.shape[1])

    def _forward(self, ids: Int[Tensor, "b t"], position: Int[Tensor, "b t"], seen: int) -> Float[Tensor, "b v"]:
        ids, position = ids.to(self._device), position.to(self._device)
        self._hooks.tokens = Tokens(ids, position, self._lengths)
        self._hooks.head = self._heads
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": self._attention[:, :seen]}
        if "position_ids" in self._takes:
            given["position_ids"] = position.clamp(min=0)
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        with torch.no_grad(), self._hooks.attached(), quiet(self._model):
            out = self._model(**given, past_key_values=self._cache, use_cache=True)
        return out.logits[:, -1].float()

    def _leave(self, staying: list[int]) -> None:
        """Drop finished rows from the batch, its cache, and the state of its controls."""
        self._cache.batch_select_indices(torch.tensor(staying))  # on the CPU: layers may lie on several devices
        index = torch.tensor(staying, device=self._device)
        self._attention, self._lengths = self._attention[index], self._lengths[index]
        self._heads, self._last = self._heads[index], self._last[index]
        self._plan.keep(staying)
        self._rows = [self._rows[n] for n in staying]

    # --- choosing tokens --------------------------------------------------------------------------------------------

    def _draw(self, scores: Float[Tensor, "b v"]) -> None:
        logprobs = torch.log_softmax(scores, dim=-1)
        if bool(logprobs.isnan().any()):
            raise DataError(
                "the model's scores are NaN or infinite: it overflows (float16?), its weights are damaged, or the strength"
                " is far out of range. Try bfloat16 or float32, or a smaller strength."
            )
        if self._sampling.temperature == 0:
            chosen = scores.argmax(dim=-1)
        else:
            uniform = torch.stack([torch.rand((), generator=r.generator, dtype=torch.float64) for r in self._rows])
            chosen = sample(scores, self._sampling, uniform.to(scores.device))
        picked = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        for row, token, logprob in zip(self._rows, chosen.tolist(), picked, strict=True):
            self._add(row, token, logprob)

    def _add(self, row: Row, token: int, logprob: float) -> None:
        if token in self._renderer.ends:
            row.finish = "stop"
            row.ids.append(token)  # taken off again by whoever reads the row: it is no part of the reply
            row.logprobs.append(logprob)
            return
        row.ids.append(token)
        row.logprobs.append(logprob)
        if self._sampling.stop:
            row.text = self._renderer.text(row.ids)
            cuts = [at for s in self._sampling.stop if (at := row.text.find(s)) >= 0]
            if cuts:
                row.text, row.finish = row.text[: min(cuts)], "stop"
                return
        if len(row.ids) >= row.limit:
            row.finish = "length" if row.limit == self._sampling.max_new_tokens else "context"


def sample(scores: Float[Tensor, "b v"], sampling: Sampling, uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """One token per row by inverting the cumulated probabilities at the row's uniform number, in float64.

    Temperature first, then the `top_k` best, then the smallest set of the best that holds `top_p` of the rest.
    """
    probs = torch.softmax(scores.double() / sampling.temperature, dim=-1)
    best, order = probs.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        best[:, sampling.top_k :] = 0
    if sampling.top_p < 1:
        before = best.cumsum(dim=-1) - best
        best = torch.where(before < sampling.top_p * best.sum(dim=-1, keepdim=True), best, 0)
    summed = best.cumsum(dim=-1)
    at = torch.searchsorted(summed, (uniform * summed[:, -1])[:, None], right=True)
    at = at.clamp(max=(best > 0).sum(dim=-1, keepdim=True) - 1)
    return order.gather(1, at)[:, 0]
