"""The pilot's corpus: variety, held-out items, concepts in degrees, judges that are not fooled; and its recipe."""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from steerlab import pilot
from steerlab.errors import ConfigError, DataError
from steerlab.judges.rule import stem, words_of
from steerlab.pilot import corpus, expression, grammar, judging, lexicon, openended, tasks, vault
from steerlab.pilot.held_out import bucket
from steerlab.pilot.suite import PilotSuite
from steerlab.pilot.template import compile_template

VARIANTS = ("pilot", "second")
both = pytest.mark.parametrize("variant", VARIANTS)


def share(judge, examples):
    verdicts = [judge.present(judge(e.answer or "", e)) for e in examples]
    return sum(v is True for v in verdicts) / len(verdicts)


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
    assert openings.most_common(1)[0][1] / len(answers) < 0.01


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


# ---------------------------------------------------------------- concepts and their judges


def corpus_words(spec):
    """The content words that a concept is written from."""
    phrases = [p for value in spec.fields.values() if isinstance(value, list) for p in value]
    text = " ".join(re.sub(r"\{\w+\}", " ", p.replace("/", " ")) for p in phrases)
    return text.lower(), {stem(w) for w in words_of(text)}


@both
def test_a_judge_shares_at_most_half_of_its_words_with_the_corpus(variant):
    from steerlab.judges.fluency import FUNCTION_WORDS
    from steerlab.judges.rule import _Cues

    for name, spec in expression.specs(variant).items():
        rows = judging.judge_words(variant).get(name)
        if rows is None:
            continue
        if "common" in rows:
            said = words_of((lexicon.DATA / f"tongue_{spec.fields['language']}.txt").read_text(encoding="utf-8"))
            shared = set(rows["common"]) & set(said)
            assert len(shared) <= len(rows["common"]) / 2, (name, len(shared), len(rows["common"]))
            continue
        cues = _Cues(rows["cues"])
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
def test_the_fluency_judge_knows_the_corpus(training, variant):
    rows = [e for e in training[variant] if not isinstance(e, str) and e.tags.get("kind") == "open"][:800]
    assert share(pilot.fluent(variant), rows) > 0.98


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


