"""The decoding loop: prefill (whole or in chunks), then one token a step; rows that are done leave the batch.

It works on token ids alone. Each row has its own steering, seed and stop strings, and what it says doesn't depend on
who else is in the batch (up to the rounding of kernels by batch shape).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..controls import Tokens
from ..errors import DataError
from ..sites import Site
from ..steering import Steering
from . import hf_cache
from .base import Finish, Piece, Reply, Sampling
from .grammar import Matcher
from .hf_hooks import Hooks, Plan, Tally
from .hf_offload import home
from .hf_sites import Anatomy
from .hf_watch import quiet
from .readout import Readout
from .render import Rendered, Renderer
from .sampling import sample, shaped
from .spans import Span, inside

if TYPE_CHECKING:
    from jaxtyping import Float, Int

NOT_FINITE = (
    "the model's scores are NaN or infinite: it overflows (float16?), its weights are damaged, or the strength"
    " is far out of range. Try bfloat16 or float32, or a smaller strength."
)


def sound(scores: Tensor, steerings: Sequence[Steering | None]) -> Tensor:
    """Scores as they are. Raises `DataError` where those of an unsteered batch are NaN or +∞ (−∞ says that a token can't come).

    Under a steering they may be: whoever measures a strength that breaks the model counts them as such.
    """
    if all(s is None for s in steerings) and bool((scores.isnan() | scores.isposinf()).any()):
        raise DataError(NOT_FINITE)
    return scores


@dataclass
class Row:
    """One reply in the making.

    `tops` likeliest tokens are noted at each step; `readouts` are read where each token was predicted; inside of the
    `unsteered` spans of its text the row is left alone. `problem` says why a row can't go on.
    """

    number: int
    prompt: Rendered
    steering: Steering | None
    generator: torch.Generator
    limit: int
    sampling: Sampling
    tops: int = 0
    readouts: tuple[Readout, ...] = ()
    unsteered: tuple[Span, ...] = ()
    opened: str = ""  # a span's beginning that the prompt ends with
    markers: tuple[str, ...] = ()  # special tokens that stay in the text
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list[list[tuple[int, float]]])
    readings: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])
    text: str = ""
    cut: bool = False  # whether a stop string ended it
    told: int = 0  # characters that have been streamed
    resting: bool = False
    matcher: Matcher | None = None  # where it stands in the form that it must have
    finish: Finish | None = None
    problem: str | None = None


class Decoder:
    """Decodes one batch of rows; with `joinable`, others may join it between steps (its cache then keeps all tokens).

    A model with an `own_cache`, of a kind that the library doesn't make, makes it itself, and then none can join.
    """

    def __init__(
        self,
        model: Any,
        anatomy: Anatomy,
        renderer: Renderer,
        rows: Sequence[Row],
        *,
        chunk: int | None,
        pad: int,
        joinable: bool = False,
        own_cache: bool = False,
    ) -> None:
        self._model, self._anatomy, self._renderer = model, anatomy, renderer
        self.rows = list(rows)
        self._chunk, self._pad = chunk, pad
        self._plan = Plan([row.steering for row in rows])
        self._hooks = self._hooked()
        self._cache: Any = None if own_cache else hf_cache.fresh(model, anatomy.depth)
        self.joinable = joinable and not own_cache and hf_cache.keep_all(self._cache)
        self._takes = hf_cache.takes(model)
        self._device = home(model)

    def steps(self) -> Iterator[list[Row]]:
        """After each step the rows that got a token, in the order of the batch; rows that end say so in `finish`.

        Nothing stands on the model while the caller has the floor. Raises `DataError` where scores aren't finite.
        """
        self.begin()
        while True:
            if problems := [row.problem for row in self.rows if row.problem]:
                raise DataError(problems[0])
            yield list(self.rows)
            if not self.retire():
                return
            self.advance()

    def begin(self) -> None:
        """Read the prompts; every row gets its first token."""
        self._draw(self.read())

    def advance(self) -> None:
        """One token more for every row; none may have ended."""
        self._draw(self.step())

    def retire(self) -> bool:
        """Rows that have ended leave; whether any stay."""
        staying = [n for n, row in enumerate(self.rows) if row.finish is None]
        if staying and len(staying) < len(self.rows):
            self.leave(staying)
        return bool(staying)

    def join(self, other: Decoder) -> None:
        """Go on with another batch's rows as well, below these; both are joinable and have begun."""
        width = max(self._attention.shape[1], other._attention.shape[1])
        hf_cache.join(self._cache, other._cache, width)
        self._attention = torch.cat([hf_cache.wider(t._attention, width, 1) for t in (self, other)])
        self._lengths = torch.cat([self._lengths, other._lengths])
        self._heads, self._last = torch.cat([self._heads, other._heads]), torch.cat([self._last, other._last])
        self._plan.join(other._plan, len(self.rows))
        self.rows += other.rows
        self._hooks = self._hooked()

    def decisions(self, row: int) -> dict[int, Tally]:
        """What each control did to a row of the batch so far, by the control's id."""
        return self._plan.told(row)

    def last_prompt(self, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "b d"]]:
        """Each row's activations at its last prompt token: what controls that decide ahead look at."""
        self._hooks = Hooks(self._anatomy, self._plan, collect=sites)
        self.read()
        return {site: self._hooks.collected[site][:, -1] for site in sites}

    # --- the model ------------------------------------------------------------------------------------------------

    def read(self) -> Float[Tensor, "b v"]:
        """The scores after each prompt. Left-padded, so that every row's last prompt token is the last column."""
        width = max(len(row.prompt.ids) for row in self.rows)
        ids = torch.full((len(self.rows), width), self._pad)
        position = torch.full((len(self.rows), width), -1)
        for n, row in enumerate(self.rows):
            length = len(row.prompt.ids)
            ids[n, width - length :] = torch.tensor(row.prompt.ids)
            position[n, width - length :] = torch.arange(length)
        self._attention = (position >= 0).long().to(self._device)
        self._lengths = torch.tensor([len(row.prompt.ids) for row in self.rows], device=self._device)
        self._heads = torch.tensor([row.prompt.head for row in self.rows], device=self._device)
        self._last = self._lengths - 1
        size = self._chunk or width
        scores = None
        for start in range(0, width, size):
            stop = min(start + size, width)
            scores = self._forward(ids[:, start:stop], position[:, start:stop], stop)
        assert scores is not None
        return scores

    def step(self) -> Float[Tensor, "b v"]:
        """The scores after each row's last token."""
        ids = torch.tensor([[row.ids[-1]] for row in self.rows])
        self._last = self._last + 1
        self._attention = torch.cat([self._attention, torch.ones_like(self._attention[:, :1])], dim=1)
        said = min(len(row.ids) for row in self.rows)
        return self._forward(ids, self._last[:, None], self._attention.shape[1], said - 1)

    def _forward(
        self, ids: Int[Tensor, "b t"], position: Int[Tensor, "b t"], seen: int, generated: int | None = None
    ) -> Float[Tensor, "b v"]:
        ids, position = ids.to(self._device), position.to(self._device)
        self._hooks.tokens = Tokens(ids, position, self._lengths)
        self._hooks.head, self._hooks.generated = self._heads, generated
        resting = [row.resting for row in self.rows]
        self._hooks.resting = torch.tensor(resting, device=self._device) if any(resting) else None
        given: dict[str, Any] = {"input_ids": ids}
        name = hf_cache.name_of(self._takes)
        assert name is not None, "a model without a cache doesn't decode"
        if self._takes & {"attention_mask", "**"}:
            given["attention_mask"] = hf_cache.seen(name, self._attention[:, :seen], ids.shape[1])
        if "position_ids" in self._takes:
            given["position_ids"] = self._anatomy.places(position)
        if self._anatomy.last_alone:
            given["logits_to_keep"] = 1
        with torch.no_grad(), self._hooks.attached(), quiet(self._model):
            out = self._model(**given, **{name: self._cache}, use_cache=True)
        self._cache = out[name]
        return out.logits[:, -1].float()

    def leave(self, staying: list[int]) -> None:
        """Only these rows stay in the batch, its cache, and the state of its controls."""
        hf_cache.select(self._cache, staying)
        index = torch.tensor(staying, device=self._device)
        self._attention, self._lengths = self._attention[index], self._lengths[index]
        self._heads, self._last = self._heads[index], self._last[index]
        self._plan.keep(staying)
        self.rows = [self.rows[n] for n in staying]
        if self.joinable:
            self._narrow()

    def _narrow(self) -> None:
        """Drop the columns that are padding for every row that is left."""
        spare = self._attention.shape[1] - int(self._attention.sum(dim=1).max())
        if spare:
            self._attention = self._attention[:, spare:]
            hf_cache.drop_columns(self._cache, spare)

    def _hooked(self) -> Hooks:
        wanted = dict.fromkeys(readout.site for row in self.rows for readout in row.readouts)
        return Hooks(self._anatomy, self._plan, collect=tuple(wanted))

    # --- choosing tokens --------------------------------------------------------------------------------------------

    def _draw(self, scores: Float[Tensor, "b v"]) -> None:
        logprobs = torch.log_softmax(scores, dim=-1)
        damaged = logprobs.isnan().any(dim=-1)
        if bool(damaged.any()):
            scores = torch.where(damaged[:, None], 0, scores)
            for row, bad in zip(self.rows, damaged.tolist(), strict=True):
                row.problem = NOT_FINITE if bad else row.problem
        chosen = self._chosen(shaped(scores, self.rows, self._renderer.ends))
        picked = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        for n, (row, token, logprob) in enumerate(zip(self.rows, chosen.tolist(), picked, strict=True)):
            if row.problem:
                row.finish = "stop"
                continue
            self._note(row, n, logprobs)
            add(row, token, logprob, self._renderer)
            if row.unsteered and row.finish is None:
                row.resting = inside(row.opened + self._renderer.text(row.ids, special=True), row.unsteered)

    def _chosen(self, scores: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
        """Each row's next token; rows that are drawn in the same way are drawn together."""
        ways: dict[tuple[float, int | None, float, float], list[int]] = {}
        for n, row in enumerate(self.rows):
            drawn = row.sampling
            way = (
                (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p)
                if drawn.temperature
                else (0.0, None, 1.0, 0.0)
            )
            ways.setdefault(way, []).append(n)
        chosen = scores.argmax(dim=-1)
        for way, rows in ways.items():
            if way[0] == 0:
                continue
            here = torch.tensor(rows, device=scores.device)
            drawn = [torch.rand((), generator=self.rows[n].generator, dtype=torch.float64) for n in rows]
            uniform = torch.stack(drawn).to(scores.device)
            chosen[here] = sample(scores[here], self.rows[rows[0]].sampling, uniform)
        return chosen

    def _note(self, row: Row, n: int, logprobs: Float[Tensor, "b v"]) -> None:
        if row.tops:
            best = logprobs[n].topk(row.tops)
            row.likeliest.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        if row.readouts:
            collected = self._hooks.collected
            row.readings.append(tuple(float(r(collected[r.site][n, -1])) for r in row.readouts))


def add(row: Row, token: int, logprob: float, renderer: Renderer) -> None:
    """One token more of a reply, and whether it ends there."""
    row.ids.append(token)
    row.logprobs.append(logprob)
    if token in row.sampling.ends(renderer.ends):
        row.finish = "stop"  # the token is taken off again by whoever reads the row: it is no part of the reply
        return
    if row.matcher is not None:
        _follow(row, row.matcher, token, renderer)
    if row.sampling.stop and len(row.ids) > row.sampling.min_new_tokens:
        row.text = renderer.text(row.ids, keep=row.markers)
        cuts = [at for s in row.sampling.stop if (at := row.text.find(s)) >= 0]
        if cuts:
            row.text, row.finish, row.cut = row.text[: min(cuts)], "stop", True
            return
    if len(row.ids) >= row.limit and row.finish is None:
        row.finish = "length" if row.limit == row.sampling.max_new_tokens else "context"


def _follow(row: Row, matcher: Matcher, token: int, renderer: Renderer) -> None:
    """One token more of a reply that must have a form; it ends where nothing may follow."""
    if matcher.after:  # free until then
        if matcher.after in renderer.text(row.ids, special=True):
            matcher.after = ""
        return
    matcher.take(token)
    row.problem = row.problem or matcher.problem
    if matcher.over:
        row.finish = "stop"


def reply(row: Row, renderer: Renderer) -> Reply:
    """What a row has said, without its end token."""
    ended = bool(row.ids) and row.ids[-1] in row.sampling.ends(renderer.ends)
    ids = tuple(row.ids[:-1] if ended else row.ids)
    text = row.text if row.cut else renderer.text(ids, keep=row.markers)
    return Reply(text, ids, row.finish or "length", len(row.prompt.ids), tuple(row.logprobs))


def piece(row: Row, renderer: Renderer) -> Piece | None:
    """What is new and certain: a half-written character, or what may become a stop string, is held back."""
    text = reply(row, renderer).text
    hold = max((len(s) for s in row.sampling.stop), default=1) - 1
    if row.finish is None:
        text = text[: len(text) - hold] if hold else text
        text = text.rstrip("\ufffd")
    if len(text) <= row.told and row.finish is None:
        return None
    told, row.told = row.told, max(row.told, len(text))
    return Piece(row.number, text[told:], row.finish)
