"""Each trained method's loss, in numbers, against the paper's equation written down anew: logits of whole passes under hooks of
this file's own, no objective, mask or batch of the library's. All in float64, so that only a fault differs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from steerlab.methods import objectives
from steerlab.methods.base import method
from steerlab.methods.fitting import ran
from steerlab.methods.frozen import Frozen
from steerlab.methods.weights import at as of_site
from steerlab.positions import Positions
from steerlab.testing import planted
from steerlab.testing.precision import EXACT, doubled

LAYER = 0
WIDTH = 48


@pytest.fixture(autouse=True)
def in_double():
    engine = planted.engine_in_double()
    with doubled():
        yield engine


def world(name, pairs=3, turned=False, **settings):
    """A method with its rows and free parameters a little away from their start, and the loss that it gives them."""
    made, engine, contrast = (
        method(name, {"site": str(LAYER), **settings}),
        planted.engine_in_double(),
        planted.contrast(pairs),
    )
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    frozen = Frozen(engine, sites, close=made.close, pool=made.pools(sites, positions))
    given = made.given(engine, contrast, sites, positions, frozen)
    rows = made.batch(given.train, torch.Generator().manual_seed(5))
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        frozen.prepare(*made.needed(rows))
        start = made.initial(given)
        free = {k: v if k == "q" else v + 0.2 * torch.randn(v.shape, generator=draw) for k, v in start.items()}
        if turned:
            free["q"] = -free["q"]
        step = ran(given, rows, made.touching(rows, free, given))
        loss = float(made.loss(step, free))
    return SimpleNamespace(
        made=made, engine=engine, contrast=contrast, positions=positions, given=given, rows=rows, free=free, step=step,
        loss=loss, pairs=contrast.pairs,
    )  # fmt: skip


def log_probs(w, prompt, answer, change=None):
    """log p of every token `[n, v]` where the answer is predicted, and the answer's ids `[n]`; `change` maps block 0's output."""
    engine = w.engine
    example = type(prompt)(prompt.messages, answer)
    batch = engine.batch([example], close=w.made.close)
    ids, n = batch.ids, int(batch.prompt_length[0])
    mask = batch.mask(w.positions)[0]

    def hook(_module, _args, output):
        h = output if isinstance(output, torch.Tensor) else output[0]
        new = torch.where(mask[:, None], change(h[0]), h[0])[None]
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    handle = None if change is None else engine.anatomy.blocks[LAYER].register_forward_hook(hook)
    try:
        with torch.no_grad():
            scores = engine.model(input_ids=ids, use_cache=False).logits[0]
    finally:
        if handle is not None:
            handle.remove()
    scores = scores - scores.max(dim=-1, keepdim=True).values
    table = scores - scores.exp().sum(dim=-1, keepdim=True).log()
    return table[n - 1 : -1], ids[0, n:]


def said(w, prompt, answer, change=None):
    """log p of each of the answer's tokens `[n]`."""
    table, ids = log_probs(w, prompt, answer, change)
    return table[torch.arange(len(ids)), ids]


def state(w, prompt, answer=None):
    """Block 0's untouched output at every token `[t, d]`, and which of them are touched."""
    example = type(prompt)(prompt.messages, answer)
    batch = w.engine.batch([example], close=w.made.close)
    seen = {}
    handle = w.engine.anatomy.blocks[LAYER].register_forward_hook(
        lambda _m, _a, out: seen.update(h=out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        w.engine.model(input_ids=batch.ids, use_cache=False)
    handle.remove()
    return seen["h"][0], batch.mask(w.positions)[0]


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def added(v):
    return lambda h: h + v


# --- objectives, by hand ------------------------------------------------------------------------------------------


def test_objectives_of_two_tokens_by_hand():
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])
    forward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    m = (0.625, 0.375)
    js = 0.5 * sum(a * math.log(a / c) for a, c in zip((0.75, 0.25), m)) + 0.5 * sum(
        b * math.log(b / c) for b, c in zip((0.5, 0.5), m)
    )
    assert float(objectives.kl(p.log(), q.log())) == pytest.approx(forward, abs=EXACT)
    assert float(objectives.jensen_shannon(p.log() + 3, q.log())) == pytest.approx(js, abs=EXACT)
    assert float(objectives.cross_entropy(p.log(), torch.tensor([1]))) == pytest.approx(math.log(4), abs=EXACT)


