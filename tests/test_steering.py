"""Steerings: composing, scaling, digests, files; and a golden file of every format that was ever written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlab as sl
from steerlab import artefact, edits
from steerlab.steering import FORMAT, same_model
from steerlab.testing import tiny
from steerlab.testing.precision import FEW

GOLDEN = Path(__file__).parent / "golden"


def random_steering(seed: int, parts: int = 3) -> sl.Steering:
    generator = torch.Generator().manual_seed(seed)
    kinds = list(edits.kinds().values())
    made = []
    for n in range(parts):
        edit = kinds[(seed + n) % len(kinds)].random(8, generator)
        control = sl.Constant(0.5) if n % 2 else sl.Gate(sl.Site(0), torch.randn(8, generator=generator), 0.1)
        made.append(sl.Intervention(sl.Site(2 + n % 2), edit, [sl.ALL, sl.first(2) | sl.last(1)][n % 2], control))
    prompt = sl.Prompt("be formal", "be casual", "system") if seed % 2 else None
    return sl.Steering(tuple(made), prompt, sl.Meta(model="m", figures={"seconds": 1.5}))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_file_holds_all_of_it(seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    steering = random_steering(seed)
    steering.save(path)
    again = sl.Steering.load(path)
    assert again.digest == steering.digest
    assert again.meta == steering.meta
    assert again.prompt == steering.prompt
    h = torch.randn(4, 8)
    for a, b in zip(steering.interventions, again.interventions, strict=True):
        assert (a.site, a.positions) == (b.site, b.positions)
        assert torch.equal(a.edit(h, 0.5), b.edit(h, 0.5))


@given(seed=st.integers(0, 10_000), k=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_scaling_scales_strength_and_never_tensors(seed, k):
    steering = sl.Steering(random_steering(seed).interventions)
    scaled = steering.scaled(k)
    for a, b in zip(steering.interventions, scaled.interventions, strict=True):
        assert a.edit is b.edit
        assert b.control.most[1] == pytest.approx(a.control.most[1] * k)


def test_the_digest_is_of_the_behaviour_alone():
    steering = random_steering(3)
    renamed = sl.Steering(steering.interventions, steering.prompt, sl.Meta(model="another", figures={"n": 2}))
    assert renamed.digest == steering.digest
    bare = sl.Steering(steering.interventions)
    assert bare.digest != steering.digest, "the prompt is behaviour"
    assert bare.scaled(0.5).digest != bare.digest
    assert sl.Steering(steering.interventions[:1]).digest != steering.digest


def test_adding_keeps_order_within_a_site_and_depth_between_sites():
    v = torch.ones(4)
    a = sl.Steering((sl.Intervention(sl.Site(2), sl.Shift(v)), sl.Intervention(sl.Site(1), sl.Shift(2 * v))))
    b = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(3 * v)),))
    both = a + b
    assert [(i.site.layer, float(i.edit.v[0])) for i in both.interventions] == [(1, 2), (1, 3), (2, 1)]
    assert [float(i.edit.v[0]) for i in (b + a).interventions] == [3, 2, 1]
    assert (a + sl.Steering(prompt=sl.Prompt("x"))).prompt == sl.Prompt("x")


def test_the_domain_is_what_every_part_takes():
    v, q = torch.ones(4), torch.eye(4)[:1]
    shift, ablate = sl.Intervention(sl.Site(1), sl.Shift(v)), sl.Intervention(sl.Site(1), sl.Ablate(q))
    assert sl.Steering((shift,)).domain == (-float("inf"), float("inf"))
    assert sl.Steering((shift, ablate)).domain == (0, 1)
    assert sl.Steering((ablate,)).scaled(0.5).domain == (0, 2)
    assert sl.Steering(prompt=sl.Prompt("a", "b")).domain == (-1, 1)


@pytest.mark.parametrize(
    ("placement", "before", "after"),
    [
        ("suffix", [("user", "Go.")], [("user", "Go. Be kind.")]),
        ("prefix", [("user", "Go.")], [("user", "Be kind. Go.")]),
        ("system", [("user", "Go.")], [("system", "Be kind."), ("user", "Go.")]),
        ("system", [("system", "A."), ("user", "Go.")], [("system", "A. Be kind."), ("user", "Go.")]),
    ],
)
def test_a_prompt_is_put_where_it_belongs(placement, before, after):
    messages = [sl.Message(r, c) for r, c in before]
    prompt = sl.Prompt("Be kind.", "Be rude.", placement)
    assert [(m.role, m.content) for m in prompt.apply(messages)] == after
    assert list(prompt.scaled(0).apply(messages)) == messages
    assert "rude" in prompt.scaled(-1).apply(messages)[-1 if placement != "system" else 0].content


def test_every_golden_file_still_loads():
    files = sorted(GOLDEN.glob("format*.safetensors"))
    assert len(files) == FORMAT, "each format keeps a golden file; add one for the new format"
    for path in files:
        wanted = json.loads(path.with_suffix(".json").read_text())
        steering = sl.Steering.load(path)
        assert steering.digest == wanted["digest"]
        assert [str(i.site) for i in steering.interventions] == wanted["sites"]
        h = torch.linspace(-1, 1, 8)[None]
        for intervention, value in zip(steering.interventions, wanted["edited"], strict=True):
            torch.testing.assert_close(intervention.edit(h, 1.0)[0], torch.tensor(value), rtol=FEW, atol=FEW)
        assert steering.meta.model == wanted["model"]


def test_fingerprints_forgive_rounding_and_nothing_else():
    one = tiny.engine("llama").fingerprint
    near = {"shape": one["shape"], "sketch": {k: [v * 1.004 for v in vs] for k, vs in one["sketch"].items()}}
    far = {"shape": one["shape"], "sketch": {k: [v * 1.1 for v in vs] for k, vs in one["sketch"].items()}}
    assert same_model(one, near)
    assert not same_model(one, far)
    assert not same_model(one, {**one, "shape": "x"})
    assert same_model(one, {"shape": one["shape"], "sketch": {"embed": one["sketch"]["embed"]}})  # quantised


def test_a_steering_is_settled_when_it_is_made():
    v = torch.ones(4, requires_grad=True)
    steering = sl.Steering((sl.Intervention(sl.Site(0), sl.Shift(v * 2)),))
    assert not steering.interventions[0].edit.v.requires_grad
    again = sl.Steering(steering.interventions)
    assert again.interventions[0].edit is steering.interventions[0].edit


def test_the_document_names_every_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    random_steering(5).save(path)
    document, tensors = artefact.read(path)
    text = json.dumps(document)
    assert tensors
    assert all(name in text for name in tensors)


def test_what_is_written_over_a_file_or_cut_off_it_reaches_nobody_who_has_read_it(tmp_path):
    path = tmp_path / "x.safetensors"
    q = torch.linalg.qr(torch.randn(4096, 8, generator=torch.Generator().manual_seed(1))).Q.T.contiguous()
    sl.Steering((sl.Intervention(sl.Site(0), sl.Clamp(q, torch.ones(8), -torch.ones(8))),)).save(path)
    loaded = sl.Steering.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(100)
    assert torch.equal(loaded.interventions[0].edit.q, q)
