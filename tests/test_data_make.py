"""Pairs from a concept: the model answers both sides, a judge filters, nothing is dropped in silence."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steerlab import data
from steerlab.contrast import Example, Message
from steerlab.data.make import make
from steerlab.data.requests import AVOID, ELICIT, MakeOptions
from steerlab.engines.base import Reply, Runner, Sampling, as_example
from steerlab.errors import ArtefactError, ConfigError, DataError
from steerlab.judges.base import Judge, Score

GREEDY = Sampling()
ROOT = Path(os.environ.get("STEERLAB_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
TOPICS = [f"topic{i}" for i in range(30)]
ASKS = [Example.ask(f"Describe {t}.", family=f"f{i % 5}") for i, t in enumerate(TOPICS)]


class Parrot(Runner):
    """Says `golden` when the prompt asks for gold, and what the tests plant."""

    name = "parrot"

    def __init__(self, **planted: str) -> None:
        self.planted = planted  # topic -> what it says to any prompt about it
        self.calls: list[list[str]] = []
        self.stop_after: int | None = None

    def reply(self, text: str, seed: int) -> str:
        topic = next(t for t in TOPICS if f"{t}." in text)
        if topic in self.planted:
            return self.planted[topic]
        return f"A {'golden' if 'gold' in text else 'grey'} word on {topic} with {seed % 7}."

    def generate(self, prompts: Sequence[Any], steerings: Any = None, sampling: Sampling = GREEDY) -> list[Reply]:
        texts = ["\n".join(m.content for m in as_example(p).messages) for p in prompts]
        if any("refuse me" in text for text in texts):
            raise DataError("prompt 0 is 900 tokens long.")
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(texts)
        said = [self.reply(t, s) for t, s in zip(texts, sampling.seeds(len(texts)), strict=True)]
        return [Reply(s, (1,), "length" if "topic0 " in s else "stop", 1, (0.0,)) for s in said]

    def stream(self, prompts: Any, steerings: Any = None, sampling: Sampling = GREEDY) -> Any:
        raise NotImplementedError

    def logprobs(self, examples: Any, steerings: Any = None) -> Any:
        raise NotImplementedError

    def refuses(self, steering: Any) -> list[str]:
        return []

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"shape": "parrot"}

    @property
    def template(self) -> str:
        return "plain"


class Gold(Judge):
    """Whether `golden` is in it; can't tell where the answer is a question mark."""

    def __call__(self, reply: str, example: Example) -> Score:
        assert "gold" not in example.instruction, "the judge sees the plain instruction, not the request"
        return Score.missing("only a mark") if reply == "?" else Score(float("golden" in reply))


def test_pairs_are_the_request_and_the_plain_instruction_with_the_models_answers() -> None:
    made = make(Parrot(), "gold", ASKS, judge=Gold(), options=MakeOptions(pairs=8))
    assert len(made.contrast.pairs) == 8
    for positive, negative in made.contrast.pairs:
        assert negative.instruction in {e.instruction for e in ASKS}
        assert negative.instruction in positive.instruction
        assert "gold" in positive.instruction
        assert "golden" in (positive.answer or "")
        assert "grey" in (negative.answer or "")
        assert positive.family == negative.family
        assert (positive.score, negative.score) == (1.0, 0.0)
    assert (made.contrast.concept, made.contrast.source) == ("gold", "answered by parrot")
    assert made.report.dropped == ()
    assert (made.report.made, made.report.given, made.report.unused) == (8, 30, 22)


def test_families_and_requests_take_turns() -> None:
    made = make(Parrot(), "gold", ASKS, options=MakeOptions(pairs=12))
    assert set(Counter(e.family for e in made.contrast.negative).values()) == {2, 3}
    assert [r.kept for r in made.report.requests] == [2] * len(ELICIT)


def test_the_same_seed_gives_the_same_pairs_whatever_the_batch() -> None:
    first, again, other, small = (
        make(Parrot(), "gold", ASKS, options=MakeOptions(pairs=8, seed=seed, batch=batch)).contrast.digest()
        for seed, batch in ((0, 32), (0, 32), (1, 32), (0, 3))
    )
    assert first == again == small
    assert first != other


def test_each_row_draws_from_a_seed_of_its_own() -> None:
    made = make(Parrot(), "gold", ASKS, options=MakeOptions(pairs=20))
    assert len({(e.answer or "").rsplit(" ", 1)[1] for e in made.contrast.positive}) > 3


