"""The laws of training: the fast passes are the plain ones, and many fits at once are each of them alone."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from steerlab import plugins
from steerlab.methods import bundles, fitting, frozen, trained
from steerlab.methods.base import method
from steerlab.methods.fitting import ran
from steerlab.methods.frozen import Frozen
from steerlab.methods.trained import Trained
from steerlab.positions import Positions
from steerlab.testing import planted, tiny
from steerlab.testing.plain import PlainFrozen
from steerlab.testing.precision import EXACT, doubled

SITE = "1"


@pytest.fixture
def in_double():
    """Both ways run in float64, so that what they differ by is a fault and no rounding."""
    with doubled():
        yield


@pytest.fixture
def sharing(monkeypatch):
    """Prompts are shared wherever that is allowed: toys' are too short for it to be cheaper."""
    monkeypatch.setattr(bundles, "PAIRS", 0.0)
    monkeypatch.setattr(bundles, "LEAST", 0)


def trained_only(name: str) -> type[Trained]:
    cls = plugins.load(name)
    if not issubclass(cls, Trained):
        pytest.skip(f"{name} isn't trained through the model")
    return cls


def small(name: str, **settings) -> Trained:
    cls = trained_only(name)
    known = {f.name for f in fields(cls)}
    made = method(name, {**cls.small, "site": SITE, "epochs": 2, "held_out": 0.0, **settings})
    assert isinstance(made, Trained)
    return replace(made, **{k: v for k, v in {"rank": 2}.items() if k in known})


def first_step(made: Trained, engine, contrast, passes: type[Frozen]):
    """Loss and gradients of one step over all items, a little away from the start (where some gradients vanish)."""
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    frozen = passes(engine, sites, close=made.close, pool=made.pools(sites, positions))
    given = made.given(engine, contrast, sites, positions, frozen)
    rows = made.batch(given.train, torch.Generator().manual_seed(1))
    with torch.no_grad():
        frozen.prepare(*made.needed(rows))
        begun = made.optimisers(made.initial(given), 1)
    noise = torch.Generator().manual_seed(2)
    free = {}
    for name, value in begun.free.items():
        moved = value if name == "q" else value + 0.01 * torch.randn(value.shape, generator=noise)
        free[name] = moved.detach().clone().requires_grad_()
    touching, alike = made.touching(rows, free, given), [made.alike(row) for row in rows]
    loss = made.loss(ran(given, rows, touching, alike), free)
    return loss.detach(), torch.autograd.grad(loss, list(free.values()), materialize_grads=True)


def difference(ours, theirs):
    """How far the gradients lie apart, as a share of their size."""
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (ours, theirs))
    assert a.dtype == b.dtype == torch.float64
    return float((a - b).norm()) / max(float(b.norm()), 1e-3)


def test_fast_is_plain_in_loss_and_gradients(method_name, architecture, in_double):
    engine = tiny.engine(architecture, dtype="float64")
    made, contrast = small(method_name), planted.contrast(4)
    (fast, ours), (plain, theirs) = (first_step(made, engine, contrast, p) for p in (Frozen, PlainFrozen))
    assert float((fast - plain).abs()) <= EXACT * max(1.0, float(plain.abs()))
    assert (
        any(float(g.norm()) > 0 for g in theirs) or architecture != "llama"
    )  # a ReLU may be closed for all random tokens
    assert difference(ours, theirs) <= EXACT


def test_what_is_served_is_what_was_trained(method_name, in_double):
    """At every strength that training draws, a steering's edit does what the training's did; or the method says why not."""
    made, engine, contrast = small(method_name), planted.engine_in_double(), planted.contrast(4)
    if made.served_otherwise:
        pytest.skip(made.served_otherwise)
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    if any(site.on_weights for site in sites):
        pytest.skip("changes of weights act on what a matrix reads: test_deltas holds them")
    frozen = Frozen(engine, sites, close=made.close, pool=made.pools(sites, positions))
    given = made.given(engine, contrast, sites, positions, frozen)
    draw, noise = torch.Generator().manual_seed(3), torch.Generator().manual_seed(2)
    with torch.no_grad():
        rows = [row for _ in range(8) for row in made.batch(given.train, draw) if row.strength != 0]
        frozen.prepare(*made.needed(rows))
        free = made.optimisers(made.initial(given), 1).free
        free = {k: t if k == "q" else t + 0.3 * torch.randn(t.shape, generator=noise) for k, t in free.items()}
        touching, served = made.touching(rows, free, given), made.served(free, given)
        batch = engine.batch([row.example for row in rows])
        mask = batch.mask(positions)[..., None]
        for site, edit in zip(sites, served, strict=True):
            h = torch.randn(*batch.ids.shape, engine.width(site), generator=noise)
            trained_as = touching[site](h, torch.arange(len(rows)), batch)
            each = torch.stack([edit(x, row.strength) for x, row in zip(h, rows, strict=True)])
            torch.testing.assert_close(trained_as, torch.where(mask, each, h), rtol=EXACT, atol=EXACT)
    assert len({row.strength for row in rows}) > 1 or len(getattr(made, "factors", (1.0,))) == 1


