"""Applies interventions inside a running Hugging Face model, by forward hooks that never outlive a call.

A `Plan` is a batch's steerings sorted into groups: rows that share an edit, its positions and its control are edited in
one go, each with its own strength. `Hooks` carries a plan (or a training method's own functions) into the forward
passes of one call, and collects activations on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..controls import Constant, Control, State, Tokens
from ..deltas import WeightEdit
from ..edits import Edit
from ..positions import Positions
from ..sites import Site
from ..steering import Steering
from .base import EditFunction
from .hf_sites import Anatomy, Side

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass
class Group:
    """Rows that are edited alike: one edit, one mask, one control (None: constant), and each row's own strength beside it.

    `controls` are the ids of the rows' own controls, which are the group's but for the strength.
    """

    site: Site
    edit: Edit
    positions: Positions
    control: Control | None
    key: tuple[Any, ...] = ()
    rows: list[int] = field(default_factory=list[int])
    strengths: list[float] = field(default_factory=list[float])
    controls: list[int] = field(default_factory=list[int])
    _state: State | None = None
    _tally: Tensor | None = None
    _ready: tuple[Tensor, Tensor] | None = None
    _steady: tuple[torch.device, Callable[[Tensor], Tensor]] | None = None

    def ready(self, device: torch.device) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 1 1"]]:
        """Row numbers and strengths as tensors; the edit and control moved to the device once."""
        if self._ready is None or self._ready[0].device != device:
            self.edit = self.edit.to(device)
            self.control = None if self.control is None else self.control.to(device)
            strengths = torch.tensor(self.strengths, dtype=torch.float32, device=device)
            self._ready = (torch.tensor(self.rows, device=device), strengths[:, None, None])
        return self._ready

    def whole(self, rows: int) -> bool:
        """Whether it is all rows of the batch, in order."""
        return self.rows == list(range(rows))

    def everywhere(self, h: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The edit at every token of a chunk in the group's rows. What doesn't depend on the chunk is kept for the next one.

        Other rows may join or leave the batch without the group being told, so whose rows they are is asked each time.
        """
        rows, strength = self.ready(h.device)
        if self._steady is None or self._steady[0] != h.device:
            self._steady = (h.device, self.edit.at(self.edit.check(strength)))
        _, edit = self._steady
        if self.whole(len(h)):
            return edit(h.float()).to(h.dtype)
        return h.index_copy(0, rows, edit(h.index_select(0, rows).float()).to(h.dtype))

    def controlled(self, read: Mapping[Site, Tensor], tokens: Tokens) -> Float[Tensor, "n t r"]:
        """The control's strength for this chunk, times each row's own; its state goes on to the next."""
        assert self.control is not None
        _, own = self.ready(tokens.ids.device)
        if self._state is None:
            self._state = self.control.start(len(self.rows), tokens.ids.device)
        strength, self._state = self.control.strength(read, tokens, self._state)
        return (strength * own).expand(*tokens.ids.shape, -1)

    def tally(self, touched: Bool[Tensor, "n t"], acts: Bool[Tensor, "n t"], strength: Float[Tensor, "n t r"]) -> None:
        """Count what the control has done to each row: tokens it decided on, tokens it acted at, the strengths' sum."""
        total = torch.where(touched, strength.detach().float().mean(dim=-1), 0).sum(dim=1)
        told = torch.stack([touched.sum(dim=1).float(), acts.sum(dim=1).float(), total], dim=1)
        self._tally = told if self._tally is None else self._tally + told

    def told(self, row: int) -> Tally:
        """What the control has done to a row of the batch so far."""
        if self._tally is None or row not in self.rows:
            return Tally(0, 0, 0.0)
        tokens, acted, total = self._tally[self.rows.index(row)].tolist()
        return Tally(int(tokens), int(acted), total / tokens if tokens else 0.0)

    def keep(self, new: Mapping[int, int]) -> None:
        """Go on with the rows in `new`, under their new numbers."""
        stay = [n for n, row in enumerate(self.rows) if row in new]
        if self._state:
            self._state = {k: v[torch.tensor(stay, dtype=torch.long, device=v.device)] for k, v in self._state.items()}
        if self._tally is not None:
            self._tally = self._tally[torch.tensor(stay, dtype=torch.long, device=self._tally.device)]
        self.strengths, self.controls = [self.strengths[n] for n in stay], [self.controls[n] for n in stay]
        self.rows = [new[self.rows[n]] for n in stay]
        self._ready = self._steady = None

    def join(self, other: Group) -> None:
        """Go on with another batch's rows as well, whose numbers are this batch's already."""
        mine, theirs = self._state, other._state
        if mine is not None and theirs is not None:
            self._state = {k: torch.cat([v, theirs[k].to(v.device)]) for k, v in mine.items()}
        if self._tally is not None and other._tally is not None:
            self._tally = torch.cat([self._tally, other._tally.to(self._tally.device)])
        self.rows, self.strengths = self.rows + other.rows, self.strengths + other.strengths
        self.controls += other.controls
        self._ready = self._steady = None


