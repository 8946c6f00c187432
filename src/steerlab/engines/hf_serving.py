"""Continuous batching: replies join and leave one running batch between its steps, each under its own steering.

Each says what it would say alone with the same seed, up to the rounding of kernels by batch shape. Where a model's cache
can't be joined exactly (a layer keeps something other than every token's keys and values), each admission stays a batch of its
own, and the batches take turns.

Nothing here is a thread or knows of one; whoever drives it calls from one thread at a time, `Prompts` apart.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..contrast import Message
from ..errors import DataError, UnsupportedError
from ..steering import Steering
from .base import Piece, Reply, Sampling
from .hf_generate import Decoder, Row, piece, reply
from .hf_hooks import Tally
from .readout import Readout
from .render import NOTHING, Extras, Rendered, Renderer, Turn
from .sampling import begun, check
from .spans import Span

if TYPE_CHECKING:
    from .hf import HFEngine

KEPT = 64  # prompts that are remembered: a server's are other people's


class Speaking(Protocol):
    """What writes conversations as a model reads them."""

    tokenizer: Any
    renderer: Renderer


class Prompts:
    """Writes conversations and texts as ids, on a tokenizer of its own, so that any thread may ask."""

    def __init__(self, engine: Speaking) -> None:
        own = copy.deepcopy(engine.tokenizer)
        r = engine.renderer
        self._renderer = Renderer(own, r.template, r.ends, kept=KEPT, warns=False, embedded=r.embedded)
        self._lock, self.vocabulary = Lock(), len(own)
        self.marks = frozenset(
            str(added.content) for added in own.added_tokens_decoder.values()
        )  # words that are one token each

    @property
    def template(self) -> str:
        """The chat template as it is written."""
        return self._renderer.template_text

    def chat(
        self, messages: Sequence[Message | Turn], steering: Steering | None = None, extras: Extras = NOTHING
    ) -> Rendered:
        """A conversation up to where the assistant begins, a steering's prompt put in.

        Raises `DataError`, and `UnsupportedError` for a prompt beside calls of tools.
        """
        if steering is not None and steering.prompt is not None and steering.prompt.strength:
            plain = [m for m in messages if isinstance(m, Message)]
            if len(plain) < len(messages):
                raise UnsupportedError(
                    "this steering has a prompt, which can't be put into a conversation with tool calls."
                )
            messages = steering.prompt.apply(plain)
        with self._lock:
            return self._renderer.prompt(messages, extras)

    def ends_with(self, prompt: Rendered, text: str) -> bool:
        """Whether a prompt ends with a text, blanks after it left out."""
        with self._lock:
            return self._renderer.text(prompt.ids[-32:], special=True).rstrip().endswith(text)

    def text(self, text: str) -> Rendered:
        """Plain text to be gone on with, begun as the model's texts begin."""
        with self._lock:
            return self.ids(self._renderer.text_ids(text))

    def ids(self, ids: Sequence[int]) -> Rendered:
        """Ids as they are. Raises `DataError` for none, and for one that the vocabulary lacks."""
        if not ids:
            raise DataError("the prompt has no tokens; expected some text.")
        if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
            raise DataError(f"the prompt has the token {wrong[0]}; expected ids from 0 to {self.vocabulary - 1}.")
        return Rendered(list(ids), min(int(ids[0] == self._renderer.begin), len(ids) - 1))

    def words(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Ids as one text, special tokens left out unless wanted."""
        with self._lock:
            return self._renderer.text(ids, special=special)

    def spelled(self, text: str, *, begun: bool = True) -> list[int]:
        """A text as ids, begun as the model's texts begin unless told otherwise."""
        with self._lock:
            ids = self._renderer.text_ids(text)
            return ids if begun or self._renderer.begin is None else ids[1:]

    def told(self, ids: Sequence[int]) -> list[str]:
        """Each id as text by itself."""
        with self._lock:
            return [self._renderer.text([i], special=True) for i in ids]


@dataclass(frozen=True, eq=False)
class Ask:
    """One reply that is wanted. `sampling` has one seed; `tops` likeliest tokens are told beside each token; special tokens
    called as `markers` say stay in its text.

    `parts` says what the steering was put together from, for engines that fetch it by digest: each one's digest, its strength,
    and its positions where they aren't its own. `monitors` are the digests of the steerings that the read-outs are of.
    """

    prompt: Rendered
    steering: Steering | None = None
    sampling: Sampling = field(default_factory=Sampling)
    tops: int = 0
    readouts: tuple[Readout, ...] = ()
    unsteered: tuple[Span, ...] = ()
    markers: tuple[str, ...] = ()
    parts: tuple[tuple[str, float, str | None], ...] = ()
    monitors: tuple[str, ...] = ()


class Running:
    """The rows that are being decoded. Raises `UnsupportedError` for a model that can't go on from what it has read."""

    def __init__(self, engine: HFEngine) -> None:
        engine.trial.check_decoding()
        self._engine, self._joins = engine, engine.trial.joins  # tried now: nothing runs yet
        self._batches: list[Decoder] = []

    def __len__(self) -> int:
        return sum(len(batch.rows) for batch in self._batches)

    def check(self, ask: Ask) -> None:
        """Raise what makes it impossible: a prompt that leaves no room, unsteered spans with an edit of weights.

        Any thread may ask. Whether the engine accepts a steering at all is asked before (`HFEngine.accept`).
        """
        engine, steering = self._engine, ask.steering
        if steering is not None and ask.unsteered and any(site.on_weights for site in steering.sites):
            raise UnsupportedError("an edit of weights acts on every token, so no part of a reply can go unsteered.")
        check(ask.sampling, engine.renderer)
        if len(ask.prompt.ids) >= engine.context:
            raise DataError(
                f"the prompt is {len(ask.prompt.ids)} tokens long, and the model's context holds {engine.context}; expected"
                " room for at least one token of reply. Shorten the prompt."
            )

    def admit(self, asks: Sequence[Ask]) -> list[Row]:
        """Read the prompts of some more; each has its first token. Numbers of rows are places in `asks`."""
        rows = [self._row(n, ask, steering) for n, (ask, steering) in enumerate(zip(asks, self._decided(asks)))]
        begun: list[Decoder] = []
        for alike in self._engine.trial.batches(rows, len(rows)):
            batch = self._engine.decoder(alike, joinable=self._joins)
            batch.begin()
            begun.append(batch)
        self._batches += begun  # where one can't begin, none runs on that nobody waits for
        return rows

    def step(self) -> list[Row]:
        """One token more for every row; those that have ended leave before."""
        self._tidy()
        for batch in self._batches:
            batch.advance()
        return [row for batch in self._batches for row in batch.rows]

    def drop(self, rows: Sequence[Row]) -> None:
        """These leave before the next step."""
        for row in rows:
            row.finish = row.finish or "stop"
        self._tidy()

    def clear(self) -> None:
        """All leave, whatever state they are in."""
        self._batches.clear()

    def decisions(self, row: Row) -> dict[int, Tally]:
        """What each of a row's controls has done, by the control's id; asked before the row leaves."""
        for batch in self._batches:
            for n, other in enumerate(batch.rows):
                if other is row:
                    return batch.decisions(n)
        return {}

    def reply(self, row: Row) -> Reply:
        """What a row has said."""
        return reply(row, self._engine.renderer)

    def piece(self, row: Row) -> Piece | None:
        """What is new and certain of it."""
        return piece(row, self._engine.renderer)

    def _tidy(self) -> None:
        """Rows that have ended leave, and batches that can be one become one."""
        self._batches = [batch for batch in self._batches if batch.retire()]
        joinable = [batch for batch in self._batches if batch.joinable]
        for batch in joinable[1:]:
            joinable[0].join(batch)
            self._batches.remove(batch)

    def _row(self, n: int, ask: Ask, steering: Steering | None) -> Row:
        engine, drawn = self._engine, ask.sampling
        room = engine.context - len(ask.prompt.ids)
        row = Row(
            n,
            ask.prompt,
            steering,
            torch.Generator().manual_seed(drawn.seeds(1)[0]),
            min(drawn.max_new_tokens, room),
            drawn,
            tops=ask.tops,
            readouts=ask.readouts,
            unsteered=ask.unsteered,
            markers=ask.markers,
            matcher=begun(drawn, engine.renderer),
        )
        if ask.unsteered:
            written = engine.renderer.text(ask.prompt.ids[-32:], special=True).rstrip()
            row.opened = next((span.begin for span in ask.unsteered if written.endswith(span.begin)), "")
            row.resting = bool(row.opened)
        return row

    def _decided(self, asks: Sequence[Ask]) -> list[Steering | None]:
        """The steerings, with what decides ahead decided by a pass of the untouched prompts."""
        found = [ask.steering for ask in asks]
        waiting = [(n, s) for n, s in enumerate(found) if s is not None and s.ahead]
        if waiting:
            sites = list(dict.fromkeys(control.site for _, s in waiting for control in s.ahead))
            asked = [self._row(n, asks[n], None) for n, _ in waiting]
            for bare in self._engine.trial.batches(asked, len(asked)):
                read = self._engine.decoder(bare).last_prompt(sites)
                for k, row in enumerate(bare):
                    steering = found[row.number]
                    assert steering is not None
                    found[row.number] = steering.decided(lambda site, k=k, read=read: read[site][k].float().cpu())
        return found