@pytest.mark.parametrize(
    ("won", "lost", "won_before", "lost_before", "scale"),
    [(-6.0, -4.0, -9.0, -3.0, 6.0), (-6.0, -4.0, -3.0, -9.0, 1.0), (-2.0, -8.0, -4.0, -3.5, 1.0)],
)
def test_the_scale_of_reps_is_how_much_likelier_the_loser_was(won, lost, won_before, lost_before, scale):
    """RePS, eq. 4: −log σ(s/|y_w| log p(y_w) − 1/|y_l| log p(y_l)), s = max(log p_ref(y_l) − log p_ref(y_w), 1)."""
    got = objectives.scaled_preference(*(torch.tensor([x]) for x in (won, lost, won_before, lost_before, 3.0, 2.0)))
    assert float(got) == pytest.approx(softplus(-(scale / 3 * won - lost / 2)), abs=EXACT)


# --- vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lm_vector", "prosv", "hypersteer"])
def test_the_language_model_objective_is_the_mean_cost_of_the_concepts_answer_tokens(name):
    more = {"positions": "p2+s2"} if name == "prosv" else {"factors": (0.5, 1.0, 1.5)} if name == "lm_vector" else {}
    w = world(name, **more)
    (edit,) = w.made.edits(w.free, w.given)
    costs = []
    for (positive, negative), row in zip(w.pairs, w.rows, strict=True):
        assert row.example.messages == negative.messages and row.example.answer == positive.answer
        costs.append(-said(w, negative, positive.answer, added(row.strength * edit.v)))
    assert w.loss == pytest.approx(float(torch.cat(costs).mean()), abs=EXACT)


def test_reps_prefers_the_concept_under_the_vector_and_the_plain_answer_without_it():
    """Eq. 2 to 4: h + (α + b)v prefers y_c to y; h − ReLU(h·v + b)/‖v‖² v prefers y to y_c; the mean of both."""
    w = world("reps", factors=(0.5, 1.0, 1.5))
    v, b = w.free["v"][0], w.free["b"][0]

    def steered(factor):
        return lambda h: h + (factor + b) * v

    def nulled(h):
        return h - torch.relu(h @ v + b)[:, None] / (v @ v) * v

    def cost(prompt, winner, loser, change):
        won, lost = (said(w, prompt, answer, change) for answer in (winner, loser))
        won_before, lost_before = (float(said(w, prompt, answer).sum()) for answer in (winner, loser))
        scale = max(lost_before - won_before, 1.0)
        return softplus(-(scale * float(won.mean()) - float(lost.mean())))

    adds, nulls = [], []
    factors = [row.strength * w.made.unit for row in w.rows if row.tag == ""]
    for (positive, negative), factor in zip(w.pairs, factors, strict=True):
        adds.append(cost(negative, positive.answer, negative.answer, steered(factor)))
        nulls.append(cost(negative, negative.answer, positive.answer, nulled))
    assert w.loss == pytest.approx((sum(adds) + sum(nulls)) / (2 * len(adds)), abs=EXACT)
    assert abs(sum(adds) - sum(nulls)) > 1e-3  # an exchange of the two would show


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bipo_turns_the_preference_with_the_vector(sign):
    """BiPO, eq. 3: −log σ(d β [log π(r_T | h + dv)/π(r_T) − log π(r_O | h + dv)/π(r_O)])."""
    w = world("bipo")
    v = w.free["v"][0]
    rows = [row._replace(strength=sign) for row in w.rows]
    with torch.no_grad():
        loss = float(w.made.loss(ran(w.given, rows, w.made.touching(rows, w.free, w.given)), w.free))
    costs = []
    for positive, negative in w.pairs:
        gains = [
            float((said(w, negative, answer, added(sign * v)) - said(w, negative, answer)).sum())
            for answer in (positive.answer, negative.answer)
        ]
        costs.append(softplus(-sign * w.made.beta * (gains[0] - gains[1])))
    assert loss == pytest.approx(sum(costs) / len(costs), abs=EXACT)


