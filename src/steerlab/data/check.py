"""Is a contrast set fit to be fitted on? What `steerlab data check` prints: what it holds, and what is wrong with it.

The checks themselves are in `findings`; the table for a terminal is in `render`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from ..contrast import Contrast, Example
from ..errors import ConfigError
from .examples import squash
from .giveaway import Giveaway, first_word

if TYPE_CHECKING:
    from ..engines.render import Renderer

Severity = Literal["error", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warn", "note")


class Writer(Protocol):
    """What a check needs of an engine: how it writes a conversation, and how much fits (`HFEngine` has it)."""

    @property
    def renderer(self) -> Renderer:
        """Turns messages into ids."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, for its special tokens."""
        ...

    @property
    def context(self) -> int:
        """Tokens that fit."""
        ...


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What counts as too much.

    `giveaway` is the balanced accuracy from which on the first word or the length alone gives the class away;
    `imbalance` the rows of the larger class for each row of the smaller; `few` the rows of a class below which a note
    says that there are few. `folds` and `seed` are those of the cross-validation.
    """

    giveaway: float = 0.75
    imbalance: float = 1.5
    few: int = 16
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 < self.giveaway <= 1:
            raise ConfigError(f"giveaway is {self.giveaway}; expected a balanced accuracy in (0.5, 1].")
        if self.imbalance < 1 or self.folds < 2:
            raise ConfigError(
                f"imbalance is {self.imbalance} and folds {self.folds}; expected at least 1 and at least 2."
            )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: how bad, how often, where (two examples), and what to do."""

    name: str
    severity: Severity
    count: int
    told: str
    examples: tuple[str, ...]
    advice: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """Least, median and greatest length."""

    least: int
    median: float
    most: int


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """What one class holds. Tokens are counted where an engine is given; `openings` are the answers' first words
    (the prompts', where there are no answers) with their counts.
    """

    name: str
    rows: int
    instructions: int
    families: int
    answered: int
    prompt_words: Lengths | None
    answer_words: Lengths | None
    prompt_tokens: Lengths | None
    answer_tokens: Lengths | None
    openings: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a contrast set holds and what is wrong with it, worst first."""

    source: str
    concept: str
    digest: str
    pairs: int | None
    classes: tuple[ClassSummary, ...]
    giveaways: tuple[Giveaway, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is an error (warnings and notes may stand)."""
        return not any(f.severity == "error" for f in self.findings)

    def found(self, name: str) -> Finding | None:
        """The finding of a name, where there is one."""
        return next((f for f in self.findings if f.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**dataclasses.asdict(self), "ok": self.ok}


class Place(NamedTuple):
    """One example and where it stands; `group` is what a split keeps together: its family, or its pair or row alone."""

    side: str
    at: int
    example: Example
    group: str

    @property
    def shown(self) -> str:
        """`positive[3]: 'Describe a …'`."""
        return self.quoting(self.example.instruction)

    def quoting(self, text: str) -> str:
        """The place with a text of it."""
        return f"{self.side}[{self.at}]: {short(text)!r}"


class Written(NamedTuple):
    """An example as an engine writes it: prompt and answer ids, or why it can't."""

    prompt: int
    answer: int | None
    lost: str
    problem: str


class View:
    """A contrast laid out for the checks."""

    def __init__(self, contrast: Contrast, engine: Writer | None, options: CheckOptions) -> None:
        self.contrast, self.engine, self.options = contrast, engine, options
        self.positive = _places("positive", contrast, contrast.positive)
        self.negative = _places("negative", contrast, contrast.negative)
        self.neutral = _places("neutral", contrast, contrast.neutral)
        self.rows = [*self.positive, *self.negative, *self.neutral]
        self.written: list[Written] = [] if engine is None else [_write(engine, place.example) for place in self.rows]

    @property
    def answered(self) -> bool:
        """Whether both classes have answers."""
        return all(any(p.example.answer is not None for p in side) for side in (self.positive, self.negative))


def check(
    data: Contrast | str | PathLike[str],
    *,
    engine: Writer | None = None,
    layout: str | None = None,
    concept: str | None = None,
    options: CheckOptions = CheckOptions(),
) -> CheckReport:
    """What a contrast set (or the file that holds one) is made of, and what is wrong with it.

    With an engine, the conversations are written with its chat template, and tokens are counted against its context.
    The same data gives the same report. Raises `DataError` for a file that can't be read.
    """
    from . import findings, read

    contrast = data if isinstance(data, Contrast) else read(fspath(data), layout=layout, concept=concept)
    view = View(contrast, engine, options)
    found, giveaways = findings.run(view)
    return CheckReport(
        contrast.source,
        contrast.concept,
        contrast.digest(),
        len(contrast.positive) if contrast.paired else None,
        tuple(_summary(view, name, side) for name, side in _sides(view) if side),
        giveaways,
        tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity))),
    )


def short(text: str, most: int = 60) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _sides(view: View) -> tuple[tuple[str, list[Place]], ...]:
    return (("positive", view.positive), ("negative", view.negative), ("neutral", view.neutral))


def _places(side: str, contrast: Contrast, examples: Sequence[Example]) -> list[Place]:
    places: list[Place] = []
    for index, example in enumerate(examples):
        family = example.family
        unit = f"{side} {index}"
        if contrast.paired and side != "neutral":
            family = contrast.negative[index].family or contrast.positive[index].family
            unit = f"pair {index}"
        group = unit if family is None else f"family {family}"
        places.append(Place(side, index, example, group))
    return places


def _write(engine: Writer, example: Example) -> Written:
    """An example through the engine's template. What the ids no longer say counts as lost."""
    from ..errors import DataError

    renderer = engine.renderer
    try:
        prompt = renderer.example(example).ids
        answer = None if example.answer is None else renderer.answer(example.answer)
    except DataError as problem:
        return Written(0, None, "", str(problem))
    said, replied = _bare(renderer.text(prompt)), _bare(renderer.text(answer or []))
    parts = [(m.content, said) for m in example.messages]
    if example.answer is not None:
        parts.append((example.answer, replied))
    lost = next((text for text, where in parts if _bare(text) not in where), "")
    return Written(len(prompt), None if answer is None else len(answer), lost, "")


def _bare(text: str) -> str:
    return squash(text).replace(" ", "")


def _summary(view: View, name: str, places: list[Place]) -> ClassSummary:
    answers = [p.example.answer for p in places if p.example.answer is not None]
    prompts = [p.example.instruction for p in places]
    start = {"positive": 0, "negative": len(view.positive)}.get(name, len(view.positive) + len(view.negative))
    written = [w for w in view.written[start : start + len(places)] if not w.problem]
    openings = Counter(first_word(text) for text in (answers or prompts))
    return ClassSummary(
        name,
        rows=len(places),
        instructions=len({squash(text) for text in prompts}),
        families=len({p.example.family for p in places if p.example.family is not None}),
        answered=len(answers),
        prompt_words=_lengths([len(text.split()) for text in prompts]),
        answer_words=_lengths([len(text.split()) for text in answers]),
        prompt_tokens=_lengths([w.prompt for w in written]),
        answer_tokens=_lengths([w.answer for w in written if w.answer is not None]),
        openings=tuple(openings.most_common(3)),
    )


def _lengths(counts: Sequence[int]) -> Lengths | None:
    return Lengths(min(counts), float(np.median(counts)), max(counts)) if counts else None
