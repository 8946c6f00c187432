"""What a judge is: a function from a reply (and the prompt it answers) to a `Score`.

A judge of your own is one file with one frozen dataclass (docs/judges.md has one); `pytest --pyargs steerlab.testing
--steerlab-judges FILE.py` holds it to the laws of `testing/test_judges.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .. import config, plugins

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

    `threshold` is the degree from which on the thing counts as present, chosen on texts whose truth is known. `small` are
    settings with which the laws try it; with them, `shows` are texts in which the thing is present, `lacks` texts in which it
    isn't.
    """

    threshold: float = 0.5
    tried: ClassVar[Mapping[str, Any]] = {}
    shows: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, reply: str, example: Example) -> Score:
        """The degree in [0, 1] to which `reply`, an answer to `example`, shows it."""

    def scores(self, replies: Sequence[str], examples: Sequence[Example]) -> list[Score]:
        """A score for each reply, in their order; judges that ask a model do many at once."""
        return [self(reply, example) for reply, example in zip(replies, examples, strict=True)]

    def present(self, score: Score) -> bool | None:
        """Whether the thing is there; None where the score is missing."""
        return None if score.value is None else score.value >= self.threshold


def judge(name: str, settings: Mapping[str, Any] | None = None) -> Judge:
    """The judge of this name, or of this `.py` file, with these settings. Raises `ConfigError` with the nearest one."""
    return config.build(plugins.load(name, "judges"), settings or {}, where=f"the judge {name}")
