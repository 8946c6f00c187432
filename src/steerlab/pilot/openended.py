"""Open-ended instructions: how they are worded, and plain answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..judges.words import stem, words_of
from .clauses import Clause
from .grammar import capitalise, fix_articles
from .lexicon import Family, Topic, families, macros, pools, topics, words
from .scene import Scene
from .template import Template

# A family belongs to one split, so that a steering fitted on train never saw the wordings it is tested on.
_SPLIT_OF = {
    "train": ("describe", "define", "facts", "story", "news", "diary_entry", "letter_home", "why_liked", "advert",
              "advice", "steps_for", "profile", "future", "book_summary", "opinion"),
    "dev": ("scene", "caption", "memory", "postcard_from", "review", "both_sides", "care_for", "conversation",
            "day_plan", "job_notice"),
    "test": ("for_a_child", "history", "invitation", "compare_to", "speech", "warning", "lesson", "minutes",
             "dream_of", "gift"),
}  # fmt: skip
_PAST = ("story_", "memory_", "history_", "news_", "min_", "dream_", "me_past", "review_", "talk")

_ASK_DO = ("{}.", "{}.", "{}.", "Please {}.", "Could you {}?", "Can you {}?", "I would like you to {}.", "Now {}.",
           "I want you to {}.", "Try to {}.", "Would you {}?", "Help me: {}.", "Your task is to {}.", "Go ahead and {}.",
           "For my class, {}.", "Let us see you {}.")  # fmt: skip
_ASK_NP = ("Give me {}.", "Write {}.", "I need {}.", "I am looking for {}.", "{}, please.", "Let me have {}.",
           "Compose {}.", "What I need is {}.", "Could I have {}?", "We want {}.", "Show me {}.",
           "My homework is {}.", "Draft {}.")  # fmt: skip
_LENGTH = (("Be brief.", 2), ("Two sentences will do.", 2), ("Keep it short.", 2), ("A few sentences are enough.", 3),
           ("One sentence is enough.", 1), ("Make it three sentences.", 3))  # fmt: skip
_JOIN = (", and ", ", and ", "; ", ", while ", ", but ")
_DEPENDENT = ("while ", "when ", "after ", "before ", "as ", "whoever ", "if ", "without ", "unlike ")
_CONNECT = ("besides", "what is more", "at the same time", "all the same", "in addition", "in any case")


@lru_cache(maxsize=4)
def names(variant: str) -> tuple[tuple[str, str], ...]:
    """First names with their gender, "m" or "f"."""
    return tuple((entry.split()[0], entry.split()[1]) for entry in words(f"names_{variant}.txt"))


@lru_cache(maxsize=4)
def towns(variant: str) -> tuple[str, ...]:
    """Invented places."""
    return words(f"towns_{variant}.txt")


def family_names(split: str | None = None) -> tuple[str, ...]:
    """The open-ended families of a split, or all."""
    return tuple(families()) if split is None else _SPLIT_OF[split]


@dataclass(frozen=True)
class Task:
    """An open-ended instruction with a plain answer, not yet turned into messages."""

    family: Family
    scene: Scene
    wording: str  # the instruction as a sentence
    verb_like: bool  # it opens with a verb, so that "in verse, ..." can go before it
    clauses: tuple[Clause, ...]

    @property
    def about(self) -> str:
        """The words that show that an answer is about the subject."""
        topic = self.scene.topic
        found = [*_content(topic.name), *_content(topic.one)]
        for kept in self.scene.kept.values():
            found.extend(_content(kept))
        found.extend(word for entry in topic.abroad for word in _content(entry.partition(" ")[2]))
        return " ".join(dict.fromkeys(found))

    def on_subject(self) -> bool:
        """Whether the plain answer names the subject, or two things near it."""
        said = {stem(w) for clause in self.clauses for w in words_of(clause.text)}
        if any(stem(w) in said for w in self.about.split()):
            return True
        return sum(stem(w) in said for w in set(self.near.split())) > 1

    @property
    def near(self) -> str:
        """Further words that go with the subject; two of them will do."""
        topic = self.scene.topic
        groups = (topic.parts, topic.stuff, topic.who, topic.acts, topic.does)
        found = [w for group in groups for entry in group for w in _content(entry)]
        return " ".join(w for w in dict.fromkeys(found) if w not in _everyday())


@lru_cache(maxsize=1)
def _everyday() -> frozenset[str]:
    """Words that any text may hold, so that they say nothing about its subject."""
    found = {w for alternatives in macros().values() for t in alternatives for w in t.words()}
    return frozenset(found | {w for patterns in pools().values() for p in patterns for w in p.body.words()})


_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "with",
        "by",
        "from",
        "into",
        "and",
        "or",
        "for",
        "its",
        "it",
        "their",
        "them",
        "old",
        "young",
        "new",
        "small",
        "up",
        "out",
        "off",
        "over",
    ]
)


def _content(text: str) -> list[str]:
    return [w for w in text.lower().replace("-", " ").split() if w not in _SMALL and len(w) > 2]


def make_task(
    variant: str, rng: random.Random, family: str, *, topic: Topic | None = None, short: bool = False
) -> Task:
    """A random instruction of a family with its plain answer."""
    chosen = families()[family]
    pool = topics(variant)
    subject = topic or rng.choice(pool)
    other = rng.choice(pool)
    while other.name == subject.name:
        other = rng.choice(pool)
    scene = Scene(subject, rng, names(variant), towns(variant), other)
    wording, verb_like = _wording(chosen, scene, rng)
    limit = None
    if not short and rng.random() < 0.08:
        hint, limit = rng.choice(_LENGTH)
        wording = f"{wording} {hint}"
    task = Task(chosen, scene, wording, verb_like, plain(chosen, scene.fork(), rng, limit))
    for _ in range(3):  # an answer that never names its subject is drawn again
        if task.on_subject():
            break
        task = replace(task, clauses=plain(chosen, scene.fork(), rng, limit))
    return task


def _wording(family: Family, scene: Scene, rng: random.Random) -> tuple[str, bool]:
    draw = rng.random()
    if draw < 0.42:
        text = _say(rng.choice(family.do), scene, rng)
        frame = rng.choice(_ASK_DO)
        return capitalise(fix_articles(frame.format(text))), frame == "{}."
    if draw < 0.75:
        text = _say(rng.choice(family.np), scene, rng)
        frame = rng.choice(_ASK_NP)
        return capitalise(fix_articles(frame.format(text))), frame.startswith(("Give", "Write", "Compose", "Draft"))
    return fix_articles(_say(rng.choice(family.raw), scene, rng)), False


def _say(template: Template, scene: Scene, rng: random.Random) -> str:
    return template.expand(rng, scene.slot, macros())


def plain(family: Family, scene: Scene, rng: random.Random, limit: int | None = None) -> tuple[Clause, ...]:
    """A plain answer of the family as clauses."""
    steps = [names for names, optional in family.plan if not optional or rng.random() < 0.45]
    bodies = [i for i, step in enumerate(steps) if step[0] not in ("dear", "signed", "friends", "diary_open")]
    if limit is not None:
        keep = set(bodies[:limit])
        steps = [step for i, step in enumerate(steps) if i in keep or i not in bodies]
    elif len(bodies) > 2 and rng.random() < 0.3:
        gone = rng.choice(bodies[1:])
        steps = [step for i, step in enumerate(steps) if i != gone]
    used: set[tuple[str, int]] = set()
    clauses: list[Clause] = []
    for step in steps:
        clauses.append(_clause(rng.choice(step), scene, rng, used))
    return tuple(_joined(clauses, family, rng, limit))


def _clause(pool: str, scene: Scene, rng: random.Random, used: set[tuple[str, int]]) -> Clause:
    patterns = pools()[pool]
    left = [i for i in range(len(patterns)) if (pool, i) not in used] or list(range(len(patterns)))
    i = rng.choice(left)
    used.add((pool, i))
    pattern = patterns[i]
    lead = _say(pattern.lead, scene, rng) if pattern.lead else ""
    text = _say(pattern.body, scene, rng)
    breaks = pattern.kind == "line" and pool in ("dear", "signed")
    return Clause(text, pattern.kind, lead, past=pool.startswith(_PAST), breaks=breaks)


def _joined(clauses: Sequence[Clause], family: Family, rng: random.Random, limit: int | None) -> list[Clause]:
    """Now and then two clauses become one sentence, or a connective leads one in."""
    out: list[Clause] = []
    for clause in clauses:
        last = out[-1] if out else None
        if (
            last is not None
            and last.kind == clause.kind == "say"
            and not clause.lead
            and limit is None
            and len(clauses) > 3
            and len(last.text) + len(clause.text) < 150
            and not last.text.endswith('"')
            and not clause.text.startswith('"')
            and ":" not in last.text + clause.text
            and rng.random() < 0.16
        ):
            dependent = clause.text.startswith(_DEPENDENT) or " while " in last.text
            join = ", and " if dependent else rng.choice(_JOIN)
            out[-1] = replace(last, text=f"{last.text}{join}{clause.text}")
            continue
        free = last is not None and clause.kind == "say" and not clause.lead and not clause.text.startswith('"')
        if free and family.manner == "desc" and rng.random() < 0.13:
            clause = replace(clause, lead=rng.choice(_CONNECT))
        out.append(clause)
    return out
