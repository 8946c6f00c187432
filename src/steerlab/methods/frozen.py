"""Passes over the same examples, again and again, at the price of what changes (design.md, the frozen-model trainer).

A trained steering changes nothing below its lowest site, and what it is compared with never moves. So what reaches that
site, and what the untouched model says, are computed once; a pass then begins at the site, ends before the output head,
and objectives take the head a few tokens at a time. Examples of like length run together. Nothing is approximated: the
plain passes that this stands for are the definition, and a law holds them equal. A prompt that rows share runs once (`bundles`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import progress
from ..contrast import Example
from ..engines.base import Batch, Run, Start, Trainable, finite
from ..errors import DataError
from ..positions import Positions
from ..sites import Site
from .bundles import Bundle, bundles
from .keep import Keep
from .said import Pieces, Said, answers, in_order

if TYPE_CHECKING:
    from jaxtyping import Float

# what reaches a site [b, t, d], which of the asked examples its rows are [b], and the batch; at a weight matrix, what it
# reads, to what is added to its output
EditRows = Callable[[Tensor, Tensor, Batch], Tensor]
SCORES = 2**28  # bytes of the untouched model's scores that are held
ROWS = 32  # examples of one pass without gradients


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

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(iter(self._batches.values()))[0].ids.device if self._batches else torch.device("cpu")

    def tokens(self, examples: Sequence[Example]) -> int:
        """How many these have, prompts and answers."""
        return sum(self._rendered(e)[0].ids.shape[1] for e in examples)

    # --- passes -------------------------------------------------------------------------------------------------------

    def run(
        self,
        examples: Sequence[Example],
        edits: Mapping[Site, EditRows] | None = None,
        alike: Sequence[Hashable | None] | None = None,
    ) -> Said:
        """What the model says in these examples' answers under the edits, with gradients to what those hold.

        Examples of one prompt with an equal `alike` run it once: on its tokens the edits must do the same in each.
        """
        parts: list[Said] = []
        order: list[int] = []
        for bundle in self._bundles(examples, alike):
            which = torch.tensor(bundle.first)
            bound = {site: _bound(put, which, bundle.batch) for site, put in (edits or {}).items()}
            parts.append(self._pass(bundle, bound, self._start([examples[i] for i in bundle.examples], bundle)))
            order += bundle.examples
        return in_order(parts, order)

    def untouched(self, examples: Sequence[Example]) -> Said:
        """What the untouched model says in these examples' answers; kept after the first time."""
        kind = "log-probabilities" if self._whole else "said"
        fresh: dict[str, Tensor] = {}
        names = [f"{kind} {self._named(e)}" for e in examples]
        for chosen, bundle in self._missing(examples, names):
            batch, head = bundle.batch, self.engine.head
            with torch.no_grad():
                run = self.engine.resume(batch, sites=self._pooled_sites, hidden=head is not None, logits=head is None)
                self._pooling(chosen, bundle, run.at)
                said = self._said(run, bundle)
                whole = said.all_log_probs() if self._whole else said.hidden[:]
            given = {
                f"{kind} {self._named(e)}": t for e, t in zip(chosen, whole.split(said.lengths.tolist()), strict=True)
            }
            self._keep.put(given)
            fresh |= given
        found = Pieces([_known(self._keep.get(name), fresh.get(name)) for name in names])
        head = None if self._whole else self.engine.head
        return Said(found, head, *answers([self.batch([e]) for e in examples]), len(examples), self._whole)

    def means(self, examples: Sequence[Example], site: Site, positions: Positions) -> tuple[Tensor, Tensor]:
        """Each example's mean activation over its tokens at some positions, `[b, d]`, and how many these are, `[b]`.

        Without any edit, in float32 on the CPU; the mean of no token is 0. Kept after the first time.
        """
        names = [f"mean {site} {positions} {self._named(e)}" for e in examples]
        fresh: dict[str, Tensor] = {}
        for chosen, bundle in self._missing(examples, names):
            with torch.no_grad():
                at = self.engine.resume(bundle.batch, sites=[site], logits=False).at
                fresh |= self._averaged(chosen, bundle, at[site], site, positions)
        self._keep.put(fresh)
        found = torch.stack([_known(self._keep.get(name), fresh.get(name)).cpu() for name in names])
        return found[:, :-1], found[:, -1]

    def reads(self, examples: Sequence[Example], site: Site, positions: Positions) -> list[Float[Tensor, "k d"]]:
        """Each example's untouched activations at some positions, in float32; kept after the first time."""
        names = [f"{site} {positions} {self._named(e)}" for e in examples]
        fresh: dict[str, Tensor] = {}
        for chosen, bundle in self._missing(examples, names):
            with torch.no_grad():
                found = self.engine.resume(bundle.batch, sites=[site], logits=False).at[site]
            for e, row in zip(chosen, bundle.split(found), strict=True):
                here = self.batch([e]).mask(positions)[0]
                fresh[f"{site} {positions} {self._named(e)}"] = row[here.to(row.device)].float()
        self._keep.put(fresh)
        return [_known(self._keep.get(name), fresh.get(name)) for name in names]

    def prepare(
        self, bases: Sequence[Example], untouched: Sequence[Example] = (), *, whole: bool | None = None
    ) -> None:
        """Compute all that is kept beforehand, in full batches, with a bar.

        Of the untouched model, log-probabilities are held (`whole`) where there is room for all, else what its head reads.
        """
        self._whole = self.engine.head is not None and (self.scores(untouched) <= self.room if whole is None else whole)
        with progress.task("reading the model once", len(bases) + len(untouched)) as bar:
            for given, read in ((bases, self._below), (untouched, self.untouched)):
                for chosen in _chunks(self._sorted(given), ROWS):
                    read(chosen)
                    bar.advance(len(chosen))

    def scores(self, untouched: Sequence[Example]) -> int:
        """Bytes of the untouched model's log-probabilities in these examples' answers; 0 where its head isn't one matrix."""
        head = self.engine.head
        return 0 if head is None else 4 * head.vocabulary * sum(self._answered(e) for e in set(untouched))

    @property
    def room(self) -> int:
        """Bytes of log-probabilities that are held at once: on an accelerator, an eighth of its memory where that is more."""
        if self.device.type != "cuda":
            return SCORES
        return max(SCORES, torch.cuda.get_device_properties(self.device).total_memory // 8)

    def forget(self) -> None:
        """Let go of held log-probabilities; what else is kept may be wanted by other fits."""
        self._keep.drop("log-probabilities ")

    def kept_bytes(self, bases: Sequence[Example], untouched: Sequence[Example]) -> int:
        """How much would be kept for these, from their shapes, besides log-probabilities."""
        head, width = self.engine.head, self.engine.width(Site(self.engine.depth - 1))
        size = 4 if head is None else head.weight.element_size()
        below = sum(self.tokens([e]) for e in set(bases)) * width * size if self._layer is not None else 0
        return below + sum(self._answered(e) for e in set(untouched)) * width * size

    def _answered(self, example: Example) -> int:
        return int(self._rendered(example)[0].predicts.sum())

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

    def _sorted(self, examples: Sequence[Example]) -> list[Example]:
        return sorted(examples, key=lambda e: self._rendered(e)[0].ids.shape[1])

    def _missing(self, examples: Sequence[Example], names: Sequence[str]) -> list[tuple[list[Example], Bundle]]:
        """Those whose tensors aren't kept, once each, in passes."""
        missing = list(dict.fromkeys(e for e, name in zip(examples, names, strict=True) if name not in self._keep))
        with torch.no_grad():
            return [([missing[i] for i in b.examples], b) for b in self._bundles(missing)]

    def _bundles(self, examples: Sequence[Example], alike: Sequence[Hashable | None] | None = None) -> list[Bundle]:
        """Examples in passes; those with equal `alike` may share a prompt.

        What is kept is read row by row: it is done once, so there is little to save.
        """
        keys = [None] * len(examples) if alike is None else alike
        return bundles(
            [self._rendered(e)[0] for e in examples],
            keys,
            longest=self.engine.shares if any(a is not None for a in keys) else 0,
            width=self.engine.width(Site(self.engine.depth - 1)),
            most=None if torch.is_grad_enabled() else ROWS,
            join=lambda index: self.batch([examples[i] for i in index]),
        )

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _pass(self, bundle: Bundle, edits: Mapping[Site, Callable[[Tensor], Tensor]], start: Start | None) -> Said:
        head = self.engine.head
        run = self.engine.resume(bundle.batch, edits, start=start, hidden=head is not None, logits=head is None)
        return self._said(run, bundle)

    def _said(self, run: Run, bundle: Bundle) -> Said:
        hidden = run.hidden if run.logits is None else run.logits
        assert hidden is not None
        read, tokens, row, place = bundle.answered()
        if read is not None:
            hidden = hidden[read.to(hidden.device)]
        return Said(hidden, self.engine.head, tokens, row, place, len(bundle.examples))

    @property
    def _pooled_sites(self) -> list[Site]:
        return list(dict.fromkeys(site for site, _ in self._pool))

    def _pooling(self, examples: Sequence[Example], bundle: Bundle, at: Mapping[Site, Tensor]) -> None:
        for site, positions in self._pool:
            self._keep.put(self._averaged(examples, bundle, at[site], site, positions))

    def _averaged(
        self, examples: Sequence[Example], bundle: Bundle, h: Tensor, site: Site, positions: Positions
    ) -> dict[str, Tensor]:
        mask = bundle.batch.mask(positions).to(h.device)[..., None]
        count = mask.sum(dim=1)
        mean = finite((torch.where(mask, h.float(), 0.0).sum(dim=1) / count.clamp_min(1)), str(site))
        return {
            f"mean {site} {positions} {self._named(e)}": torch.cat([m, n.to(m.dtype)])
            for e, m, n in zip(examples, mean, count, strict=True)
        }

    def _below(self, examples: Sequence[Example]) -> list[Tensor]:
        """What reaches the lowest site of each, `[t, d]`; a row for each in its passes, kept after the first time."""
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for bundle in self._bundles(examples):
                start = self._start([examples[i] for i in bundle.examples], bundle)
                found |= {} if start is None else dict(zip(bundle.examples, bundle.split(start.hidden), strict=True))
        return [found[n] for n in sorted(found)]

    def _start(self, examples: Sequence[Example], bundle: Bundle) -> Start | None:
        """What reaches the lowest site; None where nothing is below it."""
        if self._layer is None:
            return None
        names = [f"below {self._layer} {self._named(e)}" for e in examples]
        rows = [row for name in names if (row := self._keep.get(name)) is not None]
        if len(rows) == len(names):
            return Start(self._layer, bundle.joined(rows))
        if bundle.places is not None:
            return Start(self._layer, bundle.joined(self._below(examples)))
        below = Site(self._layer)
        with torch.no_grad():
            at = self.engine.resume(bundle.batch, sites=[below, *self._pooled_sites], logits=False).at
            self._pooling(examples, bundle, at)
            hidden = finite(at[below], str(below))
        self._keep.put(dict(zip(names, bundle.split(hidden), strict=True)))
        return Start(self._layer, hidden)


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


def _chunks(examples: list[Example], size: int) -> list[list[Example]]:
    return [examples[at : at + size] for at in range(0, len(examples), size)]


def _known(kept: Tensor | None, fresh: Tensor | None) -> Tensor:
    found = fresh if kept is None else kept
    if found is None:
        raise DataError("a cached activation has gone while it was needed; is another run clearing the cache folder?")
    return found
