"""Positions mean the same whatever chunk, cache or padding they arrive in, compared with a definition by lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlab as sl
from steerlab.positions import NAMED, Positions, Window

bounds = st.integers(-6, 6)
windows = st.builds(
    lambda a, b, anchor: Window(a, b, anchor), bounds, st.one_of(st.none(), bounds), st.sampled_from(["start", "body"])
).filter(lambda w: w.stop is None or (w.start < 0) != (w.stop < 0) or w.start < w.stop)
generated = st.builds(
    lambda a, n: Window(a, None if n is None else a + n), st.integers(0, 4), st.one_of(st.none(), st.integers(1, 4))
)


def by_lists(positions: Positions, prompt: int, head: int, total: int) -> set[int]:
    """The definition: slices of Python lists."""
    hit: set[int] = set()
    for start, stop, anchor in positions.prompt:
        origin = head if anchor == "body" else 0
        first = prompt + start if start < 0 else origin + start
        last = prompt if stop is None else prompt + stop if stop < 0 else origin + stop
        hit |= {p for p in range(prompt) if first <= p < last and p >= origin}
    for start, stop, _ in positions.generated:
        hit |= set(list(range(prompt, total))[start:stop])
    return hit


@given(
    st.lists(windows, max_size=3), st.lists(generated, max_size=2), st.integers(1, 8), st.integers(0, 4),
    st.integers(0, 6), st.integers(0, 5), st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_mask_is_the_list_definition_in_any_chunking_and_padding(prompt_w, gen_w, prompt, head, more, pad, chunk):
    positions = Positions(tuple(prompt_w), tuple(gen_w))
    head = min(head, prompt)
    total = prompt + more
    wanted = by_lists(positions, prompt, head, total)
    numbers = torch.tensor([[-1] * pad + list(range(total)), list(range(total)) + [-1] * pad])
    lengths, heads = torch.tensor([prompt, prompt]), torch.tensor([head, head])
    whole = positions.mask(numbers, lengths, heads)
    pieces = torch.cat(
        [positions.mask(numbers[:, i : i + chunk], lengths, heads) for i in range(0, numbers.shape[1], chunk)], dim=1
    )
    assert torch.equal(whole, pieces)
    for row in range(2):
        assert {int(p) for p in numbers[row][whole[row]]} == wanted


@given(st.lists(windows, max_size=2), st.lists(generated, max_size=3), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_from_a_generated_token_on_all_are_touched_or_none(prompt_w, gen_w, k):
    positions = Positions(tuple(prompt_w), tuple(gen_w))
    touched = {p - 3 for p in by_lists(positions, 3, 0, 40)}
    said, rest = positions.generated_from(k), set(range(k, 37))
    assert said is None or touched & rest == (rest if said else set())
    settled = k >= max((b for w in gen_w for b in (w.start, w.stop) if b is not None), default=0)
    assert said is not None or not settled


@given(st.lists(windows, max_size=3), st.lists(generated, max_size=2))
@settings(max_examples=50, deadline=None)
def test_they_survive_json_and_hash(prompt_w, gen_w):
    positions = Positions(tuple(prompt_w), tuple(gen_w))
    again = Positions.from_json(positions.to_json())
    assert again == positions
    assert hash(again) == hash(positions)


@pytest.mark.parametrize("name", list(NAMED))
def test_names_are_read_back(name):
    assert Positions.parse(name) == NAMED[name]
    assert str(NAMED[name]) == name
    assert Positions.parse(name.replace("_", "-").upper()) == NAMED[name]


def test_the_named_ones_are_what_they_say():
    numbers = torch.arange(6)[None]

    def touched(positions):
        return numbers[0][positions.mask(numbers, torch.tensor([4]), torch.tensor([2]))[0]].tolist()

    assert touched(sl.ALL) == [0, 1, 2, 3, 4, 5]
    assert touched(sl.NOT_TEMPLATE) == [2, 3, 4, 5]
    assert touched(sl.PROMPT) == [2, 3]
    assert touched(sl.GENERATED) == [4, 5]
    assert touched(sl.LAST_PROMPT) == [3]
    assert touched(sl.DECODING) == [3, 4, 5]
    assert touched(sl.first(1) | sl.last(1)) == [2, 3]
    assert touched(Positions.parse("f1+l1")) == [2, 3]
    assert touched(sl.last(9)) == [2, 3], "never the template's head"
    assert touched(Positions()) == []


def test_the_templates_head_is_found_for_each_conversation():
    from steerlab.testing import tiny

    engine = tiny.engine("llama")
    plain = engine.renderer.prompt(sl.Example.ask("w1 w2").messages)
    system = engine.renderer.prompt(sl.Example.ask("w1 w2", system="w3").messages)
    assert (plain.head, system.head) == (2, 2)  # <bos> <user>, <bos> <system>
    assert engine.renderer.head_of(plain.ids) == 2
    assert engine.renderer.head_of(system.ids) == 2
    text = tiny.engine("llama", template="plain")
    assert text.renderer.prompt(sl.Example.ask("w1 w2").messages).head == 0
