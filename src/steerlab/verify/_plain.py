"""The reference: what a steering means, written once more, as plainly as it goes.

One row, unpadded, whole, without a cache; forward hooks of its own on the blocks; positions counted by a loop; an edit's normal
form where it has one. It shares no code with the engine's hooks, masks, batches or decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..controls import Constant, Decision, Tokens
from ..deltas import WeightEdit
from ..edits import Edit
from ..engines.hf import HFEngine
from ..engines.hf_cache import takes, uncached
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Probe

if TYPE_CHECKING:
    from jaxtyping import Float


def logits(engine: HFEngine, probe: Probe, steering: Steering | None = None) -> Float[Tensor, "t v"]:
    """The scores at every token of the row."""
    found: list[Tensor] = []
    ids = torch.tensor([probe.ids], device=engine.device)
    handles = [] if steering is None else _hooked(engine, probe, _ahead(engine, probe, steering))
    try:
        with torch.no_grad():
            found.append(engine.model(input_ids=ids, **uncached(takes(engine.model))).logits[0].float().cpu())
    finally:
        for handle in handles:
            handle.remove()
    return found[0]


def touched(positions: Positions, probe: Probe) -> list[int]:
    """The numbers of the tokens that are edited."""
    at: list[int] = []
    for t in range(len(probe.ids)):
        if t < probe.prompt_length:
            for start, stop, anchor in positions.prompt:
                origin = probe.head if anchor == "body" else 0
                first = probe.prompt_length + start if start < 0 else origin + start
                end = probe.prompt_length if stop is None else probe.prompt_length + stop if stop < 0 else origin + stop
                if max(first, origin) <= t < end:
                    at.append(t)
        elif any(
            w.start <= t - probe.prompt_length and (w.stop is None or t - probe.prompt_length < w.stop)
            for w in positions.generated
        ):
            at.append(t)
    return sorted(set(at))


def _ahead(engine: HFEngine, probe: Probe, steering: Steering) -> Steering:
    """The same steering with what decides ahead decided, by a pass of the prompt alone."""
    if not steering.ahead:
        return steering

    def read(site: Site) -> Tensor:
        kept: list[Tensor] = []
        prompt = Probe(probe.example, probe.ids[: probe.prompt_length], probe.prompt_length, probe.head)
        handle = _at(engine, site, lambda h: _keep(kept, h))
        try:
            logits(engine, prompt)
        finally:
            handle.remove()
        return kept[0][0, -1].float().cpu()

    return steering.decided(read)


def _hooked(engine: HFEngine, probe: Probe, steering: Steering) -> list[Any]:
    """Hooks for every intervention, in the order in which they act."""
    before: dict[Site, Tensor] = {}
    reads = {site for i in steering.interventions for site in i.control.reads}
    handles = [_weight(engine, i) for i in steering.interventions if i.site.on_weights]
    handles += [_at(engine, site, lambda h, site=site: _note(before, site, h)) for site in reads]
    rest = [i for i in steering.interventions if not i.site.on_weights]
    return handles + [_at(engine, i.site, lambda h, i=i: _edited(h, i, probe, before)) for i in rest]


def _edited(h: Tensor, i: Intervention, probe: Probe, before: dict[Site, Tensor]) -> Tensor:
    strengths = _strengths(i, probe, before)
    out = h.clone()
    for t in touched(i.positions, probe):
        if bool((strengths[t] != 0).any()):
            out[0, t] = _one(i.edit.to(h.device), h[0, t], strengths[t])
    return out


def _one(edit: Edit, h: Float[Tensor, " d"], strength: Tensor) -> Tensor:
    """One token, by the normal form in double precision where there is one."""
    s = float(strength) if strength.numel() == 1 else strength.to(h.device)
    form = edit.affine(s)
    if form is None:
        return edit(h[None], s)[0]
    x = h.double()
    out = x.clone()
    if form.diag is not None:
        out += form.diag.double() * x
    if form.down is not None and form.up is not None:
        out += form.up.double().T @ (form.down.double() @ x)
    if form.bias is not None:
        out += form.bias.double()
    return out.to(h.dtype)


def _strengths(i: Intervention, probe: Probe, before: dict[Site, Tensor]) -> Sequence[Tensor]:
    """Each token's strength."""
    n = len(probe.ids)
    if isinstance(i.control, Constant):
        return [torch.tensor([i.control.value])] * n
    control = i.control
    if isinstance(control, Decision) and not control.held:
        return [(control.level(before[control.site][0, t].cpu()) * control.value).reshape(1) for t in range(n)]
    position = torch.arange(n)[None]
    tokens = Tokens(torch.tensor([probe.ids]), position, torch.tensor([probe.prompt_length]))
    given, _ = control.strength({s: h.cpu() for s, h in before.items()}, tokens, control.start(1, torch.device("cpu")))
    return list(given.expand(1, n, -1)[0])


def _weight(engine: HFEngine, i: Intervention) -> Any:
    """Adds x·(s·ΔW)ᵀ to what the matrix gives."""
    assert isinstance(i.edit, WeightEdit) and isinstance(i.control, Constant)
    change = i.control.value * i.edit.change()

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return (output.double() + args[0].double() @ change.to(output.device).double().T).to(output.dtype)

    return engine.anatomy.matrix(i.site).module.register_forward_hook(hook)


def _at(engine: HFEngine, site: Site, function: Callable[[Tensor], Tensor]) -> Any:
    """A hook that replaces a site's activations."""
    if site.part == "resid" and site.layer is not None:
        module, side, columns = engine.anatomy.blocks[site.layer], "output", None
    else:
        module, side, columns, _ = engine.anatomy.point(site)

    def through(h: Tensor) -> Tensor:
        if columns is None:
            return function(h)
        at = columns.to(h.device)
        return h.index_copy(-1, at, function(h[..., at]))

    def output(_module: nn.Module, _args: Any, gave: Any) -> Any:
        return through(gave) if isinstance(gave, Tensor) else (through(gave[0]), *gave[1:])

    def reading(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (through(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": through(kwargs["hidden_states"])}

    if side == "output":
        return module.register_forward_hook(output)
    return module.register_forward_pre_hook(reading, with_kwargs=True)


def _keep(kept: list[Tensor], h: Tensor) -> Tensor:
    kept.append(h.detach().clone())
    return h


def _note(before: dict[Site, Tensor], site: Site, h: Tensor) -> Tensor:
    before[site] = h.detach().clone()
    return h
