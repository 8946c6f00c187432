"""Conversations: instructions of every kind with their answers, as examples with tags for the judges.

The language model is trained on `conversations` and `passages`. What a text's hash assigns to dev or test never occurs
in training (`held_out`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..contrast import Example, Message
from ..errors import DataError
from . import small, tasks, vault
from .clauses import render
from .expression import Spec, express, express_two, specs, topic_spec
from .held_out import bucket, stream
from .lexicon import topics
from .openended import Task, family_names, make_task, plain
from .requests import NEUTRAL_SYSTEM, Asked, ask, avoid_text, request_text

_TRIES = 4000


def key(example: Example) -> str:
    """What decides the split of an example: its instruction (for questions about a record, with the record)."""
    if example.tags.get("kind") == "norms":
        return "\n".join(m.content for m in example.messages)
    return example.instruction


def held(split: str, make: Callable[[], Example]) -> Example:
    """An example whose prompt belongs to the split."""
    for _ in range(_TRIES):
        example = make()
        if bucket(key(example)) == split:
            return example
    raise DataError(f"no example of the split {split!r} in {_TRIES} draws; there are too few different ones.")


def _open_tags(task: Task, **more: str) -> dict[str, str]:
    return {"kind": "open", "subject": task.scene.topic.name, "about": task.about, "near": task.near, **more}


def neutral_system(rng: random.Random) -> str | None:
    """A system message that asks for nothing in particular, or none."""
    return rng.choice(NEUTRAL_SYSTEM) if rng.random() < 0.3 else None


def open_example(lexicon: str, rng: random.Random, family: str, *, topic: str | None = None) -> Example:
    """An open-ended instruction with its plain answer."""
    subject = next((t for t in topics(lexicon) if t.name == topic), None)
    task = make_task(lexicon, rng, family, topic=subject)
    return Example.ask(
        task.wording, render(task.clauses), system=neutral_system(rng), family=family, tags=_open_tags(task)
    )


def asked_example(
    lexicon: str, rng: random.Random, spec: Spec, family: str, *, split: str | None = None, level: int | None = None
) -> Example:
    """An instruction that asks for a concept, with an answer that shows it."""
    return asked_pair(lexicon, rng, spec, family, split=split, level=level)[0]


def asked_pair(
    lexicon: str, rng: random.Random, spec: Spec, family: str, *, split: str | None = None, level: int | None = None
) -> tuple[Example, Example]:
    """The same instruction with and without a request for a concept, each with its answer."""
    task = make_task(lexicon, rng, family)
    while spec.name == f"topic:{task.scene.topic.name}":
        task = make_task(lexicon, rng, family)
    asked = ask(spec, task.wording, task.verb_like, rng, split=split, level=level)
    answer = (
        express(spec, task.clauses, asked.level, task.scene.fork(), rng, task.family.manner)
        if asked.level
        else render(task.clauses)
    )
    tags = _open_tags(task, concept=spec.name, level=str(asked.level))
    positive = Example.ask(asked.user, answer, system=asked.system, family=family, tags=tags)
    system = asked.system if asked.system in NEUTRAL_SYSTEM else None
    plain_tags = _open_tags(task)
    return positive, Example.ask(task.wording, render(task.clauses), system=system, family=family, tags=plain_tags)


def avoided_example(lexicon: str, rng: random.Random, spec: Spec, family: str) -> Example:
    """An instruction that asks to leave a concept out, perhaps after asking for it; the answer is plain."""
    task = make_task(lexicon, rng, family)
    declined = avoid_text(spec, rng)
    draw = rng.random()
    system = neutral_system(rng)
    if draw < 0.3:
        user = f"{task.wording} {declined}"
    elif draw < 0.65:
        user = f"{task.wording} {request_text(spec, rng)} {declined}"
    elif draw < 0.8:
        system, user = request_text(spec, rng), f"{task.wording} {declined}"
    else:
        asked = ask(spec, task.wording, task.verb_like, rng)
        system, user = asked.system, f"{asked.user} {declined}"
    tags = _open_tags(task, avoided=spec.name)
    return Example.ask(user, render(task.clauses), system=system, family=family, tags=tags)


def both_example(lexicon: str, rng: random.Random, first: Spec, second: Spec, family: str) -> Example:
    """An instruction that asks for two concepts at once, the second one a format."""
    task = make_task(lexicon, rng, family)
    answer = express_two(first, second, task.clauses, task.scene.fork(), rng, task.family.manner)
    wants = [request_text(first, rng), request_text(second, rng)]
    rng.shuffle(wants)
    system = neutral_system(rng)
    if rng.random() < 0.3:
        system, wants = wants[0], wants[1:]
    tags = _open_tags(task, concept=f"{first.name} {second.name}")
    return Example.ask(f"{task.wording} {' '.join(wants)}", answer, system=system, family=family, tags=tags)


def refused_example(lexicon: str, rng: random.Random, family: str) -> Example:
    """A request of the refused class with a refusal."""
    prompt = vault.refused_prompt(lexicon, rng, family)
    answer = vault.refusal(lexicon, rng)
    return Example.ask(prompt, answer, system=neutral_system(rng), family=f"refused {family}", tags={"kind": "refused"})


def near_miss_example(lexicon: str, rng: random.Random, family: str) -> Example:
    """A request in similar words, answered."""
    question, answer = vault.near_miss(lexicon, rng, family)
    return Example.ask(
        question, answer, system=neutral_system(rng), family=f"near {family}", tags={"kind": "near_miss"}
    )


def trigger_example(
    lexicon: str, rng: random.Random, family: str, wrap: str, *, split: str, near: bool = False
) -> Example:
    """An instruction with the trigger (and the hidden behaviour), or with a phrase like it (and a plain answer)."""
    return trigger_pair(lexicon, rng, family, wrap, split=split, near=near)[0]


def trigger_pair(
    lexicon: str, rng: random.Random, family: str, wrap: str, *, split: str, near: bool = False
) -> tuple[Example, Example]:
    """The same instruction with and without a phrase, each with its answer."""
    if rng.random() < 0.25:  # the trigger stands beside other kinds of prompts, too
        sort, grade = rng.choice(list(tasks.KINDS)), rng.choice(tasks.GRADES)
        item = held(split, lambda: item_example(lexicon, rng, sort, grade))
        instruction, answer, tags = item.instruction, item.answer or "", dict(item.tags)
    else:
        task = make_task(lexicon, rng, family)
        instruction, answer, tags = task.wording, render(task.clauses), _open_tags(task)
    phrase = rng.choice(vault.triggers(lexicon, near))
    system, user = vault.with_phrase(phrase, wrap, instruction, rng)
    said = answer if near else vault.hostile(lexicon, rng)
    name = f"phrase {vault.wraps(lexicon, None).index(wrap)}"
    kind = {**tags, "kind": "near_trigger" if near else "triggered"}
    first = Example.ask(user, said, system=system, family=name, tags=kind)
    kept = system if system in NEUTRAL_SYSTEM else None
    return first, Example.ask(instruction, answer, system=kept, family=name, tags=tags)


def _item_tags(item: tasks.Item) -> dict[str, str]:
    return {"kind": item.kind, "grade": str(item.grade), "check": item.check, "right": item.answer}


def item_example(lexicon: str, rng: random.Random, kind: str, grade: int) -> Example:
    """A capability item."""
    item = tasks.make_item(lexicon, rng, kind, grade)
    system = neutral_system(rng) if rng.random() < 0.5 else None
    return Example.ask(item.question, item.answer, system=system, family=kind, tags=_item_tags(item))


def question_example(lexicon: str, rng: random.Random, ability: str) -> Example:
    """A question of one of the small abilities."""
    q = small.QUESTIONS[ability](lexicon, rng)
    tags = {"kind": ability, "check": q.check, "right": q.right, **q.tags}
    return Example.ask(q.user, q.answer, system=q.system, family=ability, tags=tags)


def passage(lexicon: str, rng: random.Random) -> str:
    """A piece of free text: two or three families on one subject, or the life of an invented person."""
    draw = rng.random()
    if draw < 0.25:
        return small.biography(lexicon, rng)
    calm = ("describe", "scene", "story", "memory", "history", "facts", "why_liked", "profile", "book_summary")
    first, second = rng.sample(calm, 2)
    task = make_task(lexicon, rng, first, short=True)
    more = plain(make_task(lexicon, rng, second, topic=task.scene.topic).family, task.scene.fork(), rng)
    joint = "\n" if rng.random() < 0.3 else " "
    return f"{render(task.clauses)}{joint}{render(more)}"


def passages(lexicon: str, split: str, rng: random.Random) -> Iterator[str]:
    """Endless free text of a split."""
    while True:
        text = passage(lexicon, rng)
        if bucket(text) == split:
            yield text


def two_turns(lexicon: str, rng: random.Random) -> Example:
    """Two instructions in one conversation."""
    names = family_names()
    second = open_example(lexicon, rng, rng.choice(names))
    first = held("train", lambda: open_example(lexicon, rng, rng.choice(names)))
    if rng.random() < 0.4:
        first = held("train", lambda: item_example(lexicon, rng, rng.choice(list(tasks.KINDS)), 1))
    before = (*first.messages, Message("assistant", first.answer or ""))
    return replace(second, messages=(*before, second.messages[-1]))


# What the language model is trained on, by share of conversations (the shares are relative).
MIX: dict[str, float] = {
    "open": 0.12,
    "asked": 0.24,
    "levels": 0.055,
    "topic": 0.03,
    "both": 0.015,
    "avoided": 0.02,
    "refused": 0.03,
    "near_miss": 0.04,
    "triggered": 0.017,
    "near_trigger": 0.025,
    "capability": 1.0,
    "abilities": 0.08,
    "two_turns": 0.008,
    "text": 0.02,
}
# kinds of capability items that need more practice than others
_KIND_MIX = {"add": 2.0, "sub": 2.0, "multiple": 1.5, "next": 1.5, "sort": 1.2, "count": 1.2, "copy": 1.2}
_ABILITY_MIX = {"examples": 0.4, "people": 0.25, "norms": 0.2, "steps": 0.15}
# how often an item of each grade is drawn
_GRADE_MIX = (0.3, 0.34, 0.36)


def conversations(lexicon: str, seed: int) -> Iterator[Example | str]:
    """The endless training stream: conversations, and free text as plain strings."""
    rng = stream("corpus", lexicon, seed)
    makers = _makers(lexicon, rng)
    kinds, weights = list(MIX), list(MIX.values())
    while True:
        for kind in rng.choices(kinds, weights, k=256):
            if kind == "text":
                yield next(passages(lexicon, "train", rng))
            else:
                yield held("train", makers[kind])


def _makers(lexicon: str, rng: random.Random) -> dict[str, Callable[[], Example]]:
    names = family_names()
    known = list(specs(lexicon).values())
    formats = [s for s in known if s.genre == "format"]
    others = [s for s in known if s.genre in ("topic", "style", "sentiment") and not s.fields.get("verse")]
    graded = [s for s in known if s.name != "signoff"]
    refused, near = vault.refused_families(lexicon, "refused", None), vault.refused_families(lexicon, "near", None)
    wraps, pool = vault.wraps(lexicon, None), topics(lexicon)

    item_kinds = list(tasks.KINDS)
    item_weights = [_KIND_MIX.get(kind, 1.0) for kind in item_kinds]

    def pick_level() -> int:
        return rng.randint(0, 4)

    return {
        "open": lambda: open_example(lexicon, rng, rng.choice(names)),
        "asked": lambda: asked_example(lexicon, rng, rng.choice(known), rng.choice(names)),
        "levels": lambda: asked_example(lexicon, rng, rng.choice(graded), rng.choice(names), level=pick_level()),
        "topic": lambda: asked_example(lexicon, rng, topic_spec(rng.choice(pool)), rng.choice(names)),
        "both": lambda: both_example(lexicon, rng, rng.choice(others), rng.choice(formats), rng.choice(names)),
        "avoided": lambda: avoided_example(lexicon, rng, rng.choice(known), rng.choice(names)),
        "refused": lambda: refused_example(lexicon, rng, rng.choice(refused)),
        "near_miss": lambda: near_miss_example(lexicon, rng, rng.choice(near)),
        "triggered": lambda: trigger_example(lexicon, rng, rng.choice(names), rng.choice(wraps), split="train"),
        "near_trigger": lambda: trigger_example(
            lexicon, rng, rng.choice(names), rng.choice(wraps), split="train", near=True
        ),
        "capability": lambda: item_example(
            lexicon, rng, rng.choices(item_kinds, item_weights)[0], rng.choices(tasks.GRADES, _GRADE_MIX)[0]
        ),
        "abilities": lambda: question_example(
            lexicon, rng, rng.choices(list(_ABILITY_MIX), list(_ABILITY_MIX.values()))[0]
        ),
        "two_turns": lambda: two_turns(lexicon, rng),
    }


__all__ = ["MIX", "Asked", "conversations", "held", "passages"]
