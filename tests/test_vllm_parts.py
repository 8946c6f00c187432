"""The plug-in's parts that need no vLLM: rows, tables, plans, which row a token gets, and what a request may ask."""

from __future__ import annotations

import json

import pytest
import torch

import steerlab as sl
from steerlab import edits
from steerlab.errors import SteerlabError
from steerlab.testing.precision import MANY
from steerlab.vllm.admission import Admission, Asked, Files, Known, interventions
from steerlab.vllm.batch import Filler, Plan, Span
from steerlab.vllm.rows import Row, refused
from steerlab.vllm.settings import Settings
from steerlab.vllm.tables import Size, Tables

WIDTH = 12


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(5)


def at(layer, edit, positions=sl.ALL, strength=1.0):
    return sl.Intervention(sl.Site(layer), edit, positions, sl.Constant(strength))


def affine_kinds(draw):
    """Every kind of edit on activations that a row can hold, drawn at random."""
    for kind in edits.kinds().values():
        edit = kind.random(WIDTH, draw)
        if refused(at(0, edit)) is None:
            yield edit


def test_every_affine_kind_and_push_has_a_row(draw):
    kinds = {type(e).__name__ for e in affine_kinds(draw)}
    assert kinds >= {"Shift", "Clamp", "Push", "Ablate", "Affine", "Rotate", "Scale"}


@pytest.mark.parametrize("seed", range(40))
def test_a_row_is_its_edits_one_after_another(seed):
    draw = torch.Generator().manual_seed(seed)
    pool = list(affine_kinds(draw))
    chosen = [pool[int(n)] for n in torch.randint(len(pool), (1 + seed % 4,), generator=draw)]
    strengths = [float(s) for s in torch.rand(len(chosen), generator=draw) * 2]
    strengths = [s * (1 if e.domain[0] == 0 else (-1) ** n) for n, (e, s) in enumerate(zip(chosen, strengths))]
    strengths = [min(s, e.domain[1]) for e, s in zip(chosen, strengths)]
    x = torch.randn(30, WIDTH, generator=draw) * 2
    wanted = x
    for e, s in zip(chosen, strengths):
        wanted = e(wanted, s)
    row = Row.of(WIDTH, [at(0, e, strength=s) for e, s in zip(chosen, strengths)])
    scale = float(wanted.abs().max())
    # float32 against float64: twice ONE of the largest number
    torch.testing.assert_close(row(x.double()).float(), wanted, atol=2e-5 * scale, rtol=MANY)
    rank = len(row.lines)
    tables = Tables(Size((3,), 3, WIDTH, rank, True), 64, torch.device("cpu"), always=True)
    tables.write(2, {3: row})
    tables.rows[:30] = torch.tensor([0, 2, 0] * 10)
    rest = torch.randn(30, WIDTH, generator=draw)
    got = tables.blocks[3](x - rest, rest) + rest
    # float32 against float64: twice ONE of the largest number
    torch.testing.assert_close(got[1::3], wanted[1::3], atol=2e-5 * scale, rtol=MANY)
    assert torch.equal(tables.blocks[3](x, rest)[0::3], x[0::3])  # row 0 is bit-identical
    assert torch.equal(tables.blocks[3](x, rest)[2::3], x[2::3])


def test_a_row_that_is_written_anew_forgets_what_was_there(draw):
    tables = Tables(Size((0, 1), 2, WIDTH, 2, True), 8, torch.device("cpu"), always=True)
    x = torch.randn(1, WIDTH, generator=draw)
    tables.rows[0] = 1
    pushes = [edits.Push.random(WIDTH, draw) for _ in range(2)]
    first = Row.of(WIDTH, [at(0, edits.Affine.random(WIDTH, draw)), at(0, pushes[0])])
    if len(first.lines) <= 2:
        tables.write(1, {0: first})
    tables.write(1, {1: Row.of(WIDTH, [at(1, edits.Shift.random(WIDTH, draw))])})
    assert torch.equal(tables.blocks[0](x, None), x)
    assert not torch.equal(tables.blocks[1](x, None), x)


POSITIONS = [sl.ALL, sl.NOT_TEMPLATE, sl.PROMPT, sl.GENERATED, sl.LAST_PROMPT, sl.DECODING, sl.first(2) | sl.last(2),
             sl.Positions((sl.positions.Window(1, -1),), (sl.positions.Window(2, 5), sl.positions.Window(7)))]  # fmt: skip


@pytest.mark.parametrize("head", [0, 2])
def test_a_plan_knows_every_tokens_class_however_it_is_chunked(draw, head):
    acting = [at(n % 2, edits.Shift.random(WIDTH, draw), p) for n, p in enumerate(POSITIONS)]
    plan = Plan.of("k", acting, 9, head)
    position = torch.arange(30)[None]
    masks = [p.mask(position, torch.tensor([9]), torch.tensor([head]))[0] for p in POSITIONS]
    wanted = sum(m.long() << k for k, m in enumerate(masks))
    assert at_each(plan, 0, 30) == wanted.tolist()
    for first, count in ((0, 4), (4, 5), (7, 6), (20, 1), (9, 1)):
        assert at_each(plan, first, count) == wanted[first : first + count].tolist()
        assert plan.one(first) == wanted[first]
    assert plan.settled(9 + 7)
    assert not plan.settled(9 + 6)


