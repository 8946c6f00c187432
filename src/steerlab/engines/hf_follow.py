"""Steers calls of the model that somebody else makes: `with engine.steer(...): model.generate(...)`.

Which tokens a call brings is told from its attention mask and its cache, so that positions mean the same as in the
engine's own loop. Where a steering has one rule for prompt and generated tokens, a call may bring any of them: drafts of
assisted decoding, pieces of a prompt, the next turn of a conversation. Otherwise the first call on an empty cache is the prompt,
and what follows comes token by token. What can't be told is refused inside the call; nothing runs half steered.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..controls import Constant, Decision, Tokens
from ..errors import UnsupportedError
from ..steering import Intervention, Steering
from . import hf_cache
from .base import Steerings, rows_of
from .hf_hooks import Hooks, Plan
from .hf_sites import Anatomy
from .render import Renderer

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

ENDLESS = 2**62  # a prompt's length where it doesn't matter: every token goes by the prompt's rule
MARK = "_steerlab_held"  # the attribute of a cache that says what it holds; a copy of the cache has it, too
_DIGESTS: WeakKeyDictionary[Steering, str] = WeakKeyDictionary()


class Held(NamedTuple):
    """What a cache holds: under what it was read, how many tokens, and each row's real ones of them and template head.

    `open` says that nothing but the head has come, which may go on.
    """

    under: str
    length: int
    real: Int[Tensor, " b"]
    head: Int[Tensor, " b"]
    open: bool


class Needs:
    """What must be known of a call's tokens to run some steerings exactly."""

    def __init__(self, each: Sequence[Steering | None]) -> None:
        acting = [i for s in each if s is not None for i in s.interventions if i.control.most != (0, 0)]
        phased = [why for i in acting if (why := _phased(i)) is not None]
        self.phases = phased[0] if phased else None  # why prompt and generated tokens must be told apart
        self.heads = any(i.positions.after_head for i in acting)
        self.padding = bool(phased) or self.heads
        self.ids = next((f"a {i.control.kind} control" for i in acting if not _without_ids(i)), None)