@pytest.mark.parametrize("batch_hinge", [False, True])
def test_split_weighs_preference_utility_and_a_hinge(batch_hinge):
    """SPLIT, section 6: λ_p L_p + λ_n L_n + γ ReLU(θ − (L_n − L_p)), each L a mean cost of an answer's tokens."""
    w = world(
        "split", factors=(0.5, 1.0, 1.5), preference=0.7, utility=0.4, hinge=3.0, margin=5.0, batch_hinge=batch_hinge
    )
    v = w.free["v"][0]
    strengths = {tag: [row.strength for row in w.rows if row.tag == tag] for tag in ("", "other")}
    with_it = [float(-said(w, n, p.answer, added(s * v)).mean()) for (p, n), s in zip(w.pairs, strengths[""])]
    without = [float(-said(w, n, n.answer, added(s * v)).mean()) for (p, n), s in zip(w.pairs, strengths["other"])]
    gaps = [b - a for a, b in zip(with_it, without)]
    hinge = max(0.0, 5.0 - sum(gaps) / 3) if batch_hinge else sum(max(0.0, 5.0 - g) for g in gaps) / 3
    assert hinge > 0
    assert w.loss == pytest.approx(0.7 * sum(with_it) / 3 + 0.4 * sum(without) / 3 + 3.0 * hinge, abs=EXACT)


def test_reft_r1_adds_its_largest_latents_and_is_penalised_for_the_others():
    """AxBench, section 4: CE under h + mean(top-k of ReLU(h·w)) w, plus λ · the L1 of latents outside of the top k."""
    w = world("reft_r1", turned=True, k=2, sparsity=0.3)  # turned to where the activations lie
    direction = w.free["q"][0]
    gone = 0.5
    with torch.no_grad():
        loss = float(w.made.loss(w.step._replace(gone=gone), w.free))
    costs, rest = [], []
    for row in w.rows:
        h, mask = state(w, row.example, row.example.answer)
        latent = torch.relu(h @ direction) * mask
        most = latent.sort(descending=True).values[:2].sum() / 2
        costs.append(-said(w, row.example, row.example.answer, added(most * direction)))
        rest.append(torch.relu(h[mask] @ direction).sort(descending=True).values[2:])
    penalty = float(torch.cat(rest).mean())
    assert penalty > 0
    assert loss == pytest.approx(float(torch.cat(costs).mean()) + 0.3 * gone * penalty, abs=EXACT)


# --- interchange ----------------------------------------------------------------------------------------------------


def swap(q, value):
    """The interchange of the paper: h + Σ (q·value − q·h) q."""
    return lambda h: h + ((value @ q.T) - h @ q.T) @ q


def interchanges(w):
    """Each ordered pair: the base's prompt with the source's answer, the change, and the source's prompt."""
    q = w.free["q"]
    for positive, negative in w.pairs:
        for base, source in ((negative, positive), (positive, negative)):
            h, _ = state(w, source)
            yield base, source, swap(q, h[-1])  # the last prompt token's


PUBLISHED = {
    "rank": 1, "start": "random", "optimiser": "published", "poles": "factors", "source": "last", "early": 0.0,
    "held_out": 0.0, "close": False,
}  # fmt: skip


def test_cdas_published_is_the_mean_divergence_of_two_halves_of_the_batch():
    w = world("cdas", pairs=4, micro_batches=True, flat=1.0, **PUBLISHED)
    assert w.step.said.row.max() == 7
    values = []
    for base, source, change in interchanges(w):
        (ours, _), (theirs, _) = log_probs(w, base, source.answer, change), log_probs(w, source, source.answer)
        p, q = ours.exp(), theirs.exp()
        m = ((p + q) / 2).log()
        values.append(0.5 * (p * (ours - m)).sum(-1) + 0.5 * (q * (theirs - m)).sum(-1))
    halves = [torch.cat(values[:4]).mean(), torch.cat(values[4:]).mean()]
    assert w.loss == pytest.approx(float(sum(halves)) / 2, abs=EXACT)


@pytest.mark.parametrize(
    ("name", "more"), [("das", {}), ("kl_das", {"direction": "forward"}), ("kl_das", {"direction": "reverse"})]
)
def test_das_and_kl_das_are_the_same_interchange_under_other_costs(name, more):
    w = world(name, **PUBLISHED, **more)
    values = []
    for base, source, change in interchanges(w):
        (ours, ids), (theirs, _) = log_probs(w, base, source.answer, change), log_probs(w, source, source.answer)
        if name == "das":
            values.append(-ours[torch.arange(len(ids)), ids])
        else:
            a, b = (theirs, ours) if more["direction"] == "forward" else (ours, theirs)
            values.append((a.exp() * (a - b)).sum(-1))
    assert w.loss == pytest.approx(float(torch.cat(values).mean()), abs=EXACT)


