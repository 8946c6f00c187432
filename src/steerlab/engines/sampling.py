"""How a reply is drawn: what is done to a model's scores before a token is chosen, row by row, and how one is chosen.

The order is vLLM's (`vllm/v1/sample/sampler.py`): bias, then no end before its time, then penalties, then what a grammar forbids;
temperature, `min_p`, `top_k`, `top_p`. Log-probabilities that are told are the model's own, before any of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .grammar import Grammar, Matcher

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from .render import Rendered, Renderer

Bias = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn.

    `temperature` 0 is greedy. A row draws from its own seed, so that its text doesn't depend on its neighbours: `seed`
    is one number (row i uses seed + i) or one per row. `stop` strings end a reply and are cut off it; so do `stop_ids`.

    `min_p` leaves out tokens less likely than that share of the likeliest. `repetition_penalty` p divides the positive scores
    of tokens that stand in prompt or reply by p, and multiplies negative ones; `presence_penalty` and `frequency_penalty` are
    taken off the scores of tokens of the reply, once and for each time; `logit_bias` (pairs of id and number, or a mapping) is
    added. With `ignore_end` no end token ends a reply; until `min_new_tokens` are made none can come and no stop string counts.
    `grammar` is a form that the reply must have (`grammar.Grammar`).
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | tuple[int, ...] = 0
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Bias | Mapping[int, float] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    min_new_tokens: int = 0
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected a share in (0, 1].")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; expected at least 1, or none.")
        if "" in self.stop:
            raise ConfigError("a stop string is empty; it would end every reply at once.")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}; expected a share in [0, 1], where 0 leaves nothing out.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}; expected more than 0, where 1 is none."
            )
        bias = self.bias
        for name, value in (
            ("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty),
            *((f"logit_bias of token {i}", value) for i, value in bias),
        ):  # fmt: skip
            if not math.isfinite(value):
                raise ConfigError(f"{name} is {value}; expected a finite number, where 0 is none.")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens}; expected 0 to max_new_tokens ({self.max_new_tokens})."
            )
        if self.grammar is not None and self.ignore_end:
            raise ConfigError("a grammar says where a reply ends, so its end can't be ignored; give one or the other.")

    def seeds(self, rows: int) -> list[int]:
        """Each row's seed."""
        if isinstance(self.seed, int):
            return [self.seed + i for i in range(rows)]
        if len(self.seed) != rows:
            raise ConfigError(f"there are {len(self.seed)} seeds for {rows} rows; give one number, or one per row.")
        return list(self.seed)

    @property
    def bias(self) -> Bias:
        """`logit_bias` as pairs."""
        given = self.logit_bias
        return tuple(given.items()) if isinstance(given, Mapping) else given

    @property
    def shapes(self) -> bool:
        """Whether scores are changed before a token is chosen."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias or self.min_new_tokens or self.grammar)

    def ends(self, ends: Sequence[int]) -> tuple[int, ...]:
        """The tokens that end a reply, where `ends` are the model's own."""
        return self.stop_ids if self.ignore_end else (*ends, *self.stop_ids)


class Drawn(Protocol):
    """A reply in the making, as far as drawing needs it."""

    prompt: Rendered
    ids: list[int]
    sampling: Sampling
    matcher: Matcher | None


def check(sampling: Sampling, renderer: Renderer) -> None:
    """Raise `DataError` for ids that the vocabulary lacks and for a grammar that can't be followed, or `ConfigError`."""
    for name, ids in (("logit_bias", [i for i, _ in sampling.bias]), ("stop_ids", sampling.stop_ids)):
        if wrong := [i for i in ids if not 0 <= i < renderer.vocabulary]:
            raise DataError(f"{name} names the token {wrong[0]}; expected ids from 0 to {renderer.vocabulary - 1}.")
    begun(sampling, renderer)


def begun(sampling: Sampling, renderer: Renderer) -> Matcher | None:
    """The beginning of the grammar of a reply, where it has one."""
    return None if sampling.grammar is None else renderer.grammars.matcher(sampling.grammar)


def shaped(scores: Float[Tensor, "b v"], rows: Sequence[Drawn], ends: Sequence[int]) -> Float[Tensor, "b v"]:
    """The scores that tokens are drawn by; rows that ask for nothing keep theirs bit for bit."""
    touched = [n for n, row in enumerate(rows) if row.sampling.shapes]
    if not touched:
        return scores
    scores = scores.clone()
    for n in touched:
        _shape(scores[n], rows[n], ends)
    return scores


def _shape(line: Float[Tensor, " v"], row: Drawn, ends: Sequence[int]) -> None:
    drawn, width = row.sampling, len(line)

    def at(ids: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(ids, dtype=torch.long, device=line.device)

    if bias := [(i, value) for i, value in drawn.bias if i < width]:
        line[at([i for i, _ in bias])] += torch.tensor([value for _, value in bias], device=line.device)
    if len(row.ids) < drawn.min_new_tokens:
        line[at([i for i in dict.fromkeys((*ends, *drawn.stop_ids)) if i < width])] = -math.inf
    counts = Counter(row.ids)
    if drawn.repetition_penalty != 1 and (seen := [i for i in {*row.prompt.ids, *counts} if i < width]):
        here = line[at(seen)]
        line[at(seen)] = torch.where(here > 0, here / drawn.repetition_penalty, here * drawn.repetition_penalty)
    if counts and (drawn.frequency_penalty or drawn.presence_penalty):
        times = torch.tensor(list(counts.values()), dtype=line.dtype, device=line.device)
        line[at(list(counts))] -= drawn.frequency_penalty * times + drawn.presence_penalty
    if row.matcher is not None and (allowed := row.matcher.allowed(width)) is not None:
        line[~allowed.to(line.device)] = -math.inf


def sample(scores: Float[Tensor, "b v"], sampling: Sampling, uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """One token per row by inverting the cumulated probabilities at the row's uniform number, in float64.

    Temperature first, then what has `min_p` of the likeliest's probability, then the `top_k` best, then the smallest set of the
    best that holds `top_p` of the rest. They are cumulated in the order of their ids: in that of their probabilities two
    near-equal ones could change places, and with them the draw, by rounding alone.
    """
    below = scores.double() - scores.double().amax(
        dim=-1, keepdim=True
    )  # so that the best stays finite at any temperature
    probs = torch.softmax(below / sampling.temperature, dim=-1)
    if sampling.min_p > 0:
        probs = torch.where(probs < sampling.min_p * probs.amax(dim=-1, keepdim=True), 0, probs)
    if sampling.top_k is not None or sampling.top_p < 1:
        best, order = probs.sort(dim=-1, descending=True, stable=True)
        if sampling.top_k is not None:
            best[:, sampling.top_k :] = 0
        if sampling.top_p < 1:
            before = best.cumsum(dim=-1) - best
            best = torch.where(before < sampling.top_p * best.sum(dim=-1, keepdim=True), best, 0)
        probs = torch.zeros_like(best).scatter(1, order, best)
    summed = probs.cumsum(dim=-1)
    at = torch.searchsorted(summed, (uniform * summed[:, -1])[:, None], right=True)
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(dim=-1, keepdim=True)
    return at.minimum(last)[:, 0]