class Tally(NamedTuple):
    """What a control did to a row: tokens that it decided on, tokens that it acted at, the mean strength over them."""

    tokens: int
    acted: int
    strength: float


class Plan:
    """What happens to each row, in the order in which it happens.

    Rows whose strength is exactly 0 are in no group: they stay as they are.
    """

    def __init__(self, steerings: Sequence[Steering | None]) -> None:
        groups: dict[tuple[Any, ...], Group] = {}
        for row, steering in enumerate(steerings):
            turns: dict[tuple[int, int], int] = {}
            for i in steering.interventions if steering is not None else ():
                # a slice and the whole of one tensor share their place in the order, so turns are counted by depth
                turn = turns[i.site.depth] = turns.get(i.site.depth, -1) + 1
                if isinstance(i.control, Constant):
                    alike, control, value = (), None, i.control.value
                    if value == 0:
                        continue
                else:
                    alike, control, value = i.control.unit()
                key = (i.site.depth, turn, i.site, id(i.edit), i.positions, alike)
                group = groups.setdefault(key, Group(i.site, i.edit, i.positions, control, key))
                group.rows.append(row)
                group.strengths.append(value)
                group.controls.append(id(i.control))
        self.groups = [group for _, group in sorted(groups.items(), key=lambda item: item[0][:2])]
        self._at: dict[Site, list[Group]] | None = None

    def at(self, site: Site) -> list[Group]:
        """The groups that act at a site, in order."""
        if self._at is None:
            self._at = {}
            for group in self.groups:
                self._at.setdefault(group.site, []).append(group)
        return self._at.get(site, [])

    @property
    def sites(self) -> set[Site]:
        """The sites that are edited or read."""
        return {g.site for g in self.groups} | self.reads

    @property
    def reads(self) -> set[Site]:
        """The sites that controls read."""
        return {site for g in self.groups if g.control is not None for site in g.control.reads}

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        new = {old: n for n, old in enumerate(rows)}
        for group in self.groups:
            group.keep(new)
        self.groups[:], self._at = [g for g in self.groups if g.rows], None

    def join(self, other: Plan, rows: int) -> None:
        """Go on with another batch's rows below the `rows` of this one; both have run their prompts."""
        mine = {group.key: group for group in self.groups}
        for group in other.groups:
            group.keep({row: row + rows for row in group.rows})
            if group.key in mine:
                mine[group.key].join(group)
            else:
                self.groups.append(group)
        self.groups.sort(key=lambda group: group.key[:2])
        self._at = None

    def told(self, row: int) -> dict[int, Tally]:
        """What each control has done to a row, by the control's id."""
        return {
            g.controls[g.rows.index(row)]: g.told(row) for g in self.groups if g.control is not None and row in g.rows
        }


class Enough(Exception):
    """Ends a forward pass early."""


