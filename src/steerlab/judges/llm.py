"""A language model as a judge: any OpenAI-compatible endpoint, or a Hugging Face model on this machine.

It is asked for a rating of 0, 1 or 2 (`asking` has the questions) of the concept, of following the instruction, of fluency, or
of all three, whose harmonic mean counts as AxBench has it (https://arxiv.org/abs/2501.17148, section 4). The degree is the
rating over 2. A rating that can't be read is missing and counted, never 0. With several `variants` each text is asked for in
other wordings and orders, and `noise` says how much the judge differs from itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from ..errors import ConfigError
from . import asking, local
from .base import Judge, Score
from .client import Client
from .endpoint import Tally

if TYPE_CHECKING:
    from ..contrast import Example

What = Literal["concept", "instruction", "fluency", "all"]
Rated = list[list[float | None]]  # of one text: aspect by aspect, variant by variant


class Noise(NamedTuple):
    """How a judge differs from itself over the ways to ask: the share of pairs of ratings that are the same, their mean distance,
    and how many texts had at least two ratings."""

    same: float | None
    distance: float | None
    texts: int


@dataclass(frozen=True)
class LLMJudge(Judge):
    """Asks a language model for ratings.

    `model` is the endpoint's name of it, or a name on the hub or a folder where `url` is empty. `key_env` names the environment
    variable that holds the key. `cache` is the file of answers (empty: the usual place; `none`: nothing is kept). `price_in` and
    `price_out` are for a million tokens. `most` is the longest text that is shown, in characters.
    """

    model: str = ""
    url: str = ""
    what: What = "concept"
    concept: str = ""
    variants: int = 1
    temperature: float = 0.0
    max_tokens: int = 200
    seed: int = 0
    concurrency: int = 8
    tries: int = 6
    timeout: float = 60.0
    wait: float = 1.0
    key_env: str = "OPENAI_API_KEY"
    price_in: float = 0.0
    price_out: float = 0.0
    cache: str = ""
    most: int = 8000
    revision: str | None = None
    device: str = "cpu"
    batch_size: int = 8
    threshold: float = 0.5
    tally: Tally = field(init=False, repr=False, compare=False, default_factory=Tally)
    tried: ClassVar[Mapping[str, Any]] = {
        "model": "{causal}",
        "concept": "weather",
        "cache": "none",
        "max_tokens": 4,
        "most": 400,
    }

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError(
                "an llm judge needs a model: its name at the endpoint (with url), on the hub, or a folder."
            )
        if self.what not in (*asking.ASPECTS, "all"):
            raise ConfigError(f"an llm judge is to tell {self.what!r}; expected concept, instruction, fluency or all.")
        if self.what in ("concept", "all") and not self.concept.strip():
            raise ConfigError("an llm judge of a concept needs the concept in a few words (concept=...).")
        if (
            not 1 <= self.variants <= 12
            or self.concurrency < 1
            or self.max_tokens < 1
            or self.batch_size < 1
            or self.most < 1
        ):
            raise ConfigError(
                f"variants is {self.variants}, concurrency {self.concurrency}, max_tokens {self.max_tokens}, batch_size"
                f" {self.batch_size}, most {self.most}; expected 1 to 12 variants, and at least 1 of the others."
            )
        if self.url:
            self._client().endpoint()

    @property
    def aspects(self) -> tuple[asking.Aspect, ...]:
        """What is asked about each text."""
        return asking.ASPECTS if self.what == "all" else (self.what,)

    def __call__(self, reply: str, example: Example) -> Score:
        """The degree to which the model finds it; missing where it gave no rating."""
        return self.scores([reply], [example])[0]

    def scores(self, replies: Sequence[str], examples: Sequence[Example]) -> list[Score]:
        """A score for each reply, all asked at once."""
        return [
            self._score(reply, rated) for reply, rated in zip(replies, self.ratings(replies, examples), strict=True)
        ]

    def _score(self, reply: str, rated: Rated) -> Score:
        if not reply.strip():
            return Score.missing("the reply is empty")
        means = [asking.mean_of_most(ratings) for ratings in rated]
        if any(m is None for m in means):
            lacks = ", ".join(a for a, m in zip(self.aspects, means, strict=True) if m is None)
            return Score.missing(f"the judge gave no rating that can be read ({lacks})")
        value = asking.harmonic(means) if len(means) > 1 else means[0]
        assert value is not None
        there = sum(r is not None for ratings in rated for r in ratings)
        return Score(value / asking.MOST, f"{there} of {sum(map(len, rated))} ratings")

    def ratings(self, replies: Sequence[str], examples: Sequence[Example]) -> list[Rated]:
        """For each reply, aspect by aspect and variant by variant, the rating or None. Empty replies aren't asked about.

        Raises `JudgeError` where the judge refuses altogether or nobody is there; what had come until then is kept.
        """
        ways = asking.variants(self.variants)
        special = () if self.url else local.special_tokens(self.model, self.revision, self.device)
        asked: dict[tuple[int, int, int], str] = {}
        for n, (reply, example) in enumerate(zip(replies, examples, strict=True)):
            if not reply.strip():
                continue
            self.tally.note(cut=int(len(reply) > self.most))
            for i, aspect in enumerate(self.aspects):
                for k, way in enumerate(ways):
                    asked[n, i, k] = asking.question(
                        aspect, reply, instruction=example.instruction, concept=self.concept, variant=way, most=self.most,
                        special=special,
                    )  # fmt: skip
        answers = self._client().answers(list(asked.values()))
        found: list[Rated] = [[[None] * len(ways) for _ in self.aspects] for _ in replies]
        for (n, i, k), answer in zip(asked, answers, strict=True):
            if answer is not None:
                found[n][i][k] = asking.rating(answer.text, cut=answer.cut)
                self.tally.note(unreadable=int(found[n][i][k] is None))
        return found

    def noise(self, replies: Sequence[str], examples: Sequence[Example]) -> Noise:
        """How much the ratings of one text differ over the ways to ask. Raises `ConfigError` with one variant only."""
        if self.variants < 2:
            raise ConfigError("with one variant a judge can't differ from itself; ask in at least two (variants=4).")
        pairs: list[tuple[float, float]] = []
        texts = 0
        for rated in self.ratings(replies, examples):
            for ratings in rated:
                known = [r for r in ratings if r is not None]
                texts += len(known) > 1
                pairs += [(a, b) for i, a in enumerate(known) for b in known[i + 1 :]]
        if not pairs:
            return Noise(None, None, 0)
        return Noise(sum(a == b for a, b in pairs) / len(pairs), sum(abs(a - b) for a, b in pairs) / len(pairs), texts)

    def _client(self) -> Client:
        return Client(**{f.name: getattr(self, f.name) for f in fields(Client)})
