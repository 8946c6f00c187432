"""What a model gives the same when rows are run together, tried on the model itself: padding, cache, joining, pieces.

Attention can be told what is padding. A recurrence or a convolution that isn't told sees it, some models count places without
looking at it, and some caches can't be taken apart. So each model answers for itself, with two short rows alone and together,
once; what it doesn't keep isn't done: rows of one length then run together, or each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import UnsupportedError
from . import hf_cache
from .base import Sampling
from .hf_generate import Decoder, Row
from .hf_offload import home
from .hf_rows import Padding, by_length
from .hf_sites import Anatomy
from .hf_watch import quiet
from .render import Rendered, Renderer

LONG, SHORT, STEPS = 7, 3, 2  # tokens of the two prompts, and steps after them
_KNOWN: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


class Trial:
    """One model's answers; each is found when it is first asked for, and engines on the same model share them."""

    def __init__(self, model: Any, anatomy: Anatomy, renderer: Renderer) -> None:
        self._model, self._anatomy, self._renderer = model, anatomy, renderer
        self._takes = hf_cache.takes(model)
        self._facts = _KNOWN.setdefault(model, {})

    def pads(self, side: Padding) -> bool:
        """Whether a row padded on this side gives what it gives alone, in a pass without a cache."""
        return self._holds(f"pads {side}", lambda: self._beside(left=side == "left"))

    @property
    def causal(self) -> bool:
        """Whether what it gives at a token is independent of the tokens after it."""
        return self._holds("causal", lambda: (self._whole([self._rows[0][:SHORT]])[0], self._alone[0][:SHORT]))

    @property
    def refusal(self) -> str | None:
        """Why replies can't be decoded token by token; None where they can."""
        return self._fact("refusal", self._refusal)

    @property
    def own_cache(self) -> bool:
        """Whether it wants a cache of a kind of its own, which it makes."""
        return self._fact("own cache", self._makes_its_own)

    @property
    def mixed(self) -> bool:
        """Whether rows of unlike length decode together, padded on the left, and one may leave."""
        return self._holds("mixed", lambda: self._padded(None))

    @property
    def alike(self) -> bool:
        """Whether rows of one length decode together, and one may leave."""

        def twice() -> tuple[Tensor, Tensor]:
            batch = self._decoder([0, 0])
            read = batch.read()
            batch.leave([1])
            return torch.cat([read, self._step(batch)]), self._alone[0][[LONG - 1, LONG - 1, LONG]]

        return self._holds("alike", twice)

    @property
    def joins(self) -> bool:
        """Whether a batch that has begun goes on with another one's rows."""

        def joined() -> tuple[Tensor, Tensor]:
            batches = [self._decoder([n]) for n in (0, 1)]
            for batch in batches:
                batch.read()
            if not all(batch.joinable for batch in batches):
                raise UnsupportedError("a layer of its cache holds something other than every token's keys and values.")
            batches[1].join(batches[0])  # the wider one comes: what is there is filled up
            scores = self._step(batches[1])
            batches[1].leave([0])
            wanted = [self._alone[1][SHORT], self._alone[0][LONG], self._alone[1][SHORT + 1]]
            return torch.cat([scores, self._step(batches[1])]), torch.stack(wanted)

        return self._holds("joins", joined)

    def chunk(self, size: int | None) -> int | None:
        """Pieces in which a prompt may be read: of the size, or whole."""
        if size is None:
            return None
        tried = min(size, SHORT - 1)  # so that the short row's first piece is padding alone

        def pieces() -> tuple[Tensor, Tensor]:
            return self._padded(tried) if self.mixed else self._stepped(0, tried)

        return size if self._holds(f"pieces of {tried}", pieces) else None

    def check(self) -> None:
        """Raise `UnsupportedError` where what it gives at a token depends on tokens after it."""
        if not self.causal:
            raise UnsupportedError(
                f"{type(self._model).__name__} isn't causal: what it gives at a token depends on the tokens after it (tried:"
                f" {SHORT} tokens alone, and with {LONG + STEPS - SHORT} more). Expected a decoder; some configurations become"
                " one with is_decoder=True."
            )

    def check_decoding(self) -> None:
        """Raise `UnsupportedError` where it can't go on from what it has read."""
        if self.refusal is not None:
            raise UnsupportedError(self.refusal)

    def batches(self, rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
        """Rows that decode together exactly, at most `size`: of like length, of one length, or each alone."""
        self.check_decoding()
        mixed = len(rows) < 2 or self.mixed
        return by_length(rows, size if mixed or self.alike else 1, mixed=mixed)

    def side(self, wished: Padding, lengths: Iterable[int]) -> Padding:
        """The side for padding rows of these lengths: the one wished for, or the other where that changes what the model gives.

        Raises `UnsupportedError` where either does.
        """
        if len(set(lengths)) == 1 or self.pads(wished):
            return wished
        other: Padding = "right" if wished == "left" else "left"
        if self.pads(other):
            return other
        raise UnsupportedError(
            f"{type(self._model).__name__} gives other scores for a padded row than for the row alone, on either side: run it"
            " with batch_size=1."
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> tuple[list[int], list[int]]:
        """Two texts: a prompt each, and the tokens said after it."""
        vocabulary = self._anatomy.vocabulary
        first = [3 + (5 * n) % max(vocabulary - 4, 1) for n in range(LONG + STEPS)]
        second = [4 + (7 * n) % max(vocabulary - 5, 1) for n in range(SHORT + STEPS)]
        return [n % vocabulary for n in first], [n % vocabulary for n in second]

    @property
    def _alone(self) -> list[Tensor]:
        """The scores at every token of each text, in a pass of it alone; never kept, since weights may have changed meanwhile."""
        return [self._whole([row])[0] for row in self._rows]

    def _given(self, ids: Tensor, position: Tensor | None = None) -> dict[str, Any]:
        """What the forward is told; places only where some are padding: by itself a model counts as it was made to."""
        real = torch.ones_like(ids) if position is None else (position >= 0).long()
        given: dict[str, Any] = {"input_ids": ids}
        if self._takes & {"attention_mask", "**"}:
            given["attention_mask"] = real
        if position is not None and "position_ids" in self._takes:
            given["position_ids"] = self._anatomy.places(position)
        return {name: t.to(home(self._model)) for name, t in given.items()}

    def _whole(self, rows: Sequence[Sequence[int]], position: Tensor | None = None) -> Tensor:
        given = self._given(torch.tensor(rows), position)
        with torch.no_grad(), quiet(self._model):
            return self._model(**given, **hf_cache.uncached(self._takes)).logits.float()

    def _beside(self, *, left: bool) -> tuple[Tensor, Tensor]:
        """Both texts in one pass, the short one padded."""
        first, second = self._rows
        spare = len(first) - len(second)
        filled = [0] * spare + second if left else second + [0] * spare
        places, padding = torch.arange(len(second)), torch.full((spare,), -1)
        place = torch.cat([padding, places] if left else [places, padding])
        both = self._whole([first, filled], torch.stack([torch.arange(len(first)), place]))
        return torch.cat([both[0], both[1][place >= 0]]), torch.cat(self._alone)

    def _decoder(self, which: Sequence[int], chunk: int | None = None) -> Decoder:
        rows: list[Row] = []
        for n in which:
            prompt = Rendered(self._rows[n][: (LONG, SHORT)[n]], 0)
            rows.append(Row(n, prompt, None, torch.Generator(), STEPS, Sampling()))
        return Decoder(
            self._model, self._anatomy, self._renderer, rows, chunk=chunk, pad=0, joinable=True, own_cache=self.own_cache
        )  # fmt: skip

    def _step(self, batch: Decoder) -> Tensor:
        for row in batch.rows:
            row.ids.append(self._rows[row.number][len(row.prompt.ids) + len(row.ids)])
        return batch.step()

    def _stepped(self, which: int, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """A text alone: its prompt and then step by step; and what the whole gives there."""
        batch = self._decoder([which], chunk)
        got = [batch.read(), *(self._step(batch) for _ in range(STEPS))]
        length = (LONG, SHORT)[which]
        return torch.cat(got), self._alone[which][length - 1 :]

    def _padded(self, chunk: int | None) -> tuple[Tensor, Tensor]:
        """Both prompts in one batch, a step, and a step after the long one has left."""
        batch = self._decoder([0, 1], chunk)
        got = [batch.read(), self._step(batch)]
        batch.leave([1])
        got.append(self._step(batch))
        first, second = self._alone
        wanted = [first[LONG - 1], second[SHORT - 1], first[LONG], second[SHORT], second[SHORT + 1]]
        return torch.cat(got), torch.stack(wanted)

    def _makes_its_own(self) -> bool:
        from transformers import DynamicCache

        name = hf_cache.name_of(self._takes) or ""
        with torch.no_grad(), quiet(self._model):
            made = self._model(**self._given(torch.tensor([self._rows[1]])), use_cache=True).get(name)
        if made is None:
            raise UnsupportedError("it gives no cache back, so what it keeps is its modules' own.")
        return type(made) is not DynamicCache

    def _refusal(self) -> str | None:
        kind, scoring = type(self._model).__name__, "can't be decoded. Scoring and capturing work."
        if hf_cache.name_of(self._takes) is None:
            return (
                f"{kind} takes no cache of what was read (looked for {' or '.join(hf_cache.NAMES)} among its forward's"
                f" arguments), so replies {scoring}"
            )
        try:
            same = self._same(*self._stepped(0))
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # noqa: BLE001  # whatever a model's own code raises
            why = (str(problem).strip().splitlines() or ["no word"])[0][:200]
            return f"{kind} can't go on from its own cache ({type(problem).__name__}: {why}), so replies {scoring}"
        return (
            None if same else f"{kind} gives other scores from its cache than for the whole text, so replies {scoring}"
        )

    def _fact(self, name: str, find: Callable[[], Any]) -> Any:
        key = (name, self._model.dtype, getattr(self._model.config, "_attn_implementation", None))
        if key not in self._facts:
            self._facts[key] = find()
        return self._facts[key]

    def _holds(self, name: str, tried: Callable[[], tuple[Tensor, Tensor]]) -> bool:
        def holds() -> bool:
            try:
                return self._same(*tried())
            except torch.OutOfMemoryError:
                raise
            except Exception:  # noqa: BLE001  # whatever a model's own code raises: then it isn't done
                return False

        return self._fact(name, holds)

    def _same(self, got: Tensor, wanted: Tensor) -> bool:
        """Equal but for rounding, which grows with the number of blocks. Scores that aren't finite are others' to tell."""
        if not bool(wanted.isfinite().all()):
            return True
        rounding = torch.finfo(self._model.dtype).eps * 64 * (1 + self._anatomy.depth)
        off = (got - wanted).square().mean().sqrt()
        return bool(off <= min(rounding, 0.05) * wanted.square().mean().sqrt())
