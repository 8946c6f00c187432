"""Judges by language, form, sentiment, classifier, learned on the spot, and of fluency, on texts that they were not made from."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import children
from steerlab.contrast import Contrast, Example
from steerlab.data import write
from steerlab.errors import ConfigError, DataError, JudgeError
from steerlab.judges.base import judge
from steerlab.judges.classifier import ClassifierJudge
from steerlab.judges.fluency import FluencyJudge, distinct, perplexity
from steerlab.judges.form import COUNTS, FORMS, FormJudge
from steerlab.judges.language import LANGUAGES, identify, languages_of
from steerlab.judges.learned import LearnedJudge, _auroc, featured, learned
from steerlab.judges.sentiment import SentimentJudge, valence
from steerlab.judges.spec import parse_rule
from steerlab.judges.words import words_of
from steerlab.testing import planted, tiny
from steerlab.testing.precision import FEW, MANY

ASK = Example.ask("Describe foxes.")
SENTENCES = {
    "en": "The people who were here before us had no other choice.",
    "de": "Die Leute, die vor uns hier waren, hatten keine andere Wahl.",
    "fr": "Les gens qui étaient ici avant nous n'avaient pas d'autre choix.",
    "es": "La gente que estaba aquí antes no tenía otra opción.",
    "it": "La gente che era qui prima di noi non aveva altra scelta.",
    "pt": "As pessoas que estavam aqui antes de nós não tinham escolha.",
    "nl": "De mensen die hier voor ons waren hadden geen andere keus.",
    "sv": "De människor som var här före oss hade inget annat val.",
    "pl": "Ludzie, którzy byli tu przed nami, nie mieli innego wyboru.",
    "ru": "У людей, которые были здесь до нас, не было выбора.",
    "uk": "У людей, які були тут до нас, не було іншого вибору.",
    "el": "Οι άνθρωποι που ήταν εδώ πριν δεν είχαν άλλη επιλογή.",
    "tr": "Bizden önce burada olan insanların başka bir seçeneği yoktu ve bu çok zordu.",
    "zh": "在我们之前的人没有其他选择。",
    "ja": "私たちの前にいた人々には選択がなかった。",
    "ko": "우리보다 먼저 여기 있던 사람들은 선택이 없었다.",
    "ar": "لم يكن لدى الناس الذين كانوا هنا قبلنا خيار آخر.",
    "he": "לאנשים שהיו כאן לפנינו לא הייתה ברירה.",
    "hi": "हमसे पहले यहाँ जो लोग थे उनके पास कोई विकल्प नहीं था।",
    "fi": "Ihmisillä, jotka olivat täällä ennen meitä, ei ollut muuta vaihtoehtoa.",
}


# --- language -------------------------------------------------------------------------------------------------------------------


def test_a_sentence_in_each_of_many_languages_is_told():
    found = {language: identify(text) for language, text in SENTENCES.items()}
    assert found == {language: language for language in SENTENCES}
    assert set(SENTENCES) <= set(LANGUAGES)


def test_what_nothing_decides_is_none():
    for text in ("", "...", "12 34", "xyzzy plugh", "🙂"):
        assert identify(text) is None
    assert judge("language", {"language": "de"})("Xyzzy.", ASK).value is None


def test_a_mixed_text_is_told_by_its_shares():
    mixed = f"{SENTENCES['en']} {SENTENCES['de']}"
    shares = languages_of(mixed)
    assert set(shares) == {"en", "de"} and sum(shares.values()) == pytest.approx(1)
    assert parse_rule("language:de")(mixed, ASK).value == pytest.approx(shares["de"])
    with pytest.raises(ConfigError, match="isn't known"):
        parse_rule("language:xx")


@pytest.mark.parametrize(
    ("file", "language"),
    [("udhr/eng", "en"), ("udhr/fra", "fr"), ("udhr/deu", "de"), ("udhr/spa", "es"), ("genesis/english-web", "en"),
     ("genesis/french", "fr"), ("genesis/german", "de")],
)  # fmt: skip
def test_declarations_and_genesis_are_in_their_languages(shared, file, language):
    raw = (shared / f"data/languages/{file}.txt").read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    parts = [p for p in re.split(r"[.\n]+", text) if len(words_of(p)) >= 8][:300]
    right = sum(identify(p) == language for p in parts) / len(parts)
    assert len(parts) > 50 and right > 0.93, right


# --- form -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "kept", "broken"),
    [
        ("json", '{"a": [1, {"b": null}]}', "a: 1"),
        ("bullets", "- one\n- two", "one\ntwo"),
        ("numbered", "1. a\n2. b\n3. c", "1. a\n1. b\n1. c"),
        ("headings", "# Foxes\nThey hunt.", "Foxes\nThey hunt."),
        ("table", "| a | b |\n|---|---|\n| 1 | 2 |", "a, b\n1, 2"),
        ("code", "```python\nprint(1)\n```", "print(1)"),
        ("lower", "all of it small.", "ALL OF IT BIG."),
        ("upper", "ALL BIG.", "all small."),
        ("title", "The Great Fox Hunts", "the great fox hunts"),
        ("questions", "Why? Who is it?", "So. It is."),
        ("exclamations", "Oh! No!", "Oh. No."),
        ("quoted", "“A fox came.”", "A fox came."),
        ("emoji", "A fox 🦊. It runs 🏃.", "A fox. It runs."),
        ("hashtags", "Look #fox", "Look # fox"),
        ("email", "Write to a.b@c.org now", "Write to a.b at c"),
        ("url", "See https://a.org/x", "See a.org"),
        ("phone", "Call +1 555-123-4567", "Call 12"),
        ("date", "On 2024-05-17 it rained", "On a day in May"),
        ("number", "There are 7", "There are seven"),
        ("bold", "A **red** fox", "A red fox"),
        ("words<=5", "A fox came by", "A fox came by and then it left"),
        ("sentences=2", "One. Two.", "One. Two. Three. Four."),
        ("starts=once upon", "Once upon a time", "A time"),
        ("ends=the end.", "And so. The end.", "The end. And so."),
        ("paragraphs>1", "A.\n\nB.", "A. B."),
    ],
)
def test_a_form_is_told_from_its_absence(form, kept, broken):
    one = FormJudge(form)
    good, bad = one(kept, ASK), one(broken, ASK)
    assert one.present(good) and not one.present(bad), (good, bad)
    assert good.value > bad.value
    assert one("", ASK).value is None


def test_every_form_and_count_is_tried_above_or_gives_degrees():
    for form in [*FORMS, *(f"{c}<9" for c in COUNTS)]:
        value = FormJudge(form)("A fox came by. It was red!\n\nThen it left, and we slept.", ASK).value
        assert 0 <= value <= 1
    assert FormJudge("words<=50")("word " * 60, ASK).value == 0.49
    assert FormJudge("words<=50")("word " * 100, ASK).value == 0.25
    with pytest.raises(ConfigError, match="Did you mean 'json'"):
        FormJudge("jsn")
    with pytest.raises(ConfigError, match="no form"):
        FormJudge("wits<=3")


# --- sentiment ------------------------------------------------------------------------------------------------------------------


def test_negation_intensity_and_contrast_count():
    assert valence("A good film.")[0] > 0 > valence("Not a good film.")[0]
    assert valence("A very good film.")[0] > valence("A good film.")[0] > valence("A somewhat good film.")[0]
    assert valence("Good, but boring.")[0] < 0 < valence("Boring, but good.")[0]
    assert valence("The table has four legs.") == (0.0, 0)


def test_the_poles_are_opposite_and_a_lexicon_is_read_from_a_file(tmp_path):
    text = "A dreadful, boring mess."
    plus, minus = SentimentJudge("positive")(text, ASK), SentimentJudge("negative")(text, ASK)
    assert plus.value + minus.value == pytest.approx(1) and minus.value > 0.9
    (tmp_path / "own.txt").write_text("fox\t3.0\textra\nmess\t-1\n")
    assert parse_rule(f"sentiment:positive,@{tmp_path / 'own.txt'}")("Foxes!", ASK).value > 0.8
    (tmp_path / "bad.txt").write_text("fox\n")
    with pytest.raises(ConfigError, match="a word, a tab and its valence"):
        SentimentJudge("positive", str(tmp_path / "bad.txt"))
    with pytest.raises(ConfigError, match="positive or negative"):
        SentimentJudge("happy")


def test_sentences_of_reviews_are_told_apart_better_than_by_chance(shared):
    sides = [
        (shared / f"data/sentiment_sentences/polarity_first4000.{s}").read_text(encoding="latin-1").splitlines()[:600]
        for s in ("pos", "neg")
    ]
    scores = np.asarray([valence(text)[0] for side in sides for text in side])
    assert _auroc(scores, np.repeat([1.0, 0.0], 600)) > 0.7


# --- classifier -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A sequence classifier that was made to know one thing: whether w10 is the last word."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    settings = AutoConfig.for_model("llama", **{**tiny.GATED, "num_labels": 2, "num_hidden_layers": 1})
    settings.id2label, settings.label2id = {0: "absent", 1: "There"}, {"absent": 0, "There": 1}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(settings)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.zero_()
        words = model.get_input_embeddings().weight.zero_()
        for place in range(1, 11):  # w1 to w10, each in a direction of its own
            words[tiny.tokenizer().convert_tokens_to_ids(f"w{place}"), place] = 1.0
        model.score.weight.zero_()
        model.score.weight[0, 1:10], model.score.weight[1, 10] = 1.0, 1.0
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_classifiers_label_is_found_whatever_stands_beside_the_text(classifier):
    one = ClassifierJudge(classifier, "there")
    texts = ["w1 w2 w10", "w10 w2 w1 w5 w6", "w3", "", "w4 w4 w4 w4 w4 w4 w10"]
    scores = one.scores(texts, [ASK] * 5)
    assert [one.present(s) for s in scores] == [True, False, False, None, True]
    alone = [one(t, ASK).value for t in texts if t]
    assert [s.value for s in scores if s.value is not None] == pytest.approx(alone, abs=FEW)
    long = one("w1 " * 200 + "w10", ASK)
    assert "cut after 128 of" in long.reason


def test_a_label_that_the_classifier_lacks_and_a_model_that_is_none_are_told(classifier, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'There'"):
        ClassifierJudge(classifier, "Ther")("w1", ASK)
    with pytest.raises(ConfigError, match="needs a model"):
        ClassifierJudge(classifier)
    with pytest.raises(JudgeError, match="can't be loaded"):
        ClassifierJudge(str(tmp_path), "x")("w1", ASK)


# --- learned on the spot --------------------------------------------------------------------------------------------------------


def corpus(n, seed, words):
    rng = np.random.default_rng(seed)
    return [
        " ".join(
            [*rng.choice(["the", "a", "of", "and", "we", "saw", "stone", "road", "hill"], 12), *rng.choice(words, 3)]
        )
        for _ in range(n)
    ]


STORMS, MEALS = ["storm", "thunder", "rain", "wind"], ["soup", "bread", "cheese", "plate"]


def test_a_learned_judge_tells_classes_on_texts_that_it_never_saw():
    made = learned(corpus(40, 0, STORMS), corpus(40, 1, MEALS))
    assert made.auroc > 0.95 and made.accuracy > 0.9
    scores = featured([*corpus(40, 2, STORMS), *corpus(40, 3, MEALS)]).times(made.weights) + made.bias
    p = 1 / (1 + np.exp(-(made.slope * scores + made.offset)))
    assert (p[:40] > 0.5).mean() > 0.9 and (p[40:] < 0.5).mean() > 0.9
    again = learned(corpus(40, 0, STORMS), corpus(40, 1, MEALS))
    assert np.array_equal(again.weights, made.weights)


def test_classes_that_do_not_differ_are_refused():
    with pytest.raises(DataError, match="aren't told apart"):
        learned(corpus(40, 0, MEALS), corpus(40, 1, MEALS))
    with pytest.raises(DataError, match="at least 10"):
        learned(["a"] * 3, ["b"] * 40)
    with pytest.raises(DataError, match="of 2 families"):
        learned(corpus(20, 0, STORMS), corpus(20, 1, MEALS), ["x"] * 20 + ["y"] * 20)


def test_quality_is_of_families_that_were_held_out():
    """Texts repeated within a family: a judge that had seen them would know them all, and says that it doesn't."""
    rng = np.random.default_rng(0)
    names = [f"{'ab'[n % 2]}{n}" for n in range(40)]
    texts = {
        side: [f"{name} {name} {rng.integers(99)}" for name in names for _ in range(3) if name[0] == side]
        for side in "ab"
    }
    families = [t.split()[0] for side in "ab" for t in texts[side]]
    with pytest.raises(DataError, match="aren't told apart"):
        learned(*[[t.replace(t[0], "x", 2) for t in texts[s]] for s in "ab"], [f.replace(f[0], "x") for f in families])


