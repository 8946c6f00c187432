"""Laws of passes that do less than a whole one: begun in the middle, ended where it is read, narrowed to what is read."""

import itertools

import pytest
import torch

from steerlab.contrast import Example
from steerlab.engines import packing
from steerlab.engines.base import Start
from steerlab.errors import SiteError
from steerlab.positions import ALL, LAST_PROMPT
from steerlab.sites import Site
from steerlab.testing import tiny
from steerlab.testing.precision import MANY, ONE


@pytest.fixture(params=list(tiny.ARCHITECTURES))
def architecture(request):
    return request.param


@pytest.fixture(params=["left", "right"])
def padding(request):
    return request.param


def test_a_pass_that_begins_at_a_block_equals_the_whole_one(architecture, padding):
    engine = tiny.engine(architecture, padding=padding)
    batch = engine.batch([Example.ask("w1 w2 w3 w4", "w5 w6"), Example.ask("w7", "w8 w9 w3 w1")])
    forwards = [vars(block).get("forward") for block in engine.anatomy.blocks]
    for layer in range(engine.depth):
        below = Site(layer)
        kept = engine.resume(batch, sites=[below], logits=False).at[below]
        above = [below, Site(min(layer + 1, engine.depth - 1), "attn" if layer + 1 < engine.depth else "resid")]
        for site in above:
            grads = []
            for start in (None, Start(layer, kept)):
                v = torch.full((engine.width(site),), 0.3, requires_grad=True)
                run = engine.resume(batch, {site: lambda h, v=v: h + v * torch.tanh(h)}, start=start)
                (gradient,) = torch.autograd.grad(run.logits.square().mean(), v)
                grads.append((run.logits, gradient))
            assert torch.allclose(grads[0][0], grads[1][0], atol=ONE)
            assert torch.allclose(grads[0][1], grads[1][1], atol=ONE, rtol=MANY)
            assert float(grads[0][1].abs().sum()) > 0
    with pytest.raises(SiteError, match="lies below"):
        engine.resume(batch, sites=[Site(0)], start=Start(1, kept))
    with pytest.raises(RuntimeError, match="planted"):
        engine.resume(batch, {Site(1): _planted}, start=Start(1, kept))
    assert [vars(block).get("forward") for block in engine.anatomy.blocks] == forwards


def _planted(_h):
    raise RuntimeError("planted")


def test_reading_activations_ends_the_pass_where_they_are_read(architecture):
    engine = tiny.engine(architecture)
    examples = [Example.ask("w1 w2 w3", "w4"), Example.ask("w5", "w6 w7")]
    engine.capture(examples, [Site(0)], ALL)  # what a model is tried for, it is tried for once
    ran = []
    handles = [b.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(engine.anatomy.blocks)]
    try:
        alone = engine.capture(examples, [Site(0)], ALL)
        assert ran == [0]
        beside = engine.capture(examples, [Site(0), Site(engine.depth - 1)], ALL)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(alone[Site(0)].values, beside[Site(0)].values)


def test_examples_that_share_a_prompt_run_it_once_and_read_as_each_does_alone(architecture, padding):
    engine = tiny.engine(architecture, padding=padding)
    examples = [
        Example.ask("w1 w2 w3", "w4 w5"), Example.ask("w7"), Example.ask("w1 w2 w3", "w6"), Example.ask("w1 w2 w3"),
        Example.ask("w8 w9", "w4"), Example.ask("w1 w2 w3", "w5 w4 w9"),
    ]  # fmt: skip
    sites, seen = [Site(0), Site(engine.depth - 1)], []
    shares = engine.shares > 20  # attention windows of a few tokens forbid it
    engine.capture(examples, sites, ALL)  # what a model is tried for, it is tried for once
    handle = engine.anatomy.blocks[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[:2]))
    try:
        together = engine.capture(examples, sites, ALL)
    finally:
        handle.remove()
    assert sum(shape[0] for shape in seen) == (3 if shares else len(examples))
    assert shares or architecture in ("mistral", "gemma2", "gemma3_text"), "the others take such a mask"
    for n, example in enumerate(examples):
        alone = engine.capture([example], sites, ALL)
        for site in sites:
            mine = together[site].row == n
            assert torch.equal(together[site].position[mine], alone[site].position)
            assert torch.allclose(together[site].values[mine], alone[site].values, atol=ONE)


def test_what_is_read_at_few_tokens_is_what_is_read_at_all(architecture, padding):
    engine = tiny.engine(architecture, padding=padding, batch_size=3)
    examples = [Example.ask(" ".join(f"w{n}" for n in range(length))) for length in (9, 3, 12, 1, 4, 5, 10)]
    for layer in range(engine.depth):
        sites = [Site(0), Site(layer)]
        engine.capture(examples, sites, LAST_PROMPT)  # what is tried on the model once, it has tried then
        widths = []
        handles = [m.register_forward_hook(_seen(widths)) for m in engine.anatomy.positionwise(layer)]
        try:
            few = engine.capture(examples, sites, LAST_PROMPT)
        finally:
            for handle in handles:
                handle.remove()
        assert sum(widths) == len(handles) * len(examples), "each token that is read once, and no other"
        every = engine.capture(examples, sites, ALL)
        for site in sites:
            last = [int((every[site].row == n).nonzero().max()) for n in range(len(examples))]
            torch.testing.assert_close(few[site].values, every[site].values[last], rtol=MANY, atol=ONE)
    inside = [Site(1, "mlp"), Site(1)]  # what lies inside of the block is read: nothing is left out of it
    few, every = (engine.capture(examples, inside, where) for where in (LAST_PROMPT, ALL))
    for site in inside:
        last = [int((every[site].row == n).nonzero().max()) for n in range(len(examples))]
        torch.testing.assert_close(few[site].values, every[site].values[last], rtol=MANY, atol=ONE)


def _seen(widths):
    def hook(_module, args, _output):
        widths.append(args[0].shape[0] * args[0].shape[1])

    return hook


@pytest.mark.parametrize("price", [0, 3, 1000])
def test_batches_are_cut_where_the_fewest_tokens_are_run(price):
    rows = [packing.Row((n,), length) for n, length in enumerate([2, 2, 3, 3, 7, 8, 8, 20])]

    def run(cuts):
        parts = [rows[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)])]
        return sum(price + len(part) * part[-1].length for part in parts), max(map(len, parts))

    ways = [cuts for k in range(len(rows)) for cuts in itertools.combinations(range(1, len(rows)), k)]
    least = min(cost for cost, most in map(run, ways) if most <= 3)
    found = packing.batches(rows, 3, price)
    assert [row for part in found for row in part] == rows
    assert run(list(itertools.accumulate(len(part) for part in found))[:-1]) == (least, max(map(len, found)))
    assert max(map(len, found)) <= 3