def test_every_reason_for_dropping_is_counted_with_an_example() -> None:
    engine = Parrot(
        topic1="", topic2="grey and no more of it", topic3="?", topic4="all golden, whatever is asked",
        topic5="golden, and the same words as another", topic6="golden, and the same words as another",
    )  # fmt: skip

    class Lenient(Gold):
        def __call__(self, reply: str, example: Example) -> Score:
            if example.instruction in ("Describe topic5.", "Describe topic6."):
                return Score(float("x" in reply))  # never present
            return super().__call__(reply, example)

    asks = [*ASKS, ASKS[7], "  describe TOPIC7. ", Example.ask("refuse me, topic8.")]
    report = make(engine, "gold", asks, judge=Lenient(), options=MakeOptions(pairs=99)).report
    assert {d.reason: d.count for d in report.dropped} == {
        "the answer is empty": 1,
        "the positive answer lacks the concept": 3,
        "the judge can't tell (only a mark)": 1,
        "the negative answer shows the concept": 1,
        "the instruction repeats an earlier one": 2,
        "the engine refuses the prompt": 1,
    }
    assert report.given == 33 == report.made + sum(d.count for d in report.dropped) + report.unused
    assert report.short == 99 - report.made
    shown = next(d.example for d in report.dropped if d.reason == "the negative answer shows the concept")
    assert "Describe topic4." in shown
    assert "all golden" in shown
    assert "3 × the positive answer lacks the concept" in report.told()


def test_without_a_judge_answers_that_tell_nothing_apart_are_dropped() -> None:
    engine = Parrot(
        topic1="yes", topic2="one and the same answer again", topic3="Describe topic3. Keep one thing in mind"
    )
    report = make(engine, "gold", ASKS, options=MakeOptions(pairs=99)).report
    assert {d.reason for d in report.dropped} == {"both answers are the same"}
    same = [Example.ask(f"Describe {t}.") for t in ("topic1", "topic2")]

    class Twice(Parrot):
        def reply(self, text: str, seed: int) -> str:
            return "some golden words, twice the same" if "gold" in text else super().reply(text, seed)

    report = make(Twice(), "gold", same).report
    assert [(d.reason, d.count) for d in report.dropped] == [("the answer was given to another instruction, too", 1)]


def test_an_answer_that_repeats_the_request_is_dropped() -> None:
    class Echo(Parrot):
        def reply(self, text: str, seed: int) -> str:
            return f"You said: {text}" if "topic1." in text else super().reply(text, seed)

    report = make(Echo(), "gold", ASKS[:3]).report
    assert [(d.reason, d.count) for d in report.dropped] == [("the answer repeats the request", 1)]


def test_a_request_that_fails_is_followed_by_another() -> None:
    class Deaf(Parrot):
        """Hears only the requests that name a trait."""

        def reply(self, text: str, seed: int) -> str:
            return super().reply(text if "Trait:" in text else text.replace("gold", ""), seed)

    made = make(Deaf(), "gold", ASKS, judge=Gold(), options=MakeOptions(pairs=99, tries=len(ELICIT)))
    assert made.report.made == 30
    assert made.report.retried == 25
    assert all("Trait:" in e.instruction for e in made.contrast.positive)
    few = make(Deaf(), "gold", ASKS, judge=Gold(), options=MakeOptions(pairs=99, tries=1)).report
    assert few.made == 5


def test_a_plain_answer_that_shows_the_concept_is_asked_for_again_and_stands_under_the_plain_instruction() -> None:
    class Gilded(Parrot):
        def reply(self, text: str, seed: int) -> str:
            avoids = "out of your answer" in text or "without any trace" in text or "nothing of this" in text
            return super().reply(text.replace("gold", "") if avoids else f"{text} gold", seed)

    made = make(Gilded(), "gold", ASKS[:6], judge=Gold())
    assert made.report.made == 6
    assert all(
        n.instruction == f"Describe {n.instruction.split()[1]}" and "gold" not in n.instruction
        for n in made.contrast.negative
    )
    bare = MakeOptions(avoid=())
    with pytest.raises(DataError, match="6 × the negative answer shows the concept"):
        make(Gilded(), "gold", ASKS[:6], judge=Gold(), options=bare)


def test_only_the_last_turn_is_put_into_a_request() -> None:
    talk = Example((Message("system", "Be brief."), Message("user", "Describe topic1.")), family="f")
    (positive, negative), *_ = make(Parrot(), "gold", [talk]).contrast.pairs
    assert positive.messages[0] == negative.messages[0] == Message("system", "Be brief.")
    assert negative.messages == talk.messages


