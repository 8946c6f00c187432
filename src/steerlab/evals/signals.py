"""What forward passes alone say of a steering at a strength: how far it goes towards what asking does, and two of its costs.

Nothing is generated, so that hundreds of settings can be looked at for the price of a few. With a pair's plain prompt, the
prompt that asks, and both answers a (wanted) and b (not), and with L the mean log-probability of an answer's tokens,

    preference = L(a) − L(b)
    gain = (preference(plain prompt, steered) − preference(plain prompt)) / (preference(asking prompt) − preference(plain prompt))

so that 0 is no effect and 1 as much as asking brings; to suppress, the two prompts and the two answers change places. KL from
the unsteered model is on neutral prompts' answers, perplexity on held-out texts, both as `measure.CostMeter` has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from ..contrast import Example
from ..engines.base import Trainable
from ..methods.objectives import kl
from ..steering import Steering
from .guarantee import HIGH, Budget
from .results import Direction
from .suite import Split, Suite

Array = np.ndarray
COSTS = ("kl", "perplexity")
T = TypeVar("T")


class Signal(NamedTuple):
    """At one strength: the gain (None where there are no pairs), KL of each neutral prompt, perplexity added to each text."""

    gain: float | None
    kl: Array
    perplexity: Array

    def strain(self, budget: Budget) -> float:
        """The cheap cost that is nearest to its budget, as a share of it; what isn't finite is beyond any."""
        found = [0.0]
        for name, most in budget.limits().items():
            costs = {"kl": self.kl, "perplexity": self.perplexity}.get(name)
            if costs is not None and len(costs):
                found.append(float(np.mean(np.nan_to_num(costs, nan=np.inf, posinf=np.inf))) / most)
        return max(found)


@dataclass
class Ledger:
    """What was run: replies generated, examples scored by a forward pass, steerings fitted."""

    replies: int = 0
    rows: int = 0
    fits: int = 0

    def told(self) -> str:
        """In words."""
        return f"{self.replies} replies, {self.rows} scored rows, {self.fits} fits"


class Cheap:
    """Costs that forward passes tell, of neutral prompts and texts; what the unsteered model says is computed once."""

    def __init__(self, engine: Trainable, neutral: Sequence[Example], texts: Sequence[str], ledger: Ledger) -> None:
        self._engine, self.ledger = engine, ledger
        self.neutral, self.texts = list(neutral), list(texts)
        self._logits: list[Tensor] = []
        self._nll: list[float] = []
        self._answers_nll: list[float] = []

    def kl(self, steering: Steering, start: int = 0, stop: int | None = None) -> Array:
        """KL(unsteered ‖ steered), the mean over each neutral prompt's answer tokens, in nats."""
        rows = self.neutral[start:stop]
        if not rows:
            return np.zeros(0)
        if more := self.neutral[len(self._logits) : start + len(rows)]:
            self._logits += [scores.clone() for scores in self._engine.logits(more)]
            self.ledger.rows += len(more)
        self.ledger.rows += len(rows)
        pairs = zip(self._logits[start:], self._engine.logits(rows, steering), strict=False)
        found = [float(kl(plain, scores).mean()) for plain, scores in pairs]
        return np.asarray([v if math.isfinite(v) else math.inf for v in found])

    def perplexity(self, steering: Steering, start: int = 0, stop: int | None = None) -> Array:
        """Each text's perplexity over the unsteered one, less 1.

        Of the neutral prompts' answers where a bare text lacks what the steering needs: a place for its prompt, or a prompt that
        its gate decides by.
        """
        if reads_texts(steering):
            return self._perplexity(self.texts, self._nll, self._engine.text_logprobs, steering, start, stop)
        answers = self.neutral if self.texts else []
        return self._perplexity(answers, self._answers_nll, self._engine.logprobs, steering, start, stop)

    def readable(self, steering: Steering) -> int:
        """How many texts, or answers, perplexity is of."""
        return len(self.texts) if reads_texts(steering) else len(self.neutral) if self.texts else 0

    def _perplexity(
        self,
        things: list[T],
        known: list[float],
        read: Callable[[Sequence[T], Steering | None], Sequence[Tensor]],
        steering: Steering,
        start: int,
        stop: int | None,
    ) -> Array:
        rows = things[start:stop]
        if not rows:
            return np.zeros(0)
        if more := things[len(known) : start + len(rows)]:
            known += [-float(lp.mean()) for lp in read(more, None)]
            self.ledger.rows += len(more)
        self.ledger.rows += len(rows)
        return np.asarray(
            [
                math.exp(min(-float(lp.mean()) - b, 50.0)) - 1
                for lp, b in zip(read(rows, steering), known[start:], strict=False)
            ]
        )


