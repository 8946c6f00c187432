"""Contrast data: the examples of a behaviour, and the same without it.

An `Example` holds messages and not a rendered string, so that the chat template is applied in one place, the engine.
Nothing here knows a tokenizer or a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

import numpy as np

from .errors import DataError, nearest

if TYPE_CHECKING:
    from os import PathLike

_T = TypeVar("_T")

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"a message has the role {self.role!r}; expected one of {', '.join(ROLES)}.")
        if not isinstance(self.content, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"a message's content is {type(self.content).__name__}; expected text.")


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends with the user's turn, and perhaps the answer to it.

    `family` names the wording of the instruction (all rows made from one wording share it): splits keep a family whole,
    so that no wording of dev comes again in test. `score` is how much of the behaviour the answer shows, where the data
    says so. `tags` are plain strings for judges and reports (say, the right answer of a capability item). `thinking` says
    whether the chat template is to switch thinking on for it (None: as the engine does).
    """

    messages: tuple[Message, ...]
    answer: str | None = None
    score: float | None = None
    family: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataError("an example has no messages; expected at least the user's turn.")
        if self.messages[-1].role == "assistant":
            raise DataError(
                "an example's messages end with the assistant's turn; put the reply to be scored or matched into"
                " `answer` and end the messages with the user's."
            )
        if self.score is not None and not math.isfinite(self.score):
            raise DataError(f"an example's score is {self.score}; expected a finite number, or none at all.")

    @classmethod
    def ask(
        cls,
        text: str,
        answer: str | None = None,
        *,
        system: str | None = None,
        family: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Self:
        """A single user turn, with a system message before it where one is given."""
        before = (Message("system", system),) if system is not None else ()
        return cls((*before, Message("user", text)), answer, family=family, tags=tags or {})

    @property
    def instruction(self) -> str:
        """The text of the last user turn."""
        return self.messages[-1].content

    def without_answer(self) -> Self:
        """The prompt alone."""
        return replace(self, answer=None)

    def to_json(self) -> dict[str, Any]:
        """The example as plain data, absent fields left out."""
        row: dict[str, Any] = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        for key in ("answer", "score", "family", "thinking"):
            if (value := getattr(self, key)) is not None:
                row[key] = value
        if self.tags:
            row["tags"] = dict(self.tags)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The example that `to_json` wrote; a bare string under `messages` is one user turn."""
        known = ("messages", "answer", "score", "family", "tags", "thinking")
        for key in row:
            if key not in known:
                raise DataError(f"an example has the field {key!r}. {nearest(key, known)}")
        given = row.get("messages")
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        if not isinstance(given, Sequence):
            raise DataError(f"an example's messages are {type(given).__name__}; expected a list of role and content.")
        turns: list[Message] = []
        for turn in cast("Sequence[Any]", given):
            if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
                raise DataError(f"a message is {turn!r}; expected an object with 'role' and 'content'.")
            turns.append(Message(turn["role"], turn["content"]))
        thinking = row.get("thinking")
        if not isinstance(thinking, bool | None):
            raise DataError(f"an example's thinking is {thinking!r}; expected true, false or nothing.")
        return cls(
            tuple(turns), row.get("answer"), row.get("score"), row.get("family"), row.get("tags") or {}, thinking
        )


@dataclass(frozen=True, slots=True)
class Contrast:
    """Examples that show a concept (`positive`) and examples that don't (`negative`).

    `paired` says that `positive[i]` and `negative[i]` carry the same instruction in two guises, as the methods that
    interchange runs need it. `neutral` holds prompts that have nothing to do with the concept and that a steering should
    leave alone; a method that can protect them does.
    """

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    paired: bool = False
    concept: str = ""
    source: str = ""
    neutral: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            if not getattr(self, side):
                other = "negative" if side == "positive" else "positive"
                raise DataError(
                    f"the contrast has no {side} examples ({len(getattr(self, other))} {other} ones);"
                    " a method needs both classes."
                )
        if self.paired and len(self.positive) != len(self.negative):
            raise DataError(
                f"the contrast is paired, but has {len(self.positive)} positive and {len(self.negative)} negative"
                " examples; give each positive its negative, or set paired=False."
            )

    @classmethod
    def read(cls, path: str | PathLike[str], *, layout: str | None = None, concept: str | None = None) -> Contrast:
        """Contrast data from a file or folder; the layout is recognised, or named.

        Layouts are the files of `steerlab/data/readers` (`steerlab data layouts` lists them). `concept` picks one where
        a file holds several. Raises `DataError` with what was found and what was expected.
        """
        from . import plugins

        return plugins.read_contrast(path, layout=layout, concept=concept)

    def __len__(self) -> int:
        return max(len(self.positive), len(self.negative))

    @property
    def pairs(self) -> tuple[tuple[Example, Example], ...]:
        """(positive, negative) for each pair. Raises `DataError` when the contrast isn't paired."""
        if not self.paired:
            raise DataError(
                "this contrast is not paired, and the method needs the same instruction with and without the concept."
                " Pair the rows (same order on both sides, paired=true), or use a method that compares class means,"
                " such as diff_means."
            )
        return tuple(zip(self.positive, self.negative, strict=True))

    def swapped(self) -> Contrast:
        """The same data with the two classes exchanged: the opposite behaviour."""
        name = f"not {self.concept}" if self.concept else ""
        return replace(self, positive=self.negative, negative=self.positive, concept=name)

    def split(self, *fractions: float, seed: int = 0) -> tuple[Contrast, ...]:
        """Disjoint parts, one per fraction, plus nothing: what the fractions don't cover is left out.

        Rows of one `family` stay together (a family's rows all go to one part), pairs stay pairs, and the same seed
        gives the same parts. Raises `DataError` where a part would lose a class.
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise DataError(f"split fractions are {fractions}; expected positive numbers that sum to at most 1.")
        rng = np.random.default_rng(seed)
        neutral = _partition(self.neutral, fractions, rng) if self.neutral else [()] * len(fractions)
        if self.paired:
            rows = _partition(self.pairs, fractions, rng)
            sides = [(tuple(p for p, _ in part), tuple(n for _, n in part)) for part in rows]
        else:
            both = [*((e, True) for e in self.positive), *((e, False) for e in self.negative)]
            rows = _partition(both, fractions, rng)
            sides = [
                (tuple(e for e, positive in part if positive), tuple(e for e, positive in part if not positive))
                for part in rows
            ]
        return tuple(
            replace(self, positive=positive, negative=negative, neutral=tuple(rest))
            for (positive, negative), rest in zip(sides, neutral, strict=True)
        )

    def sample(self, n: int, *, seed: int = 0) -> Contrast:
        """At most `n` examples of each class (or pairs), drawn without replacement."""
        rng = np.random.default_rng(seed)
        if self.paired:
            keep = sorted(rng.permutation(len(self.positive))[:n].tolist())
            return replace(
                self,
                positive=tuple(self.positive[i] for i in keep),
                negative=tuple(self.negative[i] for i in keep),
            )
        sides: list[tuple[Example, ...]] = []
        for side in (self.positive, self.negative):
            keep = sorted(rng.permutation(len(side))[:n].tolist())
            sides.append(tuple(side[i] for i in keep))
        return replace(self, positive=sides[0], negative=sides[1])

    def both_ways_of_thinking(self) -> Contrast:
        """Every example twice, with thinking switched on and off; the two stay in one part of a split."""

        def doubled(examples: tuple[Example, ...], name: str) -> tuple[Example, ...]:
            kept = [e if e.family else replace(e, family=f"{name} {n}") for n, e in enumerate(examples)]
            return tuple(replace(e, thinking=thinking) for e in kept for thinking in (True, False))

        names = ("pair", "pair") if self.paired else ("positive", "negative")
        return replace(
            self,
            positive=doubled(self.positive, names[0]),
            negative=doubled(self.negative, names[1]),
            neutral=doubled(self.neutral, "neutral"),
        )

    def digest(self) -> str:
        """SHA-256 over the examples, in order: the same data has the same digest wherever it was read from."""
        h = hashlib.sha256()
        for side in (self.positive, self.negative, self.neutral):
            for example in side:
                h.update(
                    json.dumps(example.to_json(), sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
                )
                h.update(b"\n")
            h.update(b"\0")
        h.update(b"paired" if self.paired else b"unpaired")
        return h.hexdigest()


def _family(row: Any) -> str | None:
    """The family of an example, a pair (the negative's: the plain wording) or a labelled example."""
    if isinstance(row, Example):
        return row.family
    first, second = row
    return (second.family or first.family) if isinstance(second, Example) else first.family


def _partition(rows: Iterable[_T], fractions: Sequence[float], rng: np.random.Generator) -> list[tuple[_T, ...]]:
    """Rows dealt out by family (a row without one is a family of its own), largest-remainder, order kept."""
    rows = list(rows)
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        name = _family(row)
        groups.setdefault(f"row {i}" if name is None else f"family {name}", []).append(i)
    order = list(groups)
    rng.shuffle(order)
    wanted = [f * len(rows) for f in fractions]
    taken: list[list[int]] = [[] for _ in fractions]
    rest = 1 - sum(fractions)
    spare = rest * len(rows) if rest > 1e-9 else 0.0
    for name in order:
        room = [w - len(t) for w, t in zip(wanted, taken, strict=True)]
        best = int(np.argmax(room))
        if spare > max(room[best], 0):
            spare -= len(groups[name])
            continue
        taken[best].extend(groups[name])
    return [tuple(rows[i] for i in sorted(part)) for part in taken]