def test_pdas_prefers_the_sources_answer_to_the_bases_own():
    w = world("pdas", **{k: v for k, v in PUBLISHED.items() if k != "early"})
    values = []
    for base, source, change in interchanges(w):
        answers = (source.answer, base.answer)
        won, lost = (said(w, base, a, change) for a in answers)
        won_before, lost_before = (float(said(w, base, a).sum()) for a in answers)
        scale = max(lost_before - won_before, 1.0)
        values.append(softplus(-(scale * float(won.mean()) - float(lost.mean()))))
    assert w.loss == pytest.approx(sum(values) / len(values), abs=EXACT)


def test_cdas_as_it_is_by_default_clamps_to_its_poles_and_weighs_first_tokens_more():
    w = world("cdas", rank=2, early=0.75, flat=1.0)
    (clamp,) = w.made.edits(w.free, w.given)
    total = weight = 0.0
    for positive, negative in w.pairs:
        for base, source, pole in ((negative, positive, clamp.positive), (positive, negative, clamp.negative)):

            def change(h, pole=pole):
                return h + (pole - h @ clamp.q.T) @ clamp.q

            (ours, _), (theirs, _) = log_probs(w, base, source.answer, change), log_probs(w, source, source.answer)
            p, q = ours.exp(), theirs.exp()
            m = ((p + q) / 2).log()
            each = 0.5 * (p * (ours - m)).sum(-1) + 0.5 * (q * (theirs - m)).sum(-1)
            early = torch.arange(1, len(each) + 1.0) ** -0.75
            total, weight = total + float((each * early).sum()), weight + float(early.sum())
    assert w.loss == pytest.approx(total / weight, abs=EXACT)


# --- representation fine-tuning, adapters and weights --------------------------------------------------------------


@pytest.mark.parametrize("name", ["loreft", "direft", "nodireft"])
def test_the_refts_are_trained_on_the_concepts_answers(name):
    """LoReFT: h + Rᵀ(Wh + b − Rh); DiReFT: h + W₂ᵀ(W₁h + b); NoDiReFT: the same without orthonormal rows (arXiv 2404.03592)."""
    w = world(name, rank=2)
    r, a, b = (w.free[k][0] for k in ("r", "w", "b"))
    basis, _ = torch.linalg.qr(r.T)
    basis = basis * torch.sign((basis * r.T).sum(dim=0))  # rows that point as they did

    def change(h):
        if name == "loreft":
            return h + (h @ a.T + b - h @ basis) @ basis.T
        rows = basis.T if name == "direft" else r
        return h + (h @ a.T + b) @ rows

    costs = [-said(w, n, p.answer, change) for p, n in w.pairs]
    assert w.loss == pytest.approx(float(torch.cat(costs).mean()), abs=EXACT)


def test_preference_vectors_are_two_dpo_losses_with_the_labels_swapped():
    """arXiv 2504.20106 over DPO: each training against the untouched model, the second with winner and loser exchanged."""
    w = world("preference_vector", site="w:mlp.down_proj@0", rank=2)
    site = w.given.sites[0]
    matrix = w.engine.anatomy.matrix(site).module

    def under(side, prompt, answer):
        delta = w.made.side(of_site(w.free, site), side).change()
        before = matrix.weight.detach().clone()
        with torch.no_grad():
            matrix.weight.copy_(before + delta)
            try:
                return float(said(w, prompt, answer).sum())
            finally:
                matrix.weight.copy_(before)

    values = {"+": [], "-": []}
    for positive, negative in w.pairs:
        for prompt in (positive, negative):
            plain = {a: float(said(w, prompt, a).sum()) for a in (positive.answer, negative.answer)}
            for side, (winner, loser) in {"+": (positive, negative), "-": (negative, positive)}.items():
                gains = [under(side, prompt, e.answer) - plain[e.answer] for e in (winner, loser)]
                values[side].append(softplus(-w.made.beta * (gains[0] - gains[1])))
    assert w.loss == pytest.approx(sum(sum(v) / len(v) for v in values.values()), abs=EXACT)
