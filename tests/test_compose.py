"""Several steerings together: overlaps taken out exactly, what is kept by hand, and a real model where two cancel."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from steerlab.controls import Constant, Gate
from steerlab.edits import Clamp, Push, Shift
from steerlab.errors import ConfigError
from steerlab.evals import heatmap
from steerlab.evals.compose import Asked, Whole, interference, kept, proposed
from steerlab.evals.guarantee import Budget
from steerlab.evals.joining import Part, commute, joined, orthogonal, overlap, pushed
from steerlab.evals.stats import Estimate
from steerlab.methods.base import method
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import planted
from steerlab.testing.precision import EXACT, FEW, MANY, ONE
from test_evals import PlantedSuite

D = 12


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(seed: int, r: int) -> torch.Tensor:
    return torch.linalg.qr(random(seed, D, r)).Q.T


def at(edit, site: int = 1, **more) -> Steering:
    return Steering((Intervention(Site(site), edit, **more),))


def part(name: str, steering: Steering, strength: float = 1.0, task: str = "key") -> Part:
    return Part(name, steering, task, "elicit" if strength > 0 else "suppress", strength)


def moved(steering: Steering, h: torch.Tensor) -> torch.Tensor:
    for i in steering.interventions:
        h = i.edit(h, torch.full((len(h), 1), i.control.value))
    return h


# --- overlaps ---------------------------------------------------------------------------------------------------------------


def test_dual_shifts_move_each_own_coordinate_as_fitted_and_no_other():
    vectors = [random(n, D) + random(9, D) for n in range(3)]  # they share a direction
    parts = [part(str(n), at(Shift(v)), s) for n, (v, s) in enumerate(zip(vectors, (1.0, 0.5, -2.0), strict=True))]
    whole, words = orthogonal(parts)
    total = moved(whole, torch.zeros(1, D))[0]
    for v, p in zip(vectors, parts, strict=True):
        assert float(total @ (v / v.norm())) == pytest.approx(p.strength * float(v.norm()), rel=MANY)
    assert "3 shifts made dual" in words
    # the least movement that does so: it lies in the span of the three
    span = torch.linalg.qr(torch.stack(vectors).T).Q
    assert torch.allclose(span @ (span.T @ total), total, atol=MANY)
    plain = moved(joined(parts), torch.zeros(1, D))[0]
    # not equal: a twentieth is far more than rounding
    assert float(plain @ (vectors[0] / vectors[0].norm())) != pytest.approx(float(vectors[0].norm()), rel=0.05)


@pytest.mark.parametrize("strength", [1.0, -1.0, 1.5])
def test_one_clamp_sets_all_coordinates_where_one_after_the_other_leaves_the_last(strength):
    clamps = [Clamp(rows(n, 2), random(n + 10, 2), random(n + 20, 2)) for n in range(3)]
    parts = [part(str(n), at(c), strength) for n, c in enumerate(clamps)]
    whole, words = orthogonal(parts)
    assert len(whole.interventions) == 1 and "clamps made one" in words
    h = random(5, 4, D)
    together, one_by_one = moved(whole, h), moved(joined(parts), h)
    for n, c in enumerate(clamps):
        goal = c.target(torch.zeros(2), torch.full((2,), strength))
        # a solved system of six equations in float32: MANY times its condition, about ten
        assert torch.allclose(together @ c.q.T, goal.expand(4, 2), atol=1e-3)
        # as above; where it is not met it is off by more than a tenth
        assert torch.allclose(one_by_one @ c.q.T, goal.expand(4, 2), atol=1e-3) == (n == 2)
    # nothing outside their span moves
    span = torch.linalg.qr(torch.cat([c.q for c in clamps]).T).Q
    off = together - h
    assert torch.allclose(off @ span @ span.T, off, atol=MANY)


def test_the_joint_clamp_turns_round_as_a_whole():
    clamps = [Clamp(rows(n, 1), torch.tensor([2.0]), torch.tensor([-1.0])) for n in range(2)]
    whole, _ = orthogonal([part(str(n), at(c)) for n, c in enumerate(clamps)])
    back = moved(whole.scaled(-1), random(1, 3, D))
    for c in clamps:
        assert torch.allclose(back @ c.q.T, torch.full((3, 1), -1.0), atol=MANY)


def test_what_cannot_be_one_is_left():
    one, two = Clamp(rows(0, 2), random(1, 2), random(2, 2)), Clamp(rows(3, 2), random(4, 2), random(5, 2))
    half = orthogonal([part("a", at(one), 0.5), part("b", at(two))])
    assert half is None  # no pole says how to go half of the way
    gate = Gate(Site(1), random(3, D), 0.0, value=1.0)
    assert orthogonal([part("a", at(one, control=gate)), part("b", at(two))]) is None
    assert orthogonal([part("a", at(one)), part("b", at(two, site=2))]) is None
    assert orthogonal([part("a", at(Push(one.q, one.positive, one.negative))), part("b", at(two))]) is None


def test_nearly_collinear_directions_are_told_and_left():
    v = random(0, D)
    parts = [part("a", at(Shift(v))), part("b", at(Shift(v + 1e-3 * random(1, D))))]
    assert orthogonal(parts) is None
    clamps = [Clamp(rows(0, 1), random(1, 1), random(2, 1)), Clamp(rows(0, 1), random(3, 1), random(4, 1))]
    assert orthogonal([part(str(n), at(c)) for n, c in enumerate(clamps)]) is None


def test_overlap_has_a_sign_for_two_directions_and_none_for_different_sites():
    v = random(0, D)
    a, b = at(Shift(v)), at(Shift(-2 * v))
    assert overlap(a, b) == pytest.approx(-1, abs=ONE)
    assert overlap(a, b.scaled(-1)) == pytest.approx(1, abs=ONE)
    assert overlap(a, at(Shift(v), site=2)) is None
    q = rows(0, 2)
    same = at(Clamp(q, random(1, 2), random(2, 2))), at(Clamp(q.flip(0), random(3, 2), random(4, 2)))
    assert overlap(*same) == pytest.approx(1, abs=ONE)


def test_what_commutes():
    shift, clamp = at(Shift(random(0, D))), at(Clamp(rows(1, 1), random(2, 1), random(3, 1)))
    assert commute(shift, at(Shift(random(4, D)))) and not commute(shift, clamp)
    assert commute(clamp, at(Clamp(rows(1, 1), random(2, 1), random(3, 1)), site=2))


def test_one_sided_clamps_take_away_first_and_leave_alone_what_is_past_their_pole():
    q = rows(0, 2)
    bring = at(Clamp(q[:1], torch.tensor([3.0]), torch.tensor([-3.0])))
    away = at(Clamp(q[1:], torch.tensor([2.0]), torch.tensor([-2.0])))
    parts = [part("bring", bring), part("away", away, -1.0)]
    whole, words = pushed(parts)
    assert "first what is taken away: away" in words and all(type(i.edit) is Push for i in whole.interventions)
    assert torch.equal(whole.interventions[0].edit.q, q[1:]) and torch.equal(whole.interventions[1].edit.q, q[:1])
    h = torch.stack([5 * q[0] - 4 * q[1], -q[0] + q[1]])  # past both poles; short of both
    now = moved(whole, h)
    assert torch.equal(now[0], h[0])
    assert torch.allclose(now[1] @ q.T, torch.tensor([3.0, -2.0]), atol=ONE)
    assert pushed([part("a", at(Shift(random(0, D))))]) is None


def test_what_conflicts_is_decided_by_what_is_brought():
    q = rows(0, 1)
    bring, away = (at(Clamp(q, torch.tensor([1.0]), torch.tensor([-1.0]))) for _ in range(2))
    whole, _ = pushed([part("bring", bring), part("away", away, -1.0)])
    assert torch.allclose(moved(whole, torch.zeros(1, D)) @ q.T, torch.ones(1, 1), atol=FEW)


# --- figures ----------------------------------------------------------------------------------------------------------------


def test_what_is_kept_by_hand():
    plain, alone = [[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]
    here = [[1.0, 0.0], [1.0, 1.0]]
    told = kept(plain, alone, here)
    # (0.5 − 0) + (1 − 0.5) over (1 − 0) + (1 − 0.5)
    assert told.mean == pytest.approx(1.0 / 1.5) and told.n == 4
    assert told.low <= told.mean <= told.high


def test_what_has_no_effect_alone_and_what_is_missing_is_left_out():
    told = kept([[0.0] * 3, [0.0] * 3], [[1.0] * 3, [0.0] * 3], [[1.0, None, 1.0], [1.0] * 3])
    assert told.mean == 1.0 and told.n == 2 and told.missing == 1
    assert kept([[0.0]], [[0.0]], [[1.0]]).mean is None


def test_what_keeps_nothing_is_not_proposed_for_its_low_price():
    def way(name: str, share: float | None, *over: str) -> Whole:
        return Whole(name, "", at(Shift(torch.ones(D))), (), Estimate(share, share, share, 9), {}, over)

    ways = [way("dear", 0.9, "kl"), way("cheap", 0.5), way("nothing", 0.0), way("unjudged", None)]
    assert proposed(ways).name == "cheap"
    assert proposed([ways[2], ways[0], ways[3]]).name == "dear"
    assert proposed(ways[3:]).name == "unjudged"


# --- a real model -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    engine = planted.engine()
    key = method("diff_means", {"site": "1"}).fit(engine, planted.contrast(24))
    other = method("diff_means", {"site": "0"}).fit(engine, planted.contrast(24, seed=5))
    parts = [part("key", key, 1.0), part("anti", key, -1.0), part("first", other, 1.0, task="again")]
    asked = Asked(Budget(lost=0.5, kl=0.99, perplexity=None), prompts=6, test=6, neutral=4, texts=2, items=6, tokens=4)
    return interference(PlantedSuite(), parts, asked)


def test_two_that_undo_each_other_are_told(found):
    assert found.solo[0].mean > 0.5
    assert found.change[1][0].mean == pytest.approx(
        -found.solo[0].mean, abs=EXACT
    )  # a shift and its opposite: nothing is left
    assert any("anti cancels key" in w for w in found.warnings)
    assert found.cosine[0][1] == pytest.approx(-1, abs=MANY)
    assert any("push against each other" in w for w in found.warnings)


def test_the_matrix_and_the_compositions_are_whole(found):
    count = len(found.parts)
    for matrix in (found.beside, found.change, found.cross):
        assert all((matrix[i][j] is None) == (i == j) for i in range(count) for j in range(count))
    assert sum(w.chosen for w in found.wholes) == 1 and found.best in found.wholes
    assert found.wholes[0].name == "as given" and {"kl", "lost"} <= set(found.wholes[0].costs)
    told = found.to_json()
    assert len(told["change"]) == count and told["compositions"][0]["digest"] == found.wholes[0].steering.digest


def test_the_picture_is_well_formed_says_all_names_and_hides_nothing(found, tmp_path):
    path = heatmap.save(found, tmp_path / "heat.svg")
    root = ElementTree.fromstring(path.read_text())
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert all(name in texts for name in ("key", "anti", "first"))
    assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "")


def test_a_hostile_name_stays_a_name():
    cell = Estimate(0.5, 0.4, 0.6, 10)
    text = heatmap.document([heatmap.Heat("t", ("<script>",), ('"&',), ((cell,),))])
    ElementTree.fromstring(text)
    assert "<script>" not in text


def test_one_steering_cannot_interfere():
    with pytest.raises(ConfigError, match="two or more"):
        interference(PlantedSuite(), [part("a", at(Shift(torch.ones(4))))], engine=planted.engine())
    twice = [part("a", at(Shift(torch.ones(4)))), part("a", at(Shift(torch.ones(4))))]
    with pytest.raises(ConfigError, match="same name"):
        interference(PlantedSuite(), twice, engine=planted.engine())


def test_a_constant_is_what_is_joined():
    assert isinstance(joined([part("a", at(Shift(torch.ones(4))), 0.5)]).interventions[0].control, Constant)
