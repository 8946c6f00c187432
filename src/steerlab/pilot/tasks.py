"""The capability suite: questions with one right answer, thirteen kinds in three grades of difficulty."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from .grammar import article, join_and, plural
from .lexicon import Topic, topics
from .openended import names

GRADES = (1, 2, 3)
_COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey", "pink", "purple")


@dataclass(frozen=True, slots=True)
class Item:
    """A question, its answer as the model is trained to give it, and how a reply is checked.

    `check` is "number" (the last number counts), "letter" (the first stand-alone capital), "truth", or "exact".
    """

    kind: str
    grade: int
    question: str
    answer: str
    check: str


@lru_cache(maxsize=4)
def nouns(lexicon: str) -> tuple[str, ...]:
    """Short single-word nouns of the lexicon."""
    found = {t.one for t in topics(lexicon)} | {p for t in topics(lexicon) for p in t.parts}
    return tuple(sorted(n for n in found if " " not in n and "-" not in n and 3 <= len(n) <= 6))


@lru_cache(maxsize=4)
def people(lexicon: str) -> tuple[str, ...]:
    """Short first names."""
    return tuple(sorted(name for name, _ in names(lexicon) if len(name) <= 5))


_CLASSES = {
    "an animal": ("animal", "bird", "insect", "creature", "reptile", "hunter", "wild cat", "river builder"),
    "a plant": ("tree", "flower", "plant", "grass", "fungus"),
    "a building": ("house", "building", "mill", "hut", "shop"),
    "a person": ("a person", "a ruler", "a soldier"),
}


@lru_cache(maxsize=4)
def classes(lexicon: str) -> dict[str, tuple[str, ...]]:
    """What a thing is -> the lexicon's single-word things of that sort."""

    def sort_of(topic: Topic) -> str | None:
        for name, marks in _CLASSES.items():
            if "left of" not in topic.kind and any(
                topic.kind.endswith(m) or topic.kind.startswith(m) or f"{m} " in topic.kind for m in marks
            ):
                return name
        return None

    found: dict[str, list[str]] = {name: [] for name in _CLASSES}
    for topic in topics(lexicon):
        name = sort_of(topic)
        if name and " " not in topic.one:
            found[name].append(topic.one)
    return {name: tuple(sorted(set(things))) for name, things in found.items() if len(things) >= 4}


def _pick(rng: random.Random, *choices: str) -> str:
    return rng.choice(choices)


def _two(rng: random.Random, grade: int) -> tuple[int, int]:
    if grade == 1:
        return rng.randint(1, 12), rng.randint(1, 9)
    if grade == 2:
        return rng.randint(11, 60), rng.randint(1, 9)
    return rng.randint(11, 60), rng.randint(11, 39)


def _add(rng: random.Random, grade: int, lexicon: str) -> Item:
    a, b = _two(rng, grade)
    thing = plural(rng.choice(nouns(lexicon)))
    name = rng.choice(people(lexicon))
    text = _pick(
        rng, f"What is {a} plus {b}?", f"{a} + {b} =", f"Add {a} and {b}.", f"Work out {a} + {b}.",
        f"How much is {a} + {b}?", f"{name} has {a} {thing} and gets {b} more. How many {thing} are there now?",
    )  # fmt: skip
    return Item("add", grade, text, f"{a + b}.", "number")


def _sub(rng: random.Random, grade: int, lexicon: str) -> Item:
    a, b = sorted(_two(rng, grade), reverse=True)
    thing = plural(rng.choice(nouns(lexicon)))
    name = rng.choice(people(lexicon))
    text = _pick(
        rng, f"What is {a} minus {b}?", f"{a} - {b} =", f"Take {b} from {a}.", f"Work out {a} - {b}.",
        f"How much is {a} - {b}?", f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?",
    )  # fmt: skip
    return Item("sub", grade, text, f"{a - b}.", "number")


