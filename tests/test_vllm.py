"""Real vLLM with the plug-in, on the pilot, against the reference: `make test-vllm` runs this in an environment that has it.

STEERLAB_VLLM_TEST says which engine: `eager`, `compiled` or `uncached` (eager, without prefix caching). Prompts are read in
chunks, and the cache is so small that requests are preempted. STEERLAB_LEAK is how many requests the leak test sends.
"""

from __future__ import annotations

import os
import random
import statistics
from dataclasses import replace

import pytest
import torch

import steerlab as sl
from steerlab import pilot
from steerlab.engines.base import Sampling
from steerlab.engines.hf_serving import Ask
from steerlab.engines.readout import readouts
from steerlab.testing.precision import ONE
from steerlab.verify import _plain
from steerlab.verify.base import Probe

MODE = os.environ.get("STEERLAB_VLLM_TEST", "")
if not MODE:
    pytest.skip("vLLM isn't asked for: `make test-vllm` makes its environment and runs this", allow_module_level=True)

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
               "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}  # fmt: skip

WIDTH, DEPTH = 192, 8
LONG = "Tell me in a few plain words about the harbour, the lamp on its wall, the boats that come home late and the"
CLOSE = 2e-4  # nats
TIE = 1e-3  # nats between two tokens that may change places
TOKENS = 20


@pytest.fixture(scope="module")
def hf():
    return sl.load("pilot")


def basis(rank, draw):
    return torch.linalg.qr(torch.randn(WIDTH, rank, generator=draw))[0].T.contiguous()


@pytest.fixture(scope="module")
def made(hf):
    """Every kind of edit, at several blocks and positions."""
    draw = torch.Generator().manual_seed(0)

    def noise(size, *shape):
        return size * torch.randn(*(shape or (WIDTH,)), generator=draw)

    def poles(rank, size=4.0):
        return torch.full((rank,), size), torch.full((rank,), -size)

    def on(*interventions):
        return sl.Steering(tuple(interventions)).adopted(hf)

    gate, held = gates(hf)
    full = sl.Affine(noise(0.3), noise(0.1), noise(0.1, 2, WIDTH), noise(0.1, 2, WIDTH), symmetric=True)
    windows = sl.Positions((sl.positions.Window(2, -2),), (sl.positions.Window(1, 4), sl.positions.Window(6)))
    return {
        "shift": on(*(sl.Intervention(sl.Site(n), sl.Shift(noise(0.4))) for n in range(DEPTH))),
        "other": on(*(sl.Intervention(sl.Site(n), sl.Shift(noise(0.7)), sl.ALL) for n in (0, 7))),
        "clamp": on(sl.Intervention(sl.Site(3), sl.Clamp(basis(1, draw), *poles(1)), sl.ALL)),
        "wide": on(*(sl.Intervention(sl.Site(n), sl.Clamp(basis(2, draw), *poles(2, 2.0))) for n in (2, 6))),
        "push": on(
            *(sl.Intervention(sl.Site(n), sl.Push(basis(1, draw), *poles(1, 3.0)), sl.GENERATED) for n in (2, 5))
        ),
        "affine": on(sl.Intervention(sl.Site(2), full, sl.last(3) | sl.GENERATED)),
        "rotate": on(sl.Intervention(sl.Site(4), sl.Rotate(basis(2, draw), 0.7), sl.PROMPT)),
        "ablate": on(sl.Intervention(sl.Site(5), sl.Ablate(basis(1, draw)), sl.ALL)),
        "windows": on(sl.Intervention(sl.Site(4), sl.Shift(noise(1.0)), windows)),
        "gated": on(sl.Intervention(sl.Site(3), sl.Shift(noise(0.7)), sl.ALL, gate),
                    sl.Intervention(sl.Site(6), sl.Clamp(basis(1, draw), *poles(1)), sl.GENERATED, gate.scaled(0.5))),
        "held": on(*(sl.Intervention(sl.Site(n), sl.Shift(noise(0.6)), sl.DECODING, held) for n in (2, 5))),
        "late": on(sl.Intervention(sl.Site(4), sl.Push(basis(1, draw), *poles(1, 3.0)), sl.GENERATED, held)),
        "shut": on(sl.Intervention(sl.Site(3), sl.Shift(noise(0.7)), sl.ALL, replace(gate, threshold=1e9))),
    }  # fmt: skip


