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

SITE = "1"


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


def test_fast_is_plain_in_loss_and_gradients(method_name, architecture):
    made, engine, contrast = small(method_name), tiny.engine(architecture), planted.contrast(4)
    (fast, ours), (plain, theirs) = (first_step(made, engine, contrast, p) for p in (Frozen, PlainFrozen))
    assert float((fast - plain).abs()) <= 1e-6 * max(1.0, float(plain.abs()))
    assert (
        any(float(g.norm()) > 0 for g in theirs) or architecture != "llama"
    )  # a ReLU may be closed for all random tokens
    a, b = (torch.cat([g.flatten() for g in gradients]).double() for gradients in (ours, theirs))
    assert float((a - b).norm()) <= 1e-6 * max(float(b.norm()), 5e-3)  # float32 leaves no more of sums of this size


def test_rows_that_are_edited_alike_run_their_prompt_once(method_name, architecture, sharing):
    made, engine, contrast = small(method_name), tiny.engine(architecture), planted.contrast(4)
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
        torch.testing.assert_close(said.scores(), apart.scores(), rtol=1e-5, atol=1e-5)
    (_, ours), (_, theirs) = (first_step(made, engine, contrast, p) for p in (Frozen, PlainFrozen))
    a, b = (torch.cat([g.flatten() for g in gradients]).double() for gradients in (ours, theirs))
    assert float((a - b).norm()) <= 2e-6 * max(float(b.norm()), 5e-3)  # attention sums in another order, too


def test_fast_is_plain_in_the_steering(method_name, monkeypatch, sharing):
    made, engine, contrast = small(method_name), planted.engine(), planted.contrast(10)
    fast = made.fit(engine, contrast)
    monkeypatch.setattr(trained, "Frozen", PlainFrozen)
    plain = made.fit(engine, contrast)
    for a, b in zip(tensors(fast), tensors(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_many_fits_at_once_are_each_alone(method_name, sharing):
    made, engine = small(method_name), planted.engine()
    contrasts = [planted.contrast(n) for n in (9, 12)] + [planted.contrast(10).swapped()]
    together = made.fit_many(engine, contrasts)
    for contrast, steering in zip(contrasts, together, strict=True):
        alone = made.fit(engine, contrast)
        assert steering.meta.data == alone.meta.data
        for a, b in zip(tensors(steering), tensors(alone), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def tensors(steering) -> list[torch.Tensor]:
    found = []
    for i in steering.interventions:
        found += [t for f in fields(i.edit) if isinstance(t := getattr(i.edit, f.name), torch.Tensor)]
    return found


def test_fits_that_there_is_no_room_for_at_once_are_each_alone(monkeypatch):
    made, engine = small("cdas"), planted.engine()
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
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert told == expected


@pytest.mark.parametrize(("sizes", "found"), [([1, 1, 1], [[0, 1], [2]]), ([5, 1, 2], [[0], [1], [2]]), ([], [[]])])
def test_lots_hold_what_there_is_room_for(sizes, found):
    assert [list(lot) for lot in fitting.lots(range(len(sizes)), sizes, 2)] == found
