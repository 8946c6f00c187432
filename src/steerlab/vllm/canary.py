"""At start-up: what is planted in the tables must reach the logits exactly, or the engine doesn't start.

A few tokens go through the model as it will be served (compiled where it is), each with a row of its own kind: untouched, or with
every sort of edit that the tables hold, at every block that they cover. Where the tables have gates, one kind asks a gate halfway
up, which opens for about half of its tokens; where they read, every touched token is read at every block. The same tokens
go through the model as plain Python, too, with empty tables and hooks that compute the rows' formula one token at a time in
double precision. Both must read the same, decide the same, and give the
same log-probabilities, up to as much as compiling alone moves them, and untouched tokens must be what they are without any row.
A stale graph, a block that drops half of the stream, a hook that is never called or tables that a graph has copied all show here.

Attention is stilled for it (it writes zeros), as there are no requests yet. So what is not shown here is which rows the tokens of
a request get, and what a captured CUDA graph does; `steerlab verify --on vllm` shows these, on requests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .batch import Filler
from .rows import Line, Row
from .tables import Look, Probe, Size, Tables, blocks

TOKENS = 24
CLOSE = {torch.float32: 2e-4, torch.float64: 2e-4}  # nats; 16-bit models by LOOSE
LOOSE = 0.1
SEEN = 1e-3  # of the largest number read
SIZE = 0.2  # of the stream's norm, that a row moves a token by


def sing(runner: Any, tables: Tables, filler: Filler) -> str:
    """What was found, in words. Raises `UnsupportedError` where a planted row doesn't do exactly what it should."""
    model: nn.Module = runner.get_model()
    config = runner.vllm_config
    count = min(TOKENS, len(tables.rows), int(config.scheduler_config.max_num_batched_tokens))
    vocabulary = int(config.model_config.hf_text_config.vocab_size)
    ids = (
        (torch.arange(count, device=tables.device) * 7 + 3) % vocabulary
    ).int()  # as the runners', which graphs don't check
    positions = torch.arange(count, device=tables.device)

    def run(*, plain: bool) -> Tensor | None:
        """Log-probabilities of the next token at each place; None on a rank that has no logits."""
        forward: Any = importlib.import_module("vllm.forward_context")
        whole: Any = model
        with torch.inference_mode(), forward.set_forward_context(None, config, num_tokens=count, skip_compiled=plain):
            hidden = runner.model(input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=None)
            logits: Tensor | None = whole.compute_logits(hidden)
        return None if logits is None else torch.log_softmax(logits.double(), dim=-1)

    with _still(config), _one_kind(filler):
        norms: dict[int, float] = {}
        with _hooked(model, tables, lambda layer, x: norms.update({layer: float(x.norm(dim=-1).mean())})):
            bare_plain = run(plain=True)
        planted = [_planted(tables, norms, n) for n in range(min(2, tables.size.rows - 1))]
        numbers = [n % (len(planted) + 1) for n in range(count)]
        meant = Reference(planted, numbers, tables.size)
        with _hooked(model, tables, meant):
            wanted = run(plain=True)
        bare = run(plain=False)
        try:
            for n, rows in enumerate(planted, start=1):
                tables.write(n, rows, meant.looks(n))
            tables.rows[:count].copy_(torch.tensor(numbers))
            if tables.size.gates:
                tables.opened[:count] = len(planted)
            tables.live = True
            steered = run(plain=False)
            seen = meant.missed(tables)
        finally:
            tables.rows.zero_()
            for n in range(1, len(planted) + 1):
                tables.write(n, {})
            tables.live = False
        after = run(plain=False)
    if bare is None or bare_plain is None or steered is None or after is None or wanted is None:
        return "the canary sings on the first rank"
    if not seen <= max(SEEN, LOOSE if _dtype(model) not in CLOSE else 0.0):
        raise UnsupportedError(
            f"the canary died: what the graph reads is {seen:.2g} of its size off what it should, so the engine doesn't start."
        )
    return _judged(bare, bare_plain, steered, after, wanted, torch.tensor(numbers) > 0, _dtype(model))


def _judged(
    bare: Tensor,
    bare_plain: Tensor,
    steered: Tensor,
    after: Tensor,
    wanted: Tensor,
    touched: Tensor,
    dtype: torch.dtype,
) -> str:
    own, off = _apart(bare, bare_plain), _apart(steered, wanted)
    most = max(CLOSE.get(dtype, LOOSE), 4 * own)
    effect = float((wanted - bare_plain).abs().amax(dim=-1)[touched].min())
    beside = _apart(steered[~touched], bare[~touched])
    told = (
        f"planted rows move log-probabilities by {effect:.3g} at least, and are {off:.2g} off plain hooks (own rounding"
        f" {own:.2g}); untouched tokens beside them are {beside:.2g} off"
    )
    if effect < 3 * most:
        raise UnsupportedError(f"the canary can't tell: {told}. The model's own rounding hides what is planted.")
    if not off <= most or not beside <= most or not _apart(after, bare) <= most:
        raise UnsupportedError(
            f"the canary died: {told}; at most {most:.2g} was expected. What is steered here would not be what was asked for, so"
            " the engine doesn't start. If the compile cache was copied from another engine, clear it."
        )
    return f"the canary sings: {told}"


