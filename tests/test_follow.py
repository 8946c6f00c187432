"""The caller's own calls: static caches, drafts, prompts in pieces, kept caches and embeddings, steered exactly or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import steerlab as sl
from mistakes import told
from steerlab.controls import Constant, Control
from steerlab.deltas import Delta
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.errors import UnsupportedError
from steerlab.positions import ALL, DECODING, GENERATED, LAST_PROMPT, NOT_TEMPLATE, Positions, Window
from steerlab.testing import shrink, tiny
from steerlab.testing.precision import EXACT, MANY, ONE, doubled

NEW = 14  # beyond the windows of 8 tokens
WINDOWED = ["llama", "gemma2", "mistral", "gemma3_text"]  # no window, one in every other block, in every block, in most
WAYS = {
    "a static cache": {"cache_implementation": "static"},
    "an assistant": {"assistant_model": tiny.model("llama", 1)},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "a prompt in pieces": {"prefill_chunk_size": 4},
    "a prompt in pieces, in a static cache": {"prefill_chunk_size": 4, "cache_implementation": "static"},
    "no cache": {"use_cache": False},
}
DIRECTION = torch.linspace(-3, 3, 32)


def fades() -> Control:
    """One that counts tokens, as somebody's own control may (made when it is needed, so that the laws don't take it up)."""

    class Fades(Control):
        most = (0.0, 1.0)

        def strength(self, read, tokens, state):
            return 0.9 ** tokens.position.clamp_min(0)[..., None].float(), state

        def scaled(self, k):
            return self

    return Fades()


def shift(positions: Positions = ALL, control: Control | None = None, site: str = "1") -> sl.Steering:
    return sl.Steering((sl.Intervention(sl.Site.parse(site), sl.Shift(DIRECTION), positions, control or Constant()),))


def alike(engine: HFEngine) -> dict[str, sl.Steering]:
    """Steerings with one rule for prompt and generated tokens."""
    clamp = sl.Clamp.random(32, torch.Generator().manual_seed(2))
    gate = sl.Gate(sl.Site(0), torch.randn(32, generator=torch.Generator().manual_seed(3)), 0.0)
    matrix, size = next((s, m) for s, m in engine.matrices(1).items() if m.reads == "heads")
    delta = Delta.random(size.width, torch.Generator().manual_seed(4), size.height)
    return {
        "all": shift() + sl.Steering((sl.Intervention(sl.Site(2), clamp, ALL),)),
        "not_template": shift(NOT_TEMPLATE),
        "a gate at each token": shift(ALL, gate),
        "weights": sl.Steering((sl.Intervention(matrix, delta, ALL),)),
    }


def rendered(engine: HFEngine, *texts: str) -> dict[str, torch.Tensor]:
    """Prompts as ids and a mask, padded on the left."""
    rows = [engine.renderer.prompt(sl.Example.ask(t).messages).ids for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }


def generated(engine: HFEngine, given: dict, **settings):
    """What `generate` says greedily, row by row, and its logits."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **settings}
    out = engine.model.generate(**given, **settings, output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, -len(out.logits) :], torch.stack(out.logits, dim=1), out.past_key_values


def replies(engine: HFEngine, texts, steering) -> list[list[int]]:
    return [list(r.ids) for r in engine.generate(texts, steering, Sampling(NEW))]


def same(rows: torch.Tensor, wanted: list[list[int]]) -> bool:
    return all(row[: len(ids)].tolist() == ids for row, ids in zip(rows, wanted, strict=True))


@pytest.mark.parametrize("kind", ["all", "not_template", "a gate at each token", "weights"])
@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize("way", WAYS)
def test_one_rule_for_all_tokens_holds_whichever_come_together(way, architecture, kind):
    engine, text = tiny.engine(architecture), tiny.prompts()[1]
    steering = alike(engine)[kind]
    wanted = replies(engine, [text], steering)
    with engine.steer(steering):
        rows, _, _ = generated(engine, rendered(engine, text), **WAYS[way])
    assert same(rows, wanted)
    assert not same(rows, replies(engine, [text], None))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("way", WAYS)
