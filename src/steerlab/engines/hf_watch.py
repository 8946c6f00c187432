"""One forward pass of two tokens, watched: what each module was given and gave, in the order in which it ran."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .hf_cache import takes, uncached
from .hf_offload import home

WATCHED = 2  # tokens of the watched pass


@dataclass
class Call:
    """What one module was given and gave during the watched pass."""

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    order: int
    end: int = -1
    output: Any = None

    @property
    def read(self) -> Tensor | None:
        """The first tensor that it was given."""
        return first_tensor(self.args, self.kwargs)

    @property
    def gave(self) -> Tensor | None:
        """The first tensor that it returned."""
        return self.output if isinstance(self.output, Tensor) else first_tensor(self.output)


def watched(model: nn.Module, vocabulary: int) -> list[Call]:
    """One forward pass of two tokens; every module's calls in the order in which they began."""
    calls: list[Call] = []
    clock = iter(range(2**31))

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(module, names[module], args, kwargs, next(clock)))

    def after(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        call = next(c for c in reversed(calls) if c.module is module and c.end < 0)
        call.output, call.end = output, next(clock)

    names = {module: name for name, module in model.named_modules()}
    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        run(model, WATCHED, vocabulary)
    return calls


def run(model: nn.Module, tokens: int, vocabulary: int, **also: Any) -> None:
    """A forward pass of so many tokens."""
    ids = torch.arange(tokens)[None] % max(vocabulary, 1)
    with torch.no_grad(), quiet(model):
        model(input_ids=ids.to(home(model)), **uncached(takes(model)), **also)


def first_tensor(*things: Any) -> Tensor | None:
    """The first tensor among positional arguments, an output tuple, or the keyword `hidden_states`."""
    for thing in things:
        if isinstance(thing, Tensor):
            return thing
        if isinstance(thing, (tuple, list)):
            if (found := first_tensor(*cast("tuple[Any, ...]", thing))) is not None:
                return found
        elif isinstance(thing, dict):
            found = cast("dict[str, Any]", thing).get("hidden_states")
            if isinstance(found, Tensor):
                return found
    return None


@contextmanager
def quiet(model: nn.Module) -> Generator[None]:
    """Evaluation mode (no dropout) for the length of a call; every module's own mode is restored."""
    loud = [m for m in model.modules() if m.training]
    try:
        for module in loud:
            module.training = False
        yield
    finally:
        for module in loud:
            module.training = True


def matrices_of(module: nn.Module) -> list[Tensor]:
    """Weight matrices, packed ones of quantised layers included (some keep them as integer buffers)."""
    packed = [b for b in module.buffers() if b.ndim == 2 and not b.is_floating_point() and b.dtype != torch.bool]
    return [*(p for p in module.parameters() if p.ndim >= 2), *packed]


def is_rows(t: Tensor | None) -> bool:
    """Whether a tensor of the watched pass is [1, t, width]: one row per token."""
    return t is not None and t.ndim == 3 and t.shape[:2] == (1, WATCHED)


def has_width(t: Tensor | None, width: int) -> bool:
    """Whether it is such a tensor, of this width."""
    return is_rows(t) and t is not None and t.shape[-1] == width


def is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are one in memory."""
    return a is b or (a is not None and b is not None and a.data_ptr() == b.data_ptr() and a.shape == b.shape)


def projections(parent: Call, calls: list[Call]) -> list[Call]:
    """The projections called inside another call, as the rest of the model sees them.

    A projection is a module with one weight matrix that calls no other such module; where an adapter wraps it (LoRA: the
    wrapper reads the same tensor and gives the same width), it is the wrapper, whose output the adapter has joined.
    """
    inner = [c for c in calls if parent.order < c.order and c.end < parent.end]
    busy = [c for c in inner if len(matrices_of(c.module)) == 1]
    leaves = [c for c in busy if not any(_inside(o, c) for o in busy)]
    whole = {id(found.module): found for found in (_wrapped(leaf, inner) for leaf in leaves)}
    found = list(whole.values())
    return sorted((c for c in found if not any(_inside(c, o) for o in found)), key=lambda c: c.order)


def _wrapped(leaf: Call, inner: list[Call]) -> Call:
    """The outermost call around a projection that does the same job: same tensor read, same width given."""
    around = [c for c in inner if _inside(leaf, c) and is_same(c.read, leaf.read) and _like(c.gave, leaf.gave)]
    return min(around, key=lambda c: c.order, default=leaf)


def _inside(inner: Call, outer: Call) -> bool:
    return inner is not outer and outer.order < inner.order and inner.end < outer.end


def _like(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape
