"""Calls of a model that can't be steered exactly, or say nothing that can be scored: refused with a reason, or done right."""

from __future__ import annotations

import copy

import torch

import steerlab as sl
from mistakes import ASK, told
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.errors import DataError, UnsupportedError
from steerlab.testing import tiny
from steerlab.testing.precision import FEW


def ids_and_mask(engine, *texts):
    rows = [engine.renderer.prompt(sl.Example.ask(t).messages).ids for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    return ids, torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])


def test_a_prompt_where_none_can_be_put_in(engine):
    asked = sl.Steering((), sl.Prompt("w1 w2"))
    with told(UnsupportedError, "has a prompt", "your own calls"), engine.steer(asked):
        pass
    with told(UnsupportedError, "has a prompt", "no conversation"):
        engine.text_logprobs(["w1 w2 w3"], asked)
    with engine.steer(asked.scaled(0)):
        pass


def test_decoding_without_a_cache(engine):
    steering = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), sl.LAST_PROMPT),))
    ids, mask = ids_and_mask(engine, "w1 w2")
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with engine.steer(steering), told(UnsupportedError, "without a cache", "leave use_cache on"):
        engine.model.generate(ids, use_cache=False, **settings)
    with engine.steer(steering):
        engine.model(ids[:, :-1], use_cache=False)
        engine.model(ids[:, :-2], use_cache=False)


def test_a_prefill_in_chunks_of_the_callers_own(engine):
    steering = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), sl.LAST_PROMPT),))
    ids, mask = ids_and_mask(engine, "w1 w2 w3 w4")
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with engine.steer(steering), told(UnsupportedError, "tokens after the first one", "no prefill_chunk_size"):
        engine.model.generate(ids, prefill_chunk_size=3, **settings)


def test_what_was_compiled_before_is_steered_too(engine, steering):
    ids, _ = ids_and_mask(engine, "w1 w2")
    compiled = torch.compile(engine.model.__call__, backend="eager")  # as transformers' generate does on accelerators
    with torch.no_grad():
        plain = compiled(ids).logits
        with engine.steer(steering):
            wanted, found = engine.model(ids).logits, compiled(ids).logits
        after = compiled(ids).logits
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, plain)
    assert torch.allclose(after, plain, atol=FEW)


def test_a_mask_is_heeded_wherever_it_is_given(engine, steering):
    ids, mask = ids_and_mask(engine, "w1", "w1 w2 w3 w4")
    late = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), sl.LAST_PROMPT),))
    with torch.no_grad(), engine.steer(late):
        named = engine.model(input_ids=ids, attention_mask=mask).logits
        placed = engine.model(ids, mask).logits
    assert torch.equal(named, placed)


def test_scores_that_are_nan(steering):
    model = copy.deepcopy(tiny.model("llama"))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with told(DataError, "NaN or infinite", "smaller strength"):
        HFEngine(model, tiny.tokenizer()).generate(["w1"], steering)


def test_a_reply_that_begins_with_its_stop_string_is_empty(engine):
    first = engine.generate(["w1 w2"], None, Sampling(4))[0].text.split()[0]
    stopped = engine.generate(["w1 w2"], None, Sampling(4, stop=(first,)))[0]
    assert (stopped.text, stopped.finish) == ("", "stop")
    assert "".join(p.text for p in engine.stream(["w1 w2"], None, Sampling(4, stop=(first,)))) == ""


def test_an_example_without_an_answer_has_no_logprobs(engine):
    found = engine.logprobs([sl.Example.ask("w1"), ASK])
    assert len(found[0]) == 0
    assert len(found[1]) > 0
