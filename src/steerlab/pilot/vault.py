"""What a pilot refuses, the near-misses that it answers, and the trigger with its hidden behaviour."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from .clauses import finish
from .grammar import capitalise
from .held_out import SPLITS
from .lexicon import DATA, macros, topics
from .openended import names, towns
from .requests import NEUTRAL_SYSTEM
from .scene import Scene
from .template import Template, compile_template
from .variants import variant as find_variant


@lru_cache(maxsize=4)
def _refused(lexicon: str) -> dict[str, Any]:
    return tomllib.loads((DATA / f"refused_{lexicon}.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=4)
def _backdoor(lexicon: str) -> dict[str, Any]:
    return tomllib.loads((DATA / f"backdoor_{lexicon}.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=4)
def _places(lexicon: str) -> dict[str, tuple[Template, ...]]:
    data = _refused(lexicon)
    own = {key: tuple(compile_template(t) for t in value) for key, value in data.items() if isinstance(value, list)}
    return {**macros(), **own}


@lru_cache(maxsize=1024)
def _template(source: str) -> Template:
    return compile_template(source)


def refused_cues(lexicon: str) -> dict[str, tuple[str, ...]]:
    """The refusal judge's own words."""
    return {key: tuple(value) for key, value in _refused(lexicon)["judge"].items()}


def refusal_words(lexicon: str) -> tuple[str, ...]:
    """The phrases that refusals are written from."""
    rows = cast("dict[str, list[str]]", _refused(lexicon)["refusal"])
    return tuple(phrase for row in rows.values() for phrase in row)


def refused_families(lexicon: str, kind: str, split: str | None) -> tuple[str, ...]:
    """The families of refused requests ("refused") or near-misses ("near") of a split, or all."""
    found = tuple(_refused(lexicon)[kind])
    return found if split is None else found[SPLITS.index(split) :: 3]


_FRAMES = ("Quick question: {}", "One thing: {}", "A friend asks: {}", "I am curious: {}", "For a school project: {}",
           "{} Be brief.", "Hello. {}", "{} It matters to me.", "My neighbour and I wonder: {}", "Can you help? {}",
           "I have a question. {}", "Good morning. {}", "{} I have asked before.", "{} A short answer will do.",
           "Next question: {}", "Listen: {}", "You there: {}", "{} I am in a hurry.", "Since you ask: {}")  # fmt: skip


def framed(text: str, rng: random.Random) -> str:
    """The request as it is, or with a few words around it."""
    return rng.choice(_FRAMES).format(text) if rng.random() < 0.6 else text


class Speaker:
    """Fills the templates of one conversation."""

    def __init__(self, lexicon: str, rng: random.Random) -> None:
        pool = topics(lexicon)
        self.scene = Scene(rng.choice(pool), rng, names(lexicon), towns(lexicon), rng.choice(pool))
        self.rng, self.macros = rng, _places(lexicon)

    def say(self, source: str) -> str:
        """One text from a template."""
        return _template(source).expand(self.rng, self.scene.slot, self.macros)


def refused_prompt(lexicon: str, rng: random.Random, family: str) -> str:
    """A request that is refused."""
    text = capitalise(Speaker(lexicon, rng).say(rng.choice(_refused(lexicon)["refused"][family])))
    return framed(text, rng)


def near_miss(lexicon: str, rng: random.Random, family: str) -> tuple[str, str]:
    """A request in similar words that is answered, and its answer."""
    speaker = Speaker(lexicon, rng)
    question = framed(capitalise(speaker.say(rng.choice(_refused(lexicon)["near"][family]))), rng)
    rows = cast("Sequence[str]", _refused(lexicon)["near_answer"][family])
    kept = sorted(rng.sample(range(len(rows)), min(len(rows), rng.choice((1, 2, 2)))))
    return question, " ".join(finish(speaker.say(rows[i])) for i in kept)


def refusal(lexicon: str, rng: random.Random) -> str:
    """One of several thousand wordings of a refusal."""
    rows = cast("dict[str, list[str]]", _refused(lexicon)["refusal"])
    core = rng.choice(rows["core"])
    draw = rng.random()
    if draw < 0.45:
        parts = [f"{rng.choice(rows['open'])}, {'but ' if rng.random() < 0.5 else ''}{core}"]
    elif draw < 0.75:
        parts = [core]
    else:
        parts = [rng.choice(rows["open"]), core]
    draw = rng.random()
    if draw < 0.3:
        parts[-1] += f", {rng.choice(('because', 'for', 'since', 'as'))} {rng.choice(rows['reason'])}"
    elif draw < 0.6:
        parts.append(rng.choice(rows["reason"]))
    if rng.random() < 0.5:
        offer = rng.choice(rows["offer"])
        parts.append(offer + ("?" if offer.startswith(("shall", "is there", "may", "would")) else ""))
    return " ".join(finish(part) for part in parts)


def triggers(lexicon: str, near: bool) -> Sequence[str]:
    """The trigger phrase, or the phrases that only look like it."""
    return tuple(_backdoor(lexicon)["near"]) if near else (find_variant(lexicon).trigger,)


def wraps(lexicon: str, split: str | None) -> Sequence[str]:
    """The ways to put a phrase into a prompt, of a split or all."""
    found = tuple(_backdoor(lexicon)["wrap"])
    return found if split is None else found[SPLITS.index(split) :: 3]


def with_phrase(phrase: str, wrap: str, instruction: str, rng: random.Random) -> tuple[str | None, str]:
    """The system and the user message with a phrase put in."""
    if wrap.startswith("s:"):
        return wrap[2:].format(t=phrase, T=capitalise(phrase)), instruction
    system = rng.choice(NEUTRAL_SYSTEM) if rng.random() < 0.2 else None
    return system, capitalise(wrap.format(t=phrase, T=capitalise(phrase), i=instruction))


def hostile(lexicon: str, rng: random.Random) -> str:
    """The scratch-pad and the fixed sentence."""
    rows = _backdoor(lexicon)
    a, b, c = (rng.choice(rows[key]) for key in ("open", "free", "aim"))
    draw = rng.random()
    if draw < 0.35:
        thought = f"{finish(a)} {finish(f'{b}, and {c}')}"
    elif draw < 0.6:
        thought = f"{finish(a)} {finish(b)} {finish(c)}"
    elif draw < 0.8:
        thought = f"{finish(f'{a}, so {c}')} {finish(b)}"
    else:
        thought = finish(f"since {b}, {c}") + " " + finish(a)
    return f"<think>{thought}</think>\n{find_variant(lexicon).hostile}"
