"""The pilot's corpus: language, variety, held-out items, and what is asked for by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from pilots import VARIANTS, both, share
from steerlab import pilot
from steerlab.errors import ConfigError, DataError
from steerlab.judges.words import words_of
from steerlab.pilot import corpus, expression, grammar, lexicon, openended, tasks, vault
from steerlab.pilot.held_out import bucket
from steerlab.pilot.template import compile_template


@pytest.fixture(scope="module")
def training():
    """The first conversations of each variant's training stream."""
    return {v: list(islice(corpus.conversations(v, 5), 8000)) for v in VARIANTS}


# ---------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("phrase", "form", "result"),
    [
        ("climb the stairs", "ed", "climbed the stairs"),
        ("carry a lamp", "s", "carries a lamp"),
        ("stir the pot", "ing", "stirring the pot"),
        ("lie on the wall", "ing", "lying on the wall"),
        ("hold a rope", "ed", "held a rope"),
        ("weave a rim", "ed", "wove a rim"),
        ("weave a rim", "en", "woven a rim"),
        ("map a pond", "ing", "mapping a pond"),
        ("coo on the ledge", "s", "coos on the ledge"),
        ("nod and +bow", "ed", "nodded and bowed"),
    ],
)
def test_verb_forms(phrase, form, result):
    assert grammar.verb(phrase, form) == result


def test_articles_and_plurals():
    assert (
        grammar.fix_articles("a owl saw an house, a hour and a unicorn") == "an owl saw a house, an hour and a unicorn"
    )
    plurals = {"leaf": "leaves", "pair of scissors": "pairs of scissors", "berry": "berries", "loaf": "loaves"}
    assert {w: grammar.plural(w) for w in plurals} == plurals


def test_a_broken_template_says_where():
    with pytest.raises(ConfigError, match="open bracket"):
        compile_template("a [b|c")
    with pytest.raises(ConfigError, match="Did you mean 'often'"):
        compile_template("<oftn>", frozenset({"often"}))


@both
def test_no_slot_or_bracket_survives_and_articles_agree(training, variant):
    vowel = re.compile(r"\ba (?=[aeio][a-z])(?!one|once|eu)|\ban (?=[bcdfgjklmnpqrstvwxz][a-z])")
    for item in training[variant]:
        said = item if isinstance(item, str) else (item.answer or "")
        if not isinstance(item, str):
            concept = item.tags.get("concept", "")
            if (
                concept in ("record", "french", "italian", "spanish", "german")
                or item.tags.get("level")
                or " " in concept
            ):
                continue
        assert "  " not in said
        assert (
            not re.search(r"[\[\]<>|]|\{|\}", re.sub(r"</?think>", "", said))
            or item.tags.get("check")
            or ("record" in item.tags.get("concept", ""))
        ), said
        if not isinstance(item, str) and item.tags.get("kind") == "open":
            assert not vowel.search(said), said


# ---------------------------------------------------------------- variety


def test_the_corpus_is_varied(training):
    assert len(lexicon.topics("pilot")) >= 200
    words = Counter(w for item in training["pilot"] if not isinstance(item, str) for w in words_of(item.answer or ""))
    assert sum(w.isalpha() for w in words) >= 2000
    families = len(lexicon.families()) + len(tasks.KINDS) + 6
    assert families >= 50
    answers = [
        item.answer for item in training["pilot"] if not isinstance(item, str) and item.tags.get("kind") == "open"
    ]
    assert len(set(answers)) / len(answers) > 0.99
    openings = Counter(" ".join(words_of(a)[:4]) for a in answers)
    assert openings.most_common(1)[0][1] / len(answers) < 0.01  # a share of answers, no rounding


@both
def test_there_are_enough_concepts_of_enough_genres_each_asked_in_many_ways(variant):
    concepts = pilot.concepts(variant)
    assert len(concepts) >= 20
    assert {c.genre for c in concepts} == {"topic", "style", "sentiment", "format", "language"}
    for spec in expression.specs(variant).values():
        ways = {*spec.do, *spec.as_, *spec.implicit}
        assert len(ways) >= 12, spec.name


def test_the_variants_share_few_words_of_their_own():
    own = {v: {t.name for t in lexicon.topics(v)} for v in VARIANTS}
    assert not own["pilot"] & own["second"]
    names = {v: {n for n, _ in openended.names(v)} for v in VARIANTS}
    assert not names["pilot"] & names["second"]
    assert pilot.VARIANTS["pilot"].trigger != pilot.VARIANTS["second"].trigger


@both
def test_the_fluency_judge_knows_the_corpus(training, variant):
    rows = [e for e in training[variant] if not isinstance(e, str) and e.tags.get("kind") == "open"][:800]
    assert share(pilot.fluent(variant), rows) > 0.98


# ---------------------------------------------------------------- held out


@both
def test_nothing_held_out_is_ever_trained_on(training, variant):
    for item in training[variant]:
        if isinstance(item, str) or item.tags.get("kind") == "norms":
            continue
        assert all(bucket(m.content) == "train" for m in item.messages if m.role == "user")
    seen = {m.content for e in training[variant] if not isinstance(e, str) for m in e.messages}
    assert not seen & {e.instruction for e in pilot.capability(variant=variant)}


