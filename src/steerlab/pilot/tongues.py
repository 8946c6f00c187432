"""Second languages: a small hand-written grammar each, giving the same subject in other words."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

from .clauses import Clause
from .lexicon import lines
from .scene import Scene
from .template import Template, compile_template

_VOWELS = "aeiouhéèêàâîôûy"
# German nouns whose other cases differ from the nominative
_WEAK = {"Elefant": "Elefanten", "Bär": "Bären", "Bauer": "Bauern", "Hirte": "Hirten", "Nachbar": "Nachbarn",
         "Hase": "Hasen", "Löwe": "Löwen", "Affe": "Affen", "Rabe": "Raben", "Falke": "Falken", "Matrose": "Matrosen",
         "Zeuge": "Zeugen", "Ochse": "Ochsen", "Soldat": "Soldaten", "Student": "Studenten", "Planet": "Planeten",
         "Junge": "Jungen", "Held": "Helden", "Papagei": "Papagei", "Name": "Namen"}  # fmt: skip


@lru_cache(maxsize=8)
def sentences(language: str) -> dict[str, tuple[Template, ...]]:
    """Register (desc, story, self, advice, hello, bye) -> sentence templates."""
    found: dict[str, list[Template]] = {}
    name = ""
    for line in lines(f"tongue_{language}.txt"):
        if line.startswith("@"):
            name = line[1:]
        else:
            found.setdefault(name, []).append(compile_template(line))
    return {key: tuple(value) for key, value in found.items()}


def noun_slots(language: str, entry: str) -> dict[str, str]:
    """The forms of a noun given as `m zorro`, by slot name."""
    gender, _, noun = entry.partition(" ")
    return _FORMS[language](gender, noun)


def _spanish(gender: str, noun: str) -> dict[str, str]:
    m = gender == "m"
    el, un, o = ("el", "un", "o") if m else ("la", "una", "a")
    return {
        "el": f"{el} {noun}",
        "un": f"{un} {noun}",
        "del": f"del {noun}" if m else f"de la {noun}",
        "al": f"al {noun}" if m else f"a la {noun}",
        "o": o,
        "lo": "lo" if m else "la",
    }


def _german(gender: str, noun: str) -> dict[str, str]:
    row = {"m": ("der", "den", "dem", "ein", "einen", "einem", "er", "ihn"),
           "f": ("die", "die", "der", "eine", "eine", "einer", "sie", "sie"),
           "n": ("das", "das", "dem", "ein", "ein", "einem", "es", "es")}[gender]  # fmt: skip
    last = noun.split()[-1]
    other = noun[: len(noun) - len(last)] + _WEAK.get(last, last)
    der, den, dem, ein, einen, einem, er, ihn = row
    return {
        "der": f"{der} {noun}",
        "den": f"{den} {other}",
        "dem": f"{dem} {other}",
        "ein": f"{ein} {noun}",
        "einen": f"{einen} {other}",
        "einem": f"{einem} {other}",
        "er": er,
        "ihn": ihn,
    }


def _french(gender: str, noun: str) -> dict[str, str]:
    m, vowel = gender == "m", noun[0].lower() in _VOWELS
    le = f"l'{noun}" if vowel else f"{'le' if m else 'la'} {noun}"
    du = f"de l'{noun}" if vowel else f"{'du' if m else 'de la'} {noun}"
    au = f"à l'{noun}" if vowel else f"{'au' if m else 'à la'} {noun}"
    return {"le": le, "un": f"{'un' if m else 'une'} {noun}", "du": du, "au": au, "e": "" if m else "e"}


def _italian(gender: str, noun: str) -> dict[str, str]:
    vowel = noun[0].lower() in "aeiou"
    hard = noun[0].lower() == "z" or (noun[0].lower() == "s" and noun[1:2] not in "aeiou") or noun[:2] in ("gn", "ps")
    if vowel:
        il, un, del_, al = f"l'{noun}", "un " if gender == "m" else "un'", f"dell'{noun}", f"all'{noun}"
    elif gender == "f":
        il, un, del_, al = f"la {noun}", "una ", f"della {noun}", f"alla {noun}"
    elif hard:
        il, un, del_, al = f"lo {noun}", "uno ", f"dello {noun}", f"allo {noun}"
    else:
        il, un, del_, al = f"il {noun}", "un ", f"del {noun}", f"al {noun}"
    return {"il": il, "un": un + noun, "del": del_, "al": al, "o": "o" if gender == "m" else "a"}


_FORMS: dict[str, Callable[[str, str], dict[str, str]]] = {
    "es": _spanish,
    "de": _german,
    "fr": _french,
    "it": _italian,
}


class Tongue:
    """Writes sentences of one language about a scene's subject."""

    def __init__(self, language: str, column: int, scene: Scene, rng: random.Random) -> None:
        self.pools = sentences(language)
        self.slots = noun_slots(language, scene.topic.abroad[column])
        self.scene, self.rng, self.column, self.language = scene, rng, column, language
        self.used: set[int] = set()

    def _slot(self, name: str) -> str:
        if name in self.slots:
            return self.slots[name]
        return self.scene.slot(name)

    def say(self, manner: str, like: Clause | None = None) -> Clause:
        """One sentence in a register, none twice while others are left."""
        pool = self.pools[manner]
        left = [i for i in range(len(pool)) if hash_free(manner, i) not in self.used] or list(range(len(pool)))
        i = self.rng.choice(left)
        self.used.add(hash_free(manner, i))
        text = pool[i].expand(self.rng, self._slot, {})
        if manner in ("hello", "bye"):
            return Clause(text, "line", breaks=like.breaks if like else False)
        return Clause(text)


def hash_free(manner: str, i: int) -> int:
    """A small key for (register, index) that is the same in every process."""
    return ("desc", "story", "self", "advice", "hello", "bye").index(manner) * 100 + i