class Follower:
    """Keeps the hooks' idea of positions in step with the caller's own forward passes."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, renderer: Renderer, steerings: Steerings) -> None:
        self._model, self._anatomy, self._renderer = model, anatomy, renderer
        self._steerings = steerings
        one = steerings is None or isinstance(steerings, Steering)
        each = [steerings] if one else list(cast("Sequence[Steering | None]", steerings))
        self._needs = Needs(cast("list[Steering | None]", each))
        self._under = "" if self._needs.phases else _named(cast("list[Steering | None]", each))
        self._hooks: Hooks | None = None
        self._rows = 0
        self._prompts: Tensor | None = None  # each row's prompt length, where it matters
        self._next: Held | None = None  # what the cache holds after this call
        self._cache: Any = None  # that this call brings
        self._loose: tuple[Any, Held] | None = None  # the last cache that takes no attribute, and what it holds
        self._before_ids: Tensor | None = None  # of the last call on an empty cache
        self._signature = inspect.signature(model.forward)
        self._stack, self._attached = ExitStack(), ExitStack()

    @contextmanager
    def following(self) -> Generator[None]:
        """The hooks stand inside this block alone; what was or would be compiled (`generate` does at times) runs as it is."""
        with torch.compiler.set_stance("force_eager"), self._stack:
            self._stack.callback(self._model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            self._stack.callback(self._model.register_forward_hook(self._after).remove)
            yield

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        ids, named = _tokens(arguments)
        self._cache = next((arguments[name] for name in hf_cache.NAMES if arguments.get(name) is not None), None)
        held = self._held_by(self._cache)
        real = _real(arguments.get("attention_mask"), ids, held.length if held else 0)
        if real is None:
            if self._needs.padding:
                raise UnsupportedError(
                    "a steered call needs a plain [rows, tokens] attention mask to tell its positions."
                )
            real = torch.ones_like(ids, dtype=torch.bool)
        begins = held is None
        if held is None:
            held = self._begin(ids, real, named=named, cached=arguments.get("use_cache") is not False)
        elif ids.shape[1] > 1:
            self._check_more(ids.shape[1], held)
        if len(ids) != len(held.real):
            raise UnsupportedError(f"a steered call has {len(ids)} rows after a prompt of {len(held.real)}.")
        hooks = self._steered(len(ids), anew=begins and self._needs.phases is not None)
        position = (held.real[:, None] + real.long().cumsum(dim=1) - 1).masked_fill(~real, -1)
        prompts = torch.full_like(held.real, ENDLESS) if self._prompts is None else self._prompts
        hooks.tokens, hooks.head = Tokens(ids, position, prompts), held.head
        self._next = Held(
            self._under, held.length + ids.shape[1], held.real + real.sum(dim=1), held.head, begins and held.open
        )

    def _after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Write on the cache what it holds now."""
        parts = output if isinstance(output, tuple) else [getattr(output, name, None) for name in hf_cache.NAMES]
        cache = next((part for part in parts if hf_cache.is_one(part)), self._cache)
        if cache is None or self._next is None:
            return
        if hasattr(cache, "__dict__"):
            setattr(cache, MARK, self._next)
        else:
            self._loose = (cache, self._next)

    def _held_by(self, cache: Any) -> Held | None:
        """What a cache holds that was read under this steering; None for an empty one. Raises for any other."""
        length = 0 if cache is None else hf_cache.length(cache)
        if length == 0:
            return None
        held: Held | None = getattr(cache, MARK, None)
        if self._loose is not None and self._loose[0] is cache:
            held = self._loose[1]
        if held is None or held.under != self._under or (length is not None and length > held.length):
            count = "what it holds" if length is None else f"its {length} tokens"
            raise UnsupportedError(
                f"steering began in the middle of a cached conversation: of the cache that this call brings, {count} weren't all"
                " read under this steering; start with an empty cache, or with one that calls under the same steering filled."
            )
        if length is None or length == held.length:
            return held
        if self._needs.phases is not None:
            raise UnsupportedError(
                f"a steered call's cache holds {length} tokens after {held.length} were read, so which of them were generated"
                f" can't be told, and {self._needs.phases}; go on from what was read."
            )
        return held._replace(length=length, real=held.real - (held.length - length))

    def _begin(self, ids: Tensor, real: Tensor, *, named: bool, cached: bool) -> Held:
        """The first call on an empty cache: where its rows' template heads end, and how long their prompts are."""
        if self._needs.phases is not None:
            self._not_one_more(ids, cached=cached)
            if _drafting():
                raise UnsupportedError(
                    "assisted decoding and prompt lookup bring drafts together with the prompt, so where it ends can't be told,"
                    f" and {self._needs.phases}; leave assistant_model and prompt_lookup_num_tokens out, or give positions that"
                    " don't ask for it (all, not_template)."
                )
            self._under, self._prompts = uuid.uuid4().hex, real.sum(dim=1)
        if not named and (self._needs.heads or self._needs.ids):
            why = self._needs.ids or "these positions leave the chat template's head alone"
            raise UnsupportedError(
                f"a steered call needs input_ids: with embeddings alone its template can't be told, and {why}; give"
                " input_ids, or positions='all' (ALL)."
            )
        zero = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        if not self._needs.heads:
            return Held(self._under, 0, zero, zero, False)
        rows = [row[here].tolist() for row, here in zip(ids, real, strict=True)]
        # −1 is an id that no head has: all of a row may be head
        heads = [self._renderer.head_of([*row, -1]) for row in rows]
        within = [min(head, max(len(row) - 1, 0)) for head, row in zip(heads, rows, strict=True)]
        whole = any(head == len(row) for head, row in zip(heads, rows, strict=True))
        return Held(self._under, 0, zero, torch.tensor(within, device=ids.device), whole)

    def _check_more(self, tokens: int, held: Held) -> None:
        """Raise where several tokens at once, after the first call, leave open what is to be done to them."""
        if self._needs.phases is not None:
            raise UnsupportedError(
                f"a steered call brings {tokens} tokens after the first one: which of them belong to the prompt can't be"
                f" told, and {self._needs.phases}. Prefill in one call (no prefill_chunk_size, no cache of an earlier turn) and"
                " decode token by token, or give positions that don't ask for it (all, not_template)."
            )
        if held.open:
            raise UnsupportedError(
                f"the first steered call brought nothing but the chat template's head, and this one {tokens} tokens more: where"
                " the head ends can't be told any more. Prefill in larger pieces, or give positions='all' (ALL)."
            )

    def _not_one_more(self, ids: Tensor, *, cached: bool) -> None:
        """Without a cache, each step of decoding looks like a new and longer prompt."""
        before, self._before_ids = self._before_ids, ids
        if not cached and before is not None and torch.equal(ids[:, :-1], before):
            raise UnsupportedError(
                "decoding without a cache can't be steered, since what was generated can't be told from the prompt, and"
                f" {self._needs.phases}; leave use_cache on."
            )

    def _steered(self, rows: int, *, anew: bool) -> Hooks:
        """The hooks for so many rows, standing."""
        if self._hooks is not None and self._rows == rows and not anew:
            return self._hooks
        one = self._steerings is None or isinstance(self._steerings, Steering)
        count = rows if one else len(cast("Sequence[Steering | None]", self._steerings))
        if rows != count:
            raise UnsupportedError(
                f"a steered call has {rows} rows, and {count} steerings were given; give one per row."
            )
        self._attached.close()
        self._hooks, self._rows = Hooks(self._anatomy, Plan(rows_of(self._steerings, rows))), rows
        self._attached = self._stack.enter_context(ExitStack())
        self._attached.enter_context(self._hooks.attached())
        return self._hooks


