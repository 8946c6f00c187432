"""What an engine is: a `Runner` generates and scores under steerings; a `Trainable` one also shows its inside.

The rule for every engine: *it runs exactly, or says why not* (`refuses`). A list of steerings steers each row of a
batch on its own; None leaves a row alone. Methods and measurements are written against these two classes.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..contrast import Example, Message
from ..errors import ConfigError, DataError, UnsupportedError
from ..positions import LAST_PROMPT, Positions
from ..sites import Site
from ..steering import Steering
from ..version import __version__
from .head import Head
from .sampling import Sampling

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Finish = Literal["stop", "length", "context"]
Conversation = str | Sequence[Message] | Example
Steerings = Steering | Sequence[Steering | None] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said: text and token ids without the end token, why it ended, and each token's log-probability."""

    text: str
    ids: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    logprobs: tuple[float, ...]


class Piece(NamedTuple):
    """A piece of a reply as it streams: the row, the new text, and why the row ended where it did."""

    row: int
    text: str
    finish: Finish | None


@dataclass(frozen=True, eq=False)
class Batch:
    """Rendered conversations, padded. `position` counts each row's real tokens from 0 and is −1 on padding.

    Where examples share a prompt in one row (`packing`), `branch` is 0 on the prompt and says which answer a token is of.
    """

    ids: Int[Tensor, "b t"]
    position: Int[Tensor, "b t"]
    prompt_length: Int[Tensor, " b"]
    head: Int[Tensor, " b"]  # template tokens before the first message's text
    branch: Int[Tensor, "b t"] | None = None

    @classmethod
    def joined(cls, rows: Sequence[Batch]) -> Batch:
        """Batches one below the other, padded on the right."""
        width = max(b.ids.shape[1] for b in rows)
        ids, position = ([pad(t, (0, width - t.shape[1]), value=v) for t in ts] for ts, v in
                         (((b.ids for b in rows), 0), ((b.position for b in rows), -1)))  # fmt: skip
        return cls(
            torch.cat(ids),
            torch.cat(position),
            torch.cat([b.prompt_length for b in rows]),
            torch.cat([b.head for b in rows]),
        )

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        branch = None if self.branch is None else self.branch.to(device)
        ids, position = self.ids.to(device), self.position.to(device)
        return Batch(ids, position, self.prompt_length.to(device), self.head.to(device), branch)

    def take(self, rows: Int[Tensor, " n"]) -> Batch:
        """Some of its rows."""
        here = rows.to(self.ids.device)
        branch = None if self.branch is None else self.branch[here]
        return Batch(self.ids[here], self.position[here], self.prompt_length[here], self.head[here], branch)

    @property
    def attention(self) -> Int[Tensor, "b t"]:
        """1 on real tokens, 0 on padding."""
        return (self.position >= 0).long()

    @property
    def lengths(self) -> Int[Tensor, " b"]:
        """Real tokens of each row."""
        return self.position.max(dim=1).values + 1

    def mask(self, positions: Positions) -> Bool[Tensor, "b t"]:
        """The tokens that `positions` touch."""
        return positions.mask(self.position, self.prompt_length, self.head)

    @property
    def predicts(self) -> Bool[Tensor, "b t"]:
        """The tokens whose next one is an answer token: where the answer's distributions are read.

        Where answers share a prompt, its last token stands for the first token of each.
        """
        if self.branch is not None:
            follows = torch.cat([self.branch[:, 1:], torch.full_like(self.branch[:, :1], -1)], dim=1) == self.branch
            return (follows & (self.branch > 0)) | (self.position == self.prompt_length[:, None] - 1)
        last = self.lengths[:, None] - 1
        return (self.position >= self.prompt_length[:, None] - 1) & (self.position < last)

    @property
    def answers(self) -> Bool[Tensor, "b t"]:
        """The answer's tokens."""
        return self.position >= self.prompt_length[:, None]

    @property
    def last_prompt(self) -> Int[Tensor, " b"]:
        """The column of each row's last prompt token."""
        return (self.position == self.prompt_length[:, None] - 1).long().argmax(dim=1)