def test_rows_that_are_edited_alike_run_their_prompt_once(method_name, architecture, sharing, in_double):
    engine = tiny.engine(architecture, dtype="float64")
    made, contrast = small(method_name), planted.contrast(4)
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    frozen = Frozen(engine, sites, close=made.close)
    rows = made.batch(made.given(engine, contrast, sites, positions, frozen).train, torch.Generator().manual_seed(1))
    alike = [made.alike(row) for row in rows]
    longest = max(len(frozen.batch([row.example]).ids[0]) for row in rows)
    wanted, seen = len({(row.example.messages, key) for row, key in zip(rows, alike, strict=True)}), []
    if alike[0] is None or wanted == len(rows) or engine.shares < 2 * longest:
        pytest.skip("no two rows are edited alike on one prompt, or attention windows are too short")
    frozen.run([row.example for row in rows])  # what is tried once, is
    handle = engine.anatomy.blocks[-1].register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    try:
        together = frozen.run([row.example for row in rows], alike=alike)
        ran_together, seen[:] = sum(seen), []
        apart = frozen.run([row.example for row in rows])
    finally:
        handle.remove()
    assert ran_together == wanted
    for name in ("tokens", "row", "place"):
        assert torch.equal(getattr(together, name), getattr(apart, name))
    anew = Frozen(engine, sites, close=made.close).run([row.example for row in rows], alike=alike)
    for said in (together, anew):
        torch.testing.assert_close(said.scores(), apart.scores(), rtol=EXACT, atol=EXACT)
    (_, ours), (_, theirs) = (first_step(made, engine, contrast, p) for p in (Frozen, PlainFrozen))
    assert difference(ours, theirs) <= EXACT


def test_fast_is_plain_in_the_steering(method_name, monkeypatch, sharing):
    engine = planted.engine_in_double()
    with doubled():
        _fast_is_plain_in_the_steering(method_name, engine, monkeypatch)


def _fast_is_plain_in_the_steering(method_name, engine, monkeypatch):
    made, contrast = small(method_name), planted.contrast(10)
    fast = made.fit(engine, contrast)
    monkeypatch.setattr(trained, "Frozen", PlainFrozen)
    plain = made.fit(engine, contrast)
    for a, b in zip(tensors(fast), tensors(plain), strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT)


def test_many_fits_at_once_are_each_alone(method_name, sharing):
    engine = planted.engine_in_double()
    with doubled():
        _many_fits_at_once_are_each_alone(method_name, engine)


def _many_fits_at_once_are_each_alone(method_name, engine):
    made = small(method_name)
    contrasts = [planted.contrast(n) for n in (9, 12)] + [planted.contrast(10).swapped()]
    together = made.fit_many(engine, contrasts)
    for contrast, steering in zip(contrasts, together, strict=True):
        alone = made.fit(engine, contrast)
        assert steering.meta.data == alone.meta.data
        for a, b in zip(tensors(steering), tensors(alone), strict=True):
            torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT)


def tensors(steering) -> list[torch.Tensor]:
    found = []
    for i in steering.interventions:
        found += [t for f in fields(i.edit) if isinstance(t := getattr(i.edit, f.name), torch.Tensor)]
    return found


def test_fits_that_there_is_no_room_for_at_once_are_each_alone(monkeypatch):
    engine = planted.engine_in_double()
    with doubled():
        _fits_without_room_are_each_alone(engine, monkeypatch)


def _fits_without_room_are_each_alone(engine, monkeypatch):
    made = small("cdas")
    contrasts = [planted.contrast(n) for n in (9, 12, 10)]
    alone = [made.fit(engine, contrast) for contrast in contrasts]
    told = []
    learn = trained.Trained.learn
    monkeypatch.setattr(trained.Trained, "learn", lambda self, lot, *a: told.append(len(lot)) or learn(self, lot, *a))
    for full, room, expected in ((1, 2**28, [3]), (2**20, 2**28, [3]), (100, 1, [1, 1, 1])):
        monkeypatch.setitem(fitting.FULL, "cpu", full)
        monkeypatch.setattr(frozen, "SCORES", room)
        told.clear()
        for one, other in zip(made.fit_many(engine, contrasts), alone, strict=True):
            for a, b in zip(tensors(one), tensors(other), strict=True):
                torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT)
        assert told == expected


@pytest.mark.parametrize(("sizes", "found"), [([1, 1, 1], [[0, 1], [2]]), ([5, 1, 2], [[0], [1], [2]]), ([], [[]])])
def test_lots_hold_what_there_is_room_for(sizes, found):
    assert [list(lot) for lot in fitting.lots(range(len(sizes)), sizes, 2)] == found
