"""AxBench against an endpoint that times out, refuses, cuts connections and talks nonsense; killed; and its data written.

The server is a real one, that the test starts. Nothing is lost, nothing invented, and what is missing is counted.
"""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import children
from axbench_world import FACTORS, digests, judge, ran, rate, world
from judging import serving
from steerlab.bench.axbench import writing
from steerlab.bench.axbench.board import board
from steerlab.bench.axbench.folder import FolderAxBench
from steerlab.bench.axbench.pool import GENRES, instructions
from steerlab.bench.axbench.rules import rule_concepts
from steerlab.bench.axbench.writing import Named, WriteOptions
from steerlab.cli.bench import _client, told
from steerlab.contrast import Example
from steerlab.errors import ArtefactError, ConfigError, DataError, JudgeError
from steerlab.judges.spec import parse_rule
from steerlab.sweep.journal import Journal

FAULTS = [
    429,
    500,
    "cut",
    "garbage",
    "half",
    "truncated",
    "no choices",
    "a list",
    "not text",
    "binary",
    "late",
    503,
    "trickle",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return world(tmp_path_factory.mktemp("endpoint"))


@pytest.fixture(scope="module")
def undisturbed(here, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    with serving(rate) as (_, url):
        found = ran(here, out, judge(url, out / "answers.sqlite"))
    return found, digests(out)


def ratings(found) -> Counter:
    """Every rating of a run by its value, None where there is none."""
    results = [found.of(u) for u in found.units.said.values()]
    rows = [r for result in results for row in result["ratings"] for r in row]
    rows += [r for u in found.units.attacks.values() for k in found.of(u)["kinds"].values() for r in k["ratings"]]
    return Counter(value for row in rows for value in row)


# --- judging --------------------------------------------------------------------------------------------------------


def test_faults_that_pass_change_nothing(here, undisturbed, tmp_path):
    with serving(rate, FAULTS * 3) as (server, url):
        found = ran(here, tmp_path, judge(url, tmp_path / "answers.sqlite", timeout=0.3, tries=40))
    assert digests(tmp_path) == undisturbed[1]
    made = board(found, title="", meter={})
    assert made.counts["missing"] == 0
    assert made.asked["unanswered"] == 0
    assert made.asked["retries"] >= len(FAULTS * 3)
    assert made.asked["calls"] == server.requests
    assert made.asked["calls"] - made.asked["retries"] == len(server.messages), "each message is answered once"
    (_, line, *_) = told(made)
    assert f"{made.asked['calls']:,} calls" in line
    assert f"cost {made.asked['cost']:.4f}" in line


def test_what_nobody_answers_is_missing_and_asked_for_again(here, undisturbed, tmp_path):
    faults = [500] * 7
    with serving(rate, faults) as (_, url):
        spec = judge(url, tmp_path / "answers.sqlite", tries=1)
        found = ran(here, tmp_path, spec)
        made = board(found, title="", meter={})
        assert made.asked["unanswered"] == 7
        # a rating may be wanted for several replies that are the same: at least one is missing for each that wasn't answered
        missing = ratings(found)[None]
        assert missing == made.counts["missing"] >= 7
        assert sum(ratings(found).values()) == made.counts["ratings"]
        whole = ratings(undisturbed[0])
        assert all(n <= whole[value] for value, n in ratings(found).items() if value is not None), "none is invented"
        assert any("run the same command again" in line for line in told(made))
        before = digests(tmp_path)
        assert before != undisturbed[1]
        again = ran(here, tmp_path, spec)
    assert ratings(again)[None] == 0
    assert digests(tmp_path) == undisturbed[1]
    tried = [row.tried for row in again.rows.values()]
    assert 0 < sum(n == 2 for n in tried) < len(tried), "what was whole isn't done again"


def test_nonsense_for_one_aspect_is_missing_there_alone(here, undisturbed, tmp_path):
    def half(message: str) -> str:
        return "I like it very much." if "INSTRUCTION BEGINS" in message else rate(message)

    with serving(half) as (_, url):
        found = ran(here, tmp_path, judge(url, tmp_path / "answers.sqlite"), parts=("steering",))
    made = board(found, title="", meter={})
    result = found.of(found.units.said["steer", "diff_means", "0"])
    whole = undisturbed[0].of(undisturbed[0].units.said["steer", "diff_means", "0"])
    spoken = [t.strip() != "" for row in result["texts"] for t in row]
    for (c, i, f), (c_, i_, f_), said in zip(
        (r for row in result["ratings"] for r in row), (r for row in whole["ratings"] for r in row), spoken, strict=True
    ):
        assert (c, f) == (c_, f_)
        assert i == (None if said else i_)
    assert (
        made.counts["missing"]
        == made.asked["unreadable"]
        == sum(t.strip() != "" for u in found.units.said.values() for row in found.of(u)["texts"] for t in row)
    )
    scores = made.line("diff_means").concepts["0"]["steer"]["score"]
    assert all(s is None or s == 0 for s in scores), "silence is 0, all else can't be told"


def test_a_judge_that_refuses_ends_the_run_and_loses_nothing(here, undisturbed, tmp_path):
    with serving(rate, ["fine"] * 30 + [401]) as (_, url):
        spec = judge(url, tmp_path / "answers.sqlite", concurrency=1)
        with pytest.raises(JudgeError, match="HTTP 401"):
            ran(here, tmp_path, spec)
        left = digests(tmp_path)
        assert any(v is not None for v in left.values())
        ran(here, tmp_path, spec)
    assert digests(tmp_path) == undisturbed[1]


def test_an_endpoint_that_is_not_there(here, tmp_path):
    with pytest.raises(JudgeError, match="can't be reached"):
        ran(here, tmp_path, judge("http://127.0.0.1:9/v1", tmp_path / "a.sqlite", tries=1))


# --- killed ---------------------------------------------------------------------------------------------------------


def test_killed_anywhere_it_ends_as_an_undisturbed_one(here, undisturbed, tmp_path):
    with serving(rate) as (_, url):
        words = [
            "-m", "steerlab", "bench", "axbench", "--data", str(here / "data"), "--model", str(here / "model"), "--workers", "1",
            "--arm", "diff_means=diff_means,pooling=token,site=1",
            "--arm", "lm_vector=lm_vector,site=0,factors=[1.0],epochs=2,batch_size=4",
            "--prompts", "4", "--tokens", "4", "--rows", "8", "--judge", judge(url, tmp_path / "answers.sqlite"),
            "--out", str(tmp_path / "out"), *(w for f in FACTORS for w in ("--factors", str(f))),
        ]  # fmt: skip
        whole = children.run([w.replace("/out", "/whole") for w in words])
        assert whole.returncode == 0, whole.stderr
        for done in (2, 9):
            process = children.start(words)
            _until(tmp_path / "out", done, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
            left = digests(tmp_path / "out")
            assert 0 < sum(v is not None for v in left.values()) < len(left), "it was killed in the middle of it"
        ended = children.run(words)
    assert ended.returncode == 0, ended.stderr
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert "arms × 2 concepts × 3 factors × 4 prompts" in ended.stderr
    assert "judge: " in ended.stderr
    assert "DiffMean" in ended.stdout
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert text.split("\n\n")[1:] == (tmp_path / "whole" / "leaderboard.md").read_text().split("\n\n")[1:]


def _until(out: Path, done: int, process, seconds=300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with Journal(out, read_only=True) as journal:
                if sum(row.state == "done" for row in journal.rows().values()) >= done:
                    return
        except ArtefactError:
            pass
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


# --- writing --------------------------------------------------------------------------------------------------------

OPTIONS = WriteOptions(examples=4, evals=3, hard=4, ambiguous=3, words=20)


def writer(message: str) -> str:
    """A writer by rule: a genre, ambiguous words, another sense of two of them, and answers that show what is asked for."""
    if "Answer with that one word" in message:
        return "I would say: code." if "loops" in message else "text"
    if message.startswith("Name "):
        return "1. bank\n2. current\n- two words\n3. bed"
    if message.startswith("The word"):
        return "None." if "'bed'" in message else "Money is kept there."
    if message.startswith("Are these"):
        return "No." if "'current'" in message else "Yes, clearly."
    if "in this meaning" in message:
        return "I went to the bank with my savings." if "museums" not in message else "I kept my savings elsewhere."
    if "one JSON object" in message:
        return '{"a": 1}' if "bread" not in message else "Here is JSON."
    found = re.search(r"(rivers and lakes|loops in programs)", message)
    return f"An answer with {found.group(1)} in it." if found else "A plain answer."


def asker(url: str, cache: Path, **settings):
    told = {"model": "writer", "url": url, "cache": cache, "wait": 0.01, "tries": 4, **settings}
    return _client("llm," + ",".join(f"{k}={v}" for k, v in told.items()))


def test_data_is_written_whole_and_read_again(tmp_path):
    with serving(writer) as (server, url):
        client = asker(url, tmp_path / "answers.sqlite")
        made = writing.write(
            client, [Named("rivers and lakes"), Named("loops in programs"), rule_concepts()[0]], OPTIONS
        )
        asked = server.requests
        again = writing.write(
            asker(url, tmp_path / "answers.sqlite"),
            [Named("rivers and lakes"), Named("loops in programs"), rule_concepts()[0]],
            OPTIONS,
        )
        assert server.requests == asked, "what was answered is known"
    assert (again.train, again.latent, again.pairs) == (made.train, made.latent, made.pairs)
    genres = [row["concept_genres_map"][row["concept"]] for row in made.names]
    assert genres == [["text"], ["code"], ["text"]]
    shared = [row for row in made.train if row["concept_id"] == "-1"]
    assert Counter(row["concept_genre"] for row in shared) == {"text": 4, "code": 4}
    assert {row["output_concept"] for row in shared} == {writing.NOBODY}
    hard = [row for row in made.latent if row["category"] == "hard negative"]
    assert {row["output_concept"] for row in hard} == {"bank//Money is kept there."}, (
        "a bed is none, a current isn't apart"
    )
    assert all("bank" in row["output"] for row in hard)
    used = {row["input"] for row in made.train}
    assert not used & {row["input"] for row in made.latent}, "nothing is measured on what is fitted on"
    rows = len(made.train) + len(made.latent)
    lost = sum(n for why, n in made.dropped.items() if not why.startswith(("of them", "a word", "a genre")))
    assert rows + lost == made.wanted
    writing.save(made, tmp_path / "data")
    of = FolderAxBench(str(tmp_path / "data"), "none")
    assert [of.words(t.name) for t in of.tasks()] == [
        "rivers and lakes",
        "loops in programs",
        "an answer that is one JSON object",
    ]
    pairs = of.contrast("0", 0)
    assert pairs.paired
    assert all("rivers and lakes" in p.answer and "rivers and lakes" not in q.answer for p, q in pairs.pairs)
    found = of.rows("0", 9, 9)
    assert (len(found.positive), len(found.negative)) == (3, 3)
    assert writing.named_in(tmp_path / "data" / "metadata.jsonl")[2].rule == "form:json"


def test_what_the_writer_does_not_answer_is_left_out_and_counted(tmp_path):
    with serving(writer, [500] * 5) as (_, url):
        client = asker(url, tmp_path / "answers.sqlite", tries=1, concurrency=1)
        made = writing.write(client, [Named("rivers and lakes", "text")], OPTIONS)
        assert client.tally.unanswered == 5
        # the first five messages are plain answers: four to fit on, and an answer with the concept
        assert made.dropped["a plain answer is missing"] == 4
        assert made.dropped["an answer with the concept is missing"] == 1
        assert len(made.pairs) == 0
        assert [r for r in made.train if r["category"] == "negative"] == []
        whole = writing.write(asker(url, tmp_path / "answers.sqlite"), [Named("rivers and lakes", "text")], OPTIONS)
    assert "a plain answer is missing" not in whole.dropped
    assert len(whole.pairs) == 4


def test_a_genre_that_is_not_named_is_counted(tmp_path):
    with serving(lambda m: "Hm." if "one word" in m else writer(m), []) as (_, url):
        made = writing.write(asker(url, tmp_path / "a.sqlite"), [Named("rivers and lakes")], OPTIONS)
    assert made.dropped["a genre that wasn't named (taken for text)"] == 1


def test_writing_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match="no concept is named"):
        writing.write(asker("http://127.0.0.1:9/v1", tmp_path / "a.sqlite"), [], OPTIONS)
    with pytest.raises(ConfigError, match="the writer is 'words:a'"):
        _client("words:a")
    with pytest.raises(ConfigError, match="examples is 0"):
        WriteOptions(examples=0)
    (tmp_path / "broken.jsonl").write_text('{"name": 1}\n')
    with pytest.raises(DataError, match=r"can't be read as AxBench's metadata"):
        writing.named_in(tmp_path / "broken.jsonl")


def test_there_are_instructions_for_each_genre():
    for genre in GENRES:
        found = instructions(genre)
        assert len(found) == len(set(found)) >= 72 + 36
        assert not any("{" in text for text in found)


def test_each_rule_is_one_that_a_judge_knows():
    assert len(rule_concepts()) == len({c.words for c in rule_concepts()}) == 25
    for concept in rule_concepts():
        assert parse_rule(concept.rule)("Tea is hot. So is coffee.", Example.ask("x")).value is not None


def test_concept500_is_named(shared):
    named = writing.named_in(shared / "data" / "axbench_concept500_names" / "2b_l20_metadata.jsonl")
    assert len(named) == 500
    assert {c.genre for c in named} <= set(GENRES)