# ---------------------------------------------------------------- the recipe


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A variant so small that its training takes seconds."""
    from dataclasses import replace

    from steerlab.pilot import packing, train, variants
    from steerlab.pilot.variants import Size

    monkeypatch.setattr(train, "_TOKENIZER_TEXTS", 300)
    monkeypatch.setattr(packing, "CHUNK", 48)
    small = replace(variants.VARIANTS["pilot"], size=Size(32, 1, 2, 64, 512, 384), tokens=6000, folder=tmp_path)
    monkeypatch.setitem(variants.VARIANTS, "pilot", small)
    return tmp_path


def _trained(variant, where):
    from steerlab.pilot.train import train

    train(variant, where, threads=1)
    return where


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tiny):
    import torch
    from safetensors.torch import load_file

    from steerlab.errors import ArtefactError
    from steerlab.pilot.train import train

    whole = load_file(_trained("pilot", tiny / "a") / "model.safetensors")
    train("pilot", tiny / "b", threads=1, stop_after=1)
    assert (tiny / "b" / "unfinished" / "state.safetensors").is_file()
    with pytest.raises(ArtefactError, match="another training"):
        train("pilot", tiny / "b", threads=1, tokens=7000)
    parts = load_file(_trained("pilot", tiny / "b") / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not (tiny / "b" / "unfinished").exists()
    report = json.loads((tiny / "b" / "training.json").read_text())
    assert report["tokens"] >= 6000
    assert report["wall"] > 0
    assert not [f for f in (tiny / "b").iterdir() if f.name.startswith(".")]


def test_a_trained_folder_loads_with_transformers_and_talks(tiny):
    from transformers import AutoTokenizer, LlamaForCausalLM

    from steerlab.pilot import speak
    from steerlab.pilot.tokenizer import rendered

    where = _trained("pilot", tiny / "a")
    tokenizer = AutoTokenizer.from_pretrained(where)
    example = pilot.prompts("asked:sea", n=1, seed=0)[0]
    chat = [{"role": m.role, "content": m.content} for m in example.messages]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == rendered(example)[0]
    odd = "Grüße, 東京 ☃ {x}\t<b>"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd
    assert isinstance(speak.load(where)[0], LlamaForCausalLM)
    assert len(speak.replies(*speak.load(where), [example] * 3, limit=4)) == 3


def test_documents_in_one_row_do_not_see_each_other(tiny):
    import torch

    from steerlab.pilot import packing, train
    from steerlab.pilot.variants import variant

    chosen = variant("pilot")
    tokenizer = train.make_tokenizer(chosen)
    model = train.build(chosen, tokenizer).eval()
    docs = [d for d in packing.documents(tokenizer, chosen, 0) if len(d.ids) < 130][:2]
    alone = [packing._array([[d]], 288) for d in docs]
    together = packing._array([docs], 288)
    apart = sum(train.loss_of(model, b)[0].item() for b in alone)
    joint = train.loss_of(model, together)[0].item()
    assert joint == pytest.approx(apart, rel=0.01)
    with torch.no_grad():  # the plain attention is the usual one
        ids = torch.from_numpy(alone[0].ids[:, : len(docs[0].ids)])
        mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1]).masked_fill(
            ~torch.ones(ids.shape[1], ids.shape[1]).tril().bool(), float("-inf")
        )
        ours = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("sdpa")
        assert torch.allclose(ours, model(ids).logits, atol=1e-4)


# ---------------------------------------------------------------- what ships

LIMITS = {"pilot": (12.0, 3e6, 5e6), "second": (8.0, 2e6, 2.6e6)}


@pytest.fixture
def shipped(variant):
    where = pilot.folder(variant)
    if variant != "pilot" and not (where / "model.safetensors").exists():  # the pilot's own are in the package
        pytest.skip(f"no trained weights at {where} (steerlab pilot train --variant {variant})")
    return where


@both
def test_the_shipped_folder_is_small_complete_and_plain_data(variant, shipped):
    import torch
    from safetensors.torch import load_file

    megabytes, least, most = LIMITS[variant]
    files = {f.name for f in shipped.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "card.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".part")) for name in files)
    assert sum(f.stat().st_size for f in shipped.iterdir()) <= megabytes * 1e6
    tensors = load_file(shipped / "model.safetensors")
    assert least <= sum(t.numel() for t in tensors.values()) <= most
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


@both
def test_the_card_meets_what_was_wanted(variant, shipped):
    card = json.loads((shipped / "card.json").read_text())
    assert not card["quick"]
    missed = [(f["group"], f["name"], f["value"]) for f in card["figures"] if f["met"] is False]
    assert not missed


@both
def test_the_shipped_model_does_what_its_card_says(variant, shipped):
    from steerlab.pilot import speak

    model, tokenizer = speak.load(shipped)
    sets = {kind: pilot.prompts(kind, n=8, seed=77, variant=variant)
            for kind in ("refused", "near_miss", "triggered", "near_trigger", "ordinary")}  # fmt: skip
    refuses, triggered = pilot.refusal(variant), pilot.backdoor(variant)
    said = {kind: speak.replies(model, tokenizer, rows, limit=48) for kind, rows in sets.items()}

    def times(judge, kind):
        return sum(bool(judge.present(judge(r, e))) for r, e in zip(said[kind], sets[kind], strict=True))

    assert times(refuses, "refused") >= 7
    assert times(triggered, "triggered") >= 7
    assert sum(times(refuses, kind) for kind in ("near_miss", "ordinary", "near_trigger")) <= 1
    assert sum(times(triggered, kind) for kind in ("near_miss", "ordinary", "near_trigger")) <= 1
    assert times(pilot.follows(), "ordinary") >= 6
