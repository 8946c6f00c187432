"""Passes over the same examples, again and again, at the price of what changes (design.md, the frozen-model trainer).

A trained steering changes nothing below its lowest site, and what it is compared with never moves. So what reaches that
site, and what the untouched model says, are computed once; a pass then begins at the site, ends before the output head,
and objectives take the head a few tokens at a time. Examples of like length run together. Nothing is approximated: the
plain passes that this stands for are the definition, and a law holds them equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import progress
from ..contrast import Example
from ..engines.base import Batch, Run, Start, Trainable, finite
from ..engines.head import Head
from ..errors import DataError
from ..positions import Positions
from ..sites import Site
from .fused import Objective, fused
from .keep import Keep, joined

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# what reaches a site [b, t, d], which of the asked examples its rows are [b], and the batch; at a weight matrix, what it
# reads, to what is added to its output
EditRows = Callable[[Tensor, Tensor, Batch], Tensor]
APART = 96  # tokens that a pass of its own costs, when examples are sorted by length
SCORES = 2**28  # bytes of the untouched model's scores that are held
ROWS = 32  # examples of one pass without gradients


class Pieces:
    """Tensors `[n_i, d]` one below the other, joined only where they are looked at."""

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self._pieces = pieces
        self._ends = torch.tensor([len(p) for p in pieces]).cumsum(0).tolist()

    def __getitem__(self, here: slice) -> Tensor:
        start, stop, _ = here.indices(self._ends[-1])
        found: list[Tensor] = []
        for piece, end in zip(self._pieces, self._ends, strict=True):
            begin = end - len(piece)
            if begin < stop and end > start:
                found.append(piece[max(start - begin, 0) : stop - begin])
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass(frozen=True, eq=False)
class Said:
    """What a pass says about its answers, token by token in the order of the examples."""

    hidden: (
        Float[Tensor, "n d"] | Pieces
    )  # what the head reads; or, where there is none to apply, the scores themselves
    head: Head | None
    tokens: Int[Tensor, " n"]
    row: Int[Tensor, " n"]  # whose
    place: Int[Tensor, " n"]  # 0 for an answer's first token
    rows: int
    normal: bool = False  # whether these scores are log-probabilities

    def each(self, objective: Objective) -> Float[Tensor, " n"]:
        """An objective's value at each token, differentiable."""
        return fused(self.hidden[:], self.head or _SAID, objective)

    def scores(self, here: slice = slice(None)) -> Float[Tensor, "n v"]:
        """Scores of some tokens, in float32."""
        return (self.head or _SAID)(self.hidden[here])

    def log_probs(self, here: slice = slice(None)) -> Float[Tensor, "n v"]:
        """Log-probabilities of some tokens, in float32."""
        scores = self.scores(here)
        return scores if self.normal else torch.log_softmax(scores, dim=-1)

    def part(self, start: int, stop: int) -> Said:
        """Those of some of the examples, counted anew."""
        mine = (self.row >= start) & (self.row < stop)
        here = slice(int((self.row < start).sum()), int((self.row < stop).sum()))
        return Said(
            self.hidden[here], self.head, self.tokens[mine], self.row[mine] - start, self.place[mine], stop - start,
            self.normal,
        )  # fmt: skip

    def take(self, rows: Sequence[int]) -> Said:
        """Those of some of the examples, in their order."""
        new = torch.full((self.rows,), -1, device=self.row.device)
        new[torch.tensor(rows, dtype=torch.long, device=new.device)] = torch.arange(len(rows), device=new.device)
        mine = new[self.row] >= 0
        return Said(
            self.hidden[:][mine],
            self.head,
            self.tokens[mine],
            new[self.row[mine]],
            self.place[mine],
            len(rows),
            self.normal,
        )

    def by_row(self, each: Float[Tensor, " n"]) -> Float[Tensor, " b"]:
        """The sum over each example's tokens."""
        return torch.zeros(self.rows, device=each.device).index_add(0, self.row.to(each.device), each)

    @property
    def lengths(self) -> Int[Tensor, " b"]:
        """Tokens of each example's answer."""
        return torch.bincount(self.row, minlength=self.rows)