class Run(NamedTuple):
    """One forward pass: logits where the answers' tokens are predicted (row by row), activations at the sites asked.

    `hidden` is what the output head reads at the same tokens, where that was asked for instead of logits.
    """

    logits: Float[Tensor, "n v"] | None
    at: dict[Site, Float[Tensor, "b t d"]]
    hidden: Float[Tensor, "n d"] | None = None


class Captured(NamedTuple):
    """Activations at chosen positions, one line per token, in float32; `row` and `position` say whose and which."""

    values: Float[Tensor, "n d"]
    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]

    def mean_by_row(self, rows: int) -> Float[Tensor, "b d"]:
        """The mean over each example's tokens. Raises `DataError` for an example without any."""
        counts = torch.zeros(rows).index_add_(0, self.row, torch.ones(len(self.row)))
        if bool((counts == 0).any()):
            empty = (counts == 0).nonzero()[:, 0].tolist()
            raise DataError(f"examples {empty[:5]} have no token at the positions that are read (no answer?).")
        total = torch.zeros(rows, self.values.shape[1]).index_add_(0, self.row, self.values)
        return total / counts[:, None]


class Start(NamedTuple):
    """The output of block `layer` from an earlier pass of the same batch: that block and those below needn't run again."""

    layer: int
    hidden: Float[Tensor, "b t d"]


class Shape(NamedTuple):
    """A weight matrix `[height, width]` (out, in), and the part whose tensor it reads, where that is `heads` or `neurons`."""

    height: int
    width: int
    reads: str | None = None


EditFunction = Callable[[Tensor], Tensor]


