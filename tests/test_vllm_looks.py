"""Gates and read-outs in the plug-in's tables, without vLLM: a toy stream through the tables, against what they mean."""

from __future__ import annotations

import random

import pytest
import torch

import steerlab as sl
from steerlab import edits
from steerlab.engines.readout import readouts
from steerlab.errors import SteerlabError
from steerlab.testing.precision import MANY, ONE
from steerlab.vllm import watch
from steerlab.vllm.admission import Admission, Asked, Files, Known
from steerlab.vllm.batch import Filler, Plan, Span
from steerlab.vllm.settings import Settings
from steerlab.vllm.tables import Size, Tables

WIDTH, DEPTH = 12, 4


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(5)


def at(layer, edit, positions=sl.ALL, control=None):
    return sl.Intervention(sl.Site(layer), edit, positions, control or sl.Constant(1.0))


class Toy:
    """Blocks that each multiply the stream, through tables or by the definition."""

    def __init__(self, draw, **size):
        self.weights = [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0] for _ in range(DEPTH)]
        self.tables = Tables(
            Size(tuple(range(DEPTH)), 64, WIDTH, 3, False, **size), 256, torch.device("cpu"), always=True
        )

    def run(self, x):
        for layer, weight in enumerate(self.weights):
            moved, rest = x @ weight, 0.5 * x
            x = self.tables.blocks[layer](moved - rest, rest) + rest
        return x

    def meant(self, x, interventions, touched, held=None, reads=()):
        """One token: what leaves the last block, whether its gate opened, and what is read."""
        open_, read = held, []
        for layer, weight in enumerate(self.weights):
            x = (x[None] @ weight)[0]
            for i in interventions:
                if isinstance(i.control, sl.Gate) and i.control.site.layer == layer and held is None:
                    open_ = bool(i.control.opens(x))
            for i in interventions:
                if i.site.layer == layer and i.positions in touched:
                    gate = isinstance(i.control, sl.Gate)
                    if not gate or open_:
                        x = i.edit(x[None], i.control.value)[0]
            read += [(r, float(r(x))) for r in reads if r.site.layer == layer]
        return x, open_, tuple(v for r in reads for s, v in read if s is r)


def cases(draw):
    """Interventions behind a gate and not, with every kind of positions."""
    probe = torch.randn(WIDTH, generator=draw)
    for n, (held, positions) in enumerate(
        [(False, sl.ALL), (False, sl.NOT_TEMPLATE), (True, sl.DECODING), (True, sl.GENERATED), (False, sl.GENERATED)]
    ):
        gate = sl.Gate(sl.Site(n % 2), probe, 0.1, 0.8, held=held)
        acting = [
            at(2, edits.Clamp.random(WIDTH, draw), positions, gate),
            at(3, edits.Shift.random(WIDTH, draw), positions, gate),
        ]
        yield acting
        yield [
            at(0, edits.Shift.random(WIDTH, draw), sl.ALL),
            at(2, edits.Shift.random(WIDTH, draw), sl.PROMPT),
            *acting,
        ]


