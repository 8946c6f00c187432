"""AxBench's figures against cases worked by hand, and against their definitions on drawn scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from steerlab.bench.axbench.metrics import (
    Ratings,
    auroc,
    best_factor,
    detected,
    f1,
    scaled,
    verdict,
    winrate,
    youden,
)
from steerlab.testing.precision import SUMMED


def test_auroc_by_hand():
    # pairs: (3,1) (3,2) (1,1) (1,2): won, won, tie, lost = 2.5 of 4
    assert auroc([3, 1], [1, 2]) == 2.5 / 4
    assert auroc([2, 3], [0, 1]) == 1.0
    assert auroc([0], [1, 2]) == 0.0
    assert auroc([1, 1], [1]) == 0.5
    assert auroc([], [1]) is None
    assert auroc([1], []) is None


@pytest.mark.parametrize("seed", range(20))
def test_auroc_is_the_share_of_pairs(seed):
    rng = np.random.default_rng(seed)
    p, n = rng.integers(0, 8, 17).tolist(), rng.integers(0, 6, 23).tolist()
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(p, n)]
    assert auroc(p, n) == pytest.approx(sum(pairs) / len(pairs), abs=SUMMED)
    assert auroc(scaled([*p, *n])[:17], scaled([*p, *n])[17:]) == pytest.approx(auroc(p, n), abs=SUMMED)
    assert auroc(n, p) == pytest.approx(1 - auroc(p, n), abs=SUMMED)


def test_scaled():
    assert scaled([2, 4, 3]).tolist() == [0, 1, 0.5]
    assert scaled([5, 5]).tolist() == [0, 0]
    assert scaled([]).tolist() == []


def test_youden_by_hand():
    # at 3: 2/3 − 0; at 2: 3/3 − 1/2 = 1/2; so 3
    assert youden([4, 3, 2], [2, 0]) == 3
    # at 5: 1/2; at 1: 1 − 1/2 = 1/2: equal, the higher one
    assert youden([5, 1], [1, 0]) == 5
    # nothing beats calling nothing positive
    assert youden([0, 1], [2, 3]) is None
    assert youden([1], [1]) is None
    assert youden([], [1]) is None


@pytest.mark.parametrize("seed", range(20))
def test_youden_is_the_best_of_all_thresholds(seed):
    rng = np.random.default_rng(seed)
    p, n = rng.normal(0.5, 1, 15).round(1), rng.normal(0, 1, 11).round(1)

    def j(t):
        return (p >= t).mean() - (n >= t).mean()

    every = [*p, *n]
    best = max(j(t) for t in every)
    found = youden(p.tolist(), n.tolist())
    if best <= 0:
        assert found is None
    else:
        assert found == max(t for t in every if j(t) == pytest.approx(best, abs=SUMMED))


def test_detected_by_hand():
    found = detected([4, 3, 2, 0], [1, 0.5, 3, 0], [5, 1, 2], [0.0] * 396)
    # thresholds: 4: 1/4 − 0; 3: 2/4 − 1/4; 2: 3/4 − 1/4 = 1/2; so 2
    assert found.threshold == 2
    assert found.positive == 3 / 4
    assert found.negative == 3 / 4
    assert found.hard == pytest.approx(1 / 3, abs=SUMMED)  # 5 and 2 are taken for the concept
    assert found.macro == pytest.approx((3 / 4 + 1 / 3) / 2, abs=SUMMED)
    # 3 hits, 1 miss, 1 false alarm of 4: 2·3 / (2·3 + 1 + 1)
    assert found.f1 == pytest.approx(6 / 8, abs=SUMMED)
    # with the shared ones 1 false alarm in 400: of 4 positives and 400 negatives 3 hits, 1 miss, 1 false alarm
    assert found.f1_imbalanced == pytest.approx(6 / 8, abs=SUMMED)
    assert detected([1, 2], [0], []).hard is None
    nothing = detected([0], [1], [2])
    assert nothing.auroc == 0
    assert nothing.threshold is None
    assert nothing.macro is None


def test_f1_is_what_counting_gives():
    # 10 positives of which 6 are found, 1000 negatives of which 20 are
    assert f1(0.6, 0.02, 100) == pytest.approx(2 * 6 / (2 * 6 + 4 + 20), abs=SUMMED)
    assert f1(0.0, 0.5, 1) == 0.0
    assert f1(1.0, 0.0, 100) == 1.0


def test_scores_by_hand():
    assert Ratings(2, 2, 2).score() == 2
    assert Ratings(1, 2, 2).score() == pytest.approx(1.5, abs=SUMMED)
    assert Ratings(1, 1, 2).score() == pytest.approx(3 / (1 + 1 + 0.5), abs=SUMMED)
    assert Ratings(0, 2, 2).score() == 0
    assert Ratings(2, 0, 2).score() == 0
    assert Ratings(2, 2, 2).score(suppress=True) == 0
    assert Ratings(0, 2, 2).score(suppress=True) == 2
    assert Ratings(1, 2, 2).score(suppress=True) == pytest.approx(1.5, abs=SUMMED)


def test_a_missing_rating_is_no_zero():
    for lacking in (Ratings(None, 2, 2), Ratings(2, None, 2), Ratings(2, 2, None)):
        assert lacking.score() is None
        assert lacking.score(suppress=True) is None


def test_factors_by_hand():
    assert best_factor([[0, 1], [2, 1], [1, 2]]) == 1  # the first of equals
    assert best_factor([[None, 2], [1, 1.5]]) == 0  # over what is there
    assert best_factor([[None, None], [0, 0]]) == 1
    assert best_factor([[None], [None]]) is None
    assert best_factor([]) is None


def test_winrate_by_hand():
    found = winrate([2, 1, 0, 1.5, None, 1], [1, 1 + 1e-9, 1, 1.5, 2, None])
    assert found == (1 / 4, 1 / 4, 2 / 4, 4, 2)
    assert winrate([None], [1]) == (None, None, None, 0, 1)
    assert [verdict(1, 0), verdict(0, 1), verdict(1, 1), verdict(None, 1)] == [1, -1, 0, None]
    with pytest.raises(ValueError):
        winrate([1], [1, 2])