TEXTS = ["Describe a kitchen.", "Name three fruits.", f"{LONG} rain.", f"{LONG} wind.", f"{LONG} wind and what it does.",
         "What would you tell somebody who asks why the tides rise and fall twice a day?"]  # fmt: skip


def gates(hf):
    """Two that open at about half of the tokens: one for each token, and one that the last prompt token decides."""
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    site = sl.Site(1)
    asked = [sl.Example.ask(text) for text in TEXTS]
    scores = [hf.capture(asked, [site], where)[site].values.float() @ direction for where in (sl.ALL, sl.LAST_PROMPT)]
    middle = [float(s.sort().values[len(s) // 2 - 1 : len(s) // 2 + 1].mean()) for s in scores]
    return sl.Gate(site, direction, middle[0]), sl.Gate(site, direction, middle[1], held=True)


class Served:
    """An engine with the steerings, and asks as it takes them."""

    def __init__(self, folder, made, hf, **more):
        from vllm import LLM

        for name, steering in made.items():
            steering.save(folder / f"{name}.safetensors")
        self.made, self.hf = made, hf
        ours = {"steerings": str(folder), "rank": 3, "diag": True, "reads": 2, "gates": True}
        given = {
            "dtype": "float32", "enforce_eager": MODE != "compiled", "max_model_len": 384, "max_num_seqs": 24,
            "max_num_batched_tokens": 64, "disable_log_stats": False, "block_size": 32, "num_gpu_blocks_override": 36, "seed": 0,
            "enable_prefix_caching": MODE != "uncached", "additional_config": {"steerlab": ours},
        }  # fmt: skip
        self.llm = LLM(str(pilot.folder("pilot")), **(given | more))

    def ask(self, rows, tokens=TOKENS):
        """Replies to (prompt, ask) pairs, all at once: token ids and their log-probabilities."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": list(prompt.ids)} for prompt, _ in rows]
        how = [
            SamplingParams(max_tokens=tokens, temperature=0, logprobs=0, ignore_eos=True,
                           extra_args=None if ask is None else {"steerlab": ask})
            for _, ask in rows
        ]  # fmt: skip
        found = [reply.outputs[0] for reply in self.llm.generate(prompts, how, use_tqdm=False)]
        return [
            (list(o.token_ids), torch.tensor([p[t].logprob for p, t in zip(o.logprobs, o.token_ids)])) for o in found
        ]

    def meant(self, ask):
        """The steering that an ask means, put together without the plug-in."""
        if ask is None:
            return None
        if isinstance(ask, str):
            ask = {"steering": [{"name": n, "strength": s} for n, s in PARSED[ask]]}
        whole = None
        for term in ask["steering"]:
            one = self.made[term["name"]].scaled(term.get("strength", 1.0))
            if "positions" in term:
                placed = sl.Positions.parse(term["positions"])
                one = replace(one, interventions=tuple(replace(i, positions=placed) for i in one.interventions))
            whole = one if whole is None else whole + one
        return whole

    def preemptions(self):
        return sum(m.value for m in self.llm.get_metrics() if m.name == "vllm:num_preemptions")

    def hits(self):
        return sum(m.value for m in self.llm.get_metrics() if m.name == "vllm:prefix_cache_hits")


ASKS = [
    None, "shift", "0.5*shift", "-1*shift", "other", "clamp", "-1*clamp", "1.6*clamp", "0.3*clamp", "wide", "push", "-2*push",
    "affine", "-0.7*affine", "rotate", "-0.4*rotate", "ablate", "0.5*ablate", "windows", "shift+0.7*clamp", "wide+other-1*push",
    "clamp+push", "push+affine", "gated", "-0.5*gated", "held", "-1*held", "late", "gated+other", "held+0.5*shift", "shut",
    {"steering": [{"name": "shift", "positions": "prompt"}, {"name": "push", "strength": -1.5, "positions": "generated"}]},
    {"steering": [{"name": "affine", "positions": "decoding", "strength": 0.5}, {"name": "clamp", "positions": "decoding"}]},
]  # fmt: skip
PARSED = {
    a: [(t.split("*")[-1], float(t.split("*")[0]) if "*" in t else 1.0) for t in a.replace("-1*", "+-1*").replace("-2*", "+-2*")
        .replace("-0.7*", "+-0.7*").replace("-0.4*", "+-0.4*").replace("-0.5*", "+-0.5*").strip("+").split("+")]
    for a in ASKS if isinstance(a, str)
}  # fmt: skip


TERMS = {ask: [{"name": n, "strength": s} for n, s in terms] for ask, terms in PARSED.items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory, made, hf):
    return Served(tmp_path_factory.mktemp("steerings"), made, hf)


@pytest.fixture(scope="module")
def prompts(hf):
    """Rendered prompts, some of which begin alike over many blocks of the cache."""
    return [hf.renderer.prompt([sl.Message("user", text)]) for text in TEXTS]


def off(served, prompt, ask, reply):
    """How far a reply's log-probabilities are from the reference's, and whether each token is the greedy one there."""
    tokens, got = reply
    ids = (*prompt.ids, *tokens)
    probe = Probe(sl.Example.ask("x"), ids, len(prompt.ids), prompt.head)
    scores = torch.log_softmax(_plain.logits(served.hf, probe, served.meant(ask)).double(), dim=-1)[
        len(prompt.ids) - 1 : -1
    ]
    chosen = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((got - chosen).abs().max()), float((scores.max(dim=-1).values - chosen).max())


def test_requests_of_every_kind_in_one_batch_are_what_the_reference_says(served, prompts):
    rows = [(prompts[n % len(prompts)], ask) for n, ask in enumerate(ASKS * 2)]
    random.Random(1).shuffle(rows)
    worst = []
    for (prompt, ask), reply in zip(rows, served.ask(rows)):
        apart, short = off(served, prompt, ask, reply)
        assert apart < CLOSE, (ask, apart)
        assert short < TIE, (ask, short)
        worst.append(apart)
    print(
        f"\n{MODE}: largest difference {max(worst):.2g}, median {statistics.median(worst):.2g} nats over {len(rows)} replies"
    )
    plain = served.ask([(prompts[0], None)])[0][0]
    assert any(served.ask([(prompts[0], a)])[0][0] != plain for a in ("shift", "other"))  # they do steer


def test_preempted_requests_are_steered_alike(served, prompts):
    before = served.preemptions()
    rows = [(prompts[n % len(prompts)], ASKS[n % len(ASKS)]) for n in range(24)]
    replies = served.ask(rows, tokens=72)
    assert served.preemptions() > before, "nothing was preempted, so nothing was tried"
    for (prompt, ask), reply in zip(rows, replies):
        apart, short = off(served, prompt, ask, reply)
        assert apart < CLOSE, (ask, apart)
        assert short < TIE, (ask, short)


def test_nothing_leaks(served, prompts):
    """Requests in random order, with prompts in common: each is what it is alone, with an empty cache."""
    chance = random.Random(2)
    count = int(os.environ.get("STEERLAB_LEAK", "300"))
    asks = [
        None,
        None,
        None,
        "shift",
        "0.5*shift",
        "-1*shift",
        "clamp",
        "push",
        "affine",
        "wide+other-1*push",
        "gated",
        "held",
    ]
    rows = [(chance.choice(prompts), chance.choice(asks)) for _ in range(count)]
    alone = {}
    for prompt, ask in dict.fromkeys((tuple(p.ids), a) for p, a in rows):
        served.llm.reset_prefix_cache()
        found = next(p for p in prompts if tuple(p.ids) == prompt)
        alone[prompt, ask] = served.ask([(found, ask)], tokens=8)[0]
    hits = served.hits()
    replies = served.ask(rows, tokens=8)
    assert (served.hits() > hits) == (MODE != "uncached")
    most, ties = 0.0, 0
    for (prompt, ask), (tokens, got) in zip(rows, replies):
        solo, wanted = alone[tuple(prompt.ids), ask]
        same = next((n for n, (a, b) in enumerate(zip(tokens, solo)) if a != b), len(solo))
        most = max(most, float((got[:same] - wanted[:same]).abs().max()) if same else 0.0)
        if same < len(solo):  # both were the likeliest there, up to rounding
            ties += 1
            assert abs(float(got[same] - wanted[same])) < ONE, (ask, same)
    print(f"\n{MODE}: {count} requests, largest difference from a solo run {most:.2g} nats, {ties} near-ties")
    assert most < ONE


def by_the_hugging_face_engine(hf, prompt, steering, read, tokens):
    """A greedy reply there, and what its gates did."""
    running = hf.running()
    drawn = Sampling(max_new_tokens=tokens, temperature=0)
    (row,) = running.admit([Ask(prompt, steering, drawn, readouts=read)])
    while row.finish is None:
        running.step()
    told = running.decisions(row)
    acting = [] if steering is None else [i.control for i in steering.interventions if isinstance(i.control, sl.Gate)]
    return row, [told[id(control)] for control in acting]


READ = [("shift", "clamp"), ("push",), ("late", "other")]


def test_readouts_and_decisions_are_those_of_the_hugging_face_engine(served, prompts, made, hf):
    from vllm import SamplingParams

    asks = [None, "shift", "clamp", "gated", "-0.5*gated", "held", "late", "shut"]
    rows = [(prompts[n % len(prompts)], ask, READ[n % len(READ)]) for n, ask in enumerate(asks * 3)]
    served.llm.reset_prefix_cache()
    how = [
        SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, stop=["\x00"] if n % 2 else None,
                       extra_args={"steerlab": {"readouts": list(read)} | ({} if ask is None else {"steering": TERMS[ask]})})
        for n, (_, ask, read) in enumerate(rows)
    ]  # fmt: skip
    ids, replies = [{"prompt_token_ids": list(p.ids)} for p, _, _ in rows], []
    for n in range(0, len(rows), 8):  # as many as the cache holds, so that no prompt is read twice
        replies += served.llm.generate(ids[n : n + 8], how[n : n + 8], use_tqdm=False)
    most, decisions, long = 0.0, set(), prompts[2:5]
    for (prompt, ask, read), reply in zip(rows, replies):
        told = reply.kv_transfer_params["steerlab"]
        wanted = tuple(r for name in read for r in readouts(made[name]))
        row, tallies = by_the_hugging_face_engine(hf, prompt, served.meant(ask), wanted, 12)
        count = min(len(row.ids), 12)
        assert list(reply.outputs[0].token_ids)[:count] == row.ids[:count]
        flat = [[v for values in one for v in (values if isinstance(values, list) else [values])]
                for one in zip(*told["readouts"].values())]  # fmt: skip
        assert len(flat) == 12
        got, meant = torch.tensor(flat[:count]), torch.tensor(row.readings[:count])
        off = float(((got - meant).abs() / meant.abs().amax(dim=0)).max())
        most = max(most, off)
        assert off < CLOSE, (ask, read, off)
        assert len(told.get("gates", [])) == len(tallies)
        for one, tally in zip(told.get("gates", []), tallies):
            decisions.add((ask, one["open"]))
            assert one["open"] == (tally.acted > 0)
            if count == 12 and prompt not in long:  # what is in the cache isn't read, nor counted
                assert (one["tokens"], one["acted"]) == (tally.tokens, tally.acted)
                assert one["strength"] == pytest.approx(tally.strength)
    assert {True, False} <= {open_ for ask, open_ in decisions if ask in ("held", "late")}
    assert ("shut", False) in decisions
    print(f"\n{MODE}: read-outs at most {most:.2g} of the largest off, {len(decisions)} kinds of decisions")


def test_a_closed_gate_is_inert(served, prompts):
    for prompt in prompts[:3]:
        served.llm.reset_prefix_cache()
        shut, bare = (served.ask([(prompt, ask)])[0] for ask in ("shut", None))
        assert shut[0] == bare[0]
        assert torch.equal(shut[1], bare[1])


def test_what_cant_be_told_is_refused(served, prompts):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    how = SamplingParams(max_tokens=2, n=2, temperature=1.0, extra_args={"steerlab": {"readouts": ["shift"]}})
    with pytest.raises(VLLMValidationError, match="one reply"):
        served.llm.generate([{"prompt_token_ids": list(prompts[0].ids)}], how, use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="several gates"):
        served.ask([(prompts[0], {"steering": ["gated", "held"]})], tokens=2)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ("nothing", "no steering 'nothing'"),
        ({"steering": [{"name": "shift", "strenght": 2}]}, "Did you mean 'strength'"),
        ("foreign", "whose shape or weights differ"),
        ("narrow", "the width 12"),
        ("inside", "block outputs"),
        ({"resolved": [], "head": 0, "key": "x"}, "field 'resolved'"),
    ],
)
def test_what_cant_be_served_fails_with_a_sentence(served, prompts, made, ask, words, hf):
    from pathlib import Path

    folder = Path(served.llm.llm_engine.vllm_config.additional_config["steerlab"]["steerings"])
    shift = sl.Shift(torch.ones(WIDTH))
    meta = replace(made["shift"].meta, fingerprint={"shape": "of another", "sketch": {}})
    sl.Steering((sl.Intervention(sl.Site(1), shift),), None, meta).save(folder / "foreign.safetensors")
    sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(12))),)).save(folder / "narrow.safetensors")
    sl.Steering((sl.Intervention(sl.Site(1, "mlp"), shift),)).save(folder / "inside.safetensors")
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=words):  # which vLLM's server answers with 400
        served.ask([(prompts[0], ask)], tokens=2)
    assert len(served.ask([(prompts[0], None)], tokens=2)[0][0]) == 2  # and the engine goes on


def test_a_request_that_passed_nobody_fails(served, prompts):
    """What reaches the engine without having been resolved is not served, and harms nobody."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    core = served.llm.llm_engine.engine_core.engine_core
    asked = EngineCoreRequest(
        request_id="x", prompt_token_ids=list(prompts[0].ids), mm_features=None, pooling_params=None, arrival_time=0.0,
        sampling_params=SamplingParams(max_tokens=2, extra_args={"steerlab": "shift"}), lora_request=None, cache_salt=None,
        data_parallel_rank=None,
    )  # fmt: skip
    with pytest.raises(sl.UnsupportedError, match="past steerlab's admission"):
        core.preprocess_add_request(asked)


def test_the_canary_dies_where_an_edit_doesnt_arrive(served, monkeypatch):
    from steerlab.vllm import canary, plugin, tables

    worker = served.llm.llm_engine.model_executor.driver_worker.worker
    laid, filler = getattr(worker, plugin.MARK)
    assert "sings" in canary.sing(worker.model_runner, laid, filler)
    write = tables.Tables.write

    def late(self, number, rows, looks=None):
        write(self, number, {n: rows[max(n - 1, 0)] for n in rows}, looks)

    def halved(self, number, rows, looks=None):
        write(
            self, number, {n: replace(r, bias=None if r.bias is None else r.bias / 2) for n, r in rows.items()}, looks
        )

    def blind(self, number, rows, looks=None):
        write(self, number, rows, {n: replace(one, reads=one.reads[::-1]) for n, one in (looks or {}).items()})

    def ajar(self, number, rows, looks=None):
        write(self, number, rows, {n: replace(one, probe=None) for n, one in (looks or {}).items()})

    for fault in (late, halved, blind, ajar, lambda self, number, rows, looks=None: None):
        monkeypatch.setattr(tables.Tables, "write", fault)
        with pytest.raises(sl.UnsupportedError, match="the canary died"):
            canary.sing(worker.model_runner, laid, filler)
        monkeypatch.setattr(tables.Tables, "write", write)
        for n in (1, 2):
            laid.write(n, {})
    filler.forget()


def test_an_engine_whose_worker_cant_steer_doesnt_start(served):
    from steerlab.vllm import plugin

    core = served.llm.llm_engine.engine_core.engine_core
    worker = served.llm.llm_engine.model_executor.driver_worker.worker
    told = vars(worker).pop("steerlab_told")
    try:
        with pytest.raises(sl.UnsupportedError, match="isn't loaded in its process"):
            plugin._readied(lambda core: None, core)
    finally:
        worker.steerlab_told = told
    assert plugin._readied(lambda core: "as before", core) == "as before"


def test_the_key_of_compiled_graphs_is_forked(served):
    config = served.llm.llm_engine.vllm_config
    ours = config.compute_hash()
    given = config.additional_config
    try:
        config.additional_config = {"steerlab": {**given["steerlab"], "rank": 2}}
        other = config.compute_hash()
        config.additional_config = {"steerlab": {**given["steerlab"], "steerings": "/elsewhere"}}
        moved = config.compute_hash()
        config.additional_config = {}
        none = config.compute_hash()
    finally:
        config.additional_config = given
    assert len({ours, other, none}) == 3
    assert moved == ours
