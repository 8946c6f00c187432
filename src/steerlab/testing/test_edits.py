"""The laws of edits: every kind that exists, on random instances, shapes and strengths."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab import artefact, edits
from steerlab.edits import Ablate, Clamp, Edit, PointTo, Push, Rotate
from steerlab.errors import ArtefactError, EditError
from steerlab.testing.precision import MANY, ONE

KINDS = sorted(edits.kinds())
SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=2)
WIDTHS = st.integers(2, 9)


def drawn(kind: str, width: int, seed: int) -> tuple[Edit, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return edits.kinds()[kind].random(width, generator), generator


def inside(edit: Edit, unit: float) -> float:
    """A strength of the edit's domain from a number in [-1, 1]: two-sided ones go beyond the poles."""
    return 2.5 * unit if edit.two_sided else abs(unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(shape=SHAPES, width=WIDTHS, seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_strength_0_is_the_identity_bit_for_bit(edit_kind, dtype, shape, width, seed):
    edit, generator = drawn(edit_kind, width, seed)
    h = torch.randn(*shape, width, generator=generator).to(dtype)
    assert torch.equal(edit(h, 0), h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(shape=SHAPES, width=WIDTHS, seed=SEEDS, unit=st.floats(-1, 1))
@settings(max_examples=15, deadline=None)
def test_shape_dtype_and_device_are_kept_and_the_argument_is_untouched(edit_kind, dtype, shape, width, seed, unit):
    edit, generator = drawn(edit_kind, width, seed)
    h = torch.randn(*shape, width, generator=generator).to(dtype)
    before = h.clone()
    out = edit(h, inside(edit, unit))
    assert (out.shape, out.dtype, out.device) == (h.shape, h.dtype, h.device)
    assert torch.equal(h, before)


@given(width=WIDTHS, seed=SEEDS, units=st.lists(st.floats(-1, 1), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_rows_are_independent_and_each_has_its_own_strength(edit_kind, width, seed, units):
    edit, generator = drawn(edit_kind, width, seed)
    h = torch.randn(4, 3, width, generator=generator)
    strengths = torch.tensor([inside(edit, u) for u in units])
    together = edit(h, strengths[:, None, None])
    for row in range(4):
        torch.testing.assert_close(together[row], edit(h[row], float(strengths[row])), rtol=ONE, atol=ONE)


@given(width=WIDTHS, seed=SEEDS, units=st.lists(st.floats(-1, 1), min_size=3, max_size=3), tokens=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_what_is_worked_out_once_is_the_formula(edit_kind, width, seed, units, tokens):
    edit, generator = drawn(edit_kind, width, seed)
    strengths = torch.tensor([inside(edit, u) for u in units])[:, None, None]
    ready = edit.at(strengths)
    for _ in range(2):
        h = torch.randn(3, tokens, width, generator=generator)
        before = h.clone()
        torch.testing.assert_close(ready(h), edit(h, strengths), rtol=ONE, atol=ONE)
        assert torch.equal(h, before)


@given(width=WIDTHS, seed=SEEDS, unit=st.floats(-1, 1))
@settings(max_examples=25, deadline=None)
def test_the_normal_form_equals_the_call(edit_kind, width, seed, unit):
    edit, generator = drawn(edit_kind, width, seed)
    s = inside(edit, unit)
    form = edit.affine(s)
    if form is None:
        return
    h = torch.randn(5, width, generator=generator)
    torch.testing.assert_close(form(h), edit(h, s), rtol=MANY, atol=MANY)


@given(width=WIDTHS, seed=SEEDS, other=st.sampled_from(KINDS), units=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
@settings(max_examples=25, deadline=None)
def test_normal_forms_compose(edit_kind, width, seed, other, units):
    first, generator = drawn(edit_kind, width, seed)
    second = edits.kinds()[other].random(width, generator)
    s, t = inside(first, units[0]), inside(second, units[1])
    a, b = first.affine(s), second.affine(t)
    if a is None or b is None:
        return
    h = torch.randn(5, width, generator=generator)
    # two normal forms multiplied, strengths up to 2.5 each: MANY of a magnitude near 10
    torch.testing.assert_close(a.then(b)(h), second(first(h, s), t), rtol=1e-3, atol=1e-3)


@given(width=WIDTHS, seed=SEEDS, unit=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_two_sided_edit_has_an_opposite_and_a_one_sided_one_refuses(edit_kind, width, seed, unit):
    edit, generator = drawn(edit_kind, width, seed)
    h = torch.randn(5, width, generator=generator)
    if not edit.two_sided:
        with pytest.raises(EditError, match="opposite|strength"):
            edit.opposite()
        with pytest.raises(EditError, match=r"takes strengths in \[0, 1\]"):
            edit(h, -0.5)
        return
    s = 2.5 * unit
    torch.testing.assert_close(edit(h, -s), edit.opposite()(h, s), rtol=ONE, atol=ONE)
    torch.testing.assert_close(edit.opposite().opposite()(h, s), edit(h, s), rtol=ONE, atol=ONE)


@given(width=WIDTHS, seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_gradients_reach_the_tensors(edit_kind, width, seed):
    generator = torch.Generator().manual_seed(seed)
    edit = edits.kinds()[edit_kind].random(width, generator)
    h = torch.randn(64, width, generator=generator, requires_grad=True)
    leaves = {}
    for f in fields(edit):
        value = getattr(edit, f.name)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and f.name != "direction":
            leaves[f.name] = value.clone().requires_grad_(True)
            object.__setattr__(edit, f.name, leaves[f.name])
    weights = torch.randn(64, width, generator=generator)
    (edit(h, 0.7) * weights).sum().backward()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()
    for name, leaf in leaves.items():
        if edit_kind in ("Clamp", "Push") and name == "negative":
            continue  # a positive strength within 1 aims at the positive pole alone
        if name in edit.bounds:
            continue
        assert leaf.grad is not None, f"no gradient reaches {name}"
        assert torch.isfinite(leaf.grad).all()


@given(width=WIDTHS, seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_it_survives_the_file_format(edit_kind, width, seed):
    edit, generator = drawn(edit_kind, width, seed)
    row, tensors = artefact.flatten(edit, "0.edit")
    again = artefact.restore(row, tensors, edits.kinds())
    h = torch.randn(5, width, generator=generator)
    assert torch.equal(again(h, 0.6), edit(h, 0.6))


@given(width=WIDTHS, seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_another_width_is_refused_with_both_numbers(edit_kind, width, seed):
    edit, _ = drawn(edit_kind, width, seed)
    with pytest.raises(EditError, match=f"{width}.*{width + 1}"):
        edit(torch.zeros(2, width + 1))


# --- each kind's own identities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Clamp, Push])
@given(width=st.integers(3, 9), seed=SEEDS, s=st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_a_clamp_sets_its_coordinates_and_keeps_the_complement(kind, width, seed, s):
    generator = torch.Generator().manual_seed(seed)
    edit = kind.random(width, generator)
    h = torch.randn(6, width, generator=generator)
    out, q = edit(h, s), edit.q
    beside = torch.eye(width) - q.T @ q
    torch.testing.assert_close(out @ beside, h @ beside, rtol=MANY, atol=MANY)
    pole, other = (edit.positive, edit.negative) if s >= 0 else (edit.negative, edit.positive)
    if kind is Clamp and abs(s) >= 1:
        wanted = pole + (abs(s) - 1) * (pole - other)
        torch.testing.assert_close(out @ q.T, wanted.expand(6, -1), rtol=MANY, atol=MANY)
        torch.testing.assert_close(edit(out, s), out, rtol=MANY, atol=MANY)  # idempotent
    if kind is Push:
        clamped = Clamp(q, edit.positive, edit.negative)(h, s) @ q.T
        before, after = h @ q.T, out @ q.T
        moves = ((pole - other) * (clamped - before) > 0) & (abs(s) > 0)
        torch.testing.assert_close(after, torch.where(moves, clamped, before), rtol=MANY, atol=MANY)


@given(width=st.integers(2, 9), seed=SEEDS, kind=st.sampled_from([Rotate, PointTo]), s=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_rotations_keep_the_norm(width, seed, kind, s):
    generator = torch.Generator().manual_seed(seed)
    edit = kind.random(width, generator)
    h = torch.randn(6, width, generator=generator)
    torch.testing.assert_close(edit(h, s).norm(dim=-1), h.norm(dim=-1), rtol=MANY, atol=MANY)


@given(width=st.integers(2, 9), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_point_to_reaches_its_angle_by_the_shorter_arc(width, seed):
    generator = torch.Generator().manual_seed(seed)
    edit = PointTo.random(width, generator)
    h = torch.randn(6, width, generator=generator)
    a = edit(h, 1) @ edit.q.T
    reached = torch.atan2(a[:, 1], a[:, 0])
    off = torch.remainder(reached - edit.angle + math.pi, 2 * math.pi) - math.pi
    # an angle in float32 is off by eps · |h| / radius, and radii go down to a thousandth
    torch.testing.assert_close(off, torch.zeros(6), rtol=0, atol=1e-3)
    half, start = edit(h, 0.5) @ edit.q.T, h @ edit.q.T
    cosine = torch.cosine_similarity(half, start)
    assert (cosine >= -1e-3).all()  # half of at most half a turn


@given(width=st.integers(2, 9), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_ablation_removes_the_coordinate_and_is_idempotent(width, seed):
    generator = torch.Generator().manual_seed(seed)
    edit = Ablate.random(width, generator)
    out = edit(torch.randn(6, width, generator=generator), 1)
    torch.testing.assert_close(out @ edit.q.T, edit.centre.expand(6, -1), rtol=MANY, atol=MANY)
    torch.testing.assert_close(edit(out, 1), out, rtol=MANY, atol=MANY)


def test_the_published_multiplier_is_a_strength():
    clamp = Clamp(torch.tensor([[1.0, 0.0]]), torch.tensor([3.0]), torch.tensor([-1.0]))
    h = torch.zeros(1, 2)
    for m in (1.0, 1.5, 4.0):
        assert float(clamp(h, clamp.strength_of_multiplier(m))[0, 0]) == pytest.approx(3 * m)
    assert float(clamp(h, clamp.strength_of_multiplier(2.0, "negative"))[0, 0]) == pytest.approx(-2)
    with pytest.raises(EditError, match="between the poles"):
        clamp.strength_of_multiplier(0.5)
    near = Clamp(torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0]), torch.tensor([-5.0]))
    turned = near.strength_of_multiplier(6.0)  # 6 times a positive pole of -1 lies beyond the negative pole of -5
    assert turned < 0
    assert float(near(h, turned)[0, 0]) == pytest.approx(-6)


def test_what_is_built_is_valid():
    with pytest.raises(EditError, match="not orthonormal"):
        Clamp(torch.tensor([[2.0, 0.0]]), torch.zeros(1), torch.ones(1))
    with pytest.raises(EditError, match="not orthonormal"):
        Clamp(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.zeros(2), torch.ones(2))
    with pytest.raises(EditError, match="NaN"):
        edits.Shift(torch.tensor([1.0, float("nan")]))
    with pytest.raises(EditError, match=r"\[1\]"):
        Clamp(torch.tensor([[1.0, 0.0]]), torch.zeros(2), torch.ones(1))
    with pytest.raises(ArtefactError, match="Clamp"):
        artefact.restore({"kind": "Clmap"}, {}, edits.kinds())