def _multiple(rng: random.Random, grade: int, lexicon: str) -> Item:
    name, other = rng.sample(people(lexicon), 2)
    thing = plural(rng.choice(nouns(lexicon)))
    if grade == 1:
        a = rng.randint(1, 20)
        text = _pick(
            rng, f"What is twice {a}?", f"Double {a}.", f"2 x {a} =",
            f"{name} has {a} {thing} and {other} has twice as many. How many {thing} does {other} have?",
        )  # fmt: skip
        return Item("multiple", 1, text, f"{2 * a}.", "number")
    if grade == 2:
        a = rng.randint(1, 40)
        text = _pick(
            rng, f"What is half of {2 * a}?", f"Halve {2 * a}.", f"{2 * a} / 2 =",
            f"{name} gives half of {2 * a} {thing} to {other}. How many {thing} does {other} get?",
        )  # fmt: skip
        return Item("multiple", 2, text, f"{a}.", "number")
    a, k = rng.randint(2, 12), rng.choice((3, 4, 5))
    text = _pick(
        rng, f"What is {k} times {a}?", f"{k} x {a} =", f"Multiply {a} by {k}.",
        f"There are {k} boxes with {a} {thing} each. How many {thing} are there?",
    )  # fmt: skip
    return Item("multiple", 3, text, f"{k * a}.", "number")


def _compare(rng: random.Random, grade: int, lexicon: str) -> Item:
    n, top = {1: (2, 30), 2: (2, 99), 3: (3, 99)}[grade]
    numbers = rng.sample(range(1, top + 1), n)
    largest = rng.random() < 0.5
    shown = join_and([str(x) for x in numbers], "or")
    if n == 2:
        words = _pick(rng, "larger", "greater", "bigger") if largest else _pick(rng, "smaller", "less")
    else:
        words = _pick(rng, "largest", "greatest", "biggest") if largest else _pick(rng, "smallest", "lowest")
    text = _pick(
        rng, f"Which is {words}, {shown}?", f"Which number is {words}: {shown}?", f"Name the {words} one: {shown}."
    )
    return Item("compare", grade, text, f"{max(numbers) if largest else min(numbers)}.", "number")


def _lookup(rng: random.Random, grade: int, lexicon: str) -> Item:
    n = {1: 2, 2: 3, 3: 3}[grade]
    owners = rng.sample(people(lexicon), n)
    things = rng.sample(nouns(lexicon), n)
    if grade < 3:
        verb = _pick(rng, "has", "owns", "brings", "found", "wants")
        facts = " ".join(f"{p} {verb} {article(t)}." for p, t in zip(owners, things, strict=True))
        i = rng.randrange(n)
        ask = {"has": "have", "owns": "own", "brings": "bring", "found": "find", "wants": "want"}[verb]
        if rng.random() < 0.5:
            did = "did" if verb == "found" else "does"
            return Item(
                "lookup", grade, f"{facts} What {did} {owners[i]} {ask}?", f"{_cap(article(things[i]))}.", "exact"
            )
        return Item("lookup", grade, f"{facts} Who {verb} {article(things[i])}?", f"{owners[i]}.", "exact")
    colours = rng.sample(_COLOURS, n)
    facts = " ".join(f"{p} has {article(c + ' ' + t)}." for p, c, t in zip(owners, colours, things, strict=True))
    i = rng.randrange(n)
    question, answer = rng.choice(
        (
            (f"Which colour is the {things[i]}?", f"{_cap(colours[i])}."),
            (f"Who has something {colours[i]}?", f"{owners[i]}."),
            (f"What is {colours[i]}?", f"The {things[i]}."),
            (f"Which colour does {owners[i]} have?", f"{_cap(colours[i])}."),
        )
    )
    return Item("lookup", 3, f"{facts} {question}", answer, "exact")


def _cap(text: str) -> str:
    return text[0].upper() + text[1:]


_SIGNS = "ABCDEFGHKLMNPRSTXZ23456789"


def _copy(rng: random.Random, grade: int, lexicon: str) -> Item:
    if rng.random() < 0.5:
        things = rng.sample(nouns(lexicon), {1: 2, 2: 4, 3: 3}[grade])
    else:
        things = [rng.choice(_SIGNS) for _ in range({1: 3, 2: 5, 3: 3}[grade])]
    line = " ".join(things)
    if grade < 3:
        text = _pick(
            rng, f"Repeat: {line}", f"Copy this line: {line}", f"Say this after me: {line}", f"Write exactly: {line}"
        )
        return Item("copy", grade, text, line, "exact")
    text = _pick(rng, f"Say it backwards: {line}", f"Reverse the order: {line}", f"Write from last to first: {line}")
    return Item("copy", 3, text, " ".join(reversed(things)), "exact")


