"""Every kind of cache under the engine's laws; what a model doesn't keep in company is done apart, or refused with the reason."""

from __future__ import annotations

import functools

import pytest
import torch

from steerlab.contrast import Example
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.engines.hf_serving import Running
from steerlab.errors import DataError, UnsupportedError
from steerlab.sites import Site
from steerlab.testing import batching, shrink, tiny
from steerlab.testing.precision import ONE

KINDS = {  # type: whether rows of unlike length decode in one batch, and whether another batch joins
    "lfm2": (True, True),  # states of a convolution
    "qwen3_next": (True, True),  # those of a recurrence, beside attention
    "falcon_h1": (True, True),  # both in each layer
    "mamba": (True, True),  # no attention at all
    "deepseek_v32": (True, True),  # an indexer's keys
    "gemma4_text": (True, True),  # layers that share others' keys and values
    "minimax": (True, False),  # a cache of its own
    "rwkv": (False, False),  # states that no mask protects from padding
    "roberta": (True, True),  # places that are counted from another number
    "bart": (False, False),  # places that are counted with padding
}


@functools.cache
def model(kind: str):
    return shrink.model_of(kind)


def engine(kind: str, **settings) -> HFEngine:
    return HFEngine(model(kind), tiny.tokenizer(), name=f"tiny {kind}", **settings)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_company_is_the_row_alone_with_every_kind_of_cache(kind, tmp_path):
    trial = engine(kind).trial
    trial.check()
    assert trial.refusal is None
    assert (trial.mixed, trial.joins) == KINDS[kind]
    found = batching.all_of(functools.partial(engine, kind), tmp_path)
    assert len(found) == 8
    assert {name: off for name, off in found.items() if not off < ONE} == {}


def test_a_row_that_ends_long_before_the_other_leaves_a_recurrent_batch():
    recurrent, draw = engine("lfm2"), torch.Generator().manual_seed(1)
    texts = [tiny.words(draw, n) for n in (114, 1)]
    together = recurrent.generate(texts, None, Sampling(max_new_tokens=16))
    assert [len(reply.ids) for reply in together] == [10, 16]
    assert [reply.finish for reply in together] == ["context", "length"]
    alone = [recurrent.generate([text], None, Sampling(max_new_tokens=16))[0] for text in texts]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]


def test_padding_that_a_recurrence_would_see_is_put_on_the_other_side():
    left = engine("rwkv", padding="left")
    assert not left.trial.pads("left")
    assert left.trial.side("left", [3, 9]) == "right"
    assert left.trial.side("left", [9, 9]) == "left"
    examples = [Example.ask("w1 w2", "w3"), Example.ask("w1 w2 w5 w6 w7", "w3 w4")]
    together = left.logprobs(examples)
    for scores, example in zip(together, examples, strict=True):
        assert torch.allclose(scores, left.logprobs([example])[0], atol=ONE)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("openai-gpt", "takes no cache of what was read .looked for past_key_values"),
        ("recurrent_gemma", "gives no cache back"),
    ],
)
def test_what_cant_go_on_from_what_it_has_read_is_scored_and_not_decoded(kind, why):
    scoring = engine(kind)
    assert batching.scoring(scoring) < ONE
    assert batching.reading(scoring) < ONE
    with pytest.raises(UnsupportedError, match=why):
        scoring.generate(["w1 w2"], None, Sampling(max_new_tokens=2))
    with pytest.raises(UnsupportedError, match=why):
        Running(scoring)


def test_a_model_that_sees_what_comes_after_is_refused():
    config = shrink.config_of("bert")
    config.is_decoder = False
    from transformers import AutoModelForCausalLM

    both = HFEngine(AutoModelForCausalLM.from_config(config).eval(), tiny.tokenizer())
    with pytest.raises(UnsupportedError, match="isn't causal.*is_decoder=True"):
        both.capture([Example.ask("w1 w2")], [Site(1)])


def test_a_model_of_pictures_is_refused_in_words():
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32)
    for kind in (ViTModel, ViTForImageClassification):
        with pytest.raises(UnsupportedError, match=r"ViT\w+ (can't be steered|isn't a causal language model)"):
            HFEngine(kind(config), tiny.tokenizer())


@functools.cache
def padded_beyond():
    """A tokenizer with a token for padding that the model has no row for."""
    import copy

    beyond = copy.deepcopy(tiny.tokenizer())
    beyond.add_special_tokens({"pad_token": "[PAD]"})
    assert beyond.pad_token_id == tiny.VOCABULARY
    return beyond


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_pad_token_beyond_the_embedding_is_never_looked_up(padding, tmp_path):
    make = functools.partial(HFEngine, tiny.model("llama"), padded_beyond())
    found = batching.all_of(lambda **settings: make(**{"padding": padding, **settings}), tmp_path)
    assert {name: off for name, off in found.items() if not off < ONE} == {}
    here, plain = make(padding=padding), tiny.engine("llama", padding=padding)
    examples = [Example.ask("w1"), Example.ask("w1 w2 w3")]
    assert torch.equal(
        here.capture(examples, [Site(1)])[Site(1)].values, plain.capture(examples, [Site(1)])[Site(1)].values
    )


def test_a_word_beyond_the_embedding_is_named():
    here = HFEngine(tiny.model("llama"), padded_beyond())
    wrong = "'\\[PAD\\]' as id 97.*97 rows, 0 to 96.*resize_token_embeddings"
    for call in (
        lambda: here.generate(["w1 [PAD] w2"]),
        lambda: here.logprobs([Example.ask("w1", "w2 [PAD]")]),
        lambda: here.text_logprobs(["w1 [PAD] w2"]),
        lambda: here.capture([Example.ask("w1 [PAD]")], [Site(1)]),
    ):
        with pytest.raises(DataError, match=wrong):
            call()


def test_what_a_model_gives_is_asked_anew_after_its_weights_have_changed():
    """As when a model is trained between two questions: what it gave before is nothing to compare with."""
    from copy import deepcopy

    engine = HFEngine(deepcopy(tiny.model("llama")), tiny.tokenizer())
    assert engine.trial.pads("left")
    with torch.no_grad():
        for p in engine.model.parameters():
            p.mul_(0.5)
    assert engine.trial.causal and engine.trial.mixed
    engine.trial.check()


def test_where_one_batch_cannot_begin_none_runs_on_that_nobody_waits_for(monkeypatch):
    """Rows of unlike length begin apart in a model that doesn't keep them together; the second fails, as memory would."""
    from steerlab.engines.hf_generate import Decoder
    from steerlab.engines.hf_serving import Ask

    engine = HFEngine(tiny.model("llama"), tiny.tokenizer())
    monkeypatch.setattr(type(engine.trial), "mixed", False)
    running, begin, calls = Running(engine), Decoder.begin, []

    def failing(self):
        calls.append(len(self.rows))
        if len(calls) == 2:
            raise MemoryError("no room")
        begin(self)

    monkeypatch.setattr(Decoder, "begin", failing)
    asks = [Ask(engine.renderer.prompt(Example.ask(t).messages), sampling=Sampling(3)) for t in ("w1", "w1 w2 w3")]
    with pytest.raises(MemoryError):
        running.admit(asks)
    assert calls == [1, 1] and len(running) == 0
