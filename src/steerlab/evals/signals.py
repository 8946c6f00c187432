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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..contrast import Example
from ..engines.base import Trainable
from ..methods.objectives import kl
from ..steering import Steering
from .guarantee import HIGH, Budget
from .results import Direction
from .suite import Split, Suite

Array = np.ndarray


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


class Signals:
    """Reads signals on one split's pairs, neutral prompts and texts; what the unsteered model says is computed once.

    `share` of a reading is the part of each that it uses (at least four of a kind where there are as many).
    """

    def __init__(
        self, suite: Suite, engine: Trainable, task: str, split: Split, *, pairs: int, neutral: int, texts: int, seed: int,
        ledger: Ledger | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self.ledger = ledger or Ledger()
        self.pairs = (
            [(p, n) for p, n in suite.held_out(task, split, pairs, seed) if p.answer and n.answer] if pairs else []
        )
        self.neutral = list(suite.neutral(split, neutral, seed)) if neutral else []
        self.texts = list(suite.texts(split, texts)) if texts else []
        self._logits = [scores.clone() for scores in engine.logits(self.neutral)] if self.neutral else []
        self._nll = [-float(lp.mean()) for lp in engine.text_logprobs(self.texts)] if self.texts else []
        self.ledger.rows += len(self.neutral) + len(self.texts)
        self._span: dict[Direction, tuple[Array, Array]] = {}

    def read(self, steering: Steering, direction: Direction, share: float = 1.0) -> Signal:
        """The signals of a steering as it stands (scale it before)."""
        return Signal(self.gain(steering, direction, share), self.kl(steering, share), self.perplexity(steering, share))

    def kl(self, steering: Steering, share: float = 1.0) -> Array:
        """KL(unsteered ‖ steered), the mean over each neutral prompt's answer tokens, in nats."""
        n = _part(len(self.neutral), share)
        self.ledger.rows += n
        under = self._engine.logits(self.neutral[:n], steering) if n else ()
        found = [float(kl(plain, scores).mean()) for plain, scores in zip(self._logits, under, strict=False)]
        return np.asarray([v if math.isfinite(v) else math.inf for v in found])

    def perplexity(self, steering: Steering, share: float = 1.0) -> Array:
        """Each text's perplexity over the unsteered one, less 1.

        None where a bare text lacks what the steering needs: a place for its prompt, or a prompt that its gate decides by.
        """
        n = _part(len(self.texts), share)
        if not n or steering.prompt is not None or steering.ahead:
            return np.zeros(0)
        self.ledger.rows += n
        scored = self._engine.text_logprobs(self.texts[:n], steering)
        return np.asarray(
            [math.exp(min(-float(lp.mean()) - b, 50.0)) - 1 for lp, b in zip(scored, self._nll, strict=False)]
        )

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
