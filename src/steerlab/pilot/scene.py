"""A scene: one subject, its people and places, and the words that fill a template's slots.

Slots draw without repeating until a bag is empty, so that a short text does not name the same part twice.

====================  =====================================================================================
``{X} {Y}``           the subject and a second one, as one writes about them (``foxes``, ``chess``)
``{x} {ax} {xs}``     one of them, with its article, in the plural; ``{ay}`` for the second subject
``{is} {has} {was}``  agree with {X}; ``{v:need}`` is any other verb; ``{they} {them} {their}`` its pronouns
``{p} {ap} {ps}``     a thing that goes with it
``{w} {aw} {ws}``     a person who has to do with it
``{act} {acts} ...``  what such a person does: base, third person, past (``{acted}``, ``{acten}``), -ing
``{do} {does} ...``   what the thing does: plural, singular, past (``{did}``)
``{a} {k} {at}``      an adjective, what kind of thing it is, where it is
``{it} {its}``        pronouns for one of them (``{him_it}`` as an object)
``{N} {M} {he}``      two people by name, and the first one's pronouns; ``{town}`` a place
``{act0} {w0} ...``   the same word at each use within one conversation
====================  =====================================================================================
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .grammar import article, plural, verb
from .lexicon import Topic

_PRONOUNS = {
    "m": {"he": "he", "him": "him", "his": "his"},
    "f": {"he": "she", "him": "her", "his": "her"},
    "n": {"he": "it", "him": "it", "his": "its"},
}


class Bag:
    """Draws without replacement and starts over when empty; the same word never comes twice running."""

    def __init__(self, items: Sequence[str], rng: random.Random) -> None:
        self.items, self.rng = list(items), rng
        self.left: list[str] = []
        self.last = ""

    def draw(self) -> str:
        """The next word."""
        if not self.left:
            self.left = self.items[:]
            self.rng.shuffle(self.left)
            if len(self.left) > 1 and self.left[-1] == self.last:
                self.left.insert(0, self.left.pop())
        self.last = self.left.pop()
        return self.last


class Scene:
    """The subject of one conversation, ready to fill slots."""

    def __init__(
        self, topic: Topic, rng: random.Random, names: Sequence[tuple[str, str]], towns: Sequence[str], other: Topic
    ) -> None:
        self.topic, self.other, self.rng = topic, other, rng
        (self.name, self.gender), (self.name2, self.gender2) = rng.sample(list(names), 2)
        self.town = rng.choice(towns)
        self.one_is = rng.choice("mf") if topic.person else "n"
        self.bags: dict[str, Bag] = {}
        self.kept: dict[str, str] = {}

    def fork(self) -> Scene:
        """The same conversation with its bags full again: what is said twice may name the same things."""
        copy = object.__new__(Scene)
        copy.__dict__.update(self.__dict__)
        copy.bags = {}
        return copy

    def _draw(self, field: str, topic: Topic | None = None) -> str:
        topic = topic or self.topic
        key = f"{topic.name}.{field}"
        if key not in self.bags:
            self.bags[key] = Bag(getattr(topic, field), self.rng)
        return self.bags[key].draw()

    def _keep(self, field: str) -> str:
        if field not in self.kept:
            self.kept[field] = self._draw(field)
        return self.kept[field]

    def slot(self, name: str) -> str:
        """The word for a slot."""
        if name.startswith("Y."):
            return self._other(name[2:])
        topic = self.topic
        match name:
            case "X":
                return topic.name
            case "Y":
                return self.other.name
            case "x":
                return topic.one
            case "ax":
                return article(topic.one)
            case "xs":
                return plural(topic.one)
            case "ay":
                return article(self.other.one)
            case "p":
                return self._draw("parts")
            case "ap":
                return article(self._draw("parts"))
            case "ps":
                return plural(self._draw("parts"))
            case "w":
                return self._draw("who")
            case "aw":
                return article(self._draw("who"))
            case "ws":
                return plural(self._draw("who"))
            case "a":
                return self._draw("adjectives")
            case "k":
                return topic.kind
            case "at":
                return self._draw("where")
            case "act" | "acts" | "acted" | "acting" | "acten":
                return _form(self._draw("acts"), name[3:])
            case "do" | "does" | "did" | "doing":
                return verb(self._draw("does"), {"do": "base", "does": "s", "did": "ed", "doing": "ing"}[name])  # type: ignore[arg-type]
            case _:
                return self._more(name)

    def _more(self, name: str) -> str:
        topic = self.topic
        many = topic.many
        if name.startswith("v:"):
            return verb(name[2:], "base") if many and name != "v:be" else _agree(name[2:], many)
        fixed = {
            "is": "are" if many else "is",
            "has": "have" if many else "has",
            "was": "were" if many else "was",
            "do_x": "do" if many else "does",
            "they": "they" if many else "it",
            "them": "them" if many else "it",
            "their": "their" if many else "its",
            "N": self.name,
            "M": self.name2,
            "town": self.town,
            "M.his": _PRONOUNS[self.gender2]["his"],
            "M.he": _PRONOUNS[self.gender2]["he"],
        }
        if name in fixed:
            return fixed[name]
        if name in ("he", "him", "his"):
            return _PRONOUNS[self.gender][name]
        if name in ("it", "him_it", "its"):
            return _PRONOUNS[self.one_is][{"it": "he", "him_it": "him", "its": "his"}[name]]
        match name:
            case "w0":
                return self._keep("who")
            case "aw0":
                return article(self._keep("who"))
            case "act0":
                return self._keep("acts")
            case "acting0":
                return verb(self._keep("acts"), "ing")
            case "p0":
                return self._keep("parts")
            case _:
                raise KeyError(f"no slot {{{name}}} in a scene")

    def _other(self, name: str) -> str:
        topic = self.other
        match name:
            case "is":
                return "are" if topic.many else "is"
            case "a":
                return self._draw("adjectives", topic)
            case "p":
                return self._draw("parts", topic)
            case "ap":
                return article(self._draw("parts", topic))
            case "act":
                return self._draw("acts", topic)
            case "does":
                return verb(self._draw("does", topic), "s")
            case "ws":
                return plural(self._draw("who", topic))
            case "at":
                return self._draw("where", topic)
            case _:
                raise KeyError(f"no slot {{Y.{name}}} in a scene")


def _form(phrase: str, tail: str) -> str:
    return verb(phrase, {"": "base", "s": "s", "ed": "ed", "ing": "ing", "en": "en"}[tail])  # type: ignore[arg-type]


def _agree(word: str, many: bool) -> str:
    if word == "be":
        return "are" if many else "is"
    return verb(word, "base" if many else "s")