class Hooks:
    """Carries edits into the forward passes of one call. `tokens` and `head` must be set before each pass.

    Rows that `resting` [b] marks are left alone in the next pass by every edit of activations. `generated` says that the next
    pass holds generated tokens alone, none before the so-manieth of its row (0 is the first). With `only_collect` a pass ends, by
    `Enough`, as soon as all sites are collected.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        plan: Plan,
        *,
        edits: Mapping[Site, EditFunction] | None = None,
        collect: Sequence[Site] = (),
        only_collect: bool = False,
    ) -> None:
        self.plan, self._only_collect = plan, only_collect and bool(collect)
        self.collected: dict[Site, Tensor] = {}
        self.tokens: Tokens | None = None
        self.head: Tensor | None = None
        self.resting: Tensor | None = None
        self.generated: int | None = None
        self._edits = dict(edits or {})
        self._read: dict[Site, Tensor] = {}
        self._collects = set(collect)
        wanted = sorted({*plan.sites, *self._edits, *collect}, key=lambda s: (s.depth, str(s)))
        self._points = {site: anatomy.point(site) for site in wanted if not site.on_weights or site in self._collects}
        self._matrices = {site: anatomy.matrix(site) for site in wanted if site not in self._points}
        self._reads = plan.reads
        by_module: dict[tuple[nn.Module, Side], list[Site]] = {}
        for site, point in self._points.items():
            by_module.setdefault((point.module, point.side), []).append(site)
        self._places = [(module, side, sites) for (module, side), sites in by_module.items()]

    @property
    def sites(self) -> set[Site]:
        """The sites that anything is done at."""
        return {*self._points, *self._matrices}

    @contextmanager
    def attached(self) -> Generator[None]:
        """The hooks stand on the model inside this block, and are gone after it, also when it raises."""
        handles: list[Any] = []
        try:
            for site, matrix in self._matrices.items():  # before the others: what activations are is told after weights
                handles.append(matrix.module.register_forward_hook(self._on_weights(site)))
            for module, side, sites in self._places:
                if side == "output":
                    handles.append(module.register_forward_hook(self._on_output(sites)))
                else:
                    handles.append(module.register_forward_pre_hook(self._on_input(sites), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_weights(self, site: Site) -> Any:
        """Adds to a matrix's output what the changes of its weight make of what it reads; rows without any stay."""

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            for group in self.plan.at(site):
                rows, strength = group.ready(output.device)
                added = cast("WeightEdit", group.edit).added(args[0].index_select(0, rows), strength)
                changed = (output.index_select(0, rows).float() + added).to(output.dtype)
                output = changed if group.whole(len(output)) else output.index_copy(0, rows, changed)
            if site in self._edits:
                output = (output.float() + self._edits[site](args[0])).to(output.dtype)
            return output

        return hook

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

    def _through(self, sites: list[Site], h: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Read, then edit in order, then collect what the rest of the model sees.

        What is kept is a copy: some blocks add to these tensors in place.
        """
        for site in self._reads.intersection(sites) if self._reads else ():
            self._read[site] = self._slice(site, h).clone()
        for group in self.plan.groups:
            if group.site in sites:
                h = self._put(group.site, h, self._edited(group, self._slice(group.site, h)))
        for site in sites if self._edits else ():
            if site in self._edits:
                h = self._put(site, h, self._edits[site](self._slice(site, h)))
        for site in self._collects.intersection(sites) if self._collects else ():
            self.collected[site] = self._slice(site, h).clone()
        if self._only_collect and len(self.collected) == len(self._collects):
            raise Enough
        return h

    def _slice(self, site: Site, h: Tensor) -> Tensor:
        columns = self._points[site].columns
        return h if columns is None else h.index_select(-1, columns.to(h.device))

    def _put(self, site: Site, h: Tensor, part: Tensor) -> Tensor:
        columns = self._points[site].columns
        return part if columns is None else h.index_copy(-1, columns.to(h.device), part)

    def _edited(self, group: Group, h: Tensor) -> Tensor:
        assert self.tokens is not None and self.head is not None, "tokens are set before each pass"
        if self.generated is not None and self.resting is None and group.control is None:
            touched = group.positions.generated_from(self.generated)
            if touched is not None:  # all of them or none: nothing to be counted out
                return group.everywhere(h) if touched else h
        rows, strength = group.ready(h.device)
        position, length = self.tokens.position.to(h.device)[rows], self.tokens.prompt_length.to(h.device)[rows]
        touched = group.positions.mask(position, length, self.head.to(h.device)[rows])
        if self.resting is not None:
            touched = touched & ~self.resting.to(h.device)[rows][:, None]
        if h.device.type == "cpu" and group.control is None and not bool(touched.any()):
            return h
        mine = h.index_select(0, rows)
        if group.control is not None:
            read = {site: self._read[site].to(h.device).index_select(0, rows) for site in group.control.reads}
            strength = group.controlled(read, Tokens(self.tokens.ids.to(h.device)[rows], position, length))
            acts = touched & (strength != 0).any(dim=-1)
            group.tally(touched, acts, strength)
            touched = acts
        edited = torch.where(touched[..., None], group.edit(mine, strength), mine)
        return edited if group.whole(h.shape[0]) else h.index_copy(0, rows, edited)


def refuse_compiled(model: nn.Module) -> list[str]:
    """Why a compiled model can't be steered by hooks: they would be ignored without a word."""
    if hasattr(model, "_orig_mod"):
        return [
            "the model is wrapped by torch.compile, which ignores hooks added later; pass the model itself (model._orig_mod)"
        ]
    for name, module in model.named_modules():
        if how := _compiled(module):
            part, whole = name or "the model", f"model.{name}" if name else "model"
            return [how.format(part=part, whole=whole)]
    return []


def _compiled(module: nn.Module) -> str | None:
    """How a module was compiled, in words, where hooks on it or inside of it would be ignored."""
    if isinstance(module, torch.jit.ScriptModule):
        return "{part} is TorchScript (torch.jit), which takes no hooks inside; load the model without torch.jit"
    if hasattr(module, "_orig_mod"):
        return "{part} is wrapped by torch.compile, which ignores hooks added later; put {whole}._orig_mod in its place"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "{part} was compiled in place (.compile()), which ignores hooks added later; load the model without it"
    # a module without others inside may have a compiled forward: hooks on it run around that
    if any(True for _ in module.children()) and any(
        map(_by_dynamo, (module.forward, vars(module).get("_old_forward")))
    ):
        return (
            "{part}'s forward was compiled (torch.compile({whole}.forward)), which ignores hooks added later to what is"
            " inside; load the model without it"
        )
    return None


def _by_dynamo(forward: Any) -> bool:
    """Whether a function is what torch.compile made of another one (`torch.compiler.disable` leaves the same mark)."""
    return hasattr(forward, "_torchdynamo_orig_callable") and not getattr(forward, "_torchdynamo_disable", False)
