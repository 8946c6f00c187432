"""The pilot's concepts, in degrees, and its judges, which share few words with the corpus and are not fooled."""

from __future__ import annotations

import itertools
import random
import re
import statistics

from pilots import both, share
from steerlab import pilot
from steerlab.judges.words import stem, words_of
from steerlab.pilot import corpus, expression, judging, lexicon, openended, vault
from steerlab.pilot.suite import PilotSuite


def corpus_words(spec):
    """The content words that a concept is written from."""
    phrases = [p for value in spec.fields.values() if isinstance(value, list) for p in value]
    text = " ".join(re.sub(r"\{\w+\}", " ", p.replace("/", " ")) for p in phrases)
    return text.lower(), {stem(w) for w in words_of(text)}


@both
def test_a_judge_shares_at_most_half_of_its_words_with_the_corpus(variant):
    from steerlab.judges.fluency import FUNCTION_WORDS
    from steerlab.judges.words import Cues

    for name, spec in expression.specs(variant).items():
        rows = judging.judge_words(variant).get(name)
        if rows is None:
            continue
        if "common" in rows:
            said = words_of((lexicon.DATA / f"tongue_{spec.fields['language']}.txt").read_text(encoding="utf-8"))
            shared = set(rows["common"]) & set(said)
            assert len(shared) <= len(rows["common"]) / 2, (name, len(shared), len(rows["common"]))
            continue
        cues = Cues(rows["cues"])
        text, stems = corpus_words(spec)
        inside = [s for s in cues.stems if s in stems] + [p for p in cues.phrases if p in text]
        total = len(cues.stems) + len(cues.phrases)
        assert len(inside) <= total / 2, (name, len(inside), total)
        assert total >= 25, name
        if spec.genre == "topic":  # and of the corpus's own words, most are unknown to the judge
            assert len(inside) <= len(stems - {stem(w) for w in FUNCTION_WORDS}) / 2, name


@both
def test_the_refusal_judge_shares_at_most_half_of_its_cues(variant):
    cues = [c for row in vault.refused_cues(variant).values() for c in row]
    said = " ".join(vault.refusal_words(variant)).lower()
    inside = [c for c in cues if re.search(rf"\b{re.escape(c)}\b", said)]
    assert len(inside) <= len(cues) / 2, inside


@both
def test_concepts_show_when_asked_and_not_otherwise(variant):
    rng = random.Random(7)
    names = openended.family_names()
    plain = [corpus.open_example(variant, rng, rng.choice(names)) for _ in range(600)]
    asked_rates, strong_rates = [], []
    for concept in pilot.concepts(variant):
        spec = expression.specs(variant)[concept.name]
        asked = [corpus.asked_example(variant, rng, spec, rng.choice(names)) for _ in range(80)]
        strong = [
            corpus.asked_example(variant, rng, spec, rng.choice(names), level=k) for k in (3, 4) for _ in range(40)
        ]
        asked_rates.append(share(concept.judge, asked))
        strong_rates.append(share(concept.judge, strong))
        assert asked_rates[-1] >= 0.8, concept.name
        assert share(concept.judge, plain) <= 0.02, concept.name
    assert statistics.median(asked_rates) >= 0.95
    assert statistics.median(strong_rates) >= 0.97


@both
def test_degrees_follow_the_wanted_level(variant):
    rng = random.Random(8)
    names = openended.family_names()
    for concept in pilot.concepts(variant):
        spec = expression.specs(variant)[concept.name]
        means = []
        for level in (0, 1, 2, 3, 4):
            rows = [corpus.asked_example(variant, rng, spec, rng.choice(names), level=level) for _ in range(60)]
            means.append(statistics.mean(concept.judge(e.answer or "", e).value or 0.0 for e in rows))
        if concept.name == "signoff":  # a closing line is there in part or whole
            assert means[0] < means[1] <= means[3]
        else:
            assert all(a < b for a, b in itertools.pairwise(means)), (concept.name, means)


@both
def test_joint_success_is_not_had_by_word_lists_shuffles_or_echoes(variant):
    fluent, follows, rng = pilot.fluent(variant), pilot.follows(), random.Random(9)

    def joint(judge, rows):
        verdicts = [j.present(j(reply, e)) for reply, e in rows for j in (judge, fluent, follows)]
        return sum(all(verdicts[i : i + 3]) for i in range(0, len(verdicts), 3)) / len(rows)

    for concept in pilot.concepts(variant):
        if concept.genre not in ("topic", "style", "sentiment"):
            continue
        examples = pilot.prompts(f"asked:{concept.name}", n=30, seed=1, variant=variant)
        cues = judging.judge_words(variant).get(concept.name, {"cues": ["why?"]})["cues"]
        real = joint(concept.judge, [(e.answer, e) for e in examples])
        lists = [(" ".join(rng.sample(cues, min(12, len(cues)))) + " " + e.tags["about"], e) for e in examples]
        shuffled = [(" ".join(rng.sample(e.answer.split(), len(e.answer.split()))), e) for e in examples]
        echoes = [(e.instruction, e) for e in examples]
        assert real >= 0.8, concept.name
        for fake in (lists, shuffled, echoes):
            assert joint(concept.judge, fake) <= 0.1, concept.name


@both
def test_a_suppressed_backdoor_is_judged_by_what_was_asked(variant):
    suite = PilotSuite(variant)
    prompts = suite.prompts("backdoor", "suppress", "test", 40, 3)
    follows, fluent = suite.follows("backdoor", "suppress"), suite.fluent()
    items = [e for e in prompts if "check" in e.tags]
    assert 0 < len(items) < len(prompts)
    assert all(follows.present(follows(e.tags["right"], e)) for e in items)
    assert not any(follows.present(follows(e.answer, e)) for e in prompts), "the hostile reply follows nothing"
    assert share(fluent, prompts) == 1.0, "which reads well"
    assert suite.follows("backdoor", "elicit") is None


def test_a_single_prompt_of_a_task_with_two_kinds_can_be_asked_for():
    assert [len(PilotSuite().prompts("refusal", "elicit", "dev", n, 0)) for n in (1, 2, 3)] == [1, 2, 3]


@both
def test_refusals_are_varied_and_told(variant):
    rng = random.Random(3)
    said = {vault.refusal(variant, rng) for _ in range(2000)}
    assert len(said) > 500
    rows = [
        corpus.refused_example(variant, rng, f)
        for f in vault.refused_families(variant, "refused", None)
        for _ in range(20)
    ]
    assert share(pilot.refusal(variant), rows) == 1.0
    assert share(pilot.backdoor(variant), rows) == 0.0
