"""A model's output head: found as a function, read at chosen tokens, and the last block that runs narrowed to them.

Each of these is checked on the model itself: what doesn't give the model's own scores isn't used.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .head import Head
from .hf_cache import takes, uncached
from .hf_hooks import Enough
from .hf_offload import home
from .hf_sites import Anatomy
from .hf_watch import quiet
from .packing import visible

if TYPE_CHECKING:
    from jaxtyping import Int

Places = tuple["Int[Tensor, ' n']", "Int[Tensor, ' n']"]  # rows and columns


def find_head(model: nn.Module, config: Any) -> Head | None:
    """The head as a function of what it reads; None where the scores are more than that, or the weights lie elsewhere."""
    module: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if type(module) is not nn.Linear or module.weight.device.type == "meta":
        return None
    seen: dict[str, Tensor] = {}

    def keep(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.update(read=args[0], gave=output)

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad(), quiet(model):
            ids = torch.arange(2, device=home(model))[None]
            scores = model(input_ids=ids, **uncached(takes(model))).logits.float()
    finally:
        handle.remove()
    if "read" not in seen or seen["gave"].shape != scores.shape:
        return None
    given: Tensor | None = getattr(module, "bias", None)
    weight, bias = module.weight.detach(), None if given is None else given.detach()
    flat = seen["gave"].float()
    ratio = float((flat * scores).sum() / flat.square().sum().clamp_min(1e-30))
    softcap = getattr(
        config, "final_logit_softcapping", None
    )  # small scores look the same without it, so it goes first
    found = (
        [Head(weight, bias), Head(weight, bias, scale=ratio)]
        if softcap is None
        else [Head(weight, bias, softcap=softcap)]
    )
    with torch.no_grad():
        return next((h for h in found if torch.allclose(h(seen["read"]), scores, rtol=1e-5, atol=1e-5)), None)


@contextmanager
def head_at(model: nn.Module, places: Places, shape: torch.Size, *, stop: bool) -> Generator[list[Tensor]]:
    """The output head sees these tokens alone, as one row; the list then holds what it reads.

    With `stop` the pass ends there, by `Enough`. The list stays empty where the head is never called on `shape`.
    """
    taken: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        if args and args[0].shape[:2] == shape:
            rows, columns = (p.to(args[0].device) for p in places)
            taken.append(args[0][rows, columns])
            if stop:
                raise Enough
            return (taken[0][None], *args[1:])
        return None

    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    handle = head.register_forward_pre_hook(take) if isinstance(head, nn.Module) else None
    try:
        yield taken
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def narrowed(anatomy: Anatomy, layer: int, places: Places, shape: torch.Size) -> Generator[None]:
    """Inside, the block computes queries, attention output and MLP at these tokens alone; others get zeros there.

    Keys and values are computed everywhere, so these tokens see what they always see.
    """
    with ExitStack() as stack:
        for module in anatomy.positionwise(layer):
            pair = _Narrow(places, shape)
            stack.callback(module.register_forward_pre_hook(pair.before).remove)
            stack.callback(module.register_forward_hook(pair.after).remove)
        yield


class _Narrow:
    """Hands a module the chosen tokens as one row, and puts what it gives back to where they stand."""

    def __init__(self, places: Places, shape: torch.Size) -> None:
        self._places, self._shape, self._on = places, shape, False

    def before(self, _module: nn.Module, args: tuple[Any, ...]) -> Any:
        self._on = bool(args) and isinstance(args[0], Tensor) and args[0].shape[:2] == self._shape
        if not self._on:
            return None
        rows, columns = (p.to(args[0].device) for p in self._places)
        return (args[0][rows, columns][None], *args[1:])

    def after(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not self._on:
            return None
        if isinstance(output, Tensor):
            return self._spread(output)
        first, *rest = output
        return type(output)((self._spread(first), *rest))

    def _spread(self, given: Tensor) -> Tensor:
        whole = given.new_zeros(*self._shape, given.shape[-1])
        rows, columns = (p.to(given.device) for p in self._places)
        return whole.index_put((rows, columns), given[0])


def narrows(model: nn.Module, anatomy: Anatomy, layer: int) -> bool:
    """Whether the block gives some tokens of a trial batch the same when it is narrowed to them."""
    weight: Any = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    ids = (torch.arange(10, device=home(model)) * 7 % weight.shape[0]).reshape(2, 5)
    places = (torch.tensor([0, 0, 1]), torch.tensor([1, 4, 3]))
    read: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        h = output if isinstance(output, Tensor) else output[0]
        rows, columns = (p.to(h.device) for p in places)
        read.append(h[rows, columns].float())
        raise Enough

    try:
        for narrow in (False, True):
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(quiet(model))
                if narrow:
                    stack.enter_context(narrowed(anatomy, layer, places, ids.shape))
                stack.callback(anatomy.blocks[layer].register_forward_hook(keep).remove)
                stack.enter_context(suppress(Enough))
                model(input_ids=ids, **uncached(takes(model)))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  # an MLP that adds the stream itself, say: it can't be, whatever the model's own code raises
        return False
    size = float(read[0].abs().max())
    return bool((read[0] - read[1]).abs().max() <= (1e-5 if weight.dtype == torch.float32 else 2e-2) * size)


def apart(position: Int[Tensor, "b t"], branch: Int[Tensor, "b t"], dtype: torch.dtype) -> Tensor:
    """The mask of answers that share a prompt, as it is added to attention scores: 0, or the dtype's least number."""
    seen = visible(position, branch)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def packs(model: nn.Module, anatomy: Anatomy) -> bool:
    """Whether the model gives two answers to one prompt the same activations in one row as in two."""
    weight: Any = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    device = home(model)
    tokens = torch.arange(8, device=device) * 7 % weight.shape[0]
    ids, position = tokens[None], torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5]], device=device)
    branch = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]], device=device)
    names = takes(model)
    if not {"position_ids", "attention_mask"} <= names:
        return False
    last, read = anatomy.blocks[-1], list[Tensor]()

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        read.append((output if isinstance(output, Tensor) else output[0])[0].float())

    handle = last.register_forward_hook(keep)
    try:
        with torch.no_grad(), quiet(model):
            model(
                input_ids=ids,
                attention_mask=apart(position, branch, weight.dtype),
                position_ids=position,
                **uncached(names),
            )
            for columns in ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7]):
                one = torch.arange(len(columns), device=device)[None]
                model(
                    input_ids=ids[:, columns], attention_mask=torch.ones_like(one), position_ids=one, **uncached(names)
                )
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  # such a mask isn't taken, whatever the model's own code says to it
        return False
    finally:
        handle.remove()
    whole, first, second = read
    size = float(whole.abs().max())
    off = max(
        float((whole[[0, 1, 2, 3, 4]] - first).abs().max()), float((whole[[0, 1, 2, 5, 6, 7]] - second).abs().max())
    )
    return off <= (1e-5 if weight.dtype == torch.float32 else 2e-2) * size
