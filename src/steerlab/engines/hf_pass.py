"""One forward pass over a batch: with hooks, from a block on, up to what is asked for, its head taken at chosen tokens.

What makes it cheap is tried on the model itself, once: whether its head is one matrix, whether a block may be narrowed, whether
answers may share a prompt's row. Where not, the plain way is gone.
"""

from __future__ import annotations

from collections.abc import Generator, Set
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..controls import Tokens
from ..sites import Site
from .base import Batch, Run, Start
from .head import Head
from .hf_cache import takes, uncached
from .hf_head import apart, find_head, head_at, narrowed, narrows, packs
from .hf_hooks import Enough, Hooks
from .hf_model import text_config
from .hf_sites import Anatomy
from .hf_watch import quiet

if TYPE_CHECKING:
    from jaxtyping import Bool
    from transformers import PreTrainedModel

SHARED = 4096  # tokens of a row of answers to one prompt


class Passes:
    """Runs one model."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self._model, self._anatomy = model, anatomy
        self._takes = takes(model)
        self._head: tuple[Tensor | None, Head | None] | None = None
        self._narrowable: dict[int, bool] = {}
        self._packable: bool | None = None

    @property
    def head(self) -> Head | None:
        """The output head where it is one matrix."""
        module: Any = self._model.get_output_embeddings()
        weight = getattr(module, "weight", None)
        if self._head is None or self._head[0] is not weight:  # found anew where it was moved or exchanged
            self._head = (weight, find_head(self._model, text_config(self._model)))
        return self._head[1]

    def shares(self, context: int) -> int:
        """Tokens of a row in which answers may share a prompt; 0 where the model doesn't give the same then."""
        if self._packable is None:  # whether the model gives the same then, tried once
            self._packable = packs(self._model, self._anatomy)
        config = text_config(self._model)  # beyond its attention windows it would see less than the mask says
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return min([w for w in windows if w] + [2 * context, SHARED]) if self._packable else 0

    def run(
        self,
        batch: Batch,
        hooks: Hooks,
        *,
        logits: bool,
        start: Start | None = None,
        hidden: bool = False,
        read: Bool[Tensor, "b t"] | None = None,
    ) -> Run:
        """What the hooks collected, and the scores, or what the head reads (`hidden`), where answers are predicted.

        With `read` what is collected counts at these tokens alone; elsewhere it may hold anything.
        """
        hooks.tokens = Tokens(batch.ids, batch.position, batch.prompt_length)
        hooks.head = batch.head
        given: dict[str, Any] = {"input_ids": batch.ids, **uncached(self._takes)}
        if self._takes & {"attention_mask", "**"}:
            given["attention_mask"] = self._attention(batch)
        if "position_ids" in self._takes:
            given["position_ids"] = self._anatomy.places(batch.position)
        if not logits and not hidden and self._anatomy.last_alone:
            given["logits_to_keep"] = 1
        shape = batch.ids.shape
        (rows, columns), narrow = batch.predicts.nonzero(as_tuple=True), nullcontext()
        places, last = (rows, columns), self._anatomy.depth - 1
        if hidden and self._narrows(last, hooks.sites, start):
            narrow = narrowed(self._anatomy, last, places, shape)
        elif read is not None and 2 * int(read.sum()) < read.numel():
            top = max(hooks.sites, key=lambda s: s.reached)
            if top.part == "resid" and top.layer is not None and self._narrows(top.layer, hooks.sites - {top}, start):
                (rows, columns) = read.nonzero(as_tuple=True)
                narrow = narrowed(self._anatomy, top.layer, (rows, columns), shape)
        begun = nullcontext() if start is None else self._anatomy.begun(start.layer, start.hidden)
        head = head_at(self._model, places, shape, stop=hidden)
        out = None
        with hooks.attached(), quiet(self._model), begun, narrow, head as taken, suppress(Enough):
            out = self._model(**given)
        if hidden:
            return Run(None, hooks.collected, taken[0])
        if out is None or not logits:
            return Run(None, hooks.collected)
        return Run((out.logits[0] if taken else out.logits[places]).float(), hooks.collected)

    def _attention(self, batch: Batch) -> Tensor:
        """1 on real tokens; where answers share a prompt, what is added to each token's attention to each other."""
        if batch.branch is None:
            return batch.attention
        return apart(batch.position, batch.branch, self._model.dtype)

    def _narrows(self, layer: int, sites: Set[Site], start: Start | None) -> bool:
        """Whether the block runs, holds none of the sites, nor any above it, and gives the same narrowed (tried once)."""
        if (start is not None and start.layer >= layer) or any(s.reached >= (layer, -1) for s in sites):
            return False
        if layer not in self._narrowable:
            self._narrowable[layer] = narrows(self._model, self._anatomy, layer)
        return self._narrowable[layer]


@contextmanager
def without_gradients(model: nn.Module) -> Generator[None]:
    """The model's parameters take no gradient inside; each is left as it was.

    By place, not by object: those of an offloaded model are other ones after each call.
    """
    learning = [(m, name) for m in model.modules() for name, p in m.named_parameters(recurse=False) if p.requires_grad]
    try:
        for module, name in learning:
            getattr(module, name).requires_grad_(False)
        yield
    finally:
        for module, name in learning:
            getattr(module, name).requires_grad_(True)
