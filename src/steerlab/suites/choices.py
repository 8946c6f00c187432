"""How likely a model finds given answers: summed log-probabilities without the token that ends a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..contrast import Example
from .base import Condition, Stage


class Told(NamedTuple):
    """The log-probability of an answer's own tokens in nats, and their number."""

    logprob: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.logprob / max(1, self.tokens)


def told(stage: Stage, condition: Condition, examples: Sequence[Example]) -> list[Told]:
    """Each example's answer under a condition. The end token is left out: short answers would live by it."""
    found: list[Told] = []
    for values in stage.engine.logprobs(examples, condition.steering):
        own = values[:-1] if len(values) > 1 else values
        found.append(Told(float(own.double().sum()), len(own)))
    return found


def share(a: float, b: float) -> float:
    """p(a) / (p(a) + p(b)), of log-probabilities."""
    return 1 / (1 + math.exp(min(700.0, b - a)))
