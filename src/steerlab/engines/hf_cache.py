"""A model's cache of what it has read: made, rows of it selected, two of them joined, columns of it dropped.

transformers has layers of many kinds: keys and values of every token or of a window, states of a convolution or a recurrence
(no longer than a row), both at once, an indexer's keys, none. Which of it a model keeps is asked of the cache's layers; that it
comes out as it should is tried on the model itself (`hf_trial`).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from jaxtyping import Int

NAMES = ("past_key_values", "cache_params", "state")  # what models call a cache that they take and give back


def takes(model: nn.Module) -> set[str]:
    """The arguments of a model's forward by name; `**` among them where it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {"**" if p.kind is inspect.Parameter.VAR_KEYWORD else p.name for p in parameters}


def uncached(names: set[str]) -> dict[str, Any]:
    """What tells a forward of these arguments to keep nothing."""
    return {"use_cache": False} if names & {"use_cache", "**"} else {}


def name_of(names: set[str]) -> str | None:
    """What the forward calls its cache; None where it takes none."""
    return next((name for name in NAMES if name in names), None)


def seen(name: str | None, attention: Int[Tensor, "b k"], tokens: int) -> Int[Tensor, "b k"]:
    """The mask as the model wants it for the tokens that come now: of all there is, or, where nothing attends, of these."""
    return attention if name == NAMES[0] else attention[:, -tokens:]


def is_one(thing: object) -> bool:
    """Whether it is a cache of what was read: the library's own, or one that counts what it holds as they do."""
    return hasattr(thing, "get_seq_length") or (isinstance(thing, list) and all(isinstance(t, Tensor) for t in thing))


def length(cache: Any) -> int | None:
    """Tokens that a cache holds; None where it holds states alone, which don't tell how many went into them.

    Raises `UnsupportedError` for a thing that doesn't tell whether it holds any.
    """
    from transformers.cache_utils import CacheLayerMixin

    if isinstance(cache, list):  # RWKV's states
        return None
    if not hasattr(cache, "get_seq_length"):
        raise UnsupportedError(
            f"a steered call has a cache of the type {type(cache).__name__}, whose length can't be told."
        )
    layers: list[Any] = list(getattr(cache, "layers", ()))
    if layers and not any(isinstance(layer, CacheLayerMixin) for layer in layers):
        return None if any(_states(layer) for layer in layers) else 0
    return int(cache.get_seq_length())


def fresh(model: Any, depth: int) -> Any:
    """An empty cache of the library's own kind, as the configuration asks for; a plain one where that counts other blocks."""
    from transformers import DynamicCache

    asked = DynamicCache(config=model.config)
    return asked if len(asked.layers) >= depth else DynamicCache()


def keep_all(cache: Any) -> bool:
    """Make it one that another can join: its attention holds every token's keys and values. False where it holds another thing.

    A layer that drops what lies outside of its attention window says nothing that the mask doesn't say, too.
    """
    from transformers.cache_utils import (
        DummyLayer,
        DynamicIndexedLayer,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
        LinearAttentionLayer,
    )

    same = (DynamicLayer, DynamicIndexedLayer, DummyLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)
    kept: list[Any] = []
    for layer in getattr(cache, "layers", ()):
        if type(layer) is DynamicSlidingWindowLayer:
            kept.append(DynamicLayer())
        elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            kept.append(LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states))
        elif type(layer) in same:
            kept.append(layer)
        else:
            return False
    if not kept:
        return False
    cache.layers = kept
    return True


def select(cache: Any, staying: list[int]) -> None:
    """Keep these rows, in this order."""
    index = torch.tensor(staying)  # on the CPU: layers may lie on several devices
    if isinstance(cache, list):  # RWKV's states, one tensor for all layers
        cache[:] = [state.index_select(0, index.to(state.device)) for state in cast("list[Tensor]", cache)]
        return
    if hasattr(cache, "self_attention_cache"):  # a decoder that could read an encoder, too
        select(cache.self_attention_cache, staying)
        return
    for layer in cache.layers:
        for held, key in _states(layer):
            held[key] = held[key].index_select(0, index.to(held[key].device))
        if hasattr(layer, "keys"):  # where there is both, the library would leave out either
            _attention(layer).reorder_cache(layer, index)
    for n, state in enumerate(
        cast("list[Any]", getattr(cache, "linear_cache", []))
    ):  # MiniMax's own cache, [] where a layer has none
        if isinstance(state, Tensor):
            cache.linear_cache[n] = state.index_select(0, index.to(state.device))


def join(mine: Any, theirs: Any, width: int) -> None:
    """Go on with the rows of `theirs` as well, below; what there is for each token is filled on the left up to `width`."""
    for layer, other in zip(mine.layers, theirs.layers, strict=True):
        if getattr(layer, "indexer_position_ids", None) is not None:
            raise UnsupportedError(f"a {type(layer).__name__} with positions of its own can't be joined with another.")
        for (held, key), (more, _) in zip(_states(layer), _states(other), strict=True):
            held[key] = torch.cat([held[key], more[key].to(held[key].device)])
        for name, dim in _columns(layer):
            joined = [wider(getattr(one, name), width, dim) for one in (layer, other)]
            setattr(layer, name, torch.cat(joined))


def drop_columns(cache: Any, spare: int) -> None:
    """Forget the first columns of what there is for each token; recurrent states have none."""
    for layer in cache.layers:
        for name, dim in _columns(layer):
            whole: Tensor = getattr(layer, name)
            setattr(layer, name, whole.narrow(dim, spare, whole.shape[dim] - spare))


def wider(t: Tensor, width: int, dim: int) -> Tensor:
    """Zeros put before what there is along a dimension, up to `width`."""
    spare = width - t.shape[dim]
    return t if spare == 0 else torch.cat([t.new_zeros((*t.shape[:dim], spare, *t.shape[dim + 1 :])), t], dim)


def _states(layer: Any) -> list[tuple[dict[int, Int[Tensor, "b ..."]], int]]:
    """Where a layer holds states of a convolution or recurrence: a row each, no column."""
    found: list[tuple[dict[int, Tensor], int]] = []
    for name in ("conv_states", "recurrent_states"):
        held = getattr(layer, name, None)
        if isinstance(held, dict):
            found += [(held, key) for key, state in held.items() if state is not None]
    return found


def _columns(layer: Any) -> list[tuple[str, int]]:
    """What a layer holds for each token, by name, and which dimension the tokens are."""
    found = [("keys", 2), ("values", 2)] if getattr(layer, "keys", None) is not None else []
    return found + ([("indexer_keys", 1)] if getattr(layer, "indexer_keys", None) is not None else [])


def _attention(layer: Any) -> Any:
    """The class whose `reorder_cache` selects what the layer holds for attention."""
    from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

    return DynamicLayer if isinstance(layer, LinearAttentionLayer) else type(layer)
