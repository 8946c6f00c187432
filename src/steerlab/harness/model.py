"""The harness's Hugging Face model under a steering, with every row's prompt and continuation told apart.

The harness pads on the right without a mask, shares one forward pass among requests whose tokens agree but for the last,
and cuts what is too long from the left. A steering may act on the prompt alone, on what follows, or on the last prompt
token: so each row says where its continuation begins, padding is never steered, and requests that agree in their tokens but
not in where they divide share a pass only where the steering can't tell. Batches are composed as the harness composes them:
at strength 0 the logits are bit-equal to its own `hf`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from .. import pilot
from ..engines.base import Batch
from ..engines.hf import HFEngine
from ..errors import ConfigError, UnsupportedError
from ..steering import Steering

Request = tuple[Any, list[int], list[int]]  # what the harness caches by, context, continuation


def steering_of(files: str, strength: float) -> Steering | None:
    """The steerings of files with `+` between, added in this order, at a strength; None without any.

    Raises `UnsupportedError` for what can't act on tokens that somebody else has made of a conversation.
    """
    whole: Steering | None = None
    for file in files.split("+") if files else ():
        loaded = Steering.load(file.strip())
        whole = loaded if whole is None else whole + loaded
    if whole is None:
        return None
    whole = whole.scaled(strength)
    if whole.prompt is not None and whole.prompt.strength:
        raise UnsupportedError(
            "this steering has a prompt, and the harness writes its own; put the text into --system_instruction."
        )
    if whole.ahead:
        raise UnsupportedError(
            "this steering has a control that decides ahead, by a pass over a conversation, and the harness brings tokens;"
            " fit a gate that decides at the last prompt token (`steerlab gate --when held`)."
        )
    return whole


def divides(steering: Steering | None) -> bool:
    """Whether it matters to a steering where the prompt ends: everywhere but for edits of all tokens by a constant
    strength.
    """
    if steering is None:
        return False
    from ..controls import Constant
    from ..positions import ALL

    acting = [i for i in steering.interventions if not (isinstance(i.control, Constant) and i.control.value == 0)]
    return any(i.positions != ALL or not isinstance(i.control, Constant) for i in acting)


def rounds(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Request numbers such that in each round equal tokens (all but the last) divide at one place alone."""
    left = list(range(len(requests)))
    while left:
        at: dict[tuple[int, ...], int] = {}
        here: list[int] = []
        later: list[int] = []
        for n in left:
            _, context, continuation = requests[n]
            key = (*context, *continuation[:-1])
            (here if at.setdefault(key, len(context)) == len(context) else later).append(n)
        yield here
        left = later


def row_of(context: Sequence[int], continuation: Sequence[int], most: int) -> tuple[list[int], int]:
    """The tokens that are read, cut from the left to what fits, and how many of them are the prompt's."""
    read = [*context, *continuation][-(most + 1) :][:-1]
    return read, max(1, len(read) - (len(continuation) - 1))


