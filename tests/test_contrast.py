"""Contrast data: splitting keeps families whole and pairs together; digests and JSON."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

import steerlab as sl


def contrast(n: int, families: int, paired: bool) -> sl.Contrast:
    positive = tuple(sl.Example.ask(f"p{i}", f"a{i}", family=f"f{i % families}") for i in range(n))
    negative = tuple(sl.Example.ask(f"n{i}", f"b{i}", family=f"f{i % families}") for i in range(n))
    neutral = tuple(sl.Example.ask(f"u{i}", family=f"g{i % families}") for i in range(n))
    return sl.Contrast(positive, negative, paired, "c", neutral=neutral)


@given(st.integers(12, 60), st.integers(6, 12), st.booleans(), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_no_wording_is_in_two_parts_and_nothing_is_lost(n, families, paired, seed):
    whole = contrast(n, families, paired)
    parts = whole.split(0.5, 0.25, 0.25, seed=seed)
    for side in ("positive", "negative", "neutral"):
        rows = [e.instruction for part in parts for e in getattr(part, side)]
        assert sorted(rows) == sorted(e.instruction for e in getattr(whole, side))
        owner: dict[str, int] = {}
        for k, part in enumerate(parts):
            for e in getattr(part, side):
                assert owner.setdefault(e.family, k) == k
    if paired:
        for part in parts:
            assert all(p.instruction[1:] == q.instruction[1:] for p, q in part.pairs)
    assert [p.digest() for p in whole.split(0.5, 0.25, 0.25, seed=seed)] == [p.digest() for p in parts]


@given(st.integers(20, 60), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_parts_have_about_the_share_that_was_asked_for(n, seed):
    whole = contrast(n, n, True)  # every row a family of its own
    train, test = whole.split(0.7, 0.2, seed=seed)
    assert abs(len(train) - 0.7 * n) <= 2
    assert abs(len(test) - 0.2 * n) <= 2
    assert not {e.instruction for e in train.positive} & {e.instruction for e in test.positive}


def test_json_and_digest():
    example = sl.Example.ask("hi", "yo", system="s", family="f", tags={"kind": "x"})
    assert sl.Example.from_json(example.to_json()) == example
    assert hash(example) == hash(sl.Example.from_json(example.to_json()))
    a, b = contrast(6, 3, True), contrast(6, 3, False)
    assert a.digest() != b.digest()
    assert a.digest() == contrast(6, 3, True).digest()
    assert a.swapped().positive == a.negative
    assert a.swapped().swapped().positive == a.positive


def test_a_sample_is_drawn_without_replacement_and_keeps_pairs():
    drawn = contrast(20, 20, True).sample(7, seed=1)
    assert len(drawn) == 7
    assert len({e.instruction for e in drawn.positive}) == 7
    assert all(p.instruction[1:] == q.instruction[1:] for p, q in drawn.pairs)