def _planted(tables: Tables, norms: Mapping[int, float], n: int) -> dict[int, Row]:
    """Rows of every sort at every block, drawn at random, as large as what they move."""
    draw = torch.Generator().manual_seed(n)
    width, rank = tables.size.width, tables.size.rank
    made: dict[int, Row] = {}
    for layer in tables.size.layers:
        size = SIZE * norms[layer] / width**0.5

        def vector(size: float = size) -> Tensor:
            return size * torch.randn(width, generator=draw, dtype=torch.float64)

        row = Row(width, bias=vector(), diag=vector(0.1) if tables.size.diag else None)
        for j in range(rank):
            line = Line(vector(1 / norms[layer]), vector(), start=0.3, side=float(j % 3 - 1))
            line.coupling = dict.fromkeys(range(j), 0.25)
            row.lines.append(line)
        made[layer] = row
    return made


class Reference:
    """What the planted rows do, computed a token at a time in double precision, as plain hooks."""

    def __init__(self, planted: list[dict[int, Row]], numbers: list[int], size: Size) -> None:
        self._planted, self._size = planted, size
        self._numbers = list(numbers)  # of which those change whose gate opens
        draw = torch.Generator().manual_seed(7)
        self._reads = {n: torch.randn(size.reads, size.width, generator=draw, dtype=torch.float64) for n in size.layers}
        self._at = size.layers[len(size.layers) // 2]
        self._probe = torch.randn(size.width, generator=draw, dtype=torch.float64)
        self._threshold = 0.0
        self._open = [False] * len(numbers)
        self._left: dict[int, Tensor] = {}

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        """The stream as the block leaves it."""
        if self._size.gates and layer == self._at:
            self._decide(x.double().cpu() @ self._probe)
        out = x.double().clone()
        for t, n in enumerate(self._numbers):
            if n:
                out[t] = _on(self._planted[n - 1][layer], x.device)(x[t].double())
        self._left[layer] = out.cpu()
        return out

    def looks(self, n: int) -> dict[int, Look]:
        """What the rows of a number look at: all read, and those of number 1 ask the gate."""
        made = {layer: Look(reads=list(weights)) for layer, weights in self._reads.items()} if self._size.reads else {}
        if self._size.gates and n == 1:
            made.setdefault(self._at, Look()).probe = Probe(self._probe, self._threshold)
        return made

    def missed(self, tables: Tables) -> float:
        """How far what the graph left is from what it should have, as a share of its size; infinite for a gate gone wrong."""
        size, count = self._size, len(self._numbers)
        if size.gates and tables.open[:count].tolist() != self._open:
            return float("inf")
        touched = torch.tensor([n > 0 for n in self._numbers])
        most = 0.0
        for layer, weights in self._reads.items() if size.reads else ():
            wanted = (self._left[layer] @ weights.T)[touched]
            got = tables.seen[tables.place(layer), :count].double().cpu()[touched]
            most = max(most, float((got - wanted).abs().max() / wanted.abs().max()))
        return most

    def _decide(self, scores: Tensor) -> None:
        """The threshold stands between the scores of the tokens that ask, where they are furthest apart about the middle."""
        asking = [t for t, n in enumerate(self._numbers) if n == 1]
        order = sorted(float(scores[t]) for t in asking)
        middle = range(len(order) // 4, 3 * len(order) // 4)
        at = max(middle, key=lambda k: order[k + 1] - order[k])
        self._threshold = (order[at] + order[at + 1]) / 2
        for t in asking:
            if float(scores[t]) > self._threshold:
                self._open[t], self._numbers[t] = True, len(self._planted)


def _on(row: Row, device: torch.device) -> Row:
    """The row with its tensors on a device."""
    lines = [Line(i.down.to(device), i.up.to(device), i.start, i.side, i.coupling) for i in row.lines]
    bias, diag = (None if t is None else t.to(device) for t in (row.bias, row.diag))
    return Row(row.width, bias, diag, lines)


@contextmanager
def _hooked(model: nn.Module, tables: Tables, function: Callable[[int, Tensor], Tensor | None]) -> Generator[None]:
    """Plain hooks on the blocks: they replace the stream by what a function makes of it, where that is anything."""

    def at(layer: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            h, rest = output if isinstance(output, tuple) else (output, None)
            x = h.float() if rest is None else h.float() + rest.float()
            made = function(layer, x)
            if made is None:
                return output
            new = (h.double() + (made - x.double())).to(h.dtype)
            return new if rest is None else (new, rest)

        return hook

    found = blocks(model, max(tables.size.layers) + 1)
    with ExitStack() as stack:
        for layer in tables.size.layers:
            stack.callback(found[layer].register_forward_hook(at(layer)).remove)
        yield


@contextmanager
def _still(config: Any) -> Generator[None]:
    """Attention writes zeros."""

    def still(*args: Any, output: Tensor | None = None, **kwargs: Any) -> Tensor:
        out = torch.zeros_like(kwargs["query"] if "query" in kwargs else args[1]) if output is None else output
        return out.zero_()

    with ExitStack() as stack:
        for layer in config.compilation_config.static_forward_context.values():
            impl: Any = getattr(layer, "impl", None)
            if impl is not None and hasattr(impl, "forward"):
                impl.forward = still
                stack.callback(vars(impl).pop, "forward", None)
        yield


@contextmanager
def _one_kind(filler: Filler) -> Generator[None]:
    """Nothing of an earlier step stands in the rows, before and after."""
    filler.clear()
    try:
        yield
    finally:
        filler.clear()


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _apart(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    return float((a - b).abs().max()) if bool(torch.isfinite(a).all()) else float("inf")
