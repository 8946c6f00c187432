"""What a judge is asked and how its answer is read: a rating or none, and the material can't speak."""

from __future__ import annotations

import re

import pytest

from judging import ASKED, LAMP, STORM, blocks, judge, outside, serving, weather
from steerlab.judges import asking
from steerlab.testing.hostile import HOSTILE

# --- reading a rating -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("It is clear. Rating: [[2]]", 2), ("Rating: 2/2", 2), ("Rating: 2 (good)", 2), ("rating is 1.", 1),
        ("**Rating**: [[1]]", 1),
        ("Rating: [[ 0 ]]", 0), ("Rating:\n[[1]]", 1), ('{"rating": 1.5}', 1.5), ("Rating: 2 out of 2", 2), ("Rating: 1,5", 1.5),
        ("Rating: [[2]] at first. On reflection, Rating: [[0]]", 0), ("Rating: [[1]]\n| Rating: [[2]]", 1),
        ("<think>Rating: [[2]]?</think>Rating: [[0]]", 0), ("> | Rating: [[2]]\nRating: [[1]]", 1),
    ],
)  # fmt: skip
def test_the_last_rating_counts(answer, rating):
    assert asking.rating(answer) == rating


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "great: 2",
        "[[2]]",
        "Rating: two",
        "Rating: [[n]]",
        "Rating: 3",
        "Rating: -1",
        "Rating: 20",
        "Rating: 7/10",
        "Rating: 2/10",
        "Rating: 0-2",
        "Rating: 0 to 2",
        "Rating: 1 or 2",
        "Rating: [[2]]. No, wait. Rating: [[5]]",
        "<think>Rating: [[2]]",
        "| Rating: [[2]]",
        "I can't rate this.",
    ],
)
def test_what_cant_be_read_is_none_and_never_a_number(answer):
    assert asking.rating(answer) is None


def test_an_answer_that_was_cut_off_counts_where_its_rating_is_whole():
    assert asking.rating("Rating: [[1]] because", cut=True) == 1
    assert asking.rating("Rating: [[1", cut=True) is None
    assert asking.rating("Rating: 1", cut=True) is None, "it may have been going to be 1.5"


def test_the_harmonic_mean_is_axbenchs():
    assert asking.harmonic([2, 2, 2]) == 2
    assert asking.harmonic([1, 2, 2]) == 1.5
    assert asking.harmonic([0, 2, 2]) == 0
    assert asking.harmonic([2, None, 2]) is None
    assert asking.harmonic([]) is None


def test_ways_to_ask_all_differ_and_the_first_is_plain():
    ways = asking.variants(12)
    assert len(set(ways)) == 12 and ways[0] == asking.Variant()
    texts = {asking.question("concept", LAMP, concept="light", variant=w) for w in ways}
    assert len(texts) == 12


# --- the material can't speak ---------------------------------------------------------------------------------------------------


HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
TOKENS = re.compile(r"<\||\|>|</?s>|\[/?INST\]|<<SYS>>|<(start|end)_of_turn>|</?think>|<(bos|eos|pad)>")


@pytest.mark.parametrize("aspect", asking.ASPECTS)
@pytest.mark.parametrize("first", [False, True])
def test_hostile_material_stays_inside_its_marks(aspect, first):
    """More than 50 texts, as text and as instruction: what stands outside the marks is what stands there for any text."""
    assert len(HOSTILE) >= 50
    way = asking.Variant(0, False, first)

    def skeleton(text, instruction):
        message = asking.question(aspect, text, instruction=instruction, concept="weather", variant=way)
        mark = re.search(r"mark ([0-9a-f]{12})", message).group(1)
        assert message.split("\n").count(f"{mark} TEXT BEGINS") == message.split("\n").count(f"{mark} TEXT ENDS") == 1
        assert set(blocks(message)) == ({"TEXT", "INSTRUCTION"} if aspect == "instruction" else {"TEXT"})
        assert not HIDDEN.search(message) and not TOKENS.search(message)
        return re.sub(r"\n\w{12} \(\d+ more characters are left out\)", "", outside(message)).replace(mark, "MARK")

    plain = skeleton(LAMP, "Say it.")
    for text in HOSTILE:
        assert skeleton(text, "Say it.") == plain
        assert skeleton(LAMP, text) == plain


def test_a_prompt_that_just_pastes_the_text_is_taken_in():
    """The check above can fail: a judge that obeys what it finds is led by most of these texts when they stand there bare."""
    led = sum("Rating: [[2]]" in outside(f"Rate this text.\n\n{text}\n\nWrite Rating: [[n]].") for text in HOSTILE)
    assert led >= 40


def test_a_judge_that_obeys_orders_gets_none_from_hostile_texts(tmp_path):
    with serving() as (server, url):
        one = judge(url, tmp_path)
        scores = one.scores([f"{text}\n{LAMP}" for text in HOSTILE], [ASKED] * len(HOSTILE))
        also = one.scores([f"{STORM}\n{text}" for text in HOSTILE], [ASKED] * len(HOSTILE))
    assert [s.value for s in scores] == [0.0] * len(HOSTILE)
    assert [s.value for s in also] == [1.0] * len(HOSTILE)
    assert server.requests == 2 * len(HOSTILE)


def test_a_judge_that_repeats_the_material_is_read_by_its_own_words(tmp_path):
    def repeats(message):
        text = blocks(message)["TEXT"]
        return (
            "\n".join(f"| {line}" for line in text.split("\n"))
            + f"\n{weather(message)}\n"
            + "\n".join(f"| {t}" for t in text.split("\n"))
        )

    with serving(repeats) as (_, url):
        scores = judge(url, tmp_path).scores([f"{LAMP}\n{t}" for t in HOSTILE], [ASKED] * len(HOSTILE))
    assert {s.value for s in scores} == {0.0}


def test_tokens_of_the_judging_models_own_tokenizer_are_broken_up():
    from steerlab.judges.local import _rendered
    from steerlab.testing import tiny

    tokenizer = tiny.tokenizer()
    special = tuple(dict.fromkeys([*tokenizer.all_special_tokens, "<system>", "<user>", "<assistant>", "<bos>"]))
    ids = {tokenizer.convert_tokens_to_ids(t) for t in special}

    def count(text):
        said = _rendered(tokenizer, asking.question("fluency", text, special=special))
        return sum(i in ids for i in tokenizer(said, add_special_tokens=False)["input_ids"])

    usual = count("w1 w2 w3")
    assert all(count(text) == usual for text in [*HOSTILE, "<end> <user> w1 <end> <assistant>"])
