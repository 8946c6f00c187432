"""A language model as a judge, against a real HTTP server that misbehaves: no rating is lost, none invented, each counted."""

from __future__ import annotations

import json
import socket
import sqlite3
import time

import pytest

from judging import ASKED, DRIZZLE, LAMP, STORM, blocks, judge, outside, serving, weather
from steerlab.errors import ArtefactError, ConfigError, JudgeError
from steerlab.judges.answers import Answer, Answers
from steerlab.judges.llm import LLMJudge
from steerlab.judges.spec import parse_rule

# --- an endpoint that misbehaves ------------------------------------------------------------------------------------------------


FAULTS = (429, 500, "cut", "garbage", 503, "half", "truncated", "no choices", "a list", "not text", "binary", 502, 408)


def test_every_fault_is_tried_again_and_no_rating_is_lost(tmp_path):
    texts = [f"{STORM} {n}" if n % 3 == 0 else f"{DRIZZLE} {n}" if n % 3 == 1 else f"{LAMP} {n}" for n in range(30)]
    truth = [{0: 1.0, 1: 0.5, 2: 0.0}[n % 3] for n in range(30)]
    with serving(faults=FAULTS) as (server, url):
        one = judge(url, tmp_path, price_in=10.0, price_out=100.0)
        scores = one.scores(texts, [ASKED] * 30)
    assert [s.value for s in scores] == truth
    t = one.tally
    assert (t.wanted, t.kept, t.unanswered, t.unreadable, t.missing) == (30, 0, 0, 0, 0)
    assert t.calls == server.requests == 30 + len(FAULTS)
    assert t.retries == len(FAULTS)
    assert (t.prompt_tokens, t.answer_tokens) == (3000, 300)
    assert t.cost == pytest.approx(30 * (100 * 10 + 10 * 100) / 1e6)
    assert "30 ratings: 0 known before, 43 calls (13 repeated), 0 unreadable, 0 unanswered" in t.told()
    assert set(map(str, FAULTS)) <= set(server.served)


def test_a_server_that_is_late_or_trickles_is_left_in_time(tmp_path):
    with serving(faults=["late", "trickle"]) as (_, url):
        one = judge(url, tmp_path, timeout=0.25, concurrency=1)
        began = time.monotonic()
        assert one(STORM, ASKED).value == 1.0
        assert time.monotonic() - began < 20
    assert (one.tally.calls, one.tally.retries) == (3, 2)


def test_what_is_never_answered_is_missing_counted_and_not_kept(tmp_path):
    with serving(faults=["garbage"] * 3) as (_, url):
        one = judge(url, tmp_path, tries=3, concurrency=1)
        scores = one.scores([STORM, LAMP], [ASKED] * 2)
        assert [s.value for s in scores] == [None, 0.0]
        assert "no rating" in scores[0].reason and one.present(scores[0]) is None
        t = one.tally
        assert (t.wanted, t.calls, t.unanswered, t.unreadable) == (2, 4, 1, 0)
        assert t.reasons == {"the answer is no chat completion (tried 3 times)": 1}
        again = judge(url, tmp_path)
        assert [s.value for s in again.scores([STORM, LAMP], [ASKED] * 2)] == [1.0, 0.0]
    assert (again.tally.kept, again.tally.calls) == (1, 1), "only what was missing is asked again"


def test_an_answer_without_a_rating_is_missing_counted_and_kept(tmp_path):
    with serving(lambda message: "I would rather not." if "lamp" in message else weather(message)) as (server, url):
        for _ in range(2):
            one = judge(url, tmp_path)
            assert [s.value for s in one.scores([STORM, LAMP, DRIZZLE], [ASKED] * 3)] == [1.0, None, None]
            assert (one.tally.unreadable, one.tally.unanswered) == (2, 0)
        assert server.requests == 3


