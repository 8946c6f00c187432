"""What a judge is: a function from a reply (and the prompt it answers) to a `Score`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..contrast import Example


@dataclass(frozen=True, slots=True)
class Score:
    """A degree in [0, 1], or None with the reason why the reply can't be judged.

    None is never averaged and never counted as 0: reports show how many scores are missing.
    """

    value: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a score is {self.value}; expected a degree in [0, 1], or None with a reason.")
        if self.value is None and not self.reason:
            raise ValueError("a missing score needs a reason.")

    @classmethod
    def missing(cls, reason: str) -> Score:
        """The score of a reply that can't be judged."""
        return cls(None, reason)


class Judge(ABC):
    """Says to what degree a reply shows something.

    `threshold` is the degree from which on the thing counts as present, chosen on texts whose truth is known.
    """

    threshold: float = 0.5

    @abstractmethod
    def __call__(self, reply: str, example: Example) -> Score:
        """The degree in [0, 1] to which `reply`, an answer to `example`, shows it."""

    def present(self, score: Score) -> bool | None:
        """Whether the thing is there; None where the score is missing."""
        return None if score.value is None else score.value >= self.threshold