def _phased(i: Intervention) -> str | None:
    """Why an intervention doesn't go by one rule for all tokens, in words."""
    if not i.positions.unphased:
        return f"the positions at {i.site} ({i.positions}) differ between the two"
    if isinstance(i.control, Constant) or (_without_ids(i) and not cast("Decision", i.control).held):
        return None
    return f"the {i.control.kind.lower()} at {i.site} may go by a prompt's end, or by how many tokens there were"


def _without_ids(i: Intervention) -> bool:
    """Whether a control is one of the library's own, which look at activations and never at ids."""
    return isinstance(i.control, Constant) or (
        isinstance(i.control, Decision) and type(i.control).strength is Decision.strength
    )


def _named(each: Sequence[Steering | None]) -> str:
    """A name for what rows run under: equal for equal behaviour, one steering or many."""
    names: list[str] = []
    for steering in each:
        if steering is not None and steering not in _DIGESTS:
            _DIGESTS[steering] = steering.digest
        names.append("none" if steering is None else _DIGESTS[steering])
    return " ".join(names if len(set(names)) > 1 else names[:1])


def _tokens(arguments: Mapping[str, Any]) -> tuple[Int[Tensor, "b t"], bool]:
    """The ids that a call brings and True; −1 for each and False where it brings embeddings instead."""
    ids, embeddings = arguments.get("input_ids"), arguments.get("inputs_embeds")
    if isinstance(ids, Tensor):
        return ids, True
    if isinstance(embeddings, Tensor) and embeddings.ndim == 3:
        return torch.full(embeddings.shape[:2], -1, dtype=torch.long, device=embeddings.device), False
    raise UnsupportedError(
        "a steered call needs input_ids [rows, tokens] or inputs_embeds [rows, tokens, width]; it has neither."
    )


def _real(mask: Any, ids: Int[Tensor, "b t"], past: int) -> Bool[Tensor, "b t"] | None:
    """Which of a call's tokens are real, after `past` others; None where its mask doesn't say.

    A mask of [rows, 1, tokens, keys] (or one for each kind of layer, as for a static cache) says it by whether a token
    attends to itself, which padding doesn't.
    """
    rows, tokens = ids.shape
    if isinstance(mask, Mapping):
        each = [m for m in cast("Mapping[str, Any]", mask).values() if m is not None]
        mask = next((m for m in each if isinstance(m, Tensor) and m.ndim == 4), each[0] if each else None)
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 2:
        return mask[:, : past + tokens][:, -tokens:] != 0
    if mask.ndim != 4 or mask.shape[2] != tokens or mask.shape[3] < tokens:
        return None
    # a layer with a window holds the last of what was read, and the call's own come after them; others have room behind
    first = min(past, mask.shape[3] - tokens)
    own = mask[:, 0, :, first : first + tokens].diagonal(dim1=1, dim2=2)
    own = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
    return own.expand(rows, tokens)


def _drafting() -> bool:
    """Whether transformers' assisted decoding makes this call: what it drafted may follow the prompt in it."""
    from transformers.generation.configuration_utils import GenerationMode
    from transformers.generation.utils import GENERATION_MODES_MAPPING

    name, frame = GENERATION_MODES_MAPPING[GenerationMode.ASSISTED_GENERATION], inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False