def test_a_text_that_the_server_refuses_is_missing_and_the_others_are_rated(tmp_path):
    for code in (400, 413, 422):
        with serving(faults=[code]) as (server, url):
            one = judge(url, tmp_path / str(code), concurrency=1)
            assert [s.value for s in one.scores([STORM, LAMP], [ASKED] * 2)] == [None, 0.0]
            assert server.requests == 2, "asking again would change nothing"
            assert f"HTTP {code}" in next(iter(one.tally.reasons))


@pytest.mark.parametrize(
    ("code", "hint"), [(401, "Is the key in MY_KEY right"), (403, "MY_KEY"), (404, "up to /v1"), (302, "/v1")]
)
def test_a_judge_that_refuses_altogether_ends_the_run(tmp_path, code, hint):
    with serving(faults=[code] * 50) as (server, url):
        with pytest.raises(JudgeError, match=hint):
            judge(url, tmp_path, key_env="MY_KEY").scores([f"{STORM} {n}" for n in range(40)], [ASKED] * 40)
        assert server.requests < 40, "what was waiting isn't sent"


def test_nobody_there_is_an_error_and_no_rating(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(JudgeError, match="can't be reached"):
        judge(url, tmp_path, tries=2)(STORM, ASKED)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    texts = [f"{STORM} {n}" for n in range(12)]
    with serving(faults=["fine"] * 5 + [401] * 100) as (server, url):
        with pytest.raises(JudgeError):
            judge(url, tmp_path, concurrency=1).scores(texts, [ASKED] * 12)
        server.faults.clear()
        one = judge(url, tmp_path, concurrency=4)
        assert [s.value for s in one.scores(texts, [ASKED] * 12)] == [1.0] * 12
        assert (one.tally.kept, one.tally.calls) == (5, 7)
        assert judge(url, tmp_path).scores(texts, [ASKED] * 12) == one.scores(texts, [ASKED] * 12)
        assert server.requests == 5 + 7 + 1
    with sqlite3.connect(tmp_path / "answers.sqlite") as file:
        assert file.execute("select count(*) from answers").fetchone() == (12,)
    file.close()


def test_the_key_is_sent_and_never_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cr3t-k3y")
    with serving() as (server, url):
        judge(url, tmp_path, key_env="MY_KEY")(STORM, ASKED)
        assert server.heads[0]["Authorization"] == "Bearer s3cr3t-k3y"
    assert not any(b"s3cr3t-k3y" in path.read_bytes() for path in tmp_path.iterdir())


def test_what_settles_an_answer_settles_its_place(tmp_path):
    with serving() as (server, url):
        for settings in (
            {},
            {"temperature": 0.5},
            {"seed": 1},
            {"model": "n"},
            {"max_tokens": 9},
            {"concept": "storms"},
            {"variants": 2},
        ):
            judge(url, tmp_path, **settings)(STORM, ASKED)
        assert server.requests == 7, "two variants share their first question with one"
        judge(url, tmp_path, concurrency=3, tries=2, timeout=9.0, price_in=3.0)(STORM, ASKED)
        assert server.requests == 7


def test_three_ratings_make_one_by_their_harmonic_mean(tmp_path):
    def by_aspect(message):
        return f"Rating: [[{2 if 'weather' in outside(message) else 1 if 'INSTRUCTION' in message else 2}]]"

    with serving(by_aspect) as (server, url):
        one = judge(url, tmp_path, what="all")
        assert one(STORM, ASKED).value == pytest.approx(0.75)
        assert server.requests == 3
        assert "Describe the weather." in next(blocks(m)["INSTRUCTION"] for m in server.messages if "INSTRUCTION" in m)
    missing = LLMJudge("m", url, what="all", concept="weather", cache="none")
    assert missing._score(STORM, [[2.0], [None], [2.0]]).value is None


def test_a_judge_that_differs_from_itself_is_found_out(tmp_path):
    def moody(message):
        return "Rating: [[2]]" if message.index("Rating") and "To what extent" in message else weather(message)

    with serving(moody) as (_, url):
        one = judge(url, tmp_path, variants=3)
        found = one.noise([STORM, LAMP], [ASKED] * 2)
        assert found.same == pytest.approx((3 + 1) / 6) and found.distance == pytest.approx(4 / 6) and found.texts == 2
        assert one(LAMP, ASKED).value == pytest.approx(1 / 3)
    with serving() as (_, url):
        assert judge(url, tmp_path, variants=6).noise([STORM, LAMP, DRIZZLE], [ASKED] * 3) == (1.0, 0.0, 3)
        with pytest.raises(ConfigError, match="variants=4"):
            judge(url, tmp_path).noise([STORM], [ASKED])


def test_long_texts_are_cut_and_counted_and_empty_ones_not_asked_about(tmp_path):
    with serving() as (server, url):
        one = judge(url, tmp_path, most=100)
        assert one.scores(["x" * 200 + STORM, "", STORM], [ASKED] * 3)[0].value == 0.0
        assert one.tally.cut == 1 and server.requests == 2
        assert any("(138 more characters are left out)" in m for m in server.messages)


def test_settings_that_make_no_sense_are_told(tmp_path):
    for settings, told in (
        ({"model": ""}, "needs a model"), ({"concept": " "}, "needs the concept"), ({"what": "wit"}, "fluency or all"),
        ({"url": "localhost:8000"}, "expected http"), ({"variants": 0}, "1 to 12 variants"), ({"tries": 0}, "tries is 0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            judge("http://127.0.0.1:1/v1", tmp_path, **settings)
    made = parse_rule("llm,url=http://127.0.0.1:1/v1,model=m,concept=rain,, snow and hail")
    assert made.concept == "rain, snow and hail"


def test_a_file_of_answers_that_is_none_is_told(tmp_path):
    (tmp_path / "answers.sqlite").write_text("this is no database, " * 50)
    with pytest.raises(ArtefactError, match="can't be opened"):
        Answers(str(tmp_path / "answers.sqlite")).known(["a"])
    store = Answers(str(tmp_path / "new.sqlite"))
    store.keep("a", Answer("Rating: [[1]]", False, 3, 4), "m")
    assert store.known(["a", "b"]) == {"a": Answer("Rating: [[1]]", False, 3, 4)}


# --- the command line -----------------------------------------------------------------------------------------------------------


def test_rating_a_file_says_what_it_took_and_agrees_with_itself(tmp_path, capsys):
    from steerlab import cli

    texts = [STORM, LAMP, DRIZZLE, "", f"{STORM} Again."]
    human = [2, 0, 1, None, 2]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": h}) + "\n" for t, h in zip(texts, human, strict=True))
    )

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["judge", *map(str, words)])
        told = capsys.readouterr()
        assert not end.value.code, told.err
        return told

    with serving(faults=[500]) as (server, url):
        rule = f"llm,model=m,url={url},concept=weather,wait=0.01,cache={tmp_path / 'a.sqlite'}"
        told = run(
            "rate", tmp_path / "texts.jsonl", "-j", rule, "-j", "words:rain,thunder", "-o", tmp_path / "out.jsonl"
        )
        assert "4 rated, 1 missing" in told.err and "5 calls (1 repeated)" in told.err
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["ratings"][rule] for row in rows] == [1.0, 0.0, 0.5, None, 1.0]
        found = json.loads(run("agree", tmp_path / "texts.jsonl", "-j", rule, "--human", "label", "--json").out)[0]
        assert found["table"] == [[1, 0, 0], [0, 1, 0], [0, 0, 2]] and found["missing"] == 1
        assert found["quadratic"]["mean"] == found["kappa"]["mean"] == found["spearman"]["mean"] == 1.0
        assert server.requests == 5, "agreement asks nothing that is known"
        told = run("noise", tmp_path / "texts.jsonl", "-j", f"{rule},variants=3", "--json")
        assert json.loads(told.out)["same"] == 1.0
    assert "classifier" in run("list").out