def test_every_token_gets_the_row_of_its_own_request(draw):
    """Random steps over random requests, against what each token should have; far more requests than rows."""
    import random

    chance = random.Random(3)
    plans = []
    for n in range(12):
        positions = POSITIONS[n % len(POSITIONS)]
        acting = [
            at(0, edits.Shift.random(WIDTH, draw), positions),
            at(1, edits.Clamp.random(WIDTH, draw), sl.GENERATED),
        ]
        plans.append(Plan.of(f"key{n}", acting, chance.randint(3, 9), 2))
    tables = Tables(Size((0, 1), 1 + 2 * 4, WIDTH, 3, False), 128, torch.device("cpu"), always=False)
    filler = Filler(tables)
    for _ in range(150):
        spans = [
            Span(chance.choice([None, *plans]), chance.randint(0, 14), chance.choice([1, 1, 1, 4])) for _ in range(4)
        ]
        if chance.random() < 0.3:  # decoding goes on: the same requests a token later
            spans = [Span(s.plan, 25, 1) for s in spans]
            filler.step(spans)
        seen = False
        try:
            filler.step(spans)
            seen = True
        except sl.UnsupportedError:
            assert sum(len(np_classes(s)) for s in spans) > 8
        if not seen:
            continue
        at_token = 0
        for plan, first, count, _ in spans:
            for t in range(count):
                number = int(tables.rows[at_token])
                bits = 0 if plan is None else plan.one(first + t)
                if bits == 0:
                    assert number == 0
                else:
                    want = plan.rows(bits)
                    bias = want[0].bias.float() if 0 in want else torch.zeros(WIDTH)
                    assert torch.equal(tables.edits[0, number, :WIDTH], bias)
                at_token += 1
        assert not tables.rows[at_token:].any()
        assert tables.live == any(s.plan is not None for s in spans)
    filler.step([Span(None, 0, 3)])
    assert not tables.rows.any()
    assert not tables.live


def np_classes(span):
    return set() if span.plan is None else set(at_each(span.plan, span.first, span.tokens)) - {0}


def at_each(plan, first, count):
    return [bits for many, bits in plan.at(first, count) for _ in range(many)]


# --- admission ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def admitted(tmp_path, draw):
    folder, kept = tmp_path / "steerings", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    made = {
        "shift": sl.Steering((at(1, edits.Shift.random(WIDTH, draw), sl.NOT_TEMPLATE),)),
        "clamp-1": sl.Steering((at(2, edits.Clamp(torch.eye(WIDTH)[:1], torch.ones(1), -torch.ones(1))),)),
        "wide": sl.Steering((at(1, edits.Shift.random(WIDTH + 1, draw)),)),
        "deep": sl.Steering((at(7, edits.Shift.random(WIDTH, draw)),)),
        "rank": sl.Steering((at(1, edits.Clamp(torch.eye(WIDTH)[:3], torch.ones(3), -torch.ones(3))),)),
        "scale": sl.Steering((at(1, edits.Scale.random(WIDTH, draw)),)),
        "point": sl.Steering((at(1, edits.PointTo.random(WIDTH, draw)),)),
        "mlp": sl.Steering((sl.Intervention(sl.Site(1, "mlp"), edits.Shift.random(WIDTH, draw)),)),
        "gate": sl.Steering((sl.Intervention(sl.Site(1), edits.Shift.random(WIDTH, draw), sl.ALL,
                                             sl.Gate(sl.Site(0), torch.ones(WIDTH), 0.0)),)),
        "prompt": sl.Steering(prompt=sl.Prompt("Be brief.")),
        "other": sl.Steering((at(1, edits.Shift.random(WIDTH, draw)),), None,
                             sl.Meta(model="another", fingerprint={"shape": "x", "sketch": {}}, template="t")),
    }  # fmt: skip
    for name, steering in made.items():
        steering.save(folder / f"{name}.safetensors")
    known = Known("here", {"shape": "y", "sketch": {}}, "t")
    size = Settings(str(folder)).size(depth=4, width=WIDTH, requests=8)
    return Admission(folder, Files(kept), size, known, lambda ids: 2, classes=2), Files(kept), made


def test_a_request_is_resolved_to_what_was_meant(admitted):
    admission, files, made = admitted
    for given in ("0.5*shift-2*clamp-1", json.dumps({"steering": [{"name": "shift", "strength": 0.5},
                                                                 {"name": "clamp-1", "strength": -2}]})):  # fmt: skip
        asked = admission.resolve(given, [1, 2, 3, 4, 5])
        assert asked.head == 2
        again = Asked.from_json(json.loads(json.dumps(asked.to_json())))
        assert again == asked
        acting = interventions(files, again.parts)
        wanted = (made["shift"].scaled(0.5) + made["clamp-1"].scaled(-2)).interventions
        assert sl.Steering(acting).digest == sl.Steering(wanted).digest
    by_digest = admission.resolve(made["shift"].digest, [1, 2, 3])
    assert by_digest.key == admission.resolve("shift", [1, 2, 3]).key


