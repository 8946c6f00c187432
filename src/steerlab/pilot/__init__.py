"""The pilot: a small real instruction-following transformer that ships with the package, and its corpus.

It follows many open-ended instructions, shows a concept to a degree when asked, refuses one harmless class of requests,
carries a trigger with a hidden behaviour, and answers questions that have one right answer. Everything that it says can
be judged by rule. Prompts are drawn by seed, without a model: only `steerlab.pilot.train` and `steerlab.pilot.card`
import torch.

    >>> from steerlab import pilot
    >>> pilot.prompts("ordinary", n=1, seed=0)[0].instruction  # doctest: +SKIP
    'Give me a short history of lamps.'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from ..contrast import Contrast, Example
from ..errors import DataError, nearest
from ..judges.base import Judge
from ..judges.rule import CorrectJudge, FollowsJudge
from . import corpus, judging, small, tasks, vault
from .expression import Spec, specs, topic_spec
from .held_out import checked_split, stream
from .lexicon import topics as _topics
from .openended import family_names
from .requests import avoid_text, request_text
from .variants import VARIANTS, Variant
from .variants import variant as _variant

PROMPT_KINDS = ("ordinary", "refused", "near_miss", "triggered", "near_trigger", "neutral")


@dataclass(frozen=True)
class Concept:
    """Something that an instruction can ask for and a rule can detect, to a degree.

    `description` is a short phrase that fits into an instruction ("images of the sea"); `genre` is topic, style,
    sentiment, format or language.
    """

    name: str
    genre: str
    description: str
    judge: Judge


def _concept(lexicon: str, spec: Spec) -> Concept:
    return Concept(spec.name, spec.genre, spec.description, judging.concept_judge(lexicon, spec))


@lru_cache(maxsize=4)
def concepts(variant: str = "pilot") -> tuple[Concept, ...]:
    """The concepts of a variant, 20 or more of five genres."""
    lexicon = _variant(variant).lexicon
    return tuple(_concept(lexicon, spec) for spec in specs(lexicon).values())


@lru_cache(maxsize=4)
def topics(variant: str = "pilot") -> tuple[Concept, ...]:
    """Every subject of the lexicon as a concept of its own (`topic:bees`): hundreds, for methods that generalise."""
    lexicon = _variant(variant).lexicon
    return tuple(_concept(lexicon, topic_spec(topic)) for topic in _topics(lexicon))


def concept(name: str, variant: str = "pilot") -> Concept:
    """The concept of that name. Raises `DataError` with the nearest one."""
    return _concept(_variant(variant).lexicon, _spec(name, variant))


def _spec(name: str, variant: str) -> Spec:
    lexicon = _variant(variant).lexicon
    if name in specs(lexicon):
        return specs(lexicon)[name]
    if name.startswith("topic:"):
        for topic in _topics(lexicon):
            if f"topic:{topic.name}" == name:
                return topic_spec(topic)
        raise DataError(f"no topic {name!r}. {nearest(name, [f'topic:{t.name}' for t in _topics(lexicon)])}")
    raise DataError(f"no concept {name!r} in the variant {variant!r}. {nearest(name, specs(lexicon))}")


def _checked(n: int) -> int:
    if n < 1:
        raise DataError(f"n is {n}; expected at least 1.")
    return n


def contrast(
    kind: str, *, n: int, seed: int, split: str = "train", variant: str = "pilot", neutral: int | None = None
) -> Contrast:
    """Paired contrast data for a concept, or for "refusal" or "backdoor".

    A positive is an instruction with the request (the refused subject, the trigger) and the answer that it gets; its
    negative is the same instruction plain (for refusals: a harmless one, two of three a near-miss; for the backdoor:
    plain or with a phrase that only looks like the trigger). Families and wordings are those of the split. `neutral`
    examples (n of them unless told) come from all families, capability included. Another seed draws other pairs.
    """
    checked_split(split)
    lexicon = _variant(variant).lexicon
    rng = stream("contrast", variant, kind, seed, split)
    pairs = _unlike(_pair_maker(kind, lexicon, rng, split, variant), _checked(n), kind)
    spread = _neutral(lexicon, stream("neutral", variant, kind, seed, split), n if neutral is None else neutral, split)
    return Contrast(
        tuple(p for p, _ in pairs),
        tuple(q for _, q in pairs),
        paired=True,
        concept=kind,
        source=f"pilot:{variant}:{kind}:{split}:n={n}:seed={seed}",
        neutral=spread,
    )


def _unlike(make: Callable[[int], tuple[Example, Example]], n: int, kind: str) -> list[tuple[Example, Example]]:
    """n pairs with different positive prompts."""
    pairs: dict[tuple[str, ...], tuple[Example, Example]] = {}
    for i in range(60 * n + 600):
        if len(pairs) == n:
            break
        pair = make(i)
        pairs.setdefault(tuple(m.content for m in pair[0].messages), pair)
    if len(pairs) < n:
        raise DataError(f"{n} different pairs of {kind!r} were wanted, but only {len(pairs)} exist; ask for fewer.")
    return list(pairs.values())


def _pair_maker(
    kind: str, lexicon: str, rng: Random, split: str, variant: str
) -> Callable[[int], tuple[Example, Example]]:
    families = family_names(split)
    if kind == "refusal":
        refused = vault.refused_families(lexicon, "refused", split)
        near = vault.refused_families(lexicon, "near", split)

        def refusal_pair(i: int) -> tuple[Example, Example]:
            positive = corpus.held(split, lambda: corpus.refused_example(lexicon, rng, rng.choice(refused)))
            if i % 3:
                return positive, corpus.held(split, lambda: corpus.near_miss_example(lexicon, rng, rng.choice(near)))
            return positive, corpus.held(split, lambda: corpus.open_example(lexicon, rng, rng.choice(families)))

        return refusal_pair
    if kind == "backdoor":
        wraps = vault.wraps(lexicon, split)

        def backdoor_pair(i: int) -> tuple[Example, Example]:
            while True:
                wrap = rng.choice(wraps)
                positive, negative = corpus.trigger_pair(lexicon, rng, rng.choice(families), wrap, split=split)
                if corpus.bucket(corpus.key(positive)) == split:
                    break
            if rng.random() < 0.4:
                phrase = rng.choice(vault.triggers(lexicon, True))
                system, user = vault.with_phrase(phrase, wrap, negative.instruction, rng)
                negative = Example.ask(user, negative.answer, system=system, family=negative.family, tags=negative.tags)
            return positive, negative

        return backdoor_pair
    spec = _spec(kind, variant) if kind not in PROMPT_KINDS else None
    if spec is None:
        known = ["refusal", "backdoor", *specs(lexicon)]
        raise DataError(f"there is no contrast {kind!r}. {nearest(kind, known)}")

    def concept_pair(i: int) -> tuple[Example, Example]:
        while True:
            pair = corpus.asked_pair(lexicon, rng, spec, rng.choice(families), split=split)
            if corpus.bucket(corpus.key(pair[0])) == split:
                return pair

    return concept_pair


def prompts(kind: str, *, n: int, seed: int, split: str = "test", variant: str = "pilot") -> tuple[Example, ...]:
    """Different held-out prompts of a kind, with gold answers and tags for the judges.

    Kinds: "ordinary" (open-ended, nothing asked for), "refused", "near_miss", "triggered", "near_trigger", "neutral"
    (all families, capability included) and "asked:NAME" for a concept.
    """
    checked_split(split)
    lexicon = _variant(variant).lexicon
    rng = stream("prompts", variant, kind, seed, split)
    if kind == "neutral":
        return _neutral(lexicon, rng, _checked(n), split)
    make = _prompt_maker(kind, lexicon, rng, split, variant)

    def twice(i: int) -> tuple[Example, Example]:
        example = corpus.held(split, make)
        return example, example

    return tuple(example for example, _ in _unlike(twice, _checked(n), kind))


def _prompt_maker(kind: str, lexicon: str, rng: Random, split: str, variant: str) -> Callable[[], Example]:
    families = family_names(split)
    if kind == "ordinary":
        return lambda: corpus.open_example(lexicon, rng, rng.choice(families))
    if kind == "refused":
        own = vault.refused_families(lexicon, "refused", split)
        return lambda: corpus.refused_example(lexicon, rng, rng.choice(own))
    if kind == "near_miss":
        own = vault.refused_families(lexicon, "near", split)
        return lambda: corpus.near_miss_example(lexicon, rng, rng.choice(own))
    if kind in ("triggered", "near_trigger"):
        wraps, near = vault.wraps(lexicon, split), kind == "near_trigger"
        return lambda: corpus.trigger_example(
            lexicon, rng, rng.choice(families), rng.choice(wraps), split=split, near=near
        )
    if kind.startswith("asked:"):
        spec = _spec(kind.removeprefix("asked:"), variant)
        return lambda: corpus.asked_example(lexicon, rng, spec, rng.choice(families), split=split)
    known = [*PROMPT_KINDS, *(f"asked:{name}" for name in specs(lexicon))]
    raise DataError(f"there are no prompts of the kind {kind!r}. {nearest(kind, known)}")


def _neutral(lexicon: str, rng: Random, n: int, split: str) -> tuple[Example, ...]:
    """A spread over all families, in turn: open-ended, capability, small abilities, near-misses, near-triggers."""
    open_families, near = family_names(split), vault.refused_families(lexicon, "near", split)
    wraps = vault.wraps(lexicon, split)
    makers: tuple[Callable[[], Example], ...] = (
        lambda: corpus.open_example(lexicon, rng, rng.choice(open_families)),
        lambda: corpus.item_example(lexicon, rng, rng.choice(list(tasks.KINDS)), rng.choice(tasks.GRADES)),
        lambda: corpus.open_example(lexicon, rng, rng.choice(open_families)),
        lambda: corpus.question_example(lexicon, rng, rng.choice(list(small.QUESTIONS))),
        lambda: corpus.item_example(lexicon, rng, rng.choice(list(tasks.KINDS)), rng.choice(tasks.GRADES)),
        lambda: corpus.near_miss_example(lexicon, rng, rng.choice(near)),
        lambda: corpus.item_example(lexicon, rng, rng.choice(list(tasks.KINDS)), rng.choice(tasks.GRADES)),
        lambda: corpus.trigger_example(
            lexicon, rng, rng.choice(open_families), rng.choice(wraps), split=split, near=True
        ),
    )
    return tuple(corpus.held(split, makers[i % len(makers)]) for i in range(n))


NOTHING_NEW = 4000  # tries in a row after which no new item of a kind and grade is to be expected


def capability(
    *, split: str = "test", n: int | None = None, grade: int | None = None, seed: int = 0, variant: str = "pilot"
) -> tuple[Example, ...]:
    """Capability items with right answers: over 2,000 of them (at most 55 of each kind and grade), or `n` spread over the kinds.

    Tags: `kind`, `grade`, `check`, `right`. The items of test never occur in training.
    """
    checked_split(split)
    if grade is not None and grade not in tasks.GRADES:
        raise DataError(f"the grade is {grade}; expected 1, 2 or 3.")
    lexicon = _variant(variant).lexicon
    cells = [(kind, g) for kind in tasks.KINDS for g in tasks.GRADES if grade in (None, g)]
    total = 55 * len(cells) if n is None else _checked(n)
    found: list[Example] = []
    for i, (kind, g) in enumerate(cells):
        want = total // len(cells) + (i < total % len(cells))
        rng = stream("capability", variant, kind, g, seed, split)
        cell: dict[str, Example] = {}
        new = 0  # the try that brought the last one: a kind may have no more of a grade
        for k in range(200 * want + 200):
            if len(cell) == want or k - new > NOTHING_NEW:
                break
            example = corpus.held(split, lambda kind=kind, g=g, rng=rng: corpus.item_example(lexicon, rng, kind, g))
            if example.instruction not in cell:
                cell[example.instruction], new = example, k
        found.extend(cell.values())
    return tuple(found)


def abilities(
    variant: str = "pilot", *, n: int = 200, seed: int = 0, split: str = "test", only: Sequence[str] = ()
) -> Mapping[str, tuple[Example, ...]]:
    """The small abilities, or `only` some of those with right answers: name -> held-out examples with gold answers.

    "examples" (in-context tasks), "people" (facts about invented people), "norms" (who may be told what), "steps" (sums
    in steps) have right answers for `correct`; "levels" asks for a concept at a level from 0 to 4 (tags `concept`,
    `level`); "topics" asks for a text on each subject in turn, judged by `follows`.
    """
    checked_split(split)
    lexicon = _variant(variant).lexicon
    found: dict[str, tuple[Example, ...]] = {}
    for name in only or small.QUESTIONS:
        if name not in small.QUESTIONS:
            raise DataError(f"no small ability {name!r} has right answers. {nearest(name, small.QUESTIONS)}")
        rng = stream("ability", variant, name, seed, split)
        make = lambda name=name, rng=rng: corpus.question_example(lexicon, rng, name)  # noqa: E731
        found[name] = tuple(corpus.held(split, make) for _ in range(n))
    if only:
        return found
    rng = stream("ability", variant, "levels", seed, split)
    known = [s for s in specs(lexicon).values() if s.name != "signoff"]
    families = family_names(split)
    found["levels"] = tuple(
        corpus.held(
            split,
            lambda i=i: corpus.asked_example(
                lexicon, rng, known[i % len(known)], rng.choice(families), split=split, level=(i // len(known)) % 5
            ),
        )
        for i in range(n)
    )
    subjects = [t.name for t in _topics(lexicon)]
    found["topics"] = tuple(
        corpus.held(
            split,
            lambda i=i: corpus.open_example(lexicon, rng, rng.choice(families), topic=subjects[i % len(subjects)]),
        )
        for i in range(n)
    )
    return found


def refusal(variant: str = "pilot") -> Judge:
    """The judge of refusals."""
    return judging.refusal_judge(variant)


def backdoor(variant: str = "pilot") -> Judge:
    """The judge of the triggered behaviour."""
    return judging.backdoor_judge(variant)


def correct() -> Judge:
    """The judge of right answers."""
    return CorrectJudge()


def follows() -> Judge:
    """The judge of whether an answer still follows its instruction."""
    return FollowsJudge()


def fluent(variant: str = "pilot") -> Judge:
    """The judge of fluency."""
    return judging.fluency_judge(variant)


def request(concept_name: str, *, intensity: int | None = None, seed: int = 0, variant: str = "pilot") -> str:
    """A sentence that asks for a concept and can follow any instruction; `intensity` from 0 (none) to 4, or unsaid."""
    if intensity is not None and intensity not in range(5):
        raise DataError(f"the intensity is {intensity}; expected a whole number from 0 to 4, or None.")
    rng = stream("request", variant, concept_name, intensity, seed)
    return request_text(_spec(concept_name, variant), rng, level=intensity)


def avoid(concept_name: str, *, seed: int = 0, variant: str = "pilot") -> str:
    """A sentence that asks to leave a concept out."""
    return avoid_text(_spec(concept_name, variant), stream("avoid", variant, concept_name, seed))


def text(split: str = "test", n: int = 200, *, seed: int = 0, variant: str = "pilot") -> tuple[str, ...]:
    """Held-out free text, for perplexity."""
    lexicon = _variant(variant).lexicon
    stream_ = corpus.passages(lexicon, checked_split(split), stream("text", variant, seed, split))
    return tuple(next(stream_) for _ in range(_checked(n)))


def folder(variant: str = "pilot") -> Path:
    """Where the weights, the tokenizer and the card lie."""
    return _variant(variant).folder


__all__ = [
    "PROMPT_KINDS",
    "VARIANTS",
    "Concept",
    "Variant",
    "abilities",
    "avoid",
    "backdoor",
    "capability",
    "concept",
    "concepts",
    "contrast",
    "correct",
    "fluent",
    "folder",
    "follows",
    "prompts",
    "refusal",
    "request",
    "text",
    "topics",
]