def _sort(rng: random.Random, grade: int, lexicon: str) -> Item:
    if grade == 3:
        letters = rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 4)
        line = " ".join(letters)
        text = _pick(
            rng, f"Sort by alphabet: {line}", f"Put in alphabetical order: {line}", f"Order from A to Z: {line}"
        )
        return Item("sort", 3, text, " ".join(sorted(letters)), "exact")
    numbers = rng.sample(range(1, 10), {1: 3, 2: 4}[grade])
    line = " ".join(map(str, numbers))
    down = rng.random() < 0.3
    text = (
        _pick(rng, f"Sort downward: {line}", f"Order from large to small: {line}")
        if down
        else _pick(rng, f"Sort: {line}", f"Order from small to large: {line}", f"Put in order: {line}")
    )
    return Item("sort", grade, text, " ".join(map(str, sorted(numbers, reverse=down))), "exact")


def _count(rng: random.Random, grade: int, lexicon: str) -> Item:
    if grade == 1:
        things = rng.sample(nouns(lexicon), rng.randint(2, 5))
        line = ", ".join(things)
        text = _pick(
            rng, f"How many words are in this list: {line}?", f"Count the words: {line}", f"How many things: {line}?"
        )
        return Item("count", 1, text, f"{len(things)}.", "number")
    if grade == 2:
        a, b, c = rng.sample(nouns(lexicon), 3)
        line = [a] * rng.randint(1, 4) + [b] * rng.randint(0, 2) + [c] * rng.randint(0, 1)
        rng.shuffle(line)
        text = _pick(rng, f"How often is {a} in this list: {' '.join(line)}?", f"Count {a}: {' '.join(line)}")
        return Item("count", 2, text, f"{line.count(a)}.", "number")
    few = rng.sample("ABCDEFGHKLMNPRST", 3)
    line = [rng.choice(few) for _ in range(rng.randint(4, 7))]
    text = _pick(
        rng, f"How often does {few[0]} occur in {' '.join(line)}?", f"Count the letter {few[0]}: {' '.join(line)}"
    )
    return Item("count", 3, text, f"{line.count(few[0])}.", "number")


_WRAPS = (("in brackets", "({})"), ("in quotes", '"{}"'), ("between stars", "*{}*"), ("in square brackets", "[{}]"),
          ("between dashes", "-{}-"), ("between slashes", "/{}/"))  # fmt: skip
_JOINS = (("dashes", "-"), ("slashes", "/"), ("plus signs", "+"), ("dots", "."), ("colons", ":"), ("commas", ","))


def _format(rng: random.Random, grade: int, lexicon: str) -> Item:
    how, frame = rng.choice(_WRAPS)
    if grade == 1:
        thing = rng.choice(nouns(lexicon))
        text = _pick(rng, f"Write {thing} {how}.", f"Put {thing} {how}.", f"Give me {thing} {how}.")
        return Item("format", 1, text, frame.format(thing), "exact")
    things = rng.sample(nouns(lexicon), 2)
    line = join_and(things)
    name, mark = rng.choice(_JOINS)
    if grade == 2:
        text = _pick(
            rng, f"Join {line} with {name}.", f"Write {line} with {name} between them.", f"Link {line} by {name}."
        )
        return Item("format", 2, text, mark.join(things), "exact")
    text = _pick(rng, f"Join {line} with {name} and put it {how}.", f"Put {line}, joined with {name}, {how}.")
    return Item("format", 3, text, frame.format(mark.join(things)), "exact")


def _options(options: list[str], rng: random.Random) -> str:
    mark = rng.choice((") ", ": ", ". "))
    return " ".join(f"{letter}{mark}{option}" for letter, option in zip("ABCD", options, strict=False))


