"""The runs behind interchange training: a base run with the source's coordinates, and the source beside it.

Nothing about a source depends on what is trained, and nothing below the site of a base run: a source's activation and
scores, and what reaches the site, are kept after the first time, as long as they fit into `KEEP` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..contrast import Example
from ..edits import Clamp
from ..engines.base import Batch, Start, Trainable
from ..errors import DataError
from ..positions import LAST_PROMPT, Positions
from ..sites import Site
from .objectives import jensen_shannon

if TYPE_CHECKING:
    from jaxtyping import Float, Int

KEEP = 2**30  # bytes that are kept in memory


class Swap(NamedTuple):
    """One ordered pair: the base prompt is to answer like the source. `own` is what the base itself would say."""

    base: Example
    source: Example
    answer: str
    own: str
    wants_positive: bool


class Subspace(NamedTuple):
    """What is trained: a basis, and the poles its coordinates are put at (None: each pair's source gives them)."""

    q: Float[Tensor, "r d"]
    poles: Float[Tensor, "2 r"] | None = None


class Swapped(NamedTuple):
    """What an objective gets, token by token of the answers: the intervened base's scores and the source's."""

    scores: Float[Tensor, "n v"]
    source: Float[Tensor, "n v"]
    tokens: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]  # of each token, 1 on average

    def mean(self, each: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The weighted mean of one value per token."""
        return (each * self.weight.to(each.device)).mean()


class _Source(NamedTuple):
    activation: Float[Tensor, "k d"]  # at the last prompt token, or at each aligned position
    scores: Float[Tensor, "n v"]


class Runs:
    """Runs ordered pairs through an engine at one site."""

    def __init__(
        self,
        engine: Trainable,
        site: Site,
        positions: Positions,
        *,
        aligned: bool = False,
        close: bool = True,
        early: float = 0.0,
        answer_tokens: int | None = None,
    ) -> None:
        self.engine, self.site, self.positions = engine, site, positions
        self._aligned, self._close, self._early, self._answer_tokens = aligned, close, early, answer_tokens
        self._kept: dict[tuple[Example, str], _Source] = {}
        self._below: dict[tuple[Example, str], Float[Tensor, "t d"]] = {}
        self._bytes = 0

    def swapped(self, at: Subspace, swaps: Sequence[Swap], *, own: bool = False) -> Swapped:
        """Base prompts with the source's answer (or their own), coordinates in span(q) taken from the source.

        With poles, they are put at the positive one where the source is positive, else at the negative one.
        """
        sources = self._sources([s.source for s in swaps], [s.answer for s in swaps])
        answers = [s.own if own else s.answer for s in swaps]
        bases = [s.base for s in swaps]
        batch = self._batch(bases, answers)
        mask = batch.mask(self.positions)
        if at.poles is None:
            targets = self._targets(mask, sources)
            wanted = targets @ at.q.to(targets.device).T
        else:
            wanted = at.poles[[0 if s.wants_positive else 1 for s in swaps]][:, None]

        def interchange(h: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
            x, basis = h.float(), at.q.to(h.device)
            swap = (wanted.to(h.device) - x @ basis.T) @ basis
            return torch.where(mask.to(h.device)[..., None], x + swap, x).to(h.dtype)

        scores = self._scores(batch, interchange, self._start(bases, answers, batch))
        return Swapped(scores, torch.cat([s.scores for s in sources]).to(scores.device), *self._answers(batch))

    def plain(self, swaps: Sequence[Swap], *, own: bool = False) -> Swapped:
        """The same base runs with nothing replaced; no gradient."""
        bases, answers = [s.base for s in swaps], [s.own if own else s.answer for s in swaps]
        batch = self._batch(bases, answers)
        with torch.no_grad():
            scores = self._scores(batch, None, self._start(bases, answers, batch))
        return Swapped(scores, scores, *self._answers(batch))

    def divergence(self, at: Subspace | None, swaps: Sequence[Swap]) -> float | None:
        """Mean Jensen–Shannon divergence per token to the source after the interchange (None: without it)."""
        return self._mean(swaps, lambda part: self.plain(part) if at is None else self.swapped(at, part))

    def clamped(self, edit: Clamp, swaps: Sequence[Swap]) -> float:
        """The same divergence under the clamp that is served: to the positive pole where the source is positive."""

        def run(part: Sequence[Swap]) -> Swapped:
            bases, answers = [s.base for s in part], [s.answer for s in part]
            batch = self._batch(bases, answers)
            mask = batch.mask(self.positions)
            sign = torch.tensor([1.0 if s.wants_positive else -1.0 for s in part])[:, None, None]

            def clamp(h: Tensor) -> Tensor:
                moved = edit.to(h.device)(h, sign.to(h.device))
                return torch.where(mask.to(h.device)[..., None], moved, h)

            scores = self._scores(batch, clamp, self._start(bases, answers, batch))
            return Swapped(scores, scores, *self._answers(batch))

        found = self._mean(swaps, run)
        assert found is not None
        return found

    def _mean(self, swaps: Sequence[Swap], run: Callable[[Sequence[Swap]], Swapped]) -> float | None:
        if not swaps:
            return None
        total, count = 0.0, 0
        size = 32
        with torch.no_grad():
            for at in range(0, len(swaps), size):
                part = swaps[at : at + size]
                target = torch.cat(
                    [s.scores for s in self._sources([s.source for s in part], [s.answer for s in part])]
                )
                found = run(part)
                each = jensen_shannon(found.scores, target.to(found.scores.device))
                total, count = total + float(found.mean(each)) * len(each), count + len(each)
        return total / count

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _batch(self, prompts: Sequence[Example], answers: Sequence[str]) -> Batch:
        given = [_with(p, a) for p, a in zip(prompts, answers, strict=True)]
        return self.engine.batch(given, close=self._close, answer_tokens=self._answer_tokens)

    def _scores(self, batch: Batch, edit: _Edit | None, start: Start | None) -> Float[Tensor, "n v"]:
        run = self.engine.resume(batch, {self.site: edit} if edit is not None else None, start=start)
        assert run.logits is not None
        return run.logits

    def _start(self, prompts: Sequence[Example], answers: Sequence[str], batch: Batch) -> Start | None:
        """What reaches the site, from the first time that these runs were asked for; None where nothing is below."""
        layer = self._layer_below()
        if layer is None:
            return None
        keys = list(zip(prompts, answers, strict=True))
        real = batch.position >= 0
        if any(key not in self._below for key in keys):
            below = Site(layer, "resid")
            with torch.no_grad():
                hidden = self.engine.resume(batch, sites=[below], logits=False).at[below]
            for n, key in enumerate(keys):
                row = hidden[n][real[n].to(hidden.device)].clone()
                size = row.numel() * row.element_size()
                if key not in self._below and self._bytes + size <= KEEP:
                    self._below[key] = row
                    self._bytes += size
            return Start(layer, hidden)
        rows = [self._below[key] for key in keys]
        hidden = rows[0].new_zeros(*real.shape, rows[0].shape[-1])
        hidden[real.to(hidden.device)] = torch.cat(rows)
        return Start(layer, hidden)

    def _layer_below(self) -> int | None:
        """The last block whose output no edit of the site can change, or is the site itself."""
        if self.site.part == "final":
            return self.engine.depth - 1
        if self.site.layer is None:
            return None
        layer = self.site.layer if self.site.part == "resid" else self.site.layer - 1
        return layer if layer >= 0 else None

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The answer's tokens, each one's row and its weight, in the order of the scores."""
        chosen = batch.predicts
        following = torch.roll(batch.ids, -1, dims=1)
        place = (batch.position - (batch.prompt_length[:, None] - 1))[chosen]
        weight = (1 + place.float()) ** -self._early
        return following[chosen], chosen.nonzero()[:, 0], weight / weight.mean()

    def _sources(self, prompts: Sequence[Example], answers: Sequence[str]) -> list[_Source]:
        keys = [(p, a) for p, a in zip(prompts, answers, strict=True)]
        missing = list(dict.fromkeys(k for k in keys if k not in self._kept))
        fresh: dict[tuple[Example, str], _Source] = {}
        if missing:
            batch = self._batch([p for p, _ in missing], [a for _, a in missing])
            with torch.no_grad():
                run = self.engine.resume(batch, sites=[self.site])
            assert run.logits is not None
            mask = batch.mask(self.positions if self._aligned else LAST_PROMPT)
            scores = run.logits.split(batch.predicts.sum(dim=1).tolist())
            for n, key in enumerate(missing):
                fresh[key] = _Source(run.at[self.site][n][mask[n].to(run.at[self.site].device)].float(), scores[n])
        for key, source in fresh.items():
            size = source.scores.numel() * 4
            if self._bytes + size <= KEEP:
                self._kept[key] = _Source(source.activation, source.scores.clone())
                self._bytes += size
        return [self._kept.get(k) or fresh[k] for k in keys]

    def _targets(self, mask: Tensor, sources: Sequence[_Source]) -> Float[Tensor, "b t d"]:
        """The source activation that each base position gets: one for all, or its own where positions are aligned."""
        if not self._aligned:
            return torch.stack([s.activation[0] for s in sources])[:, None]
        width = sources[0].activation.shape[1]
        given = torch.zeros(*mask.shape, width, device=sources[0].activation.device)
        for n, source in enumerate(sources):
            here = int(mask[n].sum())
            if here != len(source.activation):
                raise DataError(
                    f"source='aligned' needs as many positions in the base as in the source; {self.positions} gives {here} and"
                    f" {len(source.activation)}. Use positions such as 'f3+l2', or source='last'."
                )
            given[n, mask[n].to(given.device)] = source.activation
        return given


if TYPE_CHECKING:
    from collections.abc import Callable

    _Edit = Callable[[Tensor], Tensor]


def _with(prompt: Example, answer: str) -> Example:
    return Example(prompt.messages, answer, family=prompt.family)
