"""Gates fitted from data, and how an engine decides them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerlab.contrast import Example
from steerlab.controls import Constant, Gate
from steerlab.edits import Shift
from steerlab.engines.base import Sampling
from steerlab.errors import ConfigError, DataError, EditError, UnsupportedError
from steerlab.methods.base import method
from steerlab.methods.gates import gated
from steerlab.positions import DECODING, NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.steering import Intervention, Prompt, Steering
from steerlab.testing import planted, tiny


@pytest.fixture(scope="module")
def clamp():
    return method("cdas", {"site": "0", "rank": 1}).fit(planted.engine(), planted.contrast(24))


def unrelated(n: int, seed: int = 5) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    texts = {tiny.words(generator, 7).replace(planted.KEY + " ", "w1 ") for _ in range(n)}
    return [Example.ask(t) for t in sorted(texts) if planted.KEY not in t.split()]


@pytest.mark.parametrize("when", ["ahead", "held"])
def test_a_fitted_gate_acts_where_it_should_and_leaves_the_rest_bit_identical(clamp, when):
    engine = planted.engine()
    steering = clamp if when != "held" else replace(
        clamp, interventions=tuple(replace(i, positions=DECODING) for i in clamp.interventions)
    )  # fmt: skip
    site = Site(0) if when != "ahead" else None
    made = gated(engine, steering, planted.contrast(40), unrelated(80), when=when, site=site)
    told = made.meta.figures["gate"]
    assert told["open_where_meant"] >= 0.95
    assert told["open_elsewhere"] == 0
    positive, _ = planted.pairs(torch.Generator().manual_seed(99), 12)
    wanted = [replace(e, answer=planted.WITHOUT) for e in positive]
    plain, free, held = (engine.logprobs(wanted, s) for s in (None, steering.scaled(-1), made.scaled(-1)))
    first = [float(torch.stack([lp[0] for lp in found]).mean()) for found in (plain, free, held)]
    assert first[2] - first[0] >= 0.9 * (first[1] - first[0]) > 0.2, first
    others = [replace(e, answer="w3 w4") for e in unrelated(60, seed=77)]
    same = zip(engine.logits(others), engine.logits(others, made.scaled(-1)), strict=True)
    assert sum(torch.equal(a, b) for a, b in same) >= 0.98 * len(others)


def test_a_gate_for_each_token_is_fitted_on_tokens(clamp):
    engine, contrast = planted.engine(), planted.contrast(40)
    answered = [replace(e, answer=planted.WITHOUT) for e in unrelated(60)]
    made = gated(engine, clamp, contrast, answered, when="token", rate=0.05)
    told = made.meta.figures["gate"]
    assert told["site"] == "resid@0", "at or before the site that it acts on"
    assert 0.5 <= told["open_where_meant"] <= 1
    assert told["open_elsewhere"] <= 0.06
    control = made.interventions[0].control
    assert not control.held
    assert not control.ahead


def test_a_gate_ahead_reads_any_site_and_is_decided_row_by_row():
    engine = tiny.engine()
    prompts = [Example.ask(f"w{n} w{n + 1} w{n + 2}", "w9 w8") for n in range(6)]
    late = Site(engine.depth - 1)
    read = engine.capture([e.without_answer() for e in prompts], [late])[late].values
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    scores = read @ direction
    edit = Shift(torch.full((32,), 0.8))
    gate = Gate(late, direction, float(scores.median()), ahead=True)
    behind, free = (Steering((Intervention(Site(0), edit, NOT_TEMPLATE, c),)) for c in (gate, Constant(1.0)))
    is_open = (scores > scores.median()).tolist()
    expected = [free if o else None for o in is_open]
    for a, b in zip(engine.logits(prompts, behind), engine.logits(prompts, expected), strict=True):
        assert torch.equal(a, b)
    greedy = Sampling(6)
    for a, b in zip(engine.generate(prompts, behind, greedy), engine.generate(prompts, expected, greedy), strict=True):
        assert a.ids == b.ids
    captured, plain = (engine.capture(prompts, [Site(1)], NOT_TEMPLATE, s)[Site(1)].values for s in (behind, expected))
    assert torch.equal(captured, plain)
    assert sum(is_open) == 3
    with pytest.raises(UnsupportedError, match="decides ahead"), engine.steer(behind):
        pass
    with pytest.raises(UnsupportedError, match="decides ahead"):
        engine.text_logprobs(["w1 w2 w3"], behind)
    with pytest.raises(EditError, match="held or decides ahead"):
        replace(gate, held=True)
    with pytest.raises(EditError, match="reads"):
        Intervention(Site(0), edit, NOT_TEMPLATE, replace(gate, ahead=False))


def test_a_gated_steering_is_saved_and_scaled(clamp, tmp_path):
    made = gated(planted.engine(), clamp, planted.contrast(40), unrelated(40))
    made.save(tmp_path / "gated.safetensors")
    again = Steering.load(tmp_path / "gated.safetensors")
    assert again.digest == made.digest
    control = again.scaled(-0.5).interventions[0].control
    assert isinstance(control, Gate)
    assert control.ahead
    assert control.value == -0.5
    assert made.domain == clamp.domain


def test_what_can_not_be_gated_says_why(clamp):
    engine, contrast = planted.engine(), planted.contrast(40)
    with pytest.raises(DataError, match="at least 8 different prompts"):
        gated(engine, clamp, planted.contrast(3))
    same = replace(contrast, positive=contrast.negative, negative=contrast.negative)
    with pytest.raises(DataError, match="can't be told apart"):
        gated(engine, clamp, same)
    with pytest.raises(ConfigError, match="control already"):
        gated(engine, gated(engine, clamp, contrast), contrast)
    with pytest.raises(ConfigError, match="no intervention"):
        gated(engine, Steering((), Prompt("say w1")), contrast)
    with pytest.raises(ConfigError, match="rate"):
        gated(engine, clamp, contrast, rate=1.0)
