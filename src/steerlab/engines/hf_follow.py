"""Steers calls of the model that somebody else makes: `with engine.steer(...): model.generate(...)`.

Which tokens a call brings is told from its attention mask and its cache, so that positions mean the same as in the
engine's own loop. What can't be told is refused inside the call; nothing runs half steered.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..controls import Tokens
from ..errors import UnsupportedError
from ..steering import Steering
from .base import Steerings, rows_of
from .hf_hooks import Hooks, Plan
from .hf_sites import Anatomy
from .render import Renderer


class Follower:
    """Keeps the hooks' idea of positions in step with the caller's own forward passes."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, renderer: Renderer, steerings: Steerings) -> None:
        self._model, self._anatomy, self._renderer = model, anatomy, renderer
        self._steerings = steerings
        self._hooks: Hooks | None = None
        self._prompts: tuple[Tensor, Tensor] | None = None  # each row's prompt length and template head
        self._before_ids: Tensor | None = None  # of the last call without a cache
        self._signature = inspect.signature(model.forward)
        self._stack = ExitStack()

    @contextmanager
    def following(self) -> Generator[None]:
        """The hooks stand inside this block alone; what was or would be compiled (`generate` does at times) runs as it is."""
        with torch.compiler.set_stance("force_eager"), self._stack:
            self._stack.callback(self._model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            yield

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = self._signature.bind_partial(*args, **kwargs).arguments
        kwargs |= kwargs.pop("kwargs", {})
        ids = kwargs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise UnsupportedError("a steered call needs input_ids: with embeddings alone its positions can't be told.")
        past = _seen(kwargs.get("past_key_values"))
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.long, device=ids.device)
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise UnsupportedError("a steered call needs a plain [rows, tokens] attention mask to tell its positions.")
        mask = mask[:, : past + ids.shape[1]]
        position = (mask.long().cumsum(dim=1) - 1).masked_fill(mask == 0, -1)[:, -ids.shape[1] :]
        if past == 0 or self._hooks is None or self._prompts is None:
            if past > 0:
                raise UnsupportedError(
                    "steering began in the middle of a cached conversation; start it with an empty cache."
                )
            self._not_one_more(ids, kwargs)
            self._begin(ids, mask, position)
        elif ids.shape[1] > 1:
            raise UnsupportedError(
                f"a steered call brings {ids.shape[1]} tokens after the first one: which of them belong to the prompt can't be"
                " told. Prefill in one call (no prefill_chunk_size), and decode token by token."
            )
        assert self._hooks is not None and self._prompts is not None
        if len(ids) != len(self._prompts[0]):
            raise UnsupportedError(f"a steered call has {len(ids)} rows after a prompt of {len(self._prompts[0])}.")
        self._hooks.tokens = Tokens(ids, position, self._prompts[0])
        self._hooks.head = self._prompts[1]

    def _not_one_more(self, ids: Tensor, kwargs: dict[str, Any]) -> None:
        """Without a cache, each step of decoding looks like a new and longer prompt."""
        before, self._before_ids = self._before_ids, ids
        if kwargs.get("use_cache") is False and before is not None and torch.equal(ids[:, :-1], before):
            raise UnsupportedError(
                "decoding without a cache can't be steered, since what was generated can't be told from the prompt;"
                " leave use_cache on."
            )

    def _begin(self, ids: Tensor, mask: Tensor, position: Tensor) -> None:
        heads = [self._renderer.head_of(row[here >= 0].tolist()) for row, here in zip(ids, position, strict=True)]
        self._prompts = (mask.long().sum(dim=1), torch.tensor(heads, device=ids.device))
        one = self._steerings is None or isinstance(self._steerings, Steering)
        rows = len(ids) if one else len(cast("Sequence[Steering | None]", self._steerings))
        if rows != len(ids):
            raise UnsupportedError(
                f"a steered call has {len(ids)} rows, and {rows} steerings were given; give one per row."
            )
        if self._hooks is not None:
            self._attached.close()
        self._hooks = Hooks(self._anatomy, Plan(rows_of(self._steerings, rows)))
        self._attached = self._stack.enter_context(ExitStack())
        self._attached.enter_context(self._hooks.attached())


def _seen(cache: Any) -> int:
    """Tokens that the cache holds."""
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise UnsupportedError(
            f"a steered call has a cache of the type {type(cache).__name__}, whose length can't be told."
        )
    return int(cache.get_seq_length())
