"""Every planted problem is found, and a clean set has none."""

from __future__ import annotations

import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steerlab import data
from steerlab.contrast import Contrast, Example, Message
from steerlab.data.check import CheckOptions, CheckReport, check
from steerlab.data.giveaway import Labelled, giveaway
from steerlab.data.render import table
from steerlab.errors import ConfigError, DataError

ROOT = Path(os.environ.get("STEERLAB_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
TOPICS = (
    "boats", "trees", "coins", "clouds", "lamps", "roads", "songs", "tools",
    "birds", "stairs", "gates", "maps", "wells", "kites", "drums", "ropes",
)  # fmt: skip
ASKS = ("Describe {}.", "Tell me about {}.", "What is known of {}?", "Write a line on {}.")
OPENINGS = ("Some", "Most", "Many", "All", "Few")


def sentence(topic: str, mark: str, rng: random.Random) -> str:
    """A sentence whose beginning and length say nothing of the class."""
    rest = (rng.choice(("old", "new", "big", "small")) for _ in range(rng.randint(2, 6)))
    return " ".join((rng.choice(OPENINGS), topic, "are", mark, *rest)) + "."


def clean(paired: bool = True) -> Contrast:
    rng = random.Random(0)
    positive, negative = [], []
    for i, topic in enumerate(TOPICS):
        for j, ask in enumerate(ASKS):
            plain, family = ask.format(topic), f"{i % 8} {j}"
            positive.append(Example.ask(plain, sentence(topic, "golden", rng), family=family))
            negative.append(Example.ask(plain, sentence(topic, "grey", rng), family=family))
    neutral = (Example.ask("What is two and two?"), Example.ask("Name a day."))
    return Contrast(tuple(positive), tuple(negative), paired, "gold", "here", neutral)


def with_rows(contrast: Contrast, side: str, changes: dict[int, Example]) -> Contrast:
    rows = list(getattr(contrast, side))
    for i, example in changes.items():
        rows[i] = example
    return replace(contrast, **{side: tuple(rows)})


def names(report: CheckReport) -> set[str]:
    return {f.name for f in report.findings}


@pytest.mark.parametrize("paired", [True, False])
def test_a_clean_set_has_no_finding(paired: bool) -> None:
    report = check(clean(paired))
    assert report.findings == ()
    assert report.ok
    assert report.pairs == (64 if paired else None)
    assert [(c.name, c.rows, c.answered) for c in report.classes] == [
        ("positive", 64, 64), ("negative", 64, 64), ("neutral", 2, 0),
    ]  # fmt: skip


def test_what_a_class_holds() -> None:
    contrast = Contrast((Example.ask("a b", "x y z", family="f"), Example.ask("A  B", "x")), (Example.ask("c", "d"),))
    positive = check(contrast).classes[0]
    assert (positive.rows, positive.instructions, positive.families, positive.answered) == (2, 1, 1, 2)
    assert positive.answer_words is not None
    assert (positive.answer_words.least, positive.answer_words.median, positive.answer_words.most) == (1, 2, 3)
    assert positive.openings == (("x", 2),)


def every(contrast: Contrast, *, prompt: str = "{}", answer: str = "{}") -> Contrast:
    """The contrast with each positive prompt and answer put into a phrase."""
    changed = (
        replace(e, messages=(Message("user", prompt.format(e.instruction)),), answer=answer.format(e.answer))
        for e in contrast.positive
    )
    return replace(contrast, positive=tuple(changed))


def plant(name: str) -> Contrast:
    """A clean set with one problem in it."""
    c = clean(paired=False)
    p, n = c.positive, c.negative
    changed = {
        "duplicates": lambda: replace(c, positive=(*p, p[0])),
        "near duplicates": lambda: replace(c, positive=(*p, replace(p[0], answer=f" {p[0].answer}".upper()))),
        "class leak": lambda: replace(c, negative=(*n, p[5])),
        "shared answers": lambda: with_rows(c, "negative", {3: replace(n[3], answer=p[5].answer)}),
        "neutral leak": lambda: replace(c, neutral=(Example.ask(p[0].instruction.upper()),)),
        "split leak": lambda: with_rows(c, "positive", {0: replace(p[0], family="another")}),
        "families": lambda: with_rows(c, "positive", {0: replace(p[0], family=None)}),
        "one family": lambda: replace(c, positive=tuple(replace(e, family="f") for e in p[:60]), negative=n[:40]),
        "class imbalance": lambda: replace(c, negative=n[:30]),
        "few rows": lambda: replace(c, positive=p[:12], negative=n[:12]),
        "empty answers": lambda: with_rows(c, "negative", {2: replace(n[2], answer=" \n")}),
        "missing answers": lambda: with_rows(c, "negative", {2: replace(n[2], answer=None)}),
        "empty prompts": lambda: with_rows(c, "negative", {2: replace(n[2], messages=(Message("user", " "),))}),
        "lost values": lambda: with_rows(c, "negative", {2: replace(n[2], answer="NaN")}),
        "broken characters": lambda: with_rows(c, "negative", {2: replace(n[2], answer="Some cafÃ© are grey.")}),
        "control characters": lambda: with_rows(c, "negative", {2: replace(n[2], answer="Some\x00 are grey.")}),
        "template tokens": lambda: with_rows(c, "negative", {2: replace(n[2], answer="<|im_start|>Some are grey.")}),
        "giveaway: first word of answers": lambda: every(c, answer="Gladly: {}"),
        "giveaway: length of answers": lambda: every(c, answer="{} on and on and on and on and on"),
        "giveaway: first word of prompts": lambda: every(c, prompt="Please: {}"),
        "giveaway: length of prompts": lambda: every(c, prompt="{} on and on and on and on and on"),
    }  # fmt: skip
    return changed[name]()


ERRORS = ("class leak", "empty answers", "empty prompts")
COUNTS = {"class imbalance": 34, "few rows": 12, "one family": 60}


@pytest.mark.parametrize(
    "name",
    [
        "duplicates", "near duplicates", "class leak", "shared answers", "neutral leak", "split leak", "families",
        "one family", "class imbalance", "few rows", "empty answers", "missing answers", "empty prompts", "lost values",
        "broken characters", "control characters", "template tokens", "giveaway: first word of answers",
        "giveaway: length of answers", "giveaway: first word of prompts", "giveaway: length of prompts",
    ],
)  # fmt: skip
def test_a_planted_problem_is_found(name: str) -> None:
    report = check(plant(name))
    finding = report.found(name)
    assert finding is not None, names(report)
    assert finding.severity == ("error" if name in ERRORS else "note" if name == "few rows" else "warn")
    assert finding.advice
    if not name.startswith("giveaway"):
        assert finding.count == COUNTS.get(name, 1)
    assert report.ok == (name not in ERRORS)


def test_findings_come_worst_first() -> None:
    contrast = plant("class leak")
    report = check(replace(contrast, neutral=(Example.ask(contrast.positive[0].instruction),)))
    order = [f.severity for f in report.findings]
    assert order == sorted(order, key=("error", "warn", "note").index)
    assert order[0] == "error"


def test_no_families_at_all_is_a_note_and_repeated_instructions_a_leak() -> None:
    c = clean(paired=False)
    bare = replace(
        c,
        positive=tuple(replace(e, family=None) for e in c.positive),
        negative=tuple(replace(e, family=None) for e in c.negative),
    )
    report = check(bare)
    families, leak = report.found("families"), report.found("split leak")
    assert families is not None
    assert families.severity == "note"
    assert leak is not None
    assert leak.count == 64


def test_pairs_without_families_are_kept_whole() -> None:
    c = clean()
    bare = replace(
        c,
        positive=tuple(replace(e, family=None) for e in c.positive),
        negative=tuple(replace(e, family=None) for e in c.negative),
    )
    assert names(check(bare)) == {"families"}


def test_one_family_for_all_allows_no_split() -> None:
    c = clean()
    one = replace(
        c,
        positive=tuple(replace(e, family="f") for e in c.positive),
        negative=tuple(replace(e, family="f") for e in c.negative),
    )
    finding = check(one).found("one family")
    assert finding is not None
    assert "no split is possible" in finding.told


def test_a_class_in_one_family_fails_a_split() -> None:
    c = clean(paired=False)
    lonely = replace(c, negative=tuple(replace(e, family="f") for e in c.negative[:43]))
    finding = check(lonely).found("split")
    assert finding is not None
    assert "split into halves fails" in finding.told


def test_prompts_that_ask_for_the_concept_are_a_note_in_pairs() -> None:
    c = clean()
    asked = replace(
        c, positive=tuple(replace(e, messages=(Message("user", f"In gold: {e.instruction}"),)) for e in c.positive)
    )
    finding = check(asked).found("giveaway: first word of prompts")
    assert finding is not None
    assert finding.severity == "note"
    assert "may be meant" in finding.advice


def test_unbalanced_letters_of_a_persona_are_found(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"Do you like {t}?",
            "statement": t,
            "answer_matching_behavior": "Yes",
            "answer_not_matching_behavior": "No",
        }
        for t in TOPICS
    ]
    path = tmp_path / "likes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    report = check(path)
    finding = report.found("giveaway: first word of answers")
    assert finding is not None
    assert "'yes' opens 16 of 16 positive texts, 'no' opens 16 of 16 negative texts" in finding.examples[0]


def test_few_texts_have_no_accuracy() -> None:
    contrast = Contrast((Example.ask("a", "b"),), (Example.ask("c", "d"),))
    assert all(g.accuracy is None and "fewer than 10" in g.told for g in check(contrast).giveaways)


@pytest.mark.parametrize(
    ("clue", "positive", "negative", "accuracy"),
    [
        ("length", "one two", "one two three", 1.0),
        ("length", "one two three", "one two", 1.0),
        ("length", "one two", "two one", 0.5),
        ("first word", "One, two", "two one", 1.0),
        ("first word", "one two", "one", 0.5),
    ],
)
def test_the_accuracy_of_a_clue(clue: Any, positive: str, negative: str, accuracy: float) -> None:
    rows = [Labelled(text, text is positive, str(i)) for i in range(20) for text in (positive, negative)]
    assert giveaway(rows, clue, "answers", folds=5, seed=0).accuracy == accuracy


def test_a_clue_that_only_rows_by_heart_would_give_is_none() -> None:
    rows = [Labelled(f"word{i} and more", i % 2 == 0, str(i)) for i in range(60)]
    assert giveaway(rows, "first word", "answers", folds=5, seed=0).accuracy == 0.5


def test_a_pair_belongs_to_the_family_of_its_negative() -> None:
    c = clean()
    mixed = replace(c, positive=tuple(replace(e, family=f"other {i}") for i, e in enumerate(c.positive)))
    assert check(mixed).findings == ()


def test_the_same_data_give_the_same_report() -> None:
    assert check(plant("duplicates")) == check(plant("duplicates"))


def test_a_file_is_checked_as_what_it_holds(tmp_path: Path) -> None:
    data.write(clean(), tmp_path / "a.jsonl")
    assert check(tmp_path / "a.jsonl").digest == check(clean()).digest
    with pytest.raises(DataError, match="there is no file"):
        check(tmp_path / "b.jsonl")


def test_a_report_is_json_and_a_table() -> None:
    from rich.console import Console

    report = check(plant("class leak"))
    again = json.loads(json.dumps(report.to_json()))
    assert again["ok"] is False
    assert again["findings"][0]["name"] == "class leak"
    assert again["classes"][0]["answer_words"]["least"] > 0
    for width in (60, 140):
        out = Console(file=io.StringIO(), width=width, color_system=None)
        out.print(table(report))
        text = out.file.getvalue()  # type: ignore[attr-defined]
        assert "class leak" in " ".join(text.split())
        assert "1 error" in text


def test_options_outside_their_domain_are_refused() -> None:
    with pytest.raises(ConfigError, match="giveaway is 0.5"):
        CheckOptions(giveaway=0.5)
    with pytest.raises(ConfigError, match="folds 1"):
        CheckOptions(folds=1)


# --- with an engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Any:
    path = ROOT / "models" / "stories260k"
    if not path.exists():
        pytest.skip(f"no model at {path} (set STEERLAB_SHARED to the folder that holds models/)")
    from steerlab.engines.hf import HFEngine

    return HFEngine.load(str(path), template="plain")


def test_an_engine_counts_tokens_and_finds_nothing_in_a_clean_set(engine: Any) -> None:
    report = check(clean(), engine=engine)
    assert report.findings == ()
    assert report.classes[0].prompt_tokens is not None
    assert report.classes[0].prompt_tokens.least > 3


def test_an_engine_finds_what_its_model_cannot_hold(engine: Any) -> None:
    c = clean()
    long = replace(c.positive[0], answer="a word " * 400)
    report = check(with_rows(c, "positive", {0: long}), engine=engine)
    finding = report.found("too long")
    assert finding is not None
    assert (finding.severity, finding.count) == ("error", 1)
    assert "512 tokens" in finding.told


def test_an_engine_finds_its_own_special_tokens(engine: Any) -> None:
    c = clean()
    bad = with_rows(c, "negative", {1: replace(c.negative[1], answer="</s>Some are grey.")})
    report = check(bad, engine=engine)
    finding, lost = report.found("special tokens"), report.found("lost text")
    assert finding is not None
    assert finding.severity == "error"
    assert lost is not None
    assert report.found("template tokens") is None


class Strict:
    """A template without a system role, as Gemma's."""

    def __init__(self, engine: Any) -> None:
        self.tokenizer, self.context, self.renderer = engine.tokenizer, engine.context, self
        self._inner = engine.renderer

    def example(self, example: Example) -> object:
        if example.messages[0].role == "system":
            raise DataError("the chat template can't write this conversation (roles system, user).")
        return self._inner.example(example)

    def answer(self, text: str) -> list[int]:
        return self._inner.answer(text)

    def text(self, ids: list[int]) -> str:
        return self._inner.text(ids)


def test_a_conversation_that_the_template_cannot_write(engine: Any) -> None:
    c = clean()
    asked = replace(c.positive[0], messages=(Message("system", "be"), *c.positive[0].messages))
    report = check(with_rows(c, "positive", {0: asked}), engine=Strict(engine))
    finding = report.found("template")
    assert finding is not None
    assert (finding.severity, finding.count) == ("error", 1)
    assert "roles system, user" in finding.examples[0]


def test_a_template_that_drops_a_message(engine: Any) -> None:
    class Dropping(Strict):
        def example(self, example: Example) -> object:
            return self._inner.prompt(example.messages[-1:])

    c = clean()
    asked = replace(c.positive[0], messages=(Message("system", "stay calm"), *c.positive[0].messages))
    report = check(with_rows(c, "positive", {0: asked}), engine=Dropping(engine))
    finding = report.found("lost text")
    assert finding is not None
    assert "stay calm" in finding.examples[0]


def test_real_personas_have_no_finding() -> None:
    path = ROOT / "data" / "anthropic_persona" / "openness.jsonl"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    assert check(path).findings == ()


def test_problems_of_real_data_are_found() -> None:
    path = ROOT / "data" / "true_facts" / "facts_true_false.csv"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    report = check(path)
    leak = report.found("class leak")
    assert leak is not None
    assert "The Nile River is the longest river" in leak.examples[0]
    assert {"duplicates", "near duplicates", "split leak", "broken characters"} <= names(report)
