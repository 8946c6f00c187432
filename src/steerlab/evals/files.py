"""A suite from the user's files: contrast data, a rule that tells the behaviour, and what may not change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contrast import Contrast, Example
from ..errors import ConfigError, DataError
from ..judges.base import Judge
from ..judges.rule import CorrectJudge
from ..judges.spec import parse_rule
from .results import Direction
from .suite import Split, Suite, Task

if TYPE_CHECKING:
    from ..engines.base import Trainable

SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}


@dataclass(frozen=True)
class FileSuite(Suite):
    """One behaviour from files.

    The contrast is split by family into training, dev and test, anew for each seed; negatives' prompts are those on
    which the behaviour is brought out, positives' those on which it is taken away. `neutral` and `items` are JSON Lines
    of examples (items need the tag `right`), `text` a plain text; what isn't given isn't measured. `load` makes the
    engine from `model`. `following` and `fluency` are rules, as `rule` is, for whether a reply follows its instruction and reads
    well. `system`, `thinking` and `rendered` are how conversations are written (`engines.render.Rendering`).
    """

    data: str
    rule: str
    model: str
    load: Callable[..., Any]
    template: str = "chat"
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    layout: str | None = None
    concept: str | None = None
    neutral_file: str | None = None
    items_file: str | None = None
    text_file: str | None = None
    batch_size: int = 32
    name: str | None = None
    following: str | None = None
    fluency: str | None = None
    system: str | None = None
    thinking: bool | None = None
    rendered: bool = False

    def engine(self) -> Trainable:
        return self.load(
            self.model, revision=self.revision, dtype=self.dtype, device=self.device, template=self.template,
            batch_size=self.batch_size, system=self.system, thinking=self.thinking, rendered=self.rendered,
        )  # fmt: skip

    def files(self) -> Sequence[str | os.PathLike[str]]:
        given = (self.data, self.neutral_file, self.items_file, self.text_file, self.model)
        return [f for f in given if f is not None and Path(f).exists()]

    def tasks(self) -> tuple[Task, ...]:
        name = self.name or self.concept or _read(self.data, self.layout, self.concept).concept or Path(self.data).stem
        return (Task(name, "file", name),)

    def contrast(self, task: str, seed: int) -> Contrast:
        return self._part("train", seed)

    def held_out(self, task: str, split: Split, n: int, seed: int) -> Sequence[tuple[Example, Example]]:
        part = self._part(split, seed)
        return _drawn([p for p in part.pairs if p[0].answer and p[1].answer], n, seed) if part.paired else ()

    def prompts(self, task: str, direction: Direction, split: Split, n: int, seed: int) -> Sequence[Example]:
        part = self._part(split, seed)
        return _drawn(part.negative if direction == "elicit" else part.positive, n, seed)

    def judge(self, task: str) -> Judge:
        return parse_rule(self.rule)

    def follows(self, task: str, direction: Direction) -> Judge | None:
        return None if self.following is None else parse_rule(self.following)

    def fluent(self) -> Judge | None:
        return None if self.fluency is None else parse_rule(self.fluency)

    def prompt_settings(self, task: str, seed: int) -> dict[str, Any]:
        return {} if self._part("train", seed).concept else {"positive": f"Bring {task} into your answer."}

    def items(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        return _drawn(_halves(read_examples(self.items_file), split), n, seed) if self.items_file else ()

    def correct(self) -> Judge | None:
        return CorrectJudge() if self.items_file else None

    def neutral(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        found = (
            _halves(read_examples(self.neutral_file), split) if self.neutral_file else self._part(split, seed).negative
        )
        return _drawn([e for e in found if e.answer], n, seed)

    def texts(self, split: Split, n: int) -> Sequence[str]:
        if not self.text_file or n == 0:
            return ()
        paragraphs = [p.strip() for p in Path(self.text_file).read_text(encoding="utf-8").split("\n\n")]
        return _halves([p for p in paragraphs if len(p.split()) > 5], split)[:n]

    def _part(self, split: str, seed: int) -> Contrast:
        return _split(self.data, self.layout, self.concept, seed)[list(SHARES).index(split)]


@dataclass(frozen=True)
class ManySuite(Suite):
    """Several behaviours from files on one model; the first one's neutral prompts, items and texts measure all costs."""

    parts: tuple[FileSuite, ...]

    def __post_init__(self) -> None:
        names = [self._name(part) for part in self.parts]
        if len(set(names)) < len(names) or not names:
            raise ConfigError(f"the behaviours are called {names}; expected at least one, and no name twice.")

    @staticmethod
    def _name(part: FileSuite) -> str:
        return part.tasks()[0].name

    def _of(self, task: str) -> FileSuite:
        return next(part for part in self.parts if self._name(part) == task)

    def engine(self) -> Trainable:
        return self.parts[0].engine()

    def told(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "parts": [part.told() for part in self.parts]}

    def files(self) -> Sequence[str | os.PathLike[str]]:
        return list(dict.fromkeys(file for part in self.parts for file in part.files()))

    def tasks(self) -> tuple[Task, ...]:
        return tuple(Task(self._name(part), "file", "concepts") for part in self.parts)

    def contrast(self, task: str, seed: int) -> Contrast:
        return self._of(task).contrast(task, seed)

    def held_out(self, task: str, split: Split, n: int, seed: int) -> Sequence[tuple[Example, Example]]:
        return self._of(task).held_out(task, split, n, seed)

    def prompts(self, task: str, direction: Direction, split: Split, n: int, seed: int) -> Sequence[Example]:
        return self._of(task).prompts(task, direction, split, n, seed)

    def judge(self, task: str) -> Judge:
        return self._of(task).judge(task)

    def prompt_settings(self, task: str, seed: int) -> dict[str, Any]:
        return self._of(task).prompt_settings(task, seed)

    def follows(self, task: str, direction: Direction) -> Judge | None:
        return self._of(task).follows(task, direction)

    def fluent(self) -> Judge | None:
        return self.parts[0].fluent()

    def items(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        return self.parts[0].items(split, n, seed)

    def correct(self) -> Judge | None:
        return self.parts[0].correct()

    def neutral(self, split: Split, n: int, seed: int) -> Sequence[Example]:
        return self.parts[0].neutral(split, n, seed)

    def texts(self, split: Split, n: int) -> Sequence[str]:
        return self.parts[0].texts(split, n)


@cache
def _read(data: str, layout: str | None, concept: str | None) -> Contrast:
    return Contrast.read(data, layout=layout, concept=concept)


@cache
def _split(data: str, layout: str | None, concept: str | None, seed: int) -> tuple[Contrast, ...]:
    whole = _read(data, layout, concept)
    try:
        return whole.split(*SHARES.values(), seed=seed)
    except DataError as problem:
        raise DataError(
            f"{data} can't be split into training, dev and test by family ({problem}) Give more examples, or more families."
        ) from problem


@cache
def read_examples(path: str) -> tuple[Example, ...]:
    """Examples from JSON Lines. Raises `DataError` with the line."""
    found: list[Example] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} can't be read as UTF-8 text: {problem}.") from problem
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(Example.from_json(json.loads(line)))
        except (ValueError, AttributeError, TypeError) as problem:
            raise DataError(f"{path}, line {n}: {problem}") from problem
    if not found:
        raise DataError(f"{path} holds no examples; expected JSON Lines of messages and answers.")
    return tuple(found)


def _halves(things: Sequence[Any], split: Split) -> Sequence[Any]:
    """Every second for dev, the others for test."""
    return things[0::2] if split == "dev" else things[1::2]


def _drawn(things: Sequence[Any], n: int, seed: int) -> list[Any]:
    order = np.random.default_rng(seed).permutation(len(things))
    return [things[i] for i in order[:n]]