def reads_texts(steering: Steering) -> bool:
    """Whether a bare text has all that a steering needs."""
    return steering.prompt is None and not steering.ahead


class Signals:
    """Reads signals on one split's pairs, neutral prompts and texts.

    `share` of a reading is the part of each that it uses (at least four of a kind where there are as many). `cheap` gives neutral
    prompts and texts that are drawn already.
    """

    def __init__(
        self, suite: Suite, engine: Trainable, task: str, split: Split, *, pairs: int, neutral: int, texts: int, seed: int,
        ledger: Ledger | None = None, cheap: Cheap | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self.ledger = ledger or Ledger()
        self.pairs = (
            [(p, n) for p, n in suite.held_out(task, split, pairs, seed) if p.answer and n.answer] if pairs else []
        )
        self._cheap = cheap or Cheap(
            engine,
            suite.neutral(split, neutral, seed) if neutral else (),
            suite.texts(split, texts) if texts else (),
            self.ledger,
        )
        self.neutral, self.texts = self._cheap.neutral, self._cheap.texts
        self._span: dict[Direction, tuple[Array, Array]] = {}

    def read(self, steering: Steering, direction: Direction, share: float = 1.0) -> Signal:
        """The signals of a steering as it stands (scale it before)."""
        return Signal(self.gain(steering, direction, share), self.kl(steering, share), self.perplexity(steering, share))

    def kl(self, steering: Steering, share: float = 1.0) -> Array:
        """KL of each neutral prompt (`Cheap.kl`)."""
        return self._cheap.kl(steering, 0, _part(len(self.neutral), share))

    def perplexity(self, steering: Steering, share: float = 1.0) -> Array:
        """Perplexity added to each text (`Cheap.perplexity`)."""
        return self._cheap.perplexity(steering, 0, _part(self._cheap.readable(steering), share))

    def gain(self, steering: Steering, direction: Direction, share: float = 1.0) -> float | None:
        """The share of what asking brings; None without pairs, or where asking brings nothing."""
        n = _part(len(self.pairs), share)
        if not n:
            return None
        if direction not in self._span:
            asking = self._preference(self._rows(direction, asking=True), None)
            self._span[direction] = (self._preference(self._rows(direction), None), asking)
        plain, asking = (values[:n] for values in self._span[direction])
        reach = float((asking - plain).mean())
        if reach <= 1e-3:
            return None
        return float((self._preference(self._rows(direction)[: 2 * n], steering) - plain).mean()) / reach

    def _rows(self, direction: Direction, *, asking: bool = False) -> list[Example]:
        """Each pair's prompt with the answer that is wanted, then with the other one."""
        rows: list[Example] = []
        for p, n in self.pairs:
            wanted, other = (p.answer, n.answer) if direction == "elicit" else (n.answer, p.answer)
            prompt = p if asking == (direction == "elicit") else n
            rows += [replace(prompt, answer=wanted), replace(prompt, answer=other)]
        return rows

    def _preference(self, rows: Sequence[Example], steering: Steering | None) -> Array:
        self.ledger.rows += len(rows)
        means = np.asarray([float(lp.mean()) for lp in self._engine.logprobs(rows, steering)])
        return means[0::2] - means[1::2]


def clipped(name: str, costs: Sequence[float] | Array) -> Array:
    """Costs as a guarantee counts them: at most `guarantee.HIGH`."""
    return np.clip(np.nan_to_num(np.asarray(costs, dtype=float), nan=HIGH[name], posinf=HIGH[name]), -1.0, HIGH[name])


def _part(n: int, share: float) -> int:
    return min(n, max(4, math.ceil(n * share)))