def test_the_logits_are_those_of_plain_steered_decoding(way, architecture):
    settings, text = dict(WAYS[way]), tiny.prompts()[1]
    if "assistant_model" in settings:
        settings["assistant_model"] = tiny.model("llama", 1, dtype="float64")
    with doubled():
        engine = HFEngine(copy.deepcopy(tiny.model(architecture, dtype="float64")), tiny.tokenizer())
        with engine.steer(alike(engine)["all"]):
            plain, wanted, _ = generated(engine, rendered(engine, text))
            rows, found, _ = generated(engine, rendered(engine, text), **settings)
    assert torch.equal(rows, plain)
    torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_a_static_cache_positions_and_rows_are_what_they_are_elsewhere(architecture, attention):
    model = copy.deepcopy(tiny.model(architecture))
    if attention == "sdpa" and architecture == "gemma2":
        pytest.skip("transformers has no such Gemma 2")
    model.set_attn_implementation(attention)
    engine, texts = HFEngine(model, tiny.tokenizer()), tiny.prompts()
    gate = sl.Gate(sl.Site(0), torch.randn(32, generator=torch.Generator().manual_seed(3)), 0.0, 2.0, held=True)
    each = [shift(LAST_PROMPT).scaled(3), None, shift(DECODING, gate)]
    for under in (each, shift(GENERATED), shift(Positions((Window(-3, -1),), (Window(2, 5),)))):
        with engine.steer(under):
            rows, _, _ = generated(engine, rendered(engine, *texts), cache_implementation="static")
        assert same(rows, replies(engine, texts, under))
        assert not same(rows, replies(engine, texts, None))


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "lfm2"])
def test_states_that_count_no_tokens_are_followed_by_what_was_read(kind):
    engine, text = HFEngine(shrink.model_of(kind), tiny.tokenizer()), "w1 w2 w3 w4"
    steering = shift(GENERATED).scaled(0.1)
    with engine.steer(steering):
        rows, found, _ = generated(engine, {"input_ids": rendered(engine, text)["input_ids"]})
    said = [*rows[0].tolist(), 2]
    count = said.index(2)  # up to the end
    assert count > 1
    answer = engine.renderer.text(said[:count], special=True)
    (wanted,) = engine.logits([sl.Example.ask(text, answer)], steering)
    torch.testing.assert_close(found[0, :count], wanted[:count], rtol=MANY, atol=MANY)
    (plain,) = engine.logits([sl.Example.ask(text, answer)])
    assert not torch.allclose(found[0, 1:count], plain[1:count], atol=1e-2)  # not alike: a hundred times MANY


@pytest.mark.parametrize("positions", [ALL, NOT_TEMPLATE], ids=str)
@pytest.mark.parametrize("architecture", WINDOWED)
def test_a_kept_cache_goes_on_in_the_next_call_and_in_the_next_block(architecture, positions):
    engine, steering = tiny.engine(architecture), shift(positions)
    first = rendered(engine, tiny.prompts()[0])["input_ids"]
    with engine.steer(steering):
        said, _, cache = generated(engine, {"input_ids": first})
        more = torch.tensor([[4, 20, 21, 22, 2, 5]])
        second = torch.cat([first, said, more], dim=1)
        kept = copy.deepcopy(cache)
        here, _, _ = generated(engine, {"input_ids": second}, past_key_values=cache)
        wanted, _, _ = generated(engine, {"input_ids": second})
    with engine.steer(shift(positions)):  # equal, and another object
        later, _, _ = generated(engine, {"input_ids": second}, past_key_values=kept)
    assert torch.equal(here, wanted)
    assert torch.equal(later, wanted)
    plain, _, _ = generated(engine, {"input_ids": second})
    assert not torch.equal(plain, wanted)


def test_a_cache_that_was_not_all_read_under_the_steering(engine):
    ids, more = rendered(engine, "w1 w2 w3")["input_ids"], torch.tensor([[20, 21]])
    middle = (UnsupportedError, "in the middle of a cached conversation", "start with an empty cache")
    with torch.no_grad():
        plain = engine.model(ids, use_cache=True).past_key_values
        with engine.steer(shift()), told(middle[0], f"its {ids.shape[1]} tokens", *middle[2:]):
            engine.model(more, past_key_values=plain)
        with engine.steer(shift()):
            held = engine.model(ids, use_cache=True).past_key_values
        with engine.steer(shift().scaled(2)), told(*middle):
            engine.model(more, past_key_values=copy.deepcopy(held))
        engine.model(more, past_key_values=held)  # not under it
        with engine.steer(shift()), told(*middle):
            engine.model(more, past_key_values=held)
        with engine.steer(shift(GENERATED)):
            one = engine.model(ids, use_cache=True).past_key_values
            engine.model(ids[:, :-1], use_cache=True)  # another conversation
            with told(*middle):
                engine.model(more[:, :1], past_key_values=one)


