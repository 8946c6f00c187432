"""What is done to scores before a token is chosen: by hand, alone and in a mixed batch, whole, streamed and while others join."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from serving import shift
from steerlab.engines.base import Sampling
from steerlab.engines.grammar import Grammar
from steerlab.engines.hf_serving import Ask, Prompts, Running
from steerlab.engines.render import Rendered
from steerlab.engines.sampling import sample, shaped
from steerlab.errors import ConfigError, DataError

PROMPTS = ["Some words.", "x", "A longer one: aaaa bbbb aaaa", "yes, no", "12"]
LETTERS = Grammar("regex", "([a-c]{1,4} ){2}[0-9]{3}")
END = 257  # the id of <|im_end|>
ASKED = {
    "min_p": {"min_p": 0.5, "temperature": 1.5},
    "repetition": {"repetition_penalty": 1.8, "temperature": 0.5},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9, "temperature": 0.7},
    "bias": {"logit_bias": ((70, 9.0), (66, -100.0)), "temperature": 1.0},
    "minimum": {"min_new_tokens": 9, "temperature": 1.0},
    "endless": {"ignore_end": True, "temperature": 1.3, "logit_bias": ((END, 5.0),)},
    "stop ids": {"stop_ids": tuple(range(60, 120)), "temperature": 1.0},
    "grammar": {"grammar": LETTERS},
    "drawn grammar": {"grammar": LETTERS, "temperature": 1.0, "presence_penalty": 0.5},
    "nothing": {"temperature": 0.9},
}


@pytest.fixture(scope="module")
def engine():
    """A random model over a byte-level vocabulary: it can write anything."""
    from test_serve_tools import QWEN
    from test_serve_tools import engine as scripted

    made = scripted(QWEN)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return made


class Line:
    """A row as far as drawing needs it."""

    def __init__(self, prompt, ids, **how):
        self.prompt, self.ids, self.matcher = Rendered(prompt, 0), ids, None
        self.sampling = Sampling(**how)


def test_penalties_by_hand():
    scores = torch.tensor([[2.0, -2.0, 1.0, 0.5, -0.5]])
    line = Line([0, 1], [2, 2, 4], repetition_penalty=2.0)
    assert shaped(scores, [line], [3])[0].tolist() == [1.0, -4.0, 0.5, 0.5, -1.0]
    line = Line([0, 1], [2, 2, 4], frequency_penalty=0.25, presence_penalty=0.5)
    assert shaped(scores, [line], [3])[0].tolist() == [2.0, -2.0, 0.0, 0.5, -1.25]
    line = Line([0], [2], logit_bias={1: 5.0, 99: 1.0}, repetition_penalty=2.0)  # bias before the penalty
    assert shaped(scores, [line], [3])[0].tolist() == [1.0, 3.0, 0.5, 0.5, -0.5]
    line = Line([0], [2, 2], min_new_tokens=3, stop_ids=(4,))
    assert shaped(scores, [line], [3])[0].tolist() == [2.0, -2.0, 1.0, -math.inf, -math.inf]
    assert shaped(scores, [Line([0], [2, 2, 1], min_new_tokens=3)], [3])[0].tolist() == scores[0].tolist()


def test_rows_that_ask_for_nothing_keep_their_scores_bit_for_bit():
    scores = torch.randn(2, 5)
    rows = [Line([0], [1]), Line([0], [1], presence_penalty=1.0)]
    made = shaped(scores, rows, [3])
    assert torch.equal(made[0], scores[0]) and not torch.equal(made[1], scores[1])
    assert shaped(scores, rows[:1], [3]) is scores


def test_min_p_leaves_out_what_is_less_likely_than_a_share_of_the_likeliest():
    probs = torch.tensor([[0.5, 0.26, 0.24]]).log()
    drawn = [
        int(sample(probs, Sampling(temperature=1.0, min_p=0.5), torch.tensor([u]))) for u in (0.0, 0.65, 0.66, 0.999)
    ]
    assert drawn == [0, 0, 1, 1]  # 0.5 / 0.76 = 0.658


@pytest.fixture(scope="module")
def alone(engine):
    """Each prompt under each way of drawing, steered, by itself."""
    steered = shift(engine, 1)
    return {
        (name, n): engine.generate([text], steered, Sampling(40, seed=5 + n, **how))[0]
        for n, text in enumerate(PROMPTS) for name, how in ASKED.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_each_does_something(alone, engine, name):
    if name in ("nothing", "drawn grammar"):
        return
    how = {**ASKED[name]}
    plain = {"temperature": how.get("temperature", 0.0), "logit_bias": how["logit_bias"] if name == "endless" else ()}
    steered = shift(engine, 1)
    others = [engine.generate([text], steered, Sampling(40, seed=5 + n, **plain))[0] for n, text in enumerate(PROMPTS)]
    assert [alone[name, n].ids for n in range(len(PROMPTS))] != [o.ids for o in others]


def test_a_row_in_a_mixed_batch_says_what_it_says_alone(alone, engine):
    """All ways of drawing and plain rows in one running batch, some joining it after the others have begun."""
    steered, prompts, running = shift(engine, 1), Prompts(engine), Running(engine)
    wanted = [(name, n) for n in range(len(PROMPTS)) for name in ASKED]
    asks = [
        Ask(engine.renderer.prompt([_user(PROMPTS[n])]), steered, Sampling(40, seed=5 + n, **ASKED[name]))
        for name, n in wanted
    ]
    assert prompts.vocabulary == engine.renderer.vocabulary
    rows = []
    for start in range(0, len(asks), 11):
        for ask in asks[start : start + 11]:
            running.check(ask)
        rows += running.admit(asks[start : start + 11])
        running.step()
        running.step()
    while len(running):
        running.step()
    for row, key in zip(rows, wanted, strict=True):
        assert row.problem is None
        made = running.reply(row)
        assert (made.ids, made.text, made.finish) == (alone[key].ids, alone[key].text, alone[key].finish), key


def _user(text):
    from steerlab.contrast import Message

    return Message("user", text)


def test_ends(alone, engine):
    ends = set(engine.renderer.ends)
    for n in range(len(PROMPTS)):
        assert len(alone["endless", n].ids) == 40 and alone["endless", n].finish == "length"
        assert len(alone["minimum", n].ids) >= 9 and not ends & set(alone["minimum", n].ids)
        stopped = alone["stop ids", n]
        assert not set(stopped.ids) & set(range(60, 120))
        assert stopped.finish == ("stop" if len(stopped.ids) < 40 else "length")
    assert any(alone["stop ids", n].finish == "stop" for n in range(len(PROMPTS)))
    text = engine.generate(["a"], None, Sampling(12, ignore_end=True))[0].text
    early, late = (engine.generate(["a"], None, Sampling(12, ignore_end=True, stop=(text[0],), min_new_tokens=m))[0]
                   for m in (0, 6))  # fmt: skip
    assert len(early.ids) < 6 < len(late.ids)


def test_a_grammar_is_kept_to_and_ends_the_reply(engine, alone):
    import re

    for n in range(len(PROMPTS)):
        for name in ("grammar", "drawn grammar"):
            reply = alone[name, n]
            assert re.fullmatch(LETTERS.text, reply.text), reply.text
            assert reply.finish == "stop"


def test_replies_have_the_form_of_a_schema(engine):
    schema = {
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["a", "bb"]}},
        "required": ["n", "kind"], "additionalProperties": False,
    }  # fmt: skip
    form = Grammar("json", json.dumps(schema))
    replies = engine.generate(["a", "bb", "c c"], None, Sampling(60, temperature=1.0, seed=1, grammar=form))
    for reply in replies:
        made = json.loads(reply.text)
        assert set(made) == {"n", "kind"} and 0 <= made["n"] <= 99 and made["kind"] in ("a", "bb")
        assert reply.finish == "stop"
    free = engine.generate(["a"], None, Sampling(60, temperature=1.0, seed=1))[0]
    with pytest.raises(ValueError):
        json.loads(free.text)
    pieces = engine.stream(["a"], None, Sampling(60, temperature=1.0, seed=1, grammar=form))
    assert "".join(p.text for p in pieces) == replies[0].text


def test_a_form_that_begins_after_a_text(engine):
    form = Grammar("regex", "yes|no", after="z")
    reply = engine.generate(
        ["a"], None, Sampling(400, temperature=1.0, grammar=form, logit_bias=((_id(engine, "z"), 3.0),))
    )[0]
    before, mark, after = reply.text.partition("z")
    assert mark and before and after in ("yes", "no")


def _id(engine, text):
    (one,) = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    return one


@pytest.mark.parametrize(
    ("how", "problem", "words"),
    [
        ({"min_p": 1.5}, ConfigError, "min_p"),
        ({"repetition_penalty": 0.0}, ConfigError, "repetition_penalty"),
        ({"presence_penalty": math.nan}, ConfigError, "presence_penalty"),
        ({"logit_bias": ((1, math.inf),)}, ConfigError, "token 1"),
        ({"min_new_tokens": 200}, ConfigError, "min_new_tokens"),
        ({"logit_bias": ((10**6, 1.0),)}, DataError, "logit_bias names"),
        ({"stop_ids": (-1,)}, DataError, "stop_ids names"), ({"grammar": Grammar("regex", "(")}, DataError, "form .regex."),
        ({"grammar": Grammar("json", '{"type": "nonsense"}')}, DataError, "form .json."),
        ({"grammar": LETTERS, "ignore_end": True}, ConfigError, "where a reply ends"),
    ],
)  # fmt: skip
def test_what_cant_be_drawn_so_is_refused(engine, how, problem, words):
    with pytest.raises(problem, match=words):
        engine.generate(["a"], None, Sampling(12, **how))


def test_without_the_library_a_form_is_refused_with_what_to_install(engine, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"steerlab\[constrained\]"):
        engine.generate(["a"], None, Sampling(12, grammar=replace(LETTERS, text="w1")))