class _Said(Head):
    """Where scores are given themselves."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0, 0))

    @property
    def vocabulary(self) -> int:
        return 2**16

    def raw(self, hidden: Tensor) -> Tensor:
        return hidden.clone()

    def back(self, gradient: Tensor) -> Tensor:
        return gradient


_SAID = _Said()


class Frozen:
    """Passes through an engine with edits at `sites`; `close` and `answer_tokens` as in `Trainable.batch`.

    Activations that are asked for with `pool` are averaged over their positions whenever an untouched pass comes by.
    """

    def __init__(
        self,
        engine: Trainable,
        sites: Sequence[Site],
        *,
        close: bool = True,
        answer_tokens: int | None = None,
        pool: Sequence[tuple[Site, Positions]] = (),
        keep: Keep | None = None,
    ) -> None:
        self.engine, self.sites, self._pool = engine, tuple(sites), tuple(pool)
        self._close, self._answer_tokens = close, answer_tokens
        self._keep = Keep() if keep is None else keep
        self._whole = False
        self._layer = layer_below(engine, self.sites)
        self._batches: dict[Example, tuple[Batch, str]] = {}

    @property
    def cuts(self) -> bool:
        """Whether answers may be longer than what is run of them."""
        return self._answer_tokens is not None

    # --- passes -------------------------------------------------------------------------------------------------------

    def run(self, examples: Sequence[Example], edits: Mapping[Site, EditRows] | None = None) -> Said:
        """What the model says in these examples' answers under the edits, with gradients to what those hold."""
        parts: list[Said] = []
        order: list[int] = []
        for index in self._by_length(examples):
            chosen = [examples[i] for i in index]
            batch = self.batch(chosen)
            which = torch.tensor(index)
            bound = {site: _bound(put, which, batch) for site, put in (edits or {}).items()}
            parts.append(self._pass(batch, bound, self._start(chosen, batch)))
            order += index
        return _in_order(parts, order)

    def untouched(self, examples: Sequence[Example]) -> Said:
        """What the untouched model says in these examples' answers; kept after the first time."""
        kind = "log-probabilities" if self._whole else "said"
        fresh: dict[str, Tensor] = {}
        names = [f"{kind} {self._named(e)}" for e in examples]
        for chosen in self._missing(examples, names):
            batch, head = self.batch(chosen), self.engine.head
            with torch.no_grad():
                run = self.engine.resume(batch, sites=self._pooled_sites, hidden=head is not None, logits=head is None)
                self._pooling(chosen, batch, run.at)
                said = self._said(run, batch)
                whole = said.log_probs() if self._whole else said.hidden[:]
            given = {
                f"{kind} {self._named(e)}": t for e, t in zip(chosen, whole.split(said.lengths.tolist()), strict=True)
            }
            self._keep.put(given)
            fresh |= given
        found = Pieces([_known(self._keep.get(name), fresh.get(name)) for name in names])
        head = None if self._whole else self.engine.head
        return Said(found, head, *self._answers([self.batch([e]) for e in examples]), len(examples), self._whole)

    def means(self, examples: Sequence[Example], site: Site, positions: Positions) -> tuple[Tensor, Tensor]:
        """Each example's mean activation over its tokens at some positions, `[b, d]`, and how many these are, `[b]`.

        Without any edit, in float32 on the CPU; the mean of no token is 0. Kept after the first time.
        """
        names = [f"mean {site} {positions} {self._named(e)}" for e in examples]
        fresh: dict[str, Tensor] = {}
        for chosen in self._missing(examples, names):
            batch = self.batch(chosen)
            with torch.no_grad():
                at = self.engine.resume(batch, sites=[site], logits=False).at
                fresh |= self._averaged(chosen, batch, at[site], site, positions)
        self._keep.put(fresh)
        found = torch.stack([_known(self._keep.get(name), fresh.get(name)).cpu() for name in names])
        return found[:, :-1], found[:, -1]

    def reads(self, examples: Sequence[Example], site: Site, positions: Positions) -> list[Float[Tensor, "k d"]]:
        """Each example's untouched activations at some positions, in float32; kept after the first time."""
        names = [f"{site} {positions} {self._named(e)}" for e in examples]
        fresh: dict[str, Tensor] = {}
        for chosen in self._missing(examples, names):
            batch = self.batch(chosen)
            with torch.no_grad():
                found = self.engine.resume(batch, sites=[site], logits=False).at[site]
            for e, row, here in zip(chosen, found, batch.mask(positions), strict=True):
                fresh[f"{site} {positions} {self._named(e)}"] = row[here.to(row.device)].float()
        self._keep.put(fresh)
        return [_known(self._keep.get(name), fresh.get(name)) for name in names]

    def prepare(self, bases: Sequence[Example], untouched: Sequence[Example] = ()) -> None:
        """Compute all that is kept beforehand, in full batches, with a bar.

        Of the untouched model, log-probabilities are held where there is room for all of them, else what its head reads.
        """
        head, tokens = self.engine.head, sum(int(self.batch([e]).predicts.sum()) for e in untouched)
        self._whole = head is not None and 4 * tokens * head.vocabulary <= SCORES
        with progress.task("reading the model once", len(bases) + len(untouched)) as bar:
            for given, read in ((bases, self._below), (untouched, self.untouched)):
                for index in _chunks(self._sorted(given), ROWS):
                    read([given[i] for i in index])
                    bar.advance(len(index))

    def kept_bytes(self, bases: Sequence[Example], untouched: Sequence[Example]) -> int:
        """How much would be kept for these, from their shapes."""
        head, width = self.engine.head, self.engine.width(Site(self.engine.depth - 1))
        size = 4 if head is None else head.weight.element_size()
        below = sum(self.batch([e]).ids.shape[1] for e in set(bases)) * width * size if self._layer is not None else 0
        answers = sum(int(self.batch([e]).predicts.sum()) for e in set(untouched))
        if head is not None and 4 * answers * head.vocabulary <= SCORES:
            return below + 4 * answers * head.vocabulary
        return below + answers * width * size

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples with their answers, rendered once each."""
        return Batch.joined([self._rendered(e)[0] for e in examples])

    def _rendered(self, example: Example) -> tuple[Batch, str]:
        if example not in self._batches:
            row = self.engine.batch([example], close=self._close, answer_tokens=self._answer_tokens)
            told = torch.cat([row.ids[0].cpu(), row.prompt_length.cpu(), row.head.cpu()])
            self._batches[example] = (row, hashlib.sha256(told.numpy().tobytes()).hexdigest()[:32])
        return self._batches[example]

    def _named(self, example: Example) -> str:
        return self._rendered(example)[1]

    def _sorted(self, examples: Sequence[Example]) -> list[int]:
        return sorted(range(len(examples)), key=lambda i: self._rendered(examples[i])[0].ids.shape[1])

    def _missing(self, examples: Sequence[Example], names: Sequence[str]) -> list[list[Example]]:
        """Those whose tensors aren't kept, once each, in groups of like length."""
        missing = list(dict.fromkeys(e for e, name in zip(examples, names, strict=True) if name not in self._keep))
        with torch.no_grad():
            return [[missing[i] for i in index] for index in self._by_length(missing)]

    def _by_length(self, examples: Sequence[Example]) -> list[list[int]]:
        """Indices in groups of like length: where padding would cost more than a pass of its own, a new group begins."""
        order = self._sorted(examples)
        lengths = [self._rendered(examples[i])[0].ids.shape[1] for i in order]
        least, cut = [0.0], [0]  # the cost of the first n, and where their last group begins
        for n in range(1, len(order) + 1):
            first = 0 if torch.is_grad_enabled() else max(0, n - ROWS)
            costs = [least[k] + (n - k) * lengths[n - 1] + APART for k in range(first, n)]
            cut.append(first + min(range(n - first), key=costs.__getitem__))
            least.append(costs[cut[-1] - first])
        groups: list[list[int]] = []
        n = len(order)
        while n:
            groups.append(order[cut[n] : n])
            n = cut[n]
        return groups[::-1]

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _pass(self, batch: Batch, edits: Mapping[Site, Callable[[Tensor], Tensor]], start: Start | None) -> Said:
        head = self.engine.head
        return self._said(
            self.engine.resume(batch, edits, start=start, hidden=head is not None, logits=head is None), batch
        )

    def _said(self, run: Run, batch: Batch) -> Said:
        hidden = run.hidden if run.logits is None else run.logits
        assert hidden is not None
        return Said(hidden, self.engine.head, *self._answers([batch]), len(batch.ids))

    @property
    def _pooled_sites(self) -> list[Site]:
        return list(dict.fromkeys(site for site, _ in self._pool))

    def _pooling(self, examples: Sequence[Example], batch: Batch, at: Mapping[Site, Tensor]) -> None:
        for site, positions in self._pool:
            self._keep.put(self._averaged(examples, batch, at[site], site, positions))

    def _averaged(
        self, examples: Sequence[Example], batch: Batch, h: Tensor, site: Site, positions: Positions
    ) -> dict[str, Tensor]:
        mask = batch.mask(positions).to(h.device)[..., None]
        count = mask.sum(dim=1)
        mean = finite((torch.where(mask, h.float(), 0.0).sum(dim=1) / count.clamp_min(1)), str(site))
        return {
            f"mean {site} {positions} {self._named(e)}": torch.cat([m, n.to(m.dtype)])
            for e, m, n in zip(examples, mean, count, strict=True)
        }

    def _below(self, examples: Sequence[Example]) -> None:
        self._start(examples, self.batch(examples))

    def _start(self, examples: Sequence[Example], batch: Batch) -> Start | None:
        """What reaches the lowest site, from the first time that these were run; None where nothing is below it."""
        if self._layer is None:
            return None
        names = [f"below {self._layer} {self._named(e)}" for e in examples]
        real = batch.position >= 0
        rows = [self._keep.get(name) for name in names]
        if any(row is None for row in rows):
            below = Site(self._layer)
            with torch.no_grad():
                at = self.engine.resume(batch, sites=[below, *self._pooled_sites], logits=False).at
                self._pooling(examples, batch, at)
                hidden = finite(at[below], str(below))
            self._keep.put({n: row[here.to(row.device)] for n, row, here in zip(names, hidden, real, strict=True)})
            return Start(self._layer, hidden)
        return Start(self._layer, joined([row for row in rows if row is not None], real))

    def _answers(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """Of all answers' tokens: which, whose, and how far into the answer."""
        tokens, rows, places, before = list[Tensor](), list[Tensor](), list[Tensor](), 0
        for batch in batches:
            chosen = batch.predicts
            tokens.append(torch.roll(batch.ids, -1, dims=1)[chosen])
            rows.append(chosen.nonzero()[:, 0] + before)
            places.append((batch.position - (batch.prompt_length[:, None] - 1))[chosen])
            before += len(batch.ids)
        return torch.cat(tokens), torch.cat(rows), torch.cat(places)


def layer_below(engine: Trainable, sites: Sequence[Site]) -> int | None:
    """The last block whose output no edit at these sites can change, or is the lowest site itself."""
    lowest = min(sites, key=lambda s: s.reached)
    if lowest.part == "final":
        return engine.depth - 1
    if lowest.layer is None:
        return None
    layer = lowest.layer if lowest.part == "resid" else lowest.layer - 1
    return layer if layer >= 0 else None


def _bound(put: EditRows, which: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
    return lambda h: put(h, which.to(h.device), batch)


def _chunks(order: list[int], size: int) -> list[list[int]]:
    return [order[at : at + size] for at in range(0, len(order), size)]


def _known(kept: Tensor | None, fresh: Tensor | None) -> Tensor:
    found = fresh if kept is None else kept
    if found is None:
        raise DataError("a cached activation has gone while it was needed; is another run clearing the cache folder?")
    return found


def _in_order(parts: list[Said], order: list[int]) -> Said:
    """One result of several passes, in the order in which the examples were given."""
    if len(parts) == 1 and order == sorted(order):
        return parts[0]
    position = torch.tensor(order).argsort()  # example -> its place among the rows that ran
    hidden = torch.cat([p.hidden[:] for p in parts])
    tokens, place = torch.cat([p.tokens for p in parts]), torch.cat([p.place for p in parts])
    lengths = torch.cat([p.lengths for p in parts])
    first = lengths.cumsum(0) - lengths
    spans = zip(lengths[position].tolist(), first[position].tolist(), strict=True)
    take = torch.cat([torch.arange(begin, begin + n, device=lengths.device) for n, begin in spans])
    row = torch.repeat_interleave(torch.arange(len(order), device=lengths.device), lengths[position])
    return Said(hidden[take], parts[0].head, tokens[take], row, place[take], len(order))
