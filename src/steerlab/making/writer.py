"""Who writes the data where it isn't the model itself: any OpenAI-compatible endpoint, asked as an engine is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ..contrast import Example
from ..engines.base import Reply, Sampling
from ..errors import DataError
from ..judges.endpoint import Endpoint, Tally, Unanswered


@dataclass(frozen=True)
class EndpointWriter:
    """Replies of a model behind an endpoint. What can't be answered raises `DataError`, and is dropped with its reason."""

    endpoint: Endpoint
    concurrency: int = 8
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The model's name there."""
        return self.endpoint.model

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells it from others, as far as can be told from outside."""
        return {"endpoint": self.endpoint.url, "model": self.endpoint.model}

    template = "endpoint"

    def generate(
        self,
        prompts: Sequence[Example],
        steerings: None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    ) -> list[Reply]:
        """A reply to each prompt."""
        if not prompts:
            return []
        with ThreadPoolExecutor(min(self.concurrency, len(prompts))) as pool:
            return list(pool.map(self._one, prompts, sampling.seeds(len(prompts)), repeat(sampling)))

    def _one(self, prompt: Example, seed: int, sampling: Sampling) -> Reply:
        body = {
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens, "seed": seed,
        }  # fmt: skip
        try:
            answer = self.endpoint.ask(body, self.tally)
        except Unanswered as problem:
            self.tally.missed(str(problem))
            raise DataError(f"{self.name} gave no answer: {problem}") from problem
        finish = "length" if answer.cut else "stop"
        return Reply(answer.text, (0,) * answer.answer_tokens, finish, answer.prompt_tokens, ())