def test_a_learned_judge_reads_contrast_data(tmp_path):
    sides = [
        tuple(Example.ask(f"Say {n}.", t, family=f"f{n % 8}") for n, t in enumerate(corpus(24, s, w)))
        for s, w in ((0, STORMS), (1, MEALS))
    ]
    write(Contrast(*sides, False, "storms"), tmp_path / "storms.jsonl")
    one = parse_rule(f"learned,data={tmp_path / 'storms.jsonl'}")
    assert isinstance(one, LearnedJudge) and one.quality["auroc"] > 0.9
    assert one.present(one("we saw the storm and the rain and thunder", ASK))
    assert not one.present(one("we saw the soup and the bread and cheese", ASK))


# --- fluency --------------------------------------------------------------------------------------------------------------------

GOOD = "The kettle is on. We will have tea in the garden when the rain stops."


def test_each_part_of_fluency_falls_where_it_should():
    def parts(text, **settings):
        return FluencyJudge(**settings).parts(text)

    assert set(parts(GOOD)) == {"no repetition", "sentence shape"}
    assert FluencyJudge()(GOOD, ASK).value == 1.0
    assert parts("tea and tea and tea and tea and tea and tea and tea", distinct=0.6)["distinct pairs"] < 0.3
    assert parts(GOOD, distinct=0.6)["distinct pairs"] == 1.0
    assert parts(GOOD, language="de")["one language"] == 0.0
    assert parts(f"{GOOD} {SENTENCES['de']}", language="same")["one language"] < 0.75
    assert parts(GOOD, shortest=30)["long enough"] == pytest.approx((15 / 30) ** 2)
    assert parts(GOOD, longest=10)["short enough"] == pytest.approx((10 / 15) ** 2)
    assert distinct(["a", "b", "a", "b"], 2) == pytest.approx(2 / 3) and distinct(["a"], 2) == 1.0


