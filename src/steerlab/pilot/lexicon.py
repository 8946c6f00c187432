"""The word lists behind the corpus, read from `data/`: topics, names, macros, clause pools, families.

Data files are plain text, so that they can be read and mended without code. A line that begins with ``#`` is a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..errors import ConfigError
from .grammar import MASS
from .template import Template, compile_template

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Topic:
    """What the generator knows about one subject of conversation."""

    name: str  # as in "write about {name}"
    many: bool  # the name is a plural
    one: str  # one of them, as a singular noun
    kind: str  # what it is, with its article
    parts: tuple[str, ...]  # countable things that go with it
    stuff: tuple[str, ...]  # uncountable ones
    who: tuple[str, ...]
    acts: tuple[str, ...]  # what people do with it (base form)
    does: tuple[str, ...]  # what it does (base form)
    adjectives: tuple[str, ...]
    where: tuple[str, ...]
    abroad: tuple[str, ...] = field(default=())  # "m zorro", one per second language of the variant

    @property
    def person(self) -> bool:
        """Whether it is a human being, so that "he" or "she" fits and "it" does not."""
        return self.kind.startswith(
            ("a person", "a ruler", "a soldier", "an old relation", "one of two", "a very young")
        )


def lines(name: str) -> Iterator[str]:
    """The lines of a data file, notes and empty lines left out."""
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("# "):
            yield line.rstrip()


def _list(text: str, mark: str = ",") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(mark) if part.strip())


@lru_cache(maxsize=4)
def topics(variant: str) -> tuple[Topic, ...]:
    """All topics of a variant, in file order."""
    found: list[Topic] = []
    for path in sorted(DATA.glob(f"topics_{variant}_*.txt")):
        for line in lines(path.name):
            fields = [part.strip() for part in line.split("|")]
            if len(fields) < 9:
                raise ConfigError(f"{path.name}: a topic has {len(fields)} fields, expected 9 or more: {line[:60]!r}.")
            parts = _list(fields[3])
            found.append(
                Topic(
                    name=fields[0].rstrip("*"),
                    many=fields[0].endswith("*"),
                    one=fields[1],
                    kind=fields[2],
                    parts=tuple(p for p in parts if p.split()[-1] not in MASS),
                    stuff=tuple(p for p in parts if p.split()[-1] in MASS),
                    who=_list(fields[4]),
                    acts=_list(fields[5]),
                    does=_list(fields[6]),
                    adjectives=_list(fields[7]),
                    where=tuple(f"{w}" for w in _list(fields[8])),
                    abroad=tuple(fields[9:]),
                )
            )
    return tuple(found)


@lru_cache(maxsize=1)
def macro_names() -> frozenset[str]:
    """The names that a template may use between angle brackets."""
    return frozenset(line.split(":", 1)[0] for line in lines("macros.txt"))


@lru_cache(maxsize=1)
def macros() -> dict[str, tuple[Template, ...]]:
    """Macro name -> its alternatives."""
    found: dict[str, tuple[Template, ...]] = {}
    for line in lines("macros.txt"):
        name, _, rest = line.partition(":")
        found[name] = tuple(compile_template(choice.strip(), macro_names()) for choice in rest.split("|"))
    return found


@dataclass(frozen=True, slots=True)
class Pattern:
    """One clause pattern: how it leads in, what it says, and which kind of clause it is."""

    lead: Template | None
    body: Template
    kind: str  # "say" | "do" | "line"


@lru_cache(maxsize=1)
def pools() -> dict[str, tuple[Pattern, ...]]:
    """Pool name -> its clause patterns."""
    found: dict[str, list[Pattern]] = {}
    name = ""
    for path in sorted(DATA.glob("pools_*.txt")):
        for line in lines(path.name):
            if line.startswith("@"):
                name = line[1:]
                found.setdefault(name, [])
                continue
            kind = {"!": "do", ":": "line"}.get(line[0], "say")
            text = line if kind == "say" else line[1:]
            lead, mark, body = text.partition(" >> ")
            if not mark:
                lead, body = "", text
            found[name].append(
                Pattern(
                    compile_template(lead, macro_names()) if lead else None,
                    compile_template(body, macro_names()),
                    kind,
                )
            )
    return {key: tuple(value) for key, value in found.items()}


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of open-ended instruction: its wordings, and the plans by which its answers are built."""

    name: str
    manner: str  # desc | story | self | advice: the register of its second-language sentences
    do: tuple[Template, ...]
    np: tuple[Template, ...]
    raw: tuple[Template, ...]
    plan: tuple[tuple[tuple[str, ...], bool], ...]  # (pools to choose from, may be left out)


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """All open-ended families, in file order."""
    blocks: list[dict[str, str]] = []
    for path in sorted(DATA.glob("families_*.txt")):
        for line in lines(path.name):
            if line.startswith("== "):
                name, manner = _list(line[3:], "|")
                blocks.append({"name": name, "manner": manner})
            else:
                key, _, rest = line.partition(":")
                blocks[-1][key] = rest
    found: dict[str, Family] = {}
    for block in blocks:
        plan: list[tuple[tuple[str, ...], bool]] = []
        for step in _list(block["plan"], ";"):
            names = _list(step.rstrip("?"), "|")
            for pool in names:
                if pool not in pools():
                    raise ConfigError(f"the family {block['name']} plans the pool {pool!r}, which does not exist.")
            plan.append((names, step.endswith("?")))
        wordings = {key: tuple(compile_template(t) for t in _split_raw(block[key])) for key in ("do", "np", "raw")}
        found[block["name"]] = Family(
            block["name"], block["manner"], wordings["do"], wordings["np"], wordings["raw"], tuple(plan)
        )
    return found


def _split_raw(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


@lru_cache(maxsize=8)
def words(name: str) -> tuple[str, ...]:
    """A plain list: one entry per line, or several parted by commas."""
    return tuple(entry for line in lines(name) for entry in _list(line))