@pytest.mark.parametrize("seed", range(3))
def test_gates_and_readouts_are_what_they_mean_however_requests_are_mixed(seed):
    draw, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    toy = Toy(draw, reads=2, gates=True)
    filler = Filler(toy.tables)
    reads = readouts(
        sl.Steering(
            (
                at(1, edits.Shift.random(WIDTH, draw)),
                at(3, edits.Clamp(torch.eye(WIDTH)[:1], torch.ones(1), -torch.ones(1))),
            )
        )
    )
    requests = []
    for n, acting in enumerate([*cases(draw), [], []]):
        length = chance.randint(2, 6)
        wanted = reads if n % 2 else ()
        plan = Plan.of(f"key{n}", acting, length, 1, wanted) if acting or wanted else None
        stream = torch.randn(length + 8, WIDTH, generator=draw)
        requests.append({"name": f"r{n}", "plan": plan, "acting": acting, "reads": wanted, "length": length, "done": 0,
                         "held": None, "stream": stream, "read": {}, "tally": {}})  # fmt: skip
    for _ in range(40):
        if not (going := [r for r in requests if r["done"] < len(r["stream"])]):
            break
        chosen = chance.sample(going, min(len(going), chance.randint(1, 5)))
        spans = []
        for r in chosen:
            room = r["length"] - r["done"] if r["done"] < r["length"] else 1
            spans.append(Span(r["plan"], r["done"], chance.randint(1, room), r["name"]))
        filler.step(spans)
        x = torch.cat([r["stream"][s.first : s.first + s.tokens] for r, s in zip(chosen, spans)])
        got, bare = toy.run(x), None
        place = 0
        for r, span in zip(chosen, spans):
            for t in range(span.first, span.first + span.tokens):
                positions = {i.positions for i in r["acting"]}
                touched = {p for p in positions if touches(p, t, r["length"])}
                gate = next((i.control for i in r["acting"] if isinstance(i.control, sl.Gate)), None)
                held = r["held"] if gate is not None and gate.held else None
                out, open_, read = toy.meant(r["stream"][t], r["acting"], touched, held, r["reads"])
                if gate is not None and gate.held and t == r["length"] - 1:
                    r["held"] = open_
                torch.testing.assert_close(got[place], out, atol=ONE, rtol=MANY)
                if t >= r["length"] - 1 and r["reads"] and t == span.first + span.tokens - 1:
                    r["read"][t - r["length"] + 1] = read
                for k, i in enumerate(j for j in r["acting"] if isinstance(j.control, sl.Gate)):
                    if i.positions in touched:
                        tokens, acted = r["tally"].get(k, (0, 0))
                        r["tally"][k] = (tokens + 1, acted + bool(open_))
                if not any(
                    i.positions in touched and (not isinstance(i.control, sl.Gate) or open_) for i in r["acting"]
                ):
                    if bare is None:  # the same rows, none steered
                        kept, toy.tables.rows[: len(x)] = toy.tables.rows[: len(x)].clone(), 0
                        flags, seen = toy.tables.open.clone(), toy.tables.seen.clone()
                        bare = toy.run(x)
                        toy.tables.rows[: len(x)] = kept
                        toy.tables.open[:], toy.tables.seen[:] = flags, seen
                    assert torch.equal(got[place], bare[place])  # a closed gate is inert
                place += 1
            r["done"] += span.tokens
    for r in requests:
        (told,) = filler.watch.told([(r["name"], 0, True)])
        assert [n for n, row in enumerate(told["readings"]) if row is not None] == sorted(r["read"])
        for n, row in r["read"].items():
            # two implementations of a model in float32: their own logits differ by as much (make test-vllm prints it)
            torch.testing.assert_close(torch.tensor(told["readings"][n]), torch.tensor(row), atol=ONE, rtol=2e-4)
        assert [tuple(one) for one in told["gates"]] == [r["tally"][k] for k in sorted(r["tally"])] or not r["tally"]
    opened = [acted for r in requests for _, acted in r["tally"].values()]
    shut = [tokens - acted for r in requests for tokens, acted in r["tally"].values()]
    assert sum(opened) > 5 < sum(shut)  # both happened


def touches(positions, t, length):
    return bool(positions.mask(torch.tensor([[t]]), torch.tensor([length]), torch.tensor([1]))[0, 0])


def test_a_step_that_goes_on_reads_the_next_token(draw):
    toy = Toy(draw, reads=1)
    filler = Filler(toy.tables)
    (read,) = readouts(sl.Steering((at(1, edits.Shift.random(WIDTH, draw)),)))
    plan = Plan.of("key", [], 3, 0, [read])
    stream = torch.randn(8, WIDTH, generator=draw)
    filler.step([Span(plan, 0, 3, "a")])
    toy.run(stream[:3])
    filler.step([Span(plan, 3, 1, "a")])
    assert filler.steady
    toy.run(stream[3:4])
    filler.again()
    toy.run(stream[4:5])
    (told,) = filler.watch.told([("a", 0, False)])
    wanted = [toy.meant(stream[t], [], set(), None, [read])[2] for t in (2, 3, 4)]
    # two implementations of a model in float32: their own logits differ by as much (make test-vllm prints it)
    torch.testing.assert_close(torch.tensor(told["readings"]), torch.tensor(wanted), atol=ONE, rtol=2e-4)
    (later,) = filler.watch.told([("a", 2, True)])
    assert later["readings"] == told["readings"][2:]
    assert filler.watch.told([("a", 0, True)]) == [{"readings": [], "gates": []}]