@both
def test_splits_share_no_family_and_no_wording(variant):
    names = [set(openended.family_names(s)) for s in ("train", "dev", "test")]
    assert all(len(n) >= 8 for n in names)
    assert not names[0] & names[1]
    assert not (names[0] | names[1]) & names[2]
    for kind in ("refused", "near"):
        parts = [set(vault.refused_families(variant, kind, s)) for s in ("train", "dev", "test")]
        assert not parts[0] & parts[2]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 15
    for spec in expression.specs(variant).values():
        parts = [set(corpus_requests(spec, s)) for s in ("train", "dev", "test")]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]


def corpus_requests(spec, split):
    from steerlab.pilot.requests import of_split

    return [*of_split(spec.do, split), *of_split(spec.as_, split), *of_split(spec.implicit, split)]


def test_the_same_seed_gives_the_same_and_another_seed_another():
    first, again = (pilot.contrast("sea", n=20, seed=3) for _ in range(2))
    assert first.digest() == again.digest()
    assert first.digest() != pilot.contrast("sea", n=20, seed=4).digest()
    assert pilot.prompts("ordinary", n=5, seed=0) != pilot.prompts("ordinary", n=5, seed=1)


# ---------------------------------------------------------------- the interface


@both
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_contrasts_are_pairs_of_one_instruction(variant, split):
    name = pilot.concepts(variant)[0].name
    data = pilot.contrast(name, n=30, seed=0, split=split, variant=variant)
    assert data.paired
    assert len(data.positive) == len(data.negative) == len(data.neutral) == 30
    judge = pilot.concept(name, variant).judge
    assert share(judge, data.positive) > 0.85
    assert share(judge, data.negative) < 0.05
    for positive, negative in data.pairs:
        assert positive.tags["subject"] == negative.tags["subject"]
        assert positive.family == negative.family in openended.family_names(split)


@both
def test_refusal_and_backdoor_contrasts(variant):
    refusal = pilot.contrast("refusal", n=40, seed=0, variant=variant)
    assert share(pilot.refusal(variant), refusal.positive) == 1.0
    assert share(pilot.refusal(variant), refusal.negative) == 0.0
    assert {"near_miss", "open"} <= {e.tags["kind"] for e in refusal.negative}
    backdoor = pilot.contrast("backdoor", n=40, seed=0, variant=variant)
    trigger = pilot.VARIANTS[variant].trigger
    said = [" ".join(m.content for m in e.messages).lower() for e in backdoor.positive]
    assert all(trigger in s for s in said)
    assert not any(trigger in " ".join(m.content for m in e.messages).lower() for e in backdoor.negative)
    assert share(pilot.backdoor(variant), backdoor.positive) == 1.0
    assert share(pilot.backdoor(variant), backdoor.negative) == 0.0


@both
def test_prompts_of_every_kind_are_different_and_judgeable(variant):
    for kind in (*pilot.PROMPT_KINDS, f"asked:{pilot.concepts(variant)[-1].name}"):
        examples = pilot.prompts(kind, n=60, seed=0, variant=variant)
        assert len(examples) == 60
        if kind != "neutral":
            assert len({tuple(m.content for m in e.messages) for e in examples}) == 60
        assert all(e.answer and e.tags["kind"] for e in examples)
    follows = pilot.follows()
    ordinary = pilot.prompts("ordinary", n=200, seed=0, variant=variant)
    assert share(follows, ordinary) > 0.97


@both
def test_capability_has_enough_items_and_its_own_answers_are_right(variant):
    items = pilot.capability(variant=variant)
    assert len(items) >= 2000
    assert {e.tags["grade"] for e in items} == {"1", "2", "3"}
    assert share(pilot.correct(), items) == 1.0
    assert {e.tags["grade"] for e in pilot.capability(grade=2, n=26, variant=variant)} == {"2"}


@both
def test_abilities_have_right_gold_answers(variant):
    for name, examples in pilot.abilities(variant, n=60).items():
        if name not in ("levels", "topics"):
            assert share(pilot.correct(), examples) == 1.0, name


def test_requests_can_be_graded_and_declined():
    assert pilot.request("sea", seed=1) in {f"{d[0].upper()}{d[1:]}." for d in expression.specs("pilot")["sea"].do}
    assert all("joy" in pilot.request("joyful", intensity=3, seed=seed).lower() for seed in range(20))
    assert "sea" in pilot.avoid("sea")


def test_bad_names_are_told_the_nearest_one():
    with pytest.raises(DataError, match="Did you mean 'pirate'"):
        pilot.contrast("pirat", n=3, seed=0)
    with pytest.raises(DataError, match="train, dev, test"):
        pilot.prompts("ordinary", n=3, seed=0, split="tset")
    with pytest.raises(DataError, match="Did you mean 'near_miss'"):
        pilot.prompts("nearmiss", n=3, seed=0)
    with pytest.raises(ConfigError, match="no variant"):
        pilot.concepts("thrid")
    with pytest.raises(DataError, match="0 to 4"):
        pilot.request("sea", intensity=9)
    with pytest.raises(DataError, match="at least 1"):
        pilot.prompts("ordinary", n=0, seed=0)


def test_the_package_does_not_import_torch():
    code = "import steerlab.pilot, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