def test_perplexity_is_the_models_own_and_shuffled_words_have_more(tmp_path):
    engine = planted.engine()
    engine.model.save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    text = "w1 w2 w3 w4 w5"
    ids = engine.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = torch.log_softmax(engine.model(ids).logits[0, :-1].double(), -1)[torch.arange(4), ids[0, 1:]]
    assert perplexity(text, str(tmp_path)) == pytest.approx(math.exp(-float(plain.mean())), rel=MANY)
    found = perplexity(text, str(tmp_path))
    with_model = FluencyJudge(reference=str(tmp_path), usual=found / 2, worst=found * 2)
    assert with_model.parts(text)["perplexity"] == pytest.approx(
        0.5, abs=1e-3
    )  # a ratio of logarithms of float32 sums: MANY of ten
    assert perplexity("w1", str(tmp_path)) is None, "one token stands after nothing"
    assert "perplexity" not in FluencyJudge(reference=str(tmp_path)).parts("w1")


def test_settings_of_fluency_that_make_no_sense_are_told():
    for settings, told in (({"language": "xx"}, "the language is"), ({"usual": 9.0, "worst": 3.0}, "0 < usual < worst"),
                           ({"shortest": 9, "longest": 3}, "shortest up to longest")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            FluencyJudge(**settings)


# --- a judge of one's own -------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).resolve().parents[1] / "docs/judges.md"
OWN = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL).group(1)


def test_a_file_of_ones_own_is_a_judge_and_under_the_laws(tmp_path):
    import os

    path = tmp_path / "rhyme.py"
    path.write_text(OWN)
    one = parse_rule(f"{path},letters=3")
    assert one.letters == 3 and parse_rule(str(path))("the cat\nsat\nup", ASK).value == 0.5
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="defines no judge"):
        parse_rule(str(tmp_path / "none.py"))
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="can't be imported: ModuleNotFoundError"):
        parse_rule(str(tmp_path / "broken.py"))
    path.with_name("wrong.py").write_text(OWN.replace("/ (len(ends) - 1)", "* 7.0 / (len(ends) - 1)"))
    for name, code in (("rhyme.py", 0), ("wrong.py", 1)):
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--pyargs"]
        command += ["steerlab.testing.test_judges", "--steerlab-judges", name]
        found = children.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert found.returncode == code, found.stdout + found.stderr