def test_a_long_request_is_remembered_while_others_that_nobody_asks_about_come_and_go(draw, monkeypatch):
    monkeypatch.setattr(watch, "KEPT", 3)
    toy = Toy(draw, reads=1)
    filler = Filler(toy.tables)
    (read,) = readouts(sl.Steering((at(1, edits.Shift.random(WIDTH, draw)),)))
    plan = Plan.of("key", [], 1, 0, [read])
    for n in range(9):
        filler.step([Span(plan, n, 1, "long"), Span(plan, 0, 1, f"short {n}")])
        toy.run(torch.randn(2, WIDTH, generator=draw))
    long, gone, last = filler.watch.told([(name, 0, True) for name in ("long", "short 0", "short 8")])
    assert len(long["readings"]) == 9
    assert not gone["readings"]
    assert len(last["readings"]) == 1


def test_a_held_gate_that_never_decided_isnt_guessed_at(draw):
    toy = Toy(draw, gates=True)
    filler = Filler(toy.tables)
    gate = sl.Gate(sl.Site(0), torch.randn(WIDTH, generator=draw), 0.0, held=True)
    plan = Plan.of("key", [at(1, edits.Shift.random(WIDTH, draw), sl.DECODING, gate)], 3, 0)
    with pytest.raises(sl.UnsupportedError, match="hasn't decided"):
        filler.step([Span(plan, 4, 1, "a")])


@pytest.fixture
def admitted(tmp_path, draw):
    folder, kept = tmp_path / "steerings", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()

    def gate(site=0, **how):
        return sl.Gate(sl.Site(site), torch.ones(WIDTH), 0.0, **how)

    shift = edits.Shift.random(WIDTH, draw)
    made = {
        "shift": sl.Steering((at(1, shift),)),
        "gated": sl.Steering((at(1, shift, sl.ALL, gate()), at(2, shift, sl.ALL, gate().scaled(0.5)))),
        "other": sl.Steering((at(3, shift, sl.ALL, sl.Gate(sl.Site(1), torch.ones(WIDTH), 0.5)),)),
        "ahead": sl.Steering((at(1, shift, sl.ALL, gate(ahead=True)),)),
        "inside": sl.Steering((sl.Intervention(sl.Site(2), shift, sl.ALL, sl.Gate(sl.Site(1, "mlp"), torch.ones(WIDTH), 0.0)),)),
        "twice": sl.Steering((at(1, shift), at(1, edits.Clamp.random(WIDTH, draw)))),
        "plain": sl.Steering((at(1, edits.Affine.random(WIDTH, draw)),)),
    }  # fmt: skip
    for name, steering in made.items():
        steering.save(folder / f"{name}.safetensors")

    def admission(**how):
        size = Settings(str(folder), **how).size(depth=4, width=WIDTH, requests=8)
        return Admission(folder, Files(kept), size, Known("here", None, "t"), lambda ids: 2, classes=2)

    return admission


def test_readouts_are_resolved_and_leave_the_cache_alone(admitted):
    resolve = admitted(reads=2, gates=True).resolve
    alone = resolve({"readouts": ["shift"]}, [1, 2, 3])
    both = resolve({"steering": "gated", "readouts": ["shift"], "each": True}, [1, 2, 3])
    bare = resolve("gated", [1, 2, 3])
    assert alone.salt == ""
    assert both.salt == bare.salt != ""
    assert len({alone.rows, both.rows, bare.rows}) == 3
    assert (alone.tell, both.tell, bare.tell, resolve("shift", [1, 2, 3]).tell) == ("end", "each", "end", "never")
    assert Asked.from_json(both.to_json()) == both


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({}, "gated", '"gates": true'),
        ({"gates": True}, "ahead", "decides ahead"),
        ({"gates": True}, "inside", "its gate reads"),
        ({"gates": True}, "gated+other", "several gates"),
        ({}, {"readouts": ["shift"]}, '"reads": 1'),
        ({"reads": 1}, {"readouts": ["twice"]}, '"reads": 2'),
        ({"reads": 1}, {"readouts": ["plain"]}, "no single axis"),
        ({"reads": 1}, {"readouts": "shift"}, "expected a list"),
        ({"reads": 1}, {"readouts": ["nothing"]}, "no steering 'nothing'"),
        ({"reads": 1}, {"readouts": ["shift"], "each": 3}, "each is 3"),
        ({"reads": 1, "layers": (0, 2)}, {"readouts": ["shift"]}, "block 1 is looked at"),
    ],
)
def test_what_the_tables_cant_look_at_is_refused(admitted, settings, given, words):
    with pytest.raises(SteerlabError, match=words):
        admitted(**settings).resolve(given, list(range(9)))