@cache
def model_type() -> type[Any]:
    """The class that the harness registers: `HFLM` with `steering` and `strength` among its arguments."""
    harness: Any = importlib.import_module("lm_eval.models.huggingface")
    collator: Any = importlib.import_module("lm_eval.models.utils").Collator

    class SteerlabLM(harness.HFLM):  # pyright: ignore[reportUntypedBaseClass]
        """`pretrained` is pilot, a name on the hub or a folder; `steering` files with + between; the rest is HFLM's."""

        def __init__(self, pretrained: Any, steering: str = "", strength: float = 1.0, **rest: Any) -> None:
            if isinstance(pretrained, str) and pretrained in pilot.VARIANTS:
                rest.setdefault("dtype", "float32")
                pretrained = str(pilot.folder(pretrained))
            super().__init__(pretrained=pretrained, **rest)
            if self.backend != "causal":
                raise ConfigError(f"the model's backend is {self.backend!r}; steerlab steers causal language models.")
            plain = getattr(self.tokenizer, "chat_template", None) is None
            self.engine = HFEngine(self.model, self.tokenizer, template="plain" if plain else "chat")
            self.under = steering_of(steering, float(strength))
            self.acts = self.under is not None and any(i.control.most != (0.0, 0.0) for i in self.under.interventions)
            if self.under is not None:
                self.engine.accept(self.under)

        def _loglikelihood_tokens(
            self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            parts = (
                rounds(requests) if divides(self.under) and self.logits_cache else iter([list(range(len(requests)))])
            )
            for part in parts:
                for n, told in zip(part, self._scored([requests[n] for n in part], override_bs), strict=True):
                    found[n] = told
            return found

        def _scored(self, requests: list[Request], override_bs: int | None) -> list[tuple[float, bool]]:
            """One round, in batches that the harness's own collator composes."""

            def order(request: Request) -> tuple[int, tuple[int, ...]]:
                tokens = request[1] + request[2]
                return -len(tokens), tuple(tokens)

            def shared(request: Request) -> list[int]:
                return request[1] + request[2][:-1]

            group = "contexts" if self.logits_cache else None
            ordered: Any = collator(requests, sort_fn=order, group_by=group, group_fn=shared)
            auto = self.batch_size == "auto"
            if auto and not override_bs:
                self.batch_sizes = {}
            fixed = (override_bs or 0) if auto else self.batch_size
            scheduler = self._batch_scheduler if auto and requests and not override_bs else None
            found: list[tuple[float, bool]] = []
            for chunk in ordered.get_batched(n=fixed, batch_fn=scheduler):
                for request, scores in zip(chunk, self._chunk(chunk), strict=True):
                    same = ordered.get_cache(
                        req_str=request[0], cxt_toks=request[1], cont_toks=request[2], logits=scores[None]
                    )
                    for asked, tokens, logits in same:
                        wanted = torch.tensor(tokens, dtype=torch.long, device=self.device)[None]
                        here = logits[:, -wanted.shape[1] :]
                        greedy = bool((here.argmax(dim=-1) == wanted).all())
                        each = here.gather(2, wanted[..., None])[..., 0]
                        # unsteered, the harness's own sum to the bit; else in float64: one of 100 nats rounds by 8e-6 in float32
                        told = (float(each.double().sum() if self.acts else each.sum()), greedy)
                        found.append(told)
                        if asked is not None:
                            self.cache_hook.add_partial("loglikelihood", asked, told)
            return ordered.get_original(found)

        def _chunk(self, chunk: Sequence[Request]) -> Iterator[Tensor]:
            """Log-probabilities `[continuation, v]` of each request of a batch."""
            rows = [row_of(context, continuation, self.max_length) for _, context, continuation in chunk]
            width = max(len(ids) for ids, _ in rows)
            ids = torch.stack([pad(torch.tensor(ids), (0, width - len(ids))) for ids, _ in rows]).to(self.device)
            with self._steered(ids, rows):
                scores = log_softmax(self._model_call(ids), dim=-1, dtype=self.softmax_dtype)
            for (read, _), (_, _, continuation), row in zip(rows, chunk, scores, strict=True):
                yield row[len(read) - len(continuation) : len(read)]

        def _steered(self, ids: Tensor, rows: Sequence[tuple[list[int], int]]) -> Any:
            if self.under is None:
                return nullcontext()
            lengths = torch.tensor([len(read) for read, _ in rows], device=ids.device)
            position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            position = position.masked_fill(position >= lengths[:, None], -1)
            prompts = torch.tensor([n for _, n in rows], device=ids.device)
            heads = torch.tensor([self.engine.renderer.head_of(read[:n]) for read, n in rows], device=ids.device)
            return self.engine.steer_batch(Batch(ids, position, prompts, heads), self.under)

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
            with nullcontext() if self.under is None else self.engine.steer(self.under):
                return super()._model_generate(context, max_length, stop, **settings)

    return SteerlabLM
