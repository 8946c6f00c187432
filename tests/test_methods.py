"""Settings of methods that the shipped laws, which run every method as it comes, don't reach."""

from __future__ import annotations

import pytest
import torch

from steerlab.errors import ConfigError
from steerlab.methods import runs
from steerlab.methods.base import method, read_classes
from steerlab.methods.cdas import CDAS
from steerlab.methods.interchange import both_ways
from steerlab.positions import NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.testing import planted


@pytest.mark.parametrize("rank", [1, 2])
def test_trained_poles_serve_a_lower_divergence_than_factors(rank):
    engine, contrast = planted.engine(), planted.contrast(30)
    settings = {"site": "0", "rank": rank, "epochs": 4, "seed": 0}
    by_factors = CDAS(**settings, poles="factors").fit(engine, contrast)
    trained = CDAS(**settings).fit(engine, contrast)
    served = [s.meta.figures["divergence_served"] for s in (by_factors, trained)]
    assert served[1] < served[0]
    assert min(trained.meta.figures["divergence"]["held_out"]) == pytest.approx(served[1], rel=1e-3)
    clamp = trained.interventions[0].edit
    assert torch.allclose(clamp.q @ clamp.q.T, torch.eye(rank), atol=1e-5)
    again = CDAS(**settings).fit(engine, contrast)
    assert again.digest == trained.digest


def weights(early):
    swaps = [s for pair in planted.contrast(3).pairs for s in both_ways(*pair)]
    return runs.Runs(planted.engine(), Site(0), NOT_TEMPLATE, early=early).plain(swaps).weight


def test_early_weighs_an_answers_first_tokens_more():
    assert torch.equal(weights(0.0), torch.ones(len(weights(0.0))))
    found = weights(1.0)
    tokens = len(found) // 6  # every planted answer is as long
    assert float(found.mean()) == pytest.approx(1.0)
    assert torch.allclose(found[:tokens] / found[0], 1 / torch.arange(1, tokens + 1))
    with pytest.raises(ConfigError, match="early=0"):
        method("pdas", {"early": 0.5})


def test_a_fit_that_can_keep_nothing_in_memory_is_the_same(monkeypatch):
    kept = CDAS(site="1", seed=0).fit(planted.engine(), planted.contrast(16)).interventions[0].edit
    monkeypatch.setattr(runs, "KEEP", 0)
    anew = CDAS(site="1", seed=0).fit(planted.engine(), planted.contrast(16)).interventions[0].edit
    assert torch.allclose(kept.q, anew.q, atol=1e-4)
    assert torch.allclose(kept.positive, anew.positive, atol=1e-3)


def test_a_random_clamp_goes_to_the_class_means():
    engine, contrast = planted.engine(), planted.contrast(8)
    clamp = method("random", {"form": "clamp", "site": "1", "seed": 3}).fit(engine, contrast).interventions[0].edit
    positive, negative = read_classes(engine, contrast, [Site(1)], "last")[Site(1)]
    assert float(clamp.q.norm()) == pytest.approx(1.0)
    assert torch.allclose(clamp.positive, (positive @ clamp.q.T).mean(dim=0), atol=1e-4)
    assert torch.allclose(clamp.negative, (negative @ clamp.q.T).mean(dim=0), atol=1e-4)