def test_the_salt_tells_apart_what_is_computed_apart(admitted):
    admission, _, made = admitted
    ids = [1, 2, 3, 4]
    asks = ["shift", "0.5*shift", "-1*shift", "shift+clamp-1", "clamp-1+shift",
            {"steering": [{"name": "shift", "positions": "all"}]}, {"steering": ["shift"], "head": 1}]  # fmt: skip
    salts = [admission.resolve(a, ids).salt for a in asks]
    assert len({*salts}) == len(salts)
    sl.Steering((at(1, edits.Shift(2 * made["shift"].interventions[0].edit.v)),)).save(
        admission._folder / "shift.safetensors"
    )
    assert admission.resolve("shift", ids).salt not in salts  # a name that means something else now


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nothing", "no steering 'nothing'"),
        ("../kept/x", "no steering"),
        ("shift*2", "a form like"),
        ("shift-clamp-1", "no steering 'shift-clamp-1'"),
        ("shift+shift", "twice"),
        ("", "expected 1 to"),
        ("{", "valid JSON"),
        (3, "expected a name"),
        ({"steering": ["shift"], "strength": 2}, "field 'strength'"),
        ({"steering": [{"name": "shift", "strenght": 2}]}, "Did you mean 'strength'"),
        ({"steering": [{"name": "shift", "strength": float("nan")}]}, "finite"),
        ({"steering": [{"name": "shift", "positions": "evrywhere"}]}, "positions are"),
        ({"steering": ["shift"], "head": -1}, "head is"),
        ("wide", "has the width 13"),
        ("deep", "blocks 0 to 3"),
        ("rank", '"rank": 3'),
        ("scale", '"diag": true'),
        ("point", "not affine"),
        ("mlp", "block outputs"),
        ("gate", '"gates": true'),
        ("prompt", "prompted"),
        ("other", "fitted on another"),
        ({"steering": [{"name": "shift", "positions": "f1"}, {"name": "clamp-1", "positions": "l2"},
                       ]}, None),
        ({"steering": [{"name": "shift", "positions": "all"}, {"name": "clamp-1", "positions": "f2"}]}, None),
    ],
)  # fmt: skip
def test_what_cant_be_served_exactly_is_refused(admitted, given, words):
    admission, _, _ = admitted
    if words is None:
        assert admission.resolve(given, list(range(9))).parts
        return
    with pytest.raises(SteerlabError, match=words.replace("(", r"\(")):
        admission.resolve(given, list(range(9)))


def test_more_ways_than_the_server_takes_are_refused(admitted):
    admission, _, _ = admitted
    given = {"steering": [{"name": "shift", "positions": "f2"}, {"name": "clamp-1", "positions": "f1+l1"}]}
    with pytest.raises(sl.UnsupportedError, match='"classes": 3'):
        admission.resolve(given, list(range(9)))


def test_settings_are_read_and_wrong_ones_named(monkeypatch):
    assert Settings.read({}) is None
    assert Settings.read({"steerlab": {"rank": 3, "layers": [0, 2]}}) == Settings(rank=3, layers=(0, 2))
    monkeypatch.setenv("STEERLAB_VLLM", '{"diag": true}')
    assert Settings.read({}) == Settings(diag=True)
    with pytest.raises(sl.ConfigError, match="Did you mean 'rank'"):
        Settings.read({"steerlab": {"rnak": 3}})
    for wrong in ({"rank": -1}, {"rank": "2"}, {"layers": [2, 1]}, {"classes": 0}, {"diag": 1}):
        with pytest.raises(sl.ConfigError):
            Settings.read({"steerlab": wrong})
    with pytest.raises(sl.ConfigError, match="blocks 0 to 3"):
        Settings(layers=(4,)).size(depth=4, width=8, requests=2)
    assert not [name for name in __import__("sys").modules if name == "vllm" or name.startswith("vllm.")]


def test_how_a_reply_is_drawn_is_said_in_vllms_words():
    from steerlab.engines.base import Sampling
    from steerlab.vllm.engine import _drawn

    assert _drawn(Sampling()) == {"temperature": 0.0}
    assert _drawn(Sampling(presence_penalty=0.5, min_p=0.1)) == {"temperature": 0.0, "presence_penalty": 0.5}
    asked = Sampling(
        9,
        0.7,
        5,
        0.9,
        3,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=-1.0,
        logit_bias={7: 2.0},
        min_new_tokens=4,
    )
    assert _drawn(asked) == {
        "temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3, "min_p": 0.1, "repetition_penalty": 1.2,
        "frequency_penalty": -1.0, "logit_bias": {7: 2.0}, "min_tokens": 4,
    }  # fmt: skip
    assert asked.ends((1, 2)) == (1, 2) and Sampling(stop_ids=(5,)).ends((1,)) == (1, 5)
    assert Sampling(stop_ids=(5,), ignore_end=True).ends((1,)) == (5,)
