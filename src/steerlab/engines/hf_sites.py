"""Finds a model's sites by structure, and checks them by shape.

No list of module names: one forward pass of two tokens is watched, and a module is what it does. The blocks are the
list of equal modules, as many as the configuration counts, that run once each and in order on `[b, t, d]`. Inside a
block, attention is the child whose call takes an attention mask; the MLP is the other child with weight matrices;
the projections are told apart by where their outputs arrive when attention multiplies queries with keys. What does not
show the expected shape is no site, and the reason is kept for the error message.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import SiteError, UnsupportedError, nearest
from ..sites import Site
from .hf_layout import Layout, find_layout
from .hf_weights import Matrices, Matrix, find_matrices, owners_of

if TYPE_CHECKING:
    from jaxtyping import Int

WATCHED = 2  # tokens of the watched pass
Side = Literal["input", "output"]


class Point(NamedTuple):
    """Where a site's tensor passes: what a module reads or returns, and which of its columns (None: all)."""

    module: nn.Module
    side: Side
    columns: Int[Tensor, " w"] | None
    width: int


@dataclass
class _Call:
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
        return first_tensor(self.args, self.kwargs)

    @property
    def gave(self) -> Tensor | None:
        return self.output if isinstance(self.output, Tensor) else first_tensor(self.output)


@dataclass
class _Block:
    module: nn.Module
    returned: int | None = None  # how many values its tuple has; None: a bare tensor
    points: dict[str, Point] = field(default_factory=dict[str, Point])
    absent: dict[str, str] = field(default_factory=dict[str, str])  # part -> why this block hasn't got it
    heads: int = 0
    key_heads: int = 0
    matrices: Matrices = field(default_factory=Matrices)