class Runner(ABC):
    """Runs a model under steerings."""

    name: str

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Conversation],
        steerings: Steerings = None,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    ) -> list[Reply]:
        """One reply per prompt, each under its own steering."""

    @abstractmethod
    def stream(
        self,
        prompts: Sequence[Conversation],
        steerings: Steerings = None,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    ) -> Iterator[Piece]:
        """The same replies piece by piece, as they are made."""

    @abstractmethod
    def logprobs(self, examples: Sequence[Example], steerings: Steerings = None) -> list[Float[Tensor, " n"]]:
        """The log-probability of each token of each example's answer (its end token included), in nats."""

    @abstractmethod
    def refuses(self, steering: Steering) -> list[str]:
        """In words, all that this engine would not run exactly; empty where it runs."""

    @property
    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What tells this model from others, in whatever dtype it is loaded (`steering.same_model`)."""

    @property
    @abstractmethod
    def template(self) -> str:
        """SHA-256 of the chat template, or "plain"."""

    @property
    def revision(self) -> str | None:
        """The version of the model that was loaded, where it has one."""
        return None

    @property
    def rendering(self) -> dict[str, Any]:
        """What is written into every conversation beyond its messages (`render.Rendering`); empty for nothing."""
        return {}

    @property
    def versions(self) -> dict[str, str]:
        """What it runs on: package names and versions."""
        return {"steerlab": __version__, "torch": str(torch.__version__), "python": platform.python_version()}

    def accept(self, steering: Steering) -> None:
        """Raise `UnsupportedError` with every reason for which `steering` is refused."""
        if reasons := self.refuses(steering):
            raise UnsupportedError(f"{self.name} refuses this steering: " + "; ".join(reasons) + ".")


class Trainable(Runner):
    """A runner whose activations can be read, replaced and differentiated through."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A digest of all weights, their dtype and the template: equal only where activations are."""

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return torch.device("cpu")

    @property
    def head(self) -> Head | None:
        """The output head as a function of `Run.hidden`; None where the logits are more than that."""
        return None

    @property
    def shares(self) -> int:
        """The longest row, in tokens, in which examples of one prompt may run together (`packing`); 0: they can't."""
        return 0

    @abstractmethod
    def width(self, site: Site) -> int:
        """The width of a site; of a weight matrix what it reads. Raises `SiteError` where the model has no such site."""

    def matrices(self, layer: int = 0) -> dict[Site, Shape]:
        """The weight matrices of a block that can be edited, in the order of a pass; none where the engine can't."""
        return {}

    @abstractmethod
    def sites(self, layer: int = 0) -> tuple[Site, ...]:
        """Every site that touches block `layer`, in the order of a pass."""

    @abstractmethod
    def batch(
        self,
        examples: Sequence[Example],
        steerings: Steerings = None,
        *,
        close: bool = True,
        answer_tokens: int | None = None,
    ) -> Batch:
        """Examples with their answers as one padded batch; a steering's prompt is put in.

        An answer is followed by the token that closes the assistant's turn, unless told otherwise, and ends after
        `answer_tokens` where these are given.
        """

    @abstractmethod
    def resume(
        self,
        batch: Batch,
        edits: Mapping[Site, EditFunction] | None = None,
        *,
        sites: Sequence[Site] = (),
        logits: bool = True,
        start: Start | None = None,
        hidden: bool = False,
    ) -> Run:
        """One forward pass with activations replaced: `edits[site]` gets `[b, t, d]` and returns the same shape.

        At a weight matrix it gets what the matrix reads, `[b, t, in]`, and returns what is added to what it gives,
        `[b, t, out]`: with x·ΔWᵀ the pass is that of W + ΔW.

        With `hidden` the pass ends before the output head, and gives what `head` makes the logits of; the last block may
        then run for these tokens alone.

        Gradients flow to whatever the edits hold, never to the model. What is below the lowest edit can't change: with
        `start`, an earlier pass's output of a block below every edit and site asked, the pass begins there (an edit of
        that very output, the block's `resid`, is allowed). Raises `SiteError` for a site below it.
        """

    @abstractmethod
    def capture(
        self,
        examples: Sequence[Example],
        sites: Sequence[Site],
        positions: Positions = LAST_PROMPT,
        steerings: Steerings = None,
    ) -> dict[Site, Captured]:
        """Activations of many examples at some positions (after any edit there), on the CPU in float32.

        Raises `DataError` where they are not finite.
        """

    @abstractmethod
    def logits(self, examples: Sequence[Example], steerings: Steerings = None) -> Iterator[Float[Tensor, "n v"]]:
        """For each example the scores that predict its answer's tokens, in float32."""

    @abstractmethod
    def text_logprobs(self, texts: Sequence[str], steerings: Steerings = None) -> list[Float[Tensor, " n"]]:
        """The log-probability of each token of plain texts after the first (or after BOS), for perplexity.

        No chat template; every token counts as generated. Texts longer than the context are cut to it.
        """

    @abstractmethod
    def steer(self, steerings: Steerings) -> AbstractContextManager[None]:
        """Steer the caller's own calls of the model inside a `with` block."""


def rows_of(steerings: Steerings, rows: int) -> list[Steering | None]:
    """One steering, or None, for each row. Raises `ConfigError` where the numbers differ."""
    if steerings is None or isinstance(steerings, Steering):
        return [steerings] * rows
    if len(steerings) != rows:
        raise ConfigError(
            f"there are {len(steerings)} steerings for {rows} rows; give one for all, or one (or None) for each row."
        )
    return list(steerings)


def as_example(conversation: Conversation) -> Example:
    """A prompt in any of its forms as an `Example`."""
    if isinstance(conversation, Example):
        return conversation
    if isinstance(conversation, str):
        return Example.ask(conversation)
    return Example(tuple(conversation))


def finite(h: Tensor, what: str) -> Tensor:
    """The tensor, or a `DataError` that says how much of it isn't finite."""
    if not bool(torch.isfinite(h).all()):
        bad = int((~torch.isfinite(h)).sum())
        raise DataError(
            f"{bad} of {h.numel()} activations at {what} are NaN or infinite; the model overflows there"
            " (float16?) or its weights are damaged. Try bfloat16 or float32, or another layer."
        )
    return h
