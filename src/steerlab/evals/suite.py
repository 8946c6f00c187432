"""What is measured: a suite of tasks (behaviours), with the prompts, judges and costs that belong to them.

A `Suite` is a frozen dataclass of plain values, so that worker processes can rebuild it. The pilot brings one
(`steerlab.pilot.suite`); `FileSuite` makes one from the user's files.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..contrast import Contrast, Example
from ..engines.base import Trainable
from ..judges.base import Judge
from .results import Direction

Split = Literal["dev", "test"]


@dataclass(frozen=True)
class Task:
    """A behaviour to turn up or down: its name, its genre, and the group under which tables show it."""

    name: str
    genre: str
    group: str


@dataclass(frozen=True)
class Suite(ABC):
    """Tasks with data, prompts and judges. A seed draws pairs and prompts anew; splits share no wording."""

    @abstractmethod
    def engine(self) -> Trainable:
        """The model that is steered."""

    def told(self) -> dict[str, Any]:
        """The suite as plain data, for the journal and the report."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"kind": type(self).__name__, **{k: v for k, v in plain.items() if not callable(v)}}

    def files(self) -> Sequence[str | os.PathLike[str]]:
        """The files and folders that its figures rest on: when one changes, nothing measured before is taken up."""
        return ()

    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """Every task of the suite."""

    @abstractmethod
    def contrast(self, task: str, seed: int) -> Contrast:
        """Pairs to fit on, from the training split."""

    def held_out(self, task: str, split: Split, n: int, seed: int) -> Sequence[tuple[Example, Example]]:
        """Pairs of a split that no fit sees, with answers, for signals that need no reply; none where there are none."""
        return ()

    @abstractmethod
    def prompts(self, task: str, direction: Direction, split: Split, n: int, seed: int) -> Sequence[Example]:
        """Prompts on which the behaviour is to be brought out (where it isn't asked for), or taken away (where it is)."""

    @abstractmethod
    def judge(self, task: str) -> Judge:
        """Whether the behaviour is there, and to what degree."""

    def follows(self, task: str, direction: Direction) -> Judge | None:
        """Whether a reply still follows its instruction; None where that has no meaning (a refusal follows nothing)."""
        return None

    def fluent(self) -> Judge | None:
        """Whether a reply is well-formed language."""
        return None

    def prompt_settings(self, task: str, seed: int) -> dict[str, Any]:
        """Settings of the prompt arm for this task."""
        return {}

    def items(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        """Capability items with right answers; none where the suite has none."""
        return ()

    def correct(self) -> Judge | None:
        """Whether a reply to a capability item is right."""
        return None

    def refused(self) -> Judge | None:
        """Whether a reply to a capability item refuses, which is counted apart from wrong answers."""
        return None

    @abstractmethod
    def neutral(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        """Prompts that have nothing to do with any task, with an answer each, on which nothing should change."""

    def texts(self, split: Split, n: int) -> Sequence[str]:
        """Held-out text for perplexity."""
        return ()
