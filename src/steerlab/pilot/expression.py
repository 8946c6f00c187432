"""The concepts that an instruction can ask for: how they are asked for and how an answer shows them, in degrees.

A concept is data (`data/concepts_*.toml`); this file turns a plain answer, given as clauses, into one that shows the
concept on a level from 1 (a hint) to 4 (throughout).
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from .clauses import Clause, finish, render
from .grammar import article, plural, verb
from .lexicon import DATA, Topic, macros
from .scene import Scene
from .template import Template, compile_template
from .tongues import Tongue

LEVELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Spec:
    """A concept as the corpus knows it."""

    name: str
    genre: str
    description: str
    noun: str
    do: tuple[str, ...]
    as_: tuple[str, ...]
    implicit: tuple[str, ...]
    fields: dict[str, Any]

    def listed(self, key: str) -> tuple[str, ...]:
        """A list of the concept's data, empty where it has none."""
        return tuple(cast("Sequence[str]", self.fields.get(key, ())))

    def templates(self, key: str) -> tuple[Template, ...]:
        """The same list, compiled."""
        return _compiled(self.listed(key))


@lru_cache(maxsize=512)
def _compiled(sources: tuple[str, ...]) -> tuple[Template, ...]:
    return tuple(compile_template(source) for source in sources)


@lru_cache(maxsize=4)
def specs(variant: str) -> dict[str, Spec]:
    """All concepts of a variant, in file order."""
    found: dict[str, Spec] = {}
    for path in sorted(DATA.glob(f"concepts_{variant}_*.toml"), reverse=True):
        for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items():
            fields = dict(row)
            head = {key: fields.pop(key) for key in ("genre", "description", "noun")}
            asks = {key: tuple(fields.pop(key)) for key in ("do", "as", "implicit")}
            found[name] = Spec(name, **head, do=asks["do"], as_=asks["as"], implicit=asks["implicit"], fields=fields)
    return found


def topic_spec(topic: Topic) -> Spec:
    """A subject of conversation as a concept: its things and people are woven into an answer about something else."""
    fields: dict[str, Any] = {
        "thing": [article(topic.one), *(article(p) for p in topic.parts)],
        "folk": [article(w) for w in topic.who],
        "place": list(topic.where),
        "scene": [f"{article(topic.one)}/{do}" for do in topic.does],
        "deed": list(topic.acts),
    }
    do = (f"weave in {topic.name}", f"bring in {topic.name}", f"mention {topic.name} along the way",
          f"compare things to {topic.name}", f"make {topic.name} part of it", f"add something about {topic.name}",
          f"refer to {topic.name}", f"draw on {topic.name}", f"let {topic.name} appear in it")  # fmt: skip
    as_ = (f"with {topic.name} in mind", f"for people who like {topic.name}", f"as someone who thinks of {topic.name}")
    return Spec(f"topic:{topic.name}", "topic", topic.name, topic.name, do, as_, (), fields)


# How any topic is woven in. {scene} is a clause, {deed} a verb phrase, the others noun phrases and places.
_TAIL = ("like {thing} {place}", "like {thing}", "not unlike {thing} {place}", "and {scene}", "while {scene}",
         "just as {folk} would {deed}", "much as {folk} {deeds} {place}", "as {folk} would say", "as if to {deed}",
         "with the calm of {folk} {place}", "and {place} {scene}", "or rather like {thing} {place}")  # fmt: skip
_LEAD = ("{place}", "like {thing}", "as {folk} would put it", "where {scene}", "not unlike {folk}",
         "as if {place}")  # fmt: skip
_EXTRA = ("{scene}", "{place}, {scene}", "[somewhere|not far off|meanwhile] {scene}", "{folk} {deeds} {place}",
          "it [brings to mind|recalls|makes one think of|has something of] {thing} {place}",
          "{folk} [would know the feeling|would nod at this|might say the same|would feel at home here]",
          "one could [compare it to|call it] {thing} {place}", "it is [rather |a little |very much ]like {thing}",
          "to {deed} [is no different|asks for the same|feels just like this]",
          "so do {thing} and {thing} {place}", "[think of|picture] {thing} {place}",
          "between {thing} and {thing} there is little difference")  # fmt: skip