class Anatomy:
    """The sites of one model: `point(site)` says which module's input or output a site is.

    Blocks are found when it is made; what lies inside them when first asked for. Raises `UnsupportedError` for a model
    whose blocks can't be told.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        self._model = model
        self._config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.width: int = self._config.hidden_size
        calls = self._watched()
        self._blocks = [_Block(call.module, _tuple_of(call.output)) for call in self._find_blocks(calls)]
        self._final = self._find_final(calls)
        self._inside: bool = False

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks, in order."""
        return tuple(b.module for b in self._blocks)

    @contextmanager
    def begun(self, layer: int, hidden: Tensor) -> Generator[None]:
        """Inside this block, no block up to `layer` runs: they pass on what they get, and that one gives `hidden`."""
        skipped = self._blocks[: layer + 1]
        with ExitStack() as stack:
            for block in skipped:
                before = vars(block.module).get("forward")
                block.module.forward = _passing(block.returned, hidden if block is skipped[-1] else None)
                stack.callback(_restore, block.module, before)
            yield

    def positionwise(self, layer: int) -> tuple[nn.Module, ...]:
        """Modules of a block that take each token alone: its MLP, attention's output projection and separate queries."""
        self._look_inside()
        points = self._blocks[layer].points
        whole = [points[p].module for p in ("heads", "mlp") if p in points]
        if "q" in points and points["q"].columns is None:
            whole.append(points["q"].module)
        return tuple(whole)

    def parts(self, layer: int = 0) -> tuple[str, ...]:
        """The parts of a `Site` that this architecture has, in the order of a pass."""
        self._look_inside()
        return ("embed", *self._blocks[layer].points, "resid", *(("final",) if self._final else ()), "logits")

    def point(self, site: Site) -> Point:
        """Where the site's tensor passes. Raises `SiteError` with the reason and the nearest site that exists."""
        if site.part == "embed":
            return Point(self._blocks[0].module, "input", None, self.width)
        if site.part == "final":
            if self._final is None:
                raise SiteError("this model has no norm after its last block, so there is no site 'final'.")
            return Point(self._final, "output", None, self.width)
        if site.on_weights:
            raise SiteError(
                f"the site {site} is a weight matrix, which has no activations; read what it gives or reads."
            )
        if site.layer is None or site.part.startswith("cache_"):
            raise SiteError(f"the site {site} isn't one that activations pass through in this version.")
        block = self._block(site, site.layer)
        if site.part == "resid":
            return Point(block.module, "output", None, self.width)
        self._look_inside()
        if site.part not in block.points:
            why = block.absent.get(site.part, "the block has no such tensor")
            raise SiteError(f"this model has no site {site}: {why}. {nearest(site.part, self.parts(site.layer))}")
        return self._sliced(site, block)

    def matrix(self, site: Site) -> Matrix:
        """The weight matrix that a site is. Raises `SiteError` with the reason and the nearest one that exists."""
        assert site.layer is not None and site.on_weights, "a weight site has a layer"
        block = self._block(site, site.layer)
        self._look_inside()
        found = block.matrices.found.get(site.matrix)
        if found is None:
            why = block.matrices.refused.get(site.matrix, "the block has no weight matrix of that name")
            raise SiteError(f"this model has no site {site}: {why}. {nearest(site.matrix, block.matrices.found)}")
        return found

    def matrices(self, layer: int) -> dict[str, Matrix]:
        """The weight matrices of a block by name, in the order in which they are used."""
        self._look_inside()
        return self._blocks[layer].matrices.found

    def _block(self, site: Site, layer: int) -> _Block:
        if layer >= self.depth:
            raise SiteError(
                f"the site {site} names block {layer}, but this model has {self.depth} blocks, 0 to {self.depth - 1}."
                f" The last one is '{Site(self.depth - 1, site.part, site.index)}'."
            )
        return self._blocks[layer]

    def _sliced(self, site: Site, block: _Block) -> Point:
        point = block.points[site.part]
        if site.index is None:
            return point
        count = {"heads": block.heads, "q": block.heads, "neurons": point.width}.get(site.part, block.key_heads)
        if site.index >= count:
            raise SiteError(
                f"the site {site} names number {site.index}, but {site.part} has {count}, 0 to {count - 1}."
            )
        size = point.width // count
        mine = torch.arange(site.index * size, (site.index + 1) * size)
        return point._replace(columns=mine if point.columns is None else point.columns[mine], width=size)

    # --- the watched pass -------------------------------------------------------------------------------------------

    def _watched(self) -> list[_Call]:
        """One forward pass of two tokens; every module's calls in the order in which they began."""
        calls: list[_Call] = []
        clock = iter(range(2**31))

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(_Call(module, names[module], args, kwargs, next(clock)))

        def after(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            call = next(c for c in reversed(calls) if c.module is module and c.end < 0)
            call.output, call.end = output, next(clock)

        names = {module: name for name, module in self._model.named_modules()}
        with ExitStack() as stack:
            for module in names:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
            self._forward(WATCHED)
        return calls

    def _forward(self, tokens: int) -> None:
        ids = torch.arange(tokens)[None] % max(self._config.vocab_size, 1)
        device = next(self._model.parameters()).device
        with torch.no_grad(), quiet(self._model):
            self._model(input_ids=ids.to(device), use_cache=False)

    def _find_blocks(self, calls: list[_Call]) -> list[_Call]:
        count = self._config.num_hidden_layers
        for module in self._model.modules():
            if not isinstance(module, nn.ModuleList) or len(module) != count:
                continue
            found = [c for c in calls if any(c.module is m for m in module)]
            in_order = [c.module for c in found] == list(module)
            if in_order and all(_has_width(c.read, self.width) and _has_width(c.gave, self.width) for c in found):
                return found
        raise UnsupportedError(
            f"the blocks of {type(self._model).__name__} can't be told: expected a list of {count} modules that run once"
            f" each, in order, on activations of width {self.width}."
        )

    def _find_final(self, calls: list[_Call]) -> nn.Module | None:
        """The norm after the last block: no weight matrix, and its output is as wide as the stream."""
        end = max(c.end for c in calls if c.module is self._blocks[-1].module)
        after = [c for c in calls if c.order > end and _has_width(c.gave, self.width) and not _matrices(c.module)]
        return after[-1].module if after else None

    # --- inside a block ---------------------------------------------------------------------------------------------

    def _look_inside(self) -> None:
        if self._inside:
            return
        calls = self._watched()
        layouts: dict[object, Layout | str] = {}
        owners = owners_of(self._model)
        for block in self._blocks:
            children = [c for c in calls if any(c.module is m for m in block.module.children())]
            attention = [c for c in children if "attention_mask" in inspect.signature(c.module.forward).parameters]
            mixers = [c for c in children if c not in attention and _matrices(c.module)]
            self._place(block, "attn", attention, children)
            self._place(block, "mlp", mixers, children)
            if len(attention) == 1:
                self._find_heads(block, attention[0], calls, layouts)
            if len(mixers) == 1:
                self._find_neurons(block, mixers[0], calls)
            order = ["norm_attn", "q", "k", "v", "heads", "attn", "norm_mlp", "neurons", "mlp"]
            block.points = {p: block.points[p] for p in order if p in block.points}
            parts = {block.points[p].module: p for p in ("heads", "neurons") if p in block.points}
            block.matrices = find_matrices(block.module, calls, parts, owners)
        self._inside = True

    def _place(self, block: _Block, part: str, found: list[_Call], inner: list[_Call]) -> None:
        """The module `part` itself, and what it reads where that comes from a norm."""
        norm = f"norm_{part}"
        if len(found) != 1 or not (_has_width(found[0].gave, self.width) and _has_width(found[0].read, self.width)):
            names = [c.name.rsplit(".", 1)[-1] for c in found]
            block.absent[part] = block.absent[norm] = (
                f"its block has {names or 'no module'} where one {part} module is expected"
            )
            return
        call = found[0]
        block.points[part] = Point(call.module, "output", None, self.width)
        if any(_same(call.read, c.gave) and not _matrices(c.module) for c in inner):
            block.points[norm] = Point(call.module, "input", None, self.width)
        else:
            block.absent[norm] = f"its {part} module reads the stream itself, with no norm before it"

    def _find_neurons(self, block: _Block, mlp: _Call, calls: list[_Call]) -> None:
        inner = _projections(mlp, calls)
        last = max(inner, key=lambda c: c.end, default=None)
        once = last is not None and sum(c.module is last.module for c in inner) == 1
        if last is None or not once or not _has_width(last.gave, self.width) or not _rows(last.read):
            block.absent["neurons"] = (
                "its MLP has no single down projection over all tokens (a mixture of experts has one per expert)"
            )
            return
        width = cast("Tensor", last.read).shape[-1]
        block.points["neurons"] = Point(last.module, "input", None, width)

    def _find_heads(
        self, block: _Block, attention: _Call, calls: list[_Call], layouts: dict[object, Layout | str]
    ) -> None:
        inner = _projections(attention, calls)
        out = inner[-1] if inner else None
        if out is None or not _has_width(out.gave, self.width) or not _rows(out.read):
            layout: Layout | str = "its attention has no output projection that shows"
            width, projections = 0, list[_Call]()
        else:
            width = cast("Tensor", out.read).shape[-1]
            projections = [c for c in inner[:-1] if _rows(c.gave)]
            widths = tuple(cast("Tensor", c.gave).shape[-1] for c in projections)
            key = (type(attention.module), widths, width)
            if key not in layouts:
                modules = [c.module for c in projections]
                layouts[key] = find_layout(attention.module, modules, widths, lambda: self._forward(1))
            layout = layouts[key]
        if isinstance(layout, str) or out is None:
            block.absent.update(dict.fromkeys(("heads", "q", "k", "v"), str(layout)))
            return
        if width == layout.heads * layout.head_size:
            block.points["heads"] = Point(out.module, "input", None, width)
        else:
            block.absent["heads"] = (
                f"what its output projection reads (width {width}) isn't made of {layout.heads} equal heads"
            )
        block.heads, block.key_heads = layout.heads, layout.key_heads
        for part, (which, columns, size) in layout.roles.items():
            block.points[part] = Point(projections[which].module, "output", columns, size)
        for part in {"q", "k", "v"} - set(layout.roles):
            block.absent[part] = "its projection could not be told apart from the others"


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


def _tuple_of(output: Any) -> int | None:
    return len(output) if isinstance(output, tuple) else None


def _passing(returned: int | None, hidden: Tensor | None) -> Any:
    """A block's forward that does nothing but give `hidden`, or what it gets."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        h = first_tensor(args, kwargs) if hidden is None else hidden
        return h if returned is None else (h, *[None] * (returned - 1))

    return forward


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _matrices(module: nn.Module) -> list[Tensor]:
    """Weight matrices, packed ones of quantised layers included (some keep them as integer buffers)."""
    packed = [b for b in module.buffers() if b.ndim == 2 and not b.is_floating_point() and b.dtype != torch.bool]
    return [*(p for p in module.parameters() if p.ndim >= 2), *packed]


def _rows(t: Tensor | None) -> bool:
    """Whether a tensor of the watched pass is [1, t, width]: one row per token."""
    return t is not None and t.ndim == 3 and t.shape[:2] == (1, WATCHED)


def _has_width(t: Tensor | None, width: int) -> bool:
    return _rows(t) and t is not None and t.shape[-1] == width


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.data_ptr() == b.data_ptr() and a.shape == b.shape)


def _projections(parent: _Call, calls: list[_Call]) -> list[_Call]:
    """The projections called inside another call, as the rest of the model sees them.

    A projection is a module with one weight matrix that calls no other such module; where an adapter wraps it (LoRA: the
    wrapper reads the same tensor and gives the same width), it is the wrapper, whose output the adapter has joined.
    """
    inner = [c for c in calls if parent.order < c.order and c.end < parent.end]
    busy = [c for c in inner if len(_matrices(c.module)) == 1]
    leaves = [c for c in busy if not any(_inside(o, c) for o in busy)]
    whole = {id(found.module): found for found in (_wrapped(leaf, inner) for leaf in leaves)}
    found = list(whole.values())
    return sorted((c for c in found if not any(_inside(c, o) for o in found)), key=lambda c: c.order)


def _wrapped(leaf: _Call, inner: list[_Call]) -> _Call:
    """The outermost call around a projection that does the same job: same tensor read, same width given."""
    around = [c for c in inner if _inside(leaf, c) and _same(c.read, leaf.read) and _like(c.gave, leaf.gave)]
    return min(around, key=lambda c: c.order, default=leaf)


def _inside(inner: _Call, outer: _Call) -> bool:
    return inner is not outer and outer.order < inner.order and inner.end < outer.end


def _like(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape
