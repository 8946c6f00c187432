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
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import SiteError, UnsupportedError, nearest
from ..sites import Site
from .hf_cache import takes
from .hf_layout import Layout, find_layout
from .hf_offload import check_weights, owners_of
from .hf_watch import WATCHED, Call, first_tensor, has_width, is_rows, is_same, matrices_of, projections, run, watched
from .hf_weights import Matrices, Matrix, find_matrices

if TYPE_CHECKING:
    from jaxtyping import Int

Side = Literal["input", "output"]
DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")  # what configurations call the number of blocks


class Point(NamedTuple):
    """Where a site's tensor passes: what a module reads or returns, and which of its columns (None: all)."""

    module: nn.Module
    side: Side
    columns: Int[Tensor, " w"] | None
    width: int


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
        self.width = self._size("hidden_size")
        self.vocabulary = self._words()
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

    @cached_property
    def first_place(self) -> int:
        """The number of a text's first token: 0 for most; the RoBERTa family counts from after its id for padding."""
        for module in self._model.modules():
            padding = getattr(module, "padding_idx", None)
            if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding, int):
                return padding + 1
        return 0

    def places(self, position: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """What the model calls these places of a text, counted from 0; where there is padding (−1), the first."""
        return position.clamp(min=0) + self.first_place

    @cached_property
    def last_alone(self) -> bool:
        """Whether the head may be asked for the last token's scores (`logits_to_keep`) with all blocks running on all tokens.

        Some models whose upper blocks share keys and values then run these on the last token alone.
        """
        if "logits_to_keep" not in takes(self._model):
            return False
        gave: list[Tensor | None] = []
        with ExitStack() as stack:
            for block in self.blocks:
                handle = block.register_forward_hook(lambda _m, _a, output: gave.append(first_tensor((output,))))
                stack.callback(handle.remove)
            run(self._model, WATCHED, self.vocabulary, logits_to_keep=1)
        return all(has_width(h, self.width) for h in gave)

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

    def _size(self, name: str) -> int:
        size = getattr(self._config, name, None)
        if not isinstance(size, int):
            raise UnsupportedError(
                f"{type(self._model).__name__} isn't a causal language model that can be steered: its configuration"
                f" ({type(self._config).__name__}) has no {name} that is a number (looked for hidden_size, vocab_size and"
                f" num_hidden_layers; got {size!r})."
            )
        return size

    def _words(self) -> int:
        """Rows of the embedding: ids from there on don't exist, whatever the tokenizer says."""
        embedding = self._model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        rows = getattr(getattr(embedding, "weight", None), "shape", (0,))[0]
        return int(rows) or self._size("vocab_size")

    def _watched(self) -> list[Call]:
        try:
            return watched(self._model, self.vocabulary)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # whatever a model's own code raises
            check_weights(self._model)
            raise UnsupportedError(
                f"{type(self._model).__name__} can't be steered: a forward pass of two tokens, model(input_ids=…), ends in"
                f" {type(problem).__name__}: {_line(problem)} Expected a causal language model that needs token ids alone."
            ) from problem

    def _find_blocks(self, calls: list[Call]) -> list[Call]:
        self._size("num_hidden_layers")
        named = [getattr(self._config, name, None) for name in DEPTHS]
        for count in dict.fromkeys(n for n in named if isinstance(n, int)):
            for module in self._model.modules():
                if not isinstance(module, nn.ModuleList) or len(module) != count:
                    continue
                found = [c for c in calls if any(c.module is m for m in module)]
                in_order = [c.module for c in found] == list(module)
                if in_order and all(has_width(c.read, self.width) and has_width(c.gave, self.width) for c in found):
                    return found
        raise UnsupportedError(
            f"the blocks of {type(self._model).__name__} can't be told: expected a list of {named[0]} modules that run once"
            f" each, in order, on activations of width {self.width}; {self._lists(calls)}."
        )

    def _lists(self, calls: list[Call]) -> str:
        """The lists of modules that ran, and what speaks against them, in words."""
        told: list[str] = []
        for name, module in self._model.named_modules():
            if not isinstance(module, nn.ModuleList) or len(module) < 2:
                continue
            found = [c for c in calls if any(c.module is m for m in module)]
            shapes = {tuple(c.gave.shape) if c.gave is not None else None for c in found}
            if found:
                told.append(f"{name} has {len(module)} modules with {len(found)} calls that give {_brief(shapes)}")
        return "found " + "; ".join(told[:3]) if told else "found no list of modules that runs"

    def _find_final(self, calls: list[Call]) -> nn.Module | None:
        """The norm after the last block: no weight matrix, and its output is as wide as the stream."""
        end = max(c.end for c in calls if c.module is self._blocks[-1].module)
        after = [c for c in calls if c.order > end and has_width(c.gave, self.width) and not matrices_of(c.module)]
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
            mixers = [c for c in children if c not in attention and matrices_of(c.module)]
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

    def _place(self, block: _Block, part: str, found: list[Call], inner: list[Call]) -> None:
        """The module `part` itself, and what it reads where that comes from a norm."""
        norm = f"norm_{part}"
        if len(found) != 1 or not (has_width(found[0].gave, self.width) and has_width(found[0].read, self.width)):
            names = [c.name.rsplit(".", 1)[-1] for c in found]
            block.absent[part] = block.absent[norm] = (
                f"its block has {names or 'no module'} where one {part} module is expected"
            )
            return
        call = found[0]
        block.points[part] = Point(call.module, "output", None, self.width)
        if any(is_same(call.read, c.gave) and not matrices_of(c.module) for c in inner):
            block.points[norm] = Point(call.module, "input", None, self.width)
        else:
            block.absent[norm] = f"its {part} module reads the stream itself, with no norm before it"

    def _layout(self, attention: nn.Module, modules: list[nn.Module], widths: tuple[int, ...]) -> Layout | str:
        try:
            return find_layout(attention, modules, widths, lambda: run(self._model, 1, self.vocabulary))
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # noqa: BLE001  # whatever a model's own code raises
            return f"its attention could not be watched on one token ({type(problem).__name__}: {_line(problem)})"

    def _find_neurons(self, block: _Block, mlp: Call, calls: list[Call]) -> None:
        inner = projections(mlp, calls)
        last = max(inner, key=lambda c: c.end, default=None)
        once = last is not None and sum(c.module is last.module for c in inner) == 1
        if last is None or not once or not has_width(last.gave, self.width) or not is_rows(last.read):
            block.absent["neurons"] = (
                "its MLP has no single down projection over all tokens (a mixture of experts has one per expert)"
            )
            return
        width = cast("Tensor", last.read).shape[-1]
        block.points["neurons"] = Point(last.module, "input", None, width)

    def _find_heads(
        self, block: _Block, attention: Call, calls: list[Call], layouts: dict[object, Layout | str]
    ) -> None:
        inner = projections(attention, calls)
        out = inner[-1] if inner else None
        if out is None or not has_width(out.gave, self.width) or not is_rows(out.read):
            layout: Layout | str = "its attention has no output projection that shows"
            width, given = 0, list[Call]()
        else:
            width = cast("Tensor", out.read).shape[-1]
            given = [c for c in inner[:-1] if is_rows(c.gave) and isinstance(c.output, Tensor)]
            widths = tuple(cast("Tensor", c.gave).shape[-1] for c in given)
            key = (type(attention.module), widths, width)
            if key not in layouts:
                layouts[key] = self._layout(attention.module, [c.module for c in given], widths)
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
            block.points[part] = Point(given[which].module, "output", columns, size)
        for part in {"q", "k", "v"} - set(layout.roles):
            block.absent[part] = "its projection could not be told apart from the others"


def _line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or ["no word"])[0][:200]


def _brief(shapes: set[tuple[int, ...] | None]) -> str:
    told = ["no tensor" if shape is None else f"[{', '.join(map(str, shape))}]" for shape in shapes]
    return " or ".join(sorted(told)[:3])


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
