"""What is written into conversations beyond their messages: a system message, thinking, and nothing where they are rendered."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy

import pytest
import torch

import steerlab as sl
from steerlab.engines.hf import HFEngine
from steerlab.engines.render import RenderedTwice, Rendering
from steerlab.testing import tiny

SWITCH = "{% if enable_thinking is defined and not enable_thinking %}w9 w9 {% endif %}"


def thinker(**rendering):
    """A tiny model whose template has a switch for thinking."""
    plain = tiny.engine("llama")
    tokenizer = deepcopy(plain.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template + SWITCH
    return HFEngine(plain.model, tokenizer, rendering=Rendering(**rendering))


def prompt_ids(engine, example):
    return engine.batch([example]).ids[0].tolist()


def test_a_system_message_is_that_of_the_messages():
    engine = HFEngine(tiny.engine().model, tiny.engine().tokenizer, rendering=Rendering(system="w3 w4"))
    plain = tiny.engine()
    asks = [sl.Example.ask("w1 w2"), sl.Example.ask("w1 w2", system="w5")]
    assert prompt_ids(engine, asks[0]) == prompt_ids(plain, sl.Example.ask("w1 w2", system="w3 w4"))
    assert prompt_ids(engine, asks[1]) == prompt_ids(plain, asks[1])  # one that is there stays
    prompt = sl.Steering(prompt=sl.Prompt("w6", placement="system"))
    both = sl.Example.ask("w1 w2", system="w3 w4 w6")
    assert engine.batch([asks[0]], prompt).ids[0].tolist() == prompt_ids(plain, both)


@pytest.mark.parametrize("on", [True, False])
def test_thinking_is_the_templates_switch_and_an_example_wins(on):
    engine, ask = thinker(thinking=on), sl.Example.ask("w1")
    text = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "w1"}], tokenize=False, add_generation_prompt=True, enable_thinking=on
    )
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt_ids(engine, ask) == ids
    assert prompt_ids(engine, sl.Example(ask.messages, thinking=not on)) != ids


def test_a_template_without_a_switch_refuses_thinking():
    plain = tiny.engine()
    with pytest.raises(sl.DataError, match="no switch for thinking"):
        HFEngine(plain.model, plain.tokenizer, rendering=Rendering(thinking=True))
    with pytest.raises(sl.DataError, match="no switch for thinking"):
        plain.generate([sl.Example(sl.Example.ask("w1").messages, thinking=False)])


def test_both_ways_of_thinking_keep_a_pair_and_its_split():
    pairs = [(sl.Example.ask(f"w{n}", "w1"), sl.Example.ask(f"w{n}", "w2")) for n in range(6)]
    contrast = sl.Contrast(*(tuple(side) for side in zip(*pairs, strict=True)), paired=True).both_ways_of_thinking()
    assert [(p.instruction, p.thinking) for p in contrast.positive] == [
        (n.instruction, n.thinking) for n in contrast.negative
    ]
    assert [p.thinking for p in contrast.positive] == [True, False] * 6
    for part in contrast.split(0.5, 0.5):
        instructions = [e.instruction for e in part.positive]
        assert all(instructions.count(i) == 2 for i in instructions)
    row = contrast.positive[0].to_json()
    assert sl.Example.from_json(json.loads(json.dumps(row))) == contrast.positive[0]
    with pytest.raises(sl.DataError, match="thinking is 'yes'"):
        sl.Example.from_json({**row, "thinking": "yes"})


def test_a_fit_says_what_was_written_into_its_data():
    engine = HFEngine(tiny.engine().model, tiny.engine().tokenizer, rendering=Rendering(system="w3"))
    contrast = sl.Contrast(
        tuple(sl.Example.ask(f"w{n}") for n in range(4)), tuple(sl.Example.ask(f"w{n}") for n in range(5, 9))
    )
    fitted = sl.method("diff_means", {"site": "1"}).fit(engine, contrast)
    by_hand = sl.Contrast(
        *(
            tuple(sl.Example.ask(e.instruction, system="w3") for e in side)
            for side in (contrast.positive, contrast.negative)
        )
    )
    assert fitted.digest == sl.method("diff_means", {"site": "1"}).fit(tiny.engine(), by_hand).digest
    assert fitted.meta.data["rendering"] == {"system": "w3"}


def written(engine, text):
    return engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def test_a_rendered_text_is_read_once_with_its_head_and_positions():
    plain = tiny.engine()
    once = HFEngine(plain.model, plain.tokenizer, rendering=Rendering(rendered=True))
    bare, whole = sl.Example.ask("w1 w2 w3", "w4 w5"), sl.Example.ask(written(plain, "w1 w2 w3"), "w4 w5")
    shift = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), sl.NOT_TEMPLATE),))
    a, b = plain.batch([bare]), once.batch([whole])
    assert a.ids.tolist() == b.ids.tolist()
    assert a.head.tolist() == b.head.tolist()
    (one,), (two,) = plain.logprobs([bare], shift), once.logprobs([whole], shift)
    assert torch.equal(one, two)
    close = plain.tokenizer.convert_ids_to_tokens(plain.renderer.close)
    ended = sl.Example(whole.messages, f"w4 w5 {close}")
    assert once.batch([ended]).ids.tolist() == a.ids.tolist()  # its turn is closed once
    with pytest.raises(sl.DataError, match="2 messages"):
        once.generate([sl.Example.ask("w1", system="w2")])


def test_a_text_that_is_rendered_twice_is_warned_of_once():
    engine = tiny.new_engine()  # which has warned of nothing yet
    text = written(engine, "w1")
    with pytest.warns(RenderedTwice, match="--rendered"):
        engine.generate([text], None, sl.Sampling(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.generate([text + " w2"], None, sl.Sampling(1))
        tiny.engine().generate(["w1 w2"], None, sl.Sampling(1))
        HFEngine(engine.model, engine.tokenizer, rendering=Rendering(rendered=True)).generate(
            [text], None, sl.Sampling(1)
        )
    with pytest.warns(RenderedTwice):
        tiny.new_engine().logprobs([sl.Example.ask("w1", f"w2 {next(iter(engine.renderer.template_tokens()))}")])


def test_rendered_leaves_no_room_for_a_system_message():
    with pytest.raises(sl.ConfigError, match="rendered"):
        HFEngine(tiny.engine().model, tiny.engine().tokenizer, rendering=Rendering("w1", rendered=True))


def test_the_command_line_renders_once_and_warns(steerlab):
    engine = sl.load("pilot")
    text = written(engine, "Describe a kitchen.")
    replies = []
    for words in (["-p", text, "--rendered"], ["-p", "Describe a kitchen."], ["-p", text]):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            _, output, errors = steerlab("generate", *words, "--max-new-tokens", "8", "--json")
        replies.append(json.loads(output)["replies"][0]["text"])
    assert replies[0] == replies[1]
    assert "warning: a text holds" in errors and "--rendered" in errors


def test_data_make_writes_the_system_message_and_the_switch(tmp_path):
    from steerlab.cli.data import written as asks

    examples = asks([sl.Example.ask("a"), sl.Example.ask("b", system="own")], "S", "both")
    assert [(e.messages[0].content, e.thinking) for e in examples] == [("S", True), ("own", False)]