def test_a_cache_that_was_cropped(engine):
    ids, more = rendered(engine, "w1 w2 w3")["input_ids"], torch.tensor([[20]])
    with torch.no_grad():
        for positions in (ALL, NOT_TEMPLATE):
            with engine.steer(shift(positions)):
                cache = engine.model(torch.cat([ids, more, more], dim=1), use_cache=True).past_key_values
                cache.crop(-2)
                found = engine.model(more, past_key_values=cache).logits[:, -1]
                wanted = engine.model(torch.cat([ids, more], dim=1)).logits[:, -1]
            torch.testing.assert_close(found, wanted, rtol=ONE, atol=ONE)
        with engine.steer(shift(GENERATED)):
            cache = engine.model(ids, use_cache=True).past_key_values
            cache.crop(-2)
            with told(UnsupportedError, "tokens after", "go on from what was read"):
                engine.model(more, past_key_values=cache)


@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize(
    "under", [shift(), shift(DECODING), shift(ALL, site="embed")], ids=["all", "decoding", "embed"]
)
@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}], ids=["", "static"])
def test_embeddings_are_steered_as_their_tokens_are(architecture, under, way):
    engine, texts = tiny.engine(architecture), tiny.prompts()
    given = rendered(engine, *texts)
    embeddings = engine.model.get_input_embeddings()(given.pop("input_ids")).detach()
    with engine.steer(under):
        rows, _, _ = generated(engine, {"inputs_embeds": embeddings, **given}, **way)
    assert same(rows, replies(engine, texts, under))


def test_embeddings_that_need_their_ids(engine):
    embeddings = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    for steering, why in (
        (shift(NOT_TEMPLATE), "leave the chat template's head alone"),
        (shift(DECODING, fades()), "a Fades control"),
    ):
        with engine.steer(steering), told(UnsupportedError, "needs input_ids", why, "positions='all'"):
            engine.model(inputs_embeds=embeddings)
    with engine.steer(shift()), told(UnsupportedError, "neither"):
        engine.model(input_ids=None)


@pytest.mark.parametrize("way", ["an assistant", "prompt lookup"])
def test_drafts_where_prompt_and_generated_tokens_differ(engine, way):
    gate = sl.Gate(sl.Site(0), DIRECTION, 0.0, held=True)
    for steering, why in ((shift(GENERATED), "positions at resid@1 (generated)"), (shift(DECODING, gate), "decoding")):
        with engine.steer(steering), told(UnsupportedError, "drafts together with the prompt", why, "not_template"):
            generated(engine, rendered(engine, "w1 w2 w1 w2 w1"), **WAYS[way])


def test_a_control_that_counts_tokens_is_not_taken_for_one_rule(engine):
    with engine.steer(shift(ALL, fades())), told(UnsupportedError, "the fades at resid@1 may go by"):
        generated(engine, rendered(engine, "w1 w2 w1 w2 w1"), prompt_lookup_num_tokens=3)


def test_a_mask_that_does_not_say_what_is_padding(engine):
    ids, odd = rendered(engine, "w1 w2 w3")["input_ids"], torch.ones(1, 7, 7)
    with engine.steer(shift(GENERATED)), told(UnsupportedError, "needs a plain [rows, tokens] attention mask"):
        engine.model(ids, attention_mask=odd)


def test_a_first_piece_that_is_all_template(engine):
    ids = rendered(engine, "w1 w2 w3")["input_ids"]
    with torch.no_grad(), engine.steer(shift(NOT_TEMPLATE)):
        cache = engine.model(ids[:, :2], use_cache=True).past_key_values
        with told(UnsupportedError, "nothing but the chat template's head", "larger pieces"):
            engine.model(ids[:, 2:], past_key_values=cache)


def test_a_static_cache_of_the_callers_own(engine):
    ids, steering = rendered(engine, "w1 w2 w3")["input_ids"], shift(GENERATED)
    with torch.no_grad(), engine.steer(steering):
        cache = StaticCache(config=engine.model.config, max_cache_len=32)
        first = engine.model(ids, past_key_values=cache).logits[:, -1:].argmax(-1)
        found = engine.model(first, past_key_values=cache).logits
        cache = DynamicCache()
        engine.model(ids, past_key_values=cache)
        wanted = engine.model(first, past_key_values=cache).logits
    torch.testing.assert_close(found, wanted, rtol=ONE, atol=ONE)
    (plain,) = engine.logits([sl.Example.ask("w1 w2 w3", engine.renderer.text(first[0].tolist(), special=True))])
    assert not torch.allclose(found[0, 0], plain[1], atol=1e-2)  # not alike: a hundred times MANY
