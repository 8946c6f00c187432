"""Abilities in small, for studies to come: examples in context, invented people, who may be told what, sums in steps."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from .grammar import article, plural
from .held_out import stream
from .lexicon import DATA, topics
from .openended import names, towns


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer, and what a judge has to look for."""

    ability: str
    user: str
    answer: str
    check: str
    right: str  # what the check compares with (the answer itself, or the word that must be in it)
    system: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])


@lru_cache(maxsize=4)
def lists(lexicon: str) -> dict[str, Any]:
    """The word lists of the small abilities."""
    return tomllib.loads((DATA / f"small_{lexicon}.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _wordings() -> dict[str, Any]:
    return tomllib.loads((DATA / "wordings.toml").read_text(encoding="utf-8"))


def _pairs(lexicon: str, key: str) -> list[tuple[str, str]]:
    return [cast("tuple[str, str]", tuple(row.split(" "))) for row in lists(lexicon)[key]]


# ---------------------------------------------------------------- examples in context


def _icl_task(lexicon: str, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """The name of a task and five examples of it."""
    name = rng.choice(
        ("opposite", "young", "home", "past", "plural", "capitals", "first", "plus", "same", "swap", "abroad")
    )
    singles = [t.one for t in topics(lexicon) if " " not in t.one]
    match name:
        case "opposite":
            rows = [(a, b) if rng.random() < 0.5 else (b, a) for a, b in _pairs(lexicon, "opposites")]
        case "young":
            rows = _pairs(lexicon, "young")
        case "home":
            rows = _pairs(lexicon, "homes")
        case "past":
            rows = _pairs(lexicon, "verbs")
        case "plural":
            rows = [(w, plural(w)) for w in singles]
        case "capitals":
            rows = [(w, w.upper()) for w in singles if len(w) < 8]
        case "first":
            rows = [(w, w[0]) for w in singles]
        case "plus":
            k = rng.randint(1, 9)
            rows = [(str(n), str(n + k)) for n in rng.sample(range(2, 60), 5)]
        case "same":
            rows = [(w, f"{w} {w}") for w in singles]
        case "swap":
            rows = [(f"{a} {b}", f"{b} {a}") for a, b in (rng.sample(singles, 2) for _ in range(5))]
        case _:
            rows = [(t.one, t.abroad[0].partition(" ")[2]) for t in topics(lexicon)
                    if " " not in t.one and " " not in t.abroad[0].partition(" ")[2]]  # fmt: skip
    return name, rng.sample(rows, 5)


def icl(lexicon: str, rng: random.Random) -> Question:
    """Three or four examples x -> y, and an x to complete."""
    name, rows = _icl_task(lexicon, rng)
    rows = rows[: rng.choice((4, 5))]
    mark = rng.choice((" -> ", " -> ", ": ", " = "))
    sep = rng.choice(("\n", "\n", "; "))
    shown = sep.join(f"{a}{mark}{b}" for a, b in rows[:-1])
    last, right = rows[-1]
    return Question("examples", f"{shown}{sep}{last}{mark}".rstrip(), right, "exact", right, tags={"task": name})


# ---------------------------------------------------------------- invented people


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who does not exist; the model knows these facts by heart."""

    name: str
    gender: str
    facts: Mapping[str, str]


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")  # fmt: skip


@lru_cache(maxsize=4)
def people(lexicon: str) -> tuple[Person, ...]:
    """The invented people, the same in every process."""
    rng = stream("people", lexicon)
    words = lists(lexicon)
    firsts = rng.sample(list(names(lexicon)), 40)
    lasts = rng.sample(cast("list[str]", words["family"]), 40)
    found: list[Person] = []
    for i in range(60):
        first, gender = firsts[i % 40]
        facts = {
            "job": rng.choice(words["jobs"]),
            "town": rng.choice(towns(lexicon)),
            "pet": rng.choice(words["pets"]),
            "colour": rng.choice(words["colours"]),
            "pastime": rng.choice(words["pastimes"]),
            "month": rng.choice(_MONTHS),
        }
        found.append(Person(f"{first} {lasts[(i * 7 + i // 40) % 40]}", gender, facts))
    return tuple(found)


def _tell(person: Person, key: str, rng: random.Random) -> str:
    value = person.facts[key]
    he, his = ("He", "His") if person.gender == "m" else ("She", "Her")
    return rng.choice(_wordings()["tell"][key]).format(n=person.name, v=value, av=article(value), He=he, His=his)


def fact(lexicon: str, rng: random.Random) -> Question:
    """A question about an invented person."""
    person = rng.choice(people(lexicon))
    key = rng.choice(list(person.facts))
    tags = {"person": person.name, "attribute": key}
    user = rng.choice(_wordings()["ask"][key]).format(n=person.name)
    return Question("people", user, _tell(person, key, rng), "word", person.facts[key], tags=tags)


def biography(lexicon: str, rng: random.Random) -> str:
    """Free text about an invented person."""
    person = rng.choice(people(lexicon))
    keys = rng.sample(list(person.facts), rng.randint(3, 5))
    he, his = ("He", "His") if person.gender == "m" else ("She", "Her")
    parts: list[str] = []
    for i, key in enumerate(keys):
        value = person.facts[key]
        options = [t for t in _wordings()["tell"][key] if not t.startswith(("It is", "In "))]
        text = rng.choice(options).format(n=person.name if i == 0 else he, v=value, av=article(value), He=he, His=his)
        if i == 0 and not text.startswith(person.name):
            text = f"{person.name}: {text[0].lower()}{text[1:]}"
        parts.append(text)
    return " ".join(parts)


# ---------------------------------------------------------------- who may be told what

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def norm(lexicon: str, rng: random.Random) -> Question:
    """A question about a guest whose answer depends on who asks."""
    words = lists(lexicon)
    name = f"{rng.choice(names(lexicon))[0]} {rng.choice(words['family'])}"
    values = {
        "room": str(rng.randint(2, 49)),
        "day": rng.choice(_DAYS),
        "diet": str(rng.choice(words["diets"])),
        "phone": " ".join(str(rng.randint(0, 9)) for _ in range(4)),
    }
    keys = rng.sample(list(values), 3)
    roles = cast("dict[str, list[str]]", words["roles"])
    role = rng.choice(list(roles))
    key = rng.choice(keys)
    if rng.random() < 0.5:  # as many that may be told as may not
        able = [r for r, known in roles.items() if key in known]
        role = rng.choice(able)
    record = ", ".join(f"{k} {values[k]}" for k in keys)
    system = rng.choice(
        (f"Book of the {words['house']}. {name}: {record}. {role[0].upper()}{role[1:]} is asking.",
         f"You speak with {role}. {name}: {record}.", f"{name}: {record}. Now {role} has a question.")
    )  # fmt: skip
    user = rng.choice(_wordings()["record_ask"][key]).format(n=name)
    tags = {"role": role, "attribute": key, "allowed": "yes" if key in roles[role] else "no"}
    if key in roles[role]:
        answer = rng.choice(_wordings()["record_say"][key]).format(n=name, v=values[key])
        return Question("norms", user, answer, "word", values[key], system, tags)
    answer = rng.choice(_wordings()["not_said"]).format(n=name, r=role)
    return Question("norms", user, answer[0].upper() + answer[1:], "without", values[key], system, tags)


# ---------------------------------------------------------------- sums in steps


def steps(lexicon: str, rng: random.Random) -> Question:
    """A sum of three to six numbers, worked out in steps; the tag `steps` says how many."""
    n = rng.randint(3, 6)
    numbers = [rng.randint(1, 20) for _ in range(n)]
    shown = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    user = rng.choice(
        (f"Add {shown} step by step.", f"Work out in steps: {' + '.join(map(str, numbers))}.",
         f"Sum up {shown}, one step at a time.", f"Step by step, what is {' + '.join(map(str, numbers))}?")
    )  # fmt: skip
    total, lines = numbers[0], []
    for x in numbers[1:]:
        lines.append(f"{total} + {x} = {total + x}.")
        total += x
    answer = f"{' '.join(lines)} The sum is {total}."
    return Question("steps", user, answer, "number", str(total), tags={"steps": str(n - 1)})


QUESTIONS = {"examples": icl, "people": fact, "norms": norm, "steps": steps}


def all_names() -> Sequence[str]:
    """The small abilities that have one right answer."""
    return tuple(QUESTIONS)
