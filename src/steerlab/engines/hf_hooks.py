"""Applies interventions inside a running Hugging Face model, by forward hooks that never outlive a call.

A `Plan` is a batch's steerings sorted into groups: rows that share an edit, its positions and its control are edited in
one go, each with its own strength. `Hooks` carries a plan (or a training method's own functions) into the forward
passes of one call, and collects activations on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..controls import Constant, Control, State, Tokens
from ..edits import Edit
from ..errors import DataError
from ..positions import Positions
from ..sites import Site
from ..steering import Steering
from .base import EditFunction
from .hf_sites import Anatomy, Point, Side

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass
class Group:
    """Rows that are edited alike: one edit, one mask, one control, and each row's own constant strength."""

    edit: Edit
    positions: Positions
    control: Control
    rows: list[int]
    strengths: list[float]
    state: State = field(default_factory=dict[str, Tensor])
    _ready: tuple[Tensor, Tensor] | None = None

    def ready(self, device: torch.device) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 1 1"]]:
        """Row numbers and strengths as tensors; the edit and control moved to the device once."""
        if self._ready is None or self._ready[0].device != device:
            self.edit, self.control = self.edit.to(device), self.control.to(device)
            strengths = torch.tensor(self.strengths, dtype=torch.float32, device=device)
            self._ready = (torch.tensor(self.rows, device=device), strengths[:, None, None])
        return self._ready


class Plan:
    """What happens at each site to each row. Rows whose strength is exactly 0 are in no group: they stay as they are."""

    def __init__(self, steerings: Sequence[Steering | None]) -> None:
        self.rows = len(steerings)
        self.groups: dict[Site, list[Group]] = {}
        turns: dict[tuple[Any, ...], Group] = {}
        for row, steering in enumerate(steerings):
            count: dict[Site, int] = {}
            for i in steering.interventions if steering is not None else ():
                turn = count[i.site] = count.get(i.site, -1) + 1
                constant = isinstance(i.control, Constant)
                value = i.control.value if isinstance(i.control, Constant) else 1.0
                if value == 0:
                    continue
                key = (i.site, turn, id(i.edit), i.positions, None if constant else id(i.control))
                if key not in turns:
                    turns[key] = Group(i.edit, i.positions, i.control, [], [])
                    self.groups.setdefault(i.site, [])
                turns[key].rows.append(row)
                turns[key].strengths.append(value)
        for (site, *_), group in sorted(turns.items(), key=lambda item: item[0][1]):
            self.groups[site].append(group)
        self.groups = dict(sorted(self.groups.items(), key=lambda item: item[0].depth))

    @property
    def reads(self) -> set[Site]:
        """The sites that controls read."""
        return {site for groups in self.groups.values() for g in groups for site in g.control.reads}

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        new = {old: n for n, old in enumerate(rows)}
        for site, groups in list(self.groups.items()):
            for group in groups:
                stay = [n for n, row in enumerate(group.rows) if row in new]
                if group.state:
                    where = torch.tensor(stay, device=next(iter(group.state.values())).device)
                    group.state = {k: v.index_select(0, where) for k, v in group.state.items()}
                group.strengths = [group.strengths[n] for n in stay]
                group.rows = [new[group.rows[n]] for n in stay]
                group._ready = None
            self.groups[site] = [g for g in groups if g.rows]
        self.groups = {site: groups for site, groups in self.groups.items() if groups}
        self.rows = len(rows)