def test_answers_cut_at_their_greatest_length_are_counted() -> None:
    assert make(Parrot(), "gold", ASKS).report.cut == 2


def test_braces_in_an_instruction_are_text() -> None:
    (positive, _), *_ = make(Parrot(), "gold {instruction}", ["Print {concept} for topic1."]).contrast.pairs
    assert "Print {concept} for topic1." in positive.instruction
    assert positive.instruction.count("topic1") == 1


def test_nothing_made_says_why() -> None:
    with pytest.raises(
        DataError, match=r"no pair could be made for 'gold'.*30 × the answer is empty.*change the requests"
    ):
        make(Parrot(**dict.fromkeys(TOPICS, " ")), "gold", ASKS)


@pytest.mark.parametrize(
    ("concept", "asks", "words"),
    [
        (" ", ["a"], "the concept is empty"),
        ("gold", [], "there are no instructions"),
        ("gold", ["a", " "], "instruction 1 is empty"),
    ],
)
def test_nothing_to_ask_is_refused(concept: str, asks: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(Parrot(), concept, asks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs": 0}, "pairs is 0; expected at least 1"),
        ({"elicit": ()}, "elicit has no request"),
        ({"elicit": ("With {concept}.",)}, "lacks {instruction}"),
        ({"avoid": ("{instruction} {concpet}",)}, "Did you mean 'concept'?"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MakeOptions(**options)
    assert words in str(caught.value)


def test_the_default_requests_differ_and_name_the_concept() -> None:
    assert len({*ELICIT, *AVOID}) == len(ELICIT) + len(AVOID) >= 8
    assert all("{concept}" in template for template in (*ELICIT, *AVOID))


# --- files and interruptions ------------------------------------------------------------------------------------------


def interrupted(out: Path, after: int, **options: Any) -> Parrot:
    engine = Parrot()
    engine.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        make(engine, "gold", ASKS, out=out, options=MakeOptions(pairs=20, batch=4, **options))
    return engine


def test_the_file_holds_the_pairs_and_no_journal_is_left(tmp_path: Path) -> None:
    out = tmp_path / "gold.jsonl"
    made = make(Parrot(), "gold", ASKS, out=out, options=MakeOptions(pairs=8))
    assert data.read(out) == made.contrast
    assert [p.name for p in tmp_path.iterdir()] == ["gold.jsonl"]


@pytest.mark.parametrize("after", [2, 3, 6])
def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(tmp_path: Path, after: int) -> None:
    out = tmp_path / "gold.jsonl"
    options = MakeOptions(pairs=20, batch=4)
    straight = make(Parrot(), "gold", ASKS, options=options)
    interrupted(out, after)
    assert [p.name for p in tmp_path.iterdir()] == ["gold.jsonl.journal"]
    engine = Parrot()
    resumed = make(engine, "gold", ASKS, out=out, options=options)
    assert resumed.contrast == straight.contrast
    assert resumed.report.resumed == 4 * (after // 2)
    assert len(engine.calls) == 10 - 2 * (after // 2)
    assert [p.name for p in tmp_path.iterdir()] == ["gold.jsonl"]


def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    out, journal = tmp_path / "gold.jsonl", tmp_path / "gold.jsonl.journal"
    interrupted(out, 4)
    journal.write_bytes(journal.read_bytes()[:-40])
    options = MakeOptions(pairs=20, batch=4)
    made = make(Parrot(), "gold", ASKS, out=out, options=options)
    assert made.report.resumed == 4
    assert made.contrast == make(Parrot(), "gold", ASKS, options=options).contrast


def test_a_run_can_be_interrupted_again_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    out, journal = tmp_path / "gold.jsonl", tmp_path / "gold.jsonl.journal"
    interrupted(out, 4)
    journal.write_bytes(journal.read_bytes()[:-40])
    interrupted(out, 2)
    assert make(Parrot(), "gold", ASKS, out=out, options=MakeOptions(pairs=20, batch=4)).report.resumed == 8


def test_a_journal_cut_in_its_first_line_is_begun_anew(tmp_path: Path) -> None:
    journal = tmp_path / "gold.jsonl.journal"
    journal.write_text('{"job": {"ma')
    assert make(Parrot(), "gold", ASKS, out=tmp_path / "gold.jsonl").report.resumed == 0


def test_more_pairs_can_be_asked_of_an_interrupted_run(tmp_path: Path) -> None:
    out = tmp_path / "gold.jsonl"
    interrupted(out, 4)
    assert make(Parrot(), "gold", ASKS, out=out, options=MakeOptions(pairs=24, batch=4)).report.resumed == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 1}, "seed: 0 there, 1 here"), ({"max_new_tokens": 9}, "max_new_tokens: 128 there, 9 here")],
)
def test_the_journal_of_another_job_is_not_continued(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    out, journal = tmp_path / "gold.jsonl", tmp_path / "gold.jsonl.journal"
    interrupted(out, 2)
    before = journal.read_bytes()
    with pytest.raises(DataError) as caught:
        make(Parrot(), "gold", ASKS, out=out, options=MakeOptions(pairs=20, batch=4, **change))
    assert words in str(caught.value)
    assert "another job" in str(caught.value)
    assert journal.read_bytes() == before
    assert not out.exists()


def test_another_rule_of_the_same_judge_is_another_job(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Words(Judge):
        words: frozenset[str]

        def __call__(self, reply: str, example: Example) -> Score:
            return Score(float(any(word in reply for word in self.words)))

    out, engine = tmp_path / "gold.jsonl", Parrot()
    engine.stop_after = 2
    options = MakeOptions(pairs=20, batch=4)
    gold, both = Words(frozenset({"golden", "gilt"})), Words(frozenset({"golden", "grey"}))
    with pytest.raises(KeyboardInterrupt):
        make(engine, "gold", ASKS, out=out, judge=gold, options=options)
    with pytest.raises(DataError, match="another job.*judge: "):
        make(Parrot(), "gold", ASKS, out=out, judge=both, options=options)
    again = Words(frozenset({"gilt", "golden"}))
    assert make(Parrot(), "gold", ASKS, out=out, judge=again, options=options).report.resumed == 4


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    journal = tmp_path / "gold.jsonl.journal"
    journal.write_text("my notes\n")
    with pytest.raises(DataError, match="line 1 is no line of a journal"):
        make(Parrot(), "gold", ASKS, out=tmp_path / "gold.jsonl")
    assert journal.read_text() == "my notes\n"


def test_a_full_disk_says_that_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steerlab.data.journal.os.fsync", full)
    with pytest.raises(ArtefactError, match="No space left on device.*run the same command again"):
        make(Parrot(), "gold", ASKS, out=tmp_path / "gold.jsonl")
    assert not (tmp_path / "gold.jsonl").exists()


def test_the_report_is_json_and_a_table() -> None:
    from rich.console import Console

    from steerlab.data.render import made

    report = make(Parrot(topic1=""), "gold", ASKS).report
    assert json.loads(json.dumps(report.to_json()))["dropped"][0]["count"] == 1
    out = Console(file=io.StringIO(), width=100, color_system=None)
    out.print(made(report))
    text = " ".join(out.file.getvalue().split())  # type: ignore[attr-defined]
    assert "the answer is empty" in text
    assert "29 of 64 pairs" in text


# --- a real model -----------------------------------------------------------------------------------------------------


def test_a_real_model_answers_both_sides(tmp_path: Path) -> None:
    path = ROOT / "models" / "stories260k"
    if not path.exists():
        pytest.skip(f"no model at {path} (set STEERLAB_SHARED to the folder that holds models/)")
    from steerlab.engines.hf import HFEngine

    engine = HFEngine.load(str(path), template="plain")
    starts = ["Once upon a time there was a dog.", "Lily went to the park.", "Tom had a red ball.", "word " * 600]
    options = MakeOptions(pairs=3, max_new_tokens=24, temperature=0.7, elicit=("A story of {concept}. {instruction}",))
    out = tmp_path / "cat.jsonl"
    made = make(engine, "a cat", starts, out=out, options=options)
    assert made.report.made == 3
    assert made.contrast == make(engine, "a cat", starts, options=options).contrast == data.read(out)
    assert made.contrast.source == "answered by stories260k"
    longer = make(engine, "a cat", starts, options=MakeOptions(**{**vars_of(options), "pairs": 4})).report
    assert [(d.reason, d.count) for d in longer.dropped] == [("the engine refuses the prompt", 1)]
    assert "512" in longer.dropped[0].example


def test_the_pilot_answers_both_sides() -> None:
    import steerlab as sl

    asks = ["Describe a kitchen.", "Tell me about a bridge.", "Write about a garden.", "Describe a market."]
    made = make(sl.load("pilot"), "the sea", asks, options=MakeOptions(pairs=4, max_new_tokens=32))
    report = made.report
    assert report.given == report.made + sum(d.count for d in report.dropped) + report.unused
    assert len(made.contrast.pairs) == report.made


def vars_of(options: MakeOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}