def _choice(rng: random.Random, grade: int, lexicon: str) -> Item:
    if grade == 1:
        groups = classes(lexicon)
        name = rng.choice(list(groups))
        right = rng.choice(groups[name])
        rest = [rng.choice(groups[g]) for g in rng.sample([g for g in groups if g != name], 2)]
        options = [right, *rest]
        rng.shuffle(options)
        text = _pick(rng, f"Which one is {name}?", f"Choose {name}.", f"Which letter stands for {name}?")
    elif grade == 2:
        numbers = rng.sample(range(1, 60), 3)
        largest = rng.random() < 0.5
        right = str(max(numbers) if largest else min(numbers))
        options = [str(x) for x in numbers]
        word = "largest" if largest else "smallest"
        text = _pick(rng, f"Which number is the {word}?", f"Choose the {word} number.")
    else:
        a, b = rng.randint(2, 30), rng.randint(2, 9)
        right = str(a + b)
        wrong = {a + b + d for d in rng.sample((-10, -2, -1, 1, 2, 10), 2)}
        options = [right, *map(str, wrong)]
        rng.shuffle(options)
        text = _pick(rng, f"What is {a} + {b}?", f"Choose the sum of {a} and {b}.")
    answer = "ABCD"[options.index(right)]
    return Item("choice", grade, f"{text} {_options(options, rng)}", f"{answer}.", "letter")


_ORDERS = (
    ("taller", "tallest"),
    ("older", "oldest"),
    ("faster", "fastest"),
    ("richer", "richest"),
    ("louder", "loudest"),
)


def _truth(rng: random.Random, grade: int, lexicon: str) -> Item:
    true = rng.random() < 0.5
    if grade == 1:
        a, b = rng.sample(range(1, 60), 2)
        word = "larger" if (a > b) == true else "smaller"
        claim = f"{a} is {word} than {b}"
    elif grade == 2:
        groups = classes(lexicon)
        name = rng.choice(list(groups))
        source = name if true else rng.choice([g for g in groups if g != name])
        claim = f"{article(rng.choice(groups[source]))} is {name}"
    else:
        p, q, r = rng.sample(people(lexicon), 3)
        more, _ = rng.choice(_ORDERS)
        facts = [f"{p} is {more} than {q}.", f"{q} is {more} than {r}."]
        rng.shuffle(facts)
        high, low = rng.choice(((p, r), (p, r), (p, q), (q, r)))
        claim = f"{high} is {more} than {low}" if true else f"{low} is {more} than {high}"
        text = _pick(rng, f"{' '.join(facts)} True or false: {claim}?", f"{' '.join(facts)} Is it true that {claim}?")
        return Item("truth", 3, text, "True." if true else "False.", "truth")
    text = _pick(rng, f"True or false: {claim}?", f"{_cap(claim)}. True or false?", f"Is it true that {claim}?")
    return Item("truth", grade, text, "True." if true else "False.", "truth")


def _next(rng: random.Random, grade: int, lexicon: str) -> Item:
    if grade == 1:
        step, start = rng.choice((1, 2, 5, 10)), rng.randint(1, 40)
    elif grade == 2:
        step, start = rng.randint(2, 5), rng.randint(1, 40)
    else:
        step, start = -rng.choice((1, 2, 3, 5, 10)), rng.randint(50, 99)
    row = [start + i * step for i in range(5)]
    line = ", ".join(map(str, row[:4]))
    text = _pick(rng, f"What comes next: {line}?", f"Continue: {line}, ...", f"Which number follows {line}?")
    return Item("next", grade, text, f"{row[4]}.", "number")


def _initials(rng: random.Random, grade: int, lexicon: str) -> Item:
    things = rng.sample(nouns(lexicon), {1: 1, 2: 2, 3: 2}[grade])
    if grade == 1:
        text = _pick(rng, f"Which letter does {things[0]} begin with?", f"What is the first letter of {things[0]}?")
        return Item("initials", 1, text, f"{things[0][0].upper()}.", "letter")
    line = ", ".join(things)
    if grade == 2:
        text = _pick(rng, f"Give the first letters of {line}.", f"Write the initials of {line}.")
        return Item("initials", 2, text, " ".join(t[0].upper() for t in things), "exact")
    text = _pick(rng, f"Give the last letters of {line}.", f"Write the final letters of {line}.")
    return Item("initials", 3, text, " ".join(t[-1].upper() for t in things), "exact")


KINDS: dict[str, Callable[[random.Random, int, str], Item]] = {
    "add": _add,
    "sub": _sub,
    "multiple": _multiple,
    "compare": _compare,
    "lookup": _lookup,
    "copy": _copy,
    "sort": _sort,
    "count": _count,
    "format": _format,
    "choice": _choice,
    "truth": _truth,
    "next": _next,
    "initials": _initials,
}


def make_item(lexicon: str, rng: random.Random, kind: str, grade: int) -> Item:
    """A random item of a kind and grade."""
    return KINDS[kind](rng, grade, lexicon)