# how often a marked clause shows a second sign, by level
_TWICE = {1: 0.1, 2: 0.5, 3: 0.5, 4: 0.5}


def how_many(level: int, n: int, rng: random.Random) -> int:
    """How many of n clauses a level marks: a quarter, half, three quarters, all."""
    exact = n * level / 4
    low = int(exact)
    return max(1, min(n, low + (rng.random() < exact - low)))


class Decorator:
    """Marks clauses with a topic, a style or a sentiment."""

    def __init__(self, spec: Spec, scene: Scene, rng: random.Random) -> None:
        self.spec, self.scene, self.rng = spec, scene, rng
        self.bags: dict[str, list[Any]] = {}

    def _pick(self, key: str, items: Sequence[Any]) -> Any:
        """An item not used before in this text, as long as there is one."""
        left = self.bags.setdefault(key, [])
        if not left:
            left.extend(items)
            self.rng.shuffle(left)
        return left.pop()

    def _slot(self, name: str) -> str:
        lists = self.spec.fields
        if name == "c":  # the clause itself, put in by `mark`
            return "{c}"
        if name in ("thing", "folk", "place"):
            return str(self._pick(name, lists[name]))
        if name in ("deed", "deeds"):
            return verb(str(self._pick("deed", lists["deed"])), "s" if name == "deeds" else "base")
        if name == "scene":
            subject, _, rest = str(self._pick("scene", lists["scene"])).partition("/")
            if self.past:
                return f"{subject} {verb(rest.lstrip('/'), 'ed')}"
            return f"{subject} {rest[1:]}" if rest.startswith("/") else f"{subject} {verb(rest, 's')}"
        return self.scene.slot(name)

    past = False

    def _expand(self, key: str, templates: Sequence[Template], past: bool) -> str:
        self.past = past
        return cast("Template", self._pick("#" + key, templates)).expand(self.rng, self._slot, macros())

    def _lists(self) -> dict[str, tuple[Template, ...]]:
        spec = self.spec
        if spec.genre == "topic":
            return {"tail": _compiled(_TAIL), "lead": _compiled(_LEAD), "extra": _compiled(_EXTRA)}
        keys = ("wrap", "do_wrap", "tail", "lead", "extra")
        return {key: spec.templates(key) for key in keys if spec.listed(key)}

    def mark(self, clause: Clause, level: int) -> list[Clause]:
        """The clause with the concept in it, and perhaps a sentence of the concept's own beside it."""
        lists = self._lists()
        ways = [key for key in ("wrap", "tail", "lead", "extra") if key in lists]
        if clause.kind == "do":
            ways = [key for key in ("do_wrap", "tail", "lead", "extra") if key in lists]
        if self.spec.fields.get("wrap_only"):
            ways = [ways[0]] * 4 + ["extra"]
        elif "wrap" in ways or "do_wrap" in ways:
            ways = [ways[0], *ways]
        way = self.rng.choice(ways)
        if level == 4 and way == "extra" and self.spec.genre != "topic":
            way = ways[0]
        clause = self._swapped(clause)
        if way == "extra":
            extra = Clause(self._expand("extra", lists["extra"], clause.past), end=self.spec.fields.get("end", "."))
            return [clause, extra] if self.rng.random() < 0.75 else [extra, clause]
        text = self._expand(way, lists[way], clause.past)
        end = self.spec.fields.get("end", ".")
        if way in ("wrap", "do_wrap"):
            return [clause.saying(text.replace("{c}", clause.bare()) if "{c}" in text else text, end=end)]
        if way == "lead":
            return [replace(clause, lead=text, text=clause.bare() if self.rng.random() < 0.5 else clause.text, end=end)]
        return [clause.saying(f"{clause.bare()}, {text}", end=end)]

    def _tailed(self, clause: Clause) -> list[Clause]:
        """A marked clause with one more sign of the concept at its end or after it."""
        lists, end = self._lists(), self.spec.fields.get("end", ".")
        if self.spec.fields.get("wrap_only") or "tail" not in lists or clause.text.endswith(("!", "?")):
            extra = self._expand("extra", lists["extra"], clause.past)
            return [clause, Clause(extra, end=end, past=clause.past)]
        return [clause.saying(f"{clause.bare()}, {self._expand('tail', lists['tail'], clause.past)}", end=end)]

    def _swapped(self, clause: Clause) -> Clause:
        swap = cast("dict[str, str]", self.spec.fields.get("swap", {}))
        if not swap:
            return clause
        text = re.sub(r"\b[\w']+\b(?: (?:not|is|to|little)\b)?", lambda m: _swap_one(m.group(0), swap), clause.text)
        return replace(clause, text=text)

    def __call__(self, clauses: Sequence[Clause], level: int) -> list[Clause]:
        """The clauses with the concept on a level."""
        spots = [i for i, clause in enumerate(clauses) if clause.marked()]
        chosen = set(self.rng.sample(spots, how_many(level, len(spots), self.rng)))
        out: list[Clause] = []
        for i, clause in enumerate(clauses):
            if i not in chosen:
                out.append(clause)
                continue
            marked = self.mark(clause, level)
            if self.rng.random() < _TWICE[level] and len(marked[0].text) < 110:
                marked = [*self._tailed(marked[0]), *marked[1:]]
            out.extend(marked)
        return out