class Hooks:
    """Carries edits into the forward passes of one call. `tokens` and `head` must be set before each pass."""

    def __init__(
        self,
        anatomy: Anatomy,
        plan: Plan,
        *,
        edits: Mapping[Site, EditFunction] | None = None,
        collect: Sequence[Site] = (),
    ) -> None:
        self.plan = plan
        self.collected: dict[Site, Tensor] = {}
        self.tokens: Tokens | None = None
        self.head: Tensor | None = None
        self._edits = dict(edits or {})
        self._collect = set(collect)
        self._read: dict[Site, Tensor] = {}
        self._points: dict[Site, Point] = {}
        wanted = {*plan.groups, *plan.reads, *self._edits, *self._collect}
        for site in sorted(wanted, key=lambda s: s.depth):
            self._points[site] = anatomy.point(site)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks stand on the model inside this block, and are gone after it, also when it raises."""
        by_module: dict[tuple[nn.Module, Side], list[Site]] = {}
        for site, point in self._points.items():
            by_module.setdefault((point.module, point.side), []).append(site)
        with ExitStack() as stack:
            for (module, side), sites in by_module.items():
                if side == "output":
                    handle = module.register_forward_hook(self._on_output(sites))
                else:
                    handle = module.register_forward_pre_hook(self._on_input(sites), with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _on_output(self, sites: list[Site]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return self._through(sites, output)
            first, *rest = output
            return type(output)((self._through(sites, first), *rest))

        return hook

    def _on_input(self, sites: list[Site]) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._through(sites, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._through(sites, kwargs["hidden_states"])}

        return hook

    def _through(self, sites: list[Site], h: Tensor) -> Tensor:
        for site in sites:
            columns = self._points[site].columns
            if columns is None:
                h = self._at(site, h)
            else:
                columns = columns.to(h.device)
                before = h.index_select(-1, columns)
                after = self._at(site, before)
                if after is not before:
                    h = h.index_copy(-1, columns, after)
        return h

    def _at(self, site: Site, h: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        if site in self.plan.reads:
            self._read[site] = h.clone()  # some blocks add to these tensors in place
        for group in self.plan.groups.get(site, ()):
            h = self._edited(group, h)
        if site in self._edits:
            h = self._edits[site](h)
        if site in self._collect:
            self.collected[site] = h.clone()
        return h

    def _edited(self, group: Group, h: Tensor) -> Tensor:
        assert self.tokens is not None and self.head is not None, "tokens are set before each pass"
        rows, strengths = group.ready(h.device)
        position, n = self.tokens.position.to(h.device), self.tokens.prompt_length.to(h.device)
        touched = group.positions.mask(position[rows], n[rows], self.head.to(h.device)[rows])
        if not bool(touched.any()) and not group.control.reads:
            return h
        mine = h.index_select(0, rows)
        if isinstance(group.control, Constant):
            strength = strengths
        else:
            strength = self._controlled(group, rows, Tokens(self.tokens.ids.to(h.device)[rows], position[rows], n[rows]))
            touched = touched & (strength != 0).any(dim=-1)
        edited = torch.where(touched[..., None], group.edit(mine, strength), mine)
        return edited if len(rows) == h.shape[0] and group.rows == list(range(len(rows))) else h.index_copy(0, rows, edited)

    def _controlled(self, group: Group, rows: Tensor, tokens: Tokens) -> Tensor:
        if not group.state:
            group.state = group.control.start(len(rows), rows.device)
        read = {site: self._read[site].to(rows.device).index_select(0, rows) for site in group.control.reads}
        strength, group.state = group.control.strength(read, tokens, group.state)
        return strength.expand(*tokens.ids.shape, -1)


def refuse_compiled(model: nn.Module) -> list[str]:
    """Why a compiled model can't be steered by hooks: they would be ignored without a word."""
    if hasattr(model, "_orig_mod"):
        return ["the model is wrapped by torch.compile, which ignores hooks added later; pass the model itself (model._orig_mod)"]
    inside = [name or "the model" for name, m in model.named_modules() if getattr(m, "_compiled_call_impl", None) is not None]
    if inside:
        return [f"{inside[0]} was compiled in place (.compile()), which ignores hooks added later; load the model without it"]
    return []


def finite(h: Tensor, what: str) -> Tensor:
    """The tensor, or a `DataError` that says how much of it isn't finite."""
    if not bool(torch.isfinite(h).all()):
        bad = int((~torch.isfinite(h)).sum())
        raise DataError(
            f"{bad} of {h.numel()} activations at {what} are NaN or infinite; the model overflows there"
            " (float16?) or its weights are damaged. Try bfloat16 or float32, or another layer."
        )
    return h