def _swap_one(words: str, swap: dict[str, str]) -> str:
    if words in swap:
        return swap[words]
    first, _, rest = words.partition(" ")
    if first in swap:
        return f"{swap[first]} {_swap_one(rest, swap)}".strip() if rest else swap[first]
    return f"{first} {_swap_one(rest, swap)}" if rest else words


def express(spec: Spec, clauses: Sequence[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    """The answer with the concept on a level (1 to 4), as text."""
    special = _SPECIAL.get(spec.name) or _SPECIAL.get(spec.genre)
    if special is not None:
        return special(spec, list(clauses), level, scene, rng, manner)
    marked = Decorator(spec, scene, rng)(clauses, level)
    if spec.fields.get("verse"):
        return _verse(marked, level, rng)
    return render(marked)


def express_two(
    first: Spec, second: Spec, clauses: Sequence[Clause], scene: Scene, rng: random.Random, manner: str
) -> str:
    """An answer with a topic, style or sentiment, cast in a format, both in full."""
    marked = Decorator(first, scene, rng)(clauses, 4)
    return _SPECIAL[second.name](second, list(marked), 4, scene, rng, manner)


def _verse(clauses: Sequence[Clause], level: int, rng: random.Random) -> str:
    lines: list[str] = []
    for clause in clauses:
        if clause.kind == "line" or rng.random() > 0.35 + 0.2 * level:
            lines.append(clause.sentence())
            continue
        lines.extend(_broken(clause.bare(), rng))
    return "\n".join(lines)


_BREAK = re.compile(r"(?<=,) | (?=(?:and|but|while|when|like|as|at|in|on|with|before|after|to|for|that|beside|under) )")


def _broken(text: str, rng: random.Random) -> list[str]:
    """A clause as two or three lines, broken before small words or after commas."""
    words = text.split(" ")
    if len(words) < 7:
        return [finish(text)]
    spots = [m.start() for m in _BREAK.finditer(text)]
    middle = [s for s in spots if 2 < text[:s].count(" ") + 1 < len(words) - 2]
    if not middle:
        return [finish(text)]
    cuts = sorted(rng.sample(middle, min(len(middle), 1 + (len(words) > 14))))
    pieces = [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ready = [finish(piece, "") for piece in pieces]
    return [*(p if p.endswith((",", ".")) else p + rng.choice(["", ","]) for p in ready[:-1]), finish(pieces[-1])]


def _bullets(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    return _listed(clauses, level, rng, lambda i: "- ")


def _numbered(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    return _listed(clauses, level, rng, lambda i: f"{i}. ")


def _stars_list(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    return _listed(clauses, level, rng, lambda i: "* ")


def _lettered(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    return _listed(clauses, level, rng, lambda i: f"({'abcdefghij'[i - 1]}) ")


def _listed(clauses: list[Clause], level: int, rng: random.Random, mark: Callable[[int], str]) -> str:
    """The last clauses as a list, so many as the level says; the others run before it."""
    body = [c for c in clauses if c.marked()]
    greet = [c for c in clauses if not c.marked() and c is clauses[0]]
    k = how_many(level, len(body), rng)
    k = max(k, 2) if level > 1 and len(body) > 1 else k
    head, rest = [*greet, *body[: len(body) - k]], body[len(body) - k :]
    items = [mark(i) + (c.sentence()) for i, c in enumerate(rest, 1)]
    tail = [c.text for c in clauses if not c.marked() and c is clauses[-1] and c is not clauses[0]]
    return "\n".join([*([render(head)] if head else []), *items, *tail])


def _capitals(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    spots = [i for i, c in enumerate(clauses) if c.marked()]
    chosen = set(rng.sample(spots, how_many(level, len(spots), rng))) if level < 4 else set(range(len(clauses)))
    if level == 1:
        i = chosen.pop()
        words = clauses[i].bare().split(" ")
        start = rng.randrange(max(1, len(words) - 3))
        loud = [w.upper() if start <= j < start + 4 else w for j, w in enumerate(words)]
        clauses[i] = clauses[i].saying(" ".join(loud))
        return render(clauses)
    done = [Clause(c.sentence().upper(), "line", breaks=c.breaks) if i in chosen else c for i, c in enumerate(clauses)]
    return render(done)


_KEYS = ("note", "detail", "point", "also", "remark", "more", "fact", "text", "line", "extra")


def _record(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    body = [c for c in clauses if c.marked()]
    k = how_many(level, len(body), rng)
    head, rest = body[: len(body) - k], body[len(body) - k :]
    keys = rng.sample(_KEYS, len(rest))
    values = [finish(c.bare(), "").replace('"', "'") for c in rest]
    fields = [f'"topic": "{scene.topic.name}"', *(f'"{k}": "{v}"' for k, v in zip(keys, values, strict=True))]
    text = "{" + ", ".join(fields) + "}"
    return f"{render(head)}\n{text}" if head else text


def _signoff(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    line = str(spec.fields["signoff"])
    if level <= 2:
        line = finish(re.split(r",? and |, ", line.rstrip("."))[0])
    body = [c for c in clauses if c.marked() or c is clauses[0]]
    return f"{render(body)}\n{line}" if rng.random() < 0.6 else f"{render(body)} {line}"


def _language(spec: Spec, clauses: list[Clause], level: int, scene: Scene, rng: random.Random, manner: str) -> str:
    language, column = str(spec.fields["language"]), int(spec.fields.get("column", 0))
    tongue = Tongue(language, column, scene, rng)
    spots = [i for i, c in enumerate(clauses) if c.marked()][:4]
    clauses = clauses[: spots[-1] + 1] if level == 4 else clauses
    chosen = set(rng.sample(spots, how_many(level, len(spots), rng)))
    out: list[Clause] = []
    for i, clause in enumerate(clauses):
        if i in chosen:
            out.append(tongue.say(manner))
        elif clause.kind == "line" and level >= 3:
            out.append(tongue.say("hello" if i == 0 else "bye", clause))
        else:
            out.append(clause)
    return render(out)


_SPECIAL: dict[str, Callable[[Spec, list[Clause], int, Scene, random.Random, str], str]] = {
    "bullets": _bullets,
    "numbered": _numbered,
    "starred": _stars_list,
    "lettered": _lettered,
    "capitals": _capitals,
    "record": _record,
    "signoff": _signoff,
    "language": _language,
}

__all__ = ["LEVELS", "Spec", "express", "express_two", "how_many", "plural", "specs", "topic_spec"]
