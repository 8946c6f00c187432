"""Models whose weights lie on the CPU or a disk between calls (accelerate): everything that the plain model does, alike."""

from __future__ import annotations

import copy

import pytest
import torch

import steerlab as sl
from steerlab import exports
from steerlab.contrast import Contrast, Example
from steerlab.controls import Gate
from steerlab.deltas import Delta
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.engines.hf_offload import State, elsewhere, home, owners_of
from steerlab.engines.hf_serving import Ask
from steerlab.errors import UnsupportedError
from steerlab.methods.base import method as named
from steerlab.positions import ALL, GENERATED, LAST_PROMPT
from steerlab.sites import Site
from steerlab.testing import tiny
from steerlab.testing.precision import FEW, ONE

accelerate = pytest.importorskip("accelerate", reason="accelerate isn't installed (pip install 'steerlab[accelerate]')")
GREEDY = Sampling(max_new_tokens=8)
TIED, PLAIN, STACKED = "gemma2", "llama", "gpt2"  # a tied head; one of its own; matrices kept as [in, out], and tied
pytestmark = pytest.mark.filterwarnings("ignore:.*meta device:UserWarning")


def on_cpu(model, _folder):
    return accelerate.cpu_offload(model)


def with_buffers(model, _folder):
    return accelerate.cpu_offload(model, offload_buffers=True)


def on_disk(model, folder):
    return accelerate.disk_offload(model, str(folder))


def one_block(model, folder):
    """A device map with a block on disk, as `from_pretrained` takes it."""
    model.save_pretrained(folder / "model")
    blocks = next(n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    tops = {n.rsplit(".", 1)[0] for n, _ in model.named_parameters() if not n.startswith(f"{blocks}.")}
    places = {
        **dict.fromkeys([*tops, "lm_head"], "cpu"),
        f"{blocks}.0": "cpu",
        f"{blocks}.1": "disk",
        f"{blocks}.2": "cpu",
    }
    return type(model).from_pretrained(folder / "model", device_map=places, offload_folder=str(folder / "off")).eval()


def whole_block(model, _folder):
    """A block's weights brought all at once, by one hook on the block."""
    kind = type(model.get_submodule("model.layers.1")).__name__
    return accelerate.cpu_offload(model, preload_module_classes=[kind])


WAYS = {"cpu": on_cpu, "buffers": with_buffers, "disk": on_disk, "a block on disk": one_block}
CASES = [(name, way) for name in (PLAIN, TIED, STACKED) for way in WAYS] + [(PLAIN, "whole blocks")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def pair(request, tmp_path_factory):
    """An engine on the plain model, and one on the same model with its weights elsewhere."""
    name, way = request.param
    model = copy.deepcopy(tiny.model(name))
    moved = {**WAYS, "whole blocks": whole_block}[way](model, tmp_path_factory.mktemp("weights"))
    assert elsewhere(moved), "something lies elsewhere"
    return tiny.engine(name), HFEngine(moved, tiny.tokenizer(), name=f"tiny {name}")


def steerings(engine):
    """Edits at many sites, one of them gated, one of weights."""
    draw = torch.Generator().manual_seed(3)

    def vector(width=32):
        return torch.randn(width, generator=draw)

    matrix = next(iter(engine.matrices(1)))
    shape = engine.matrices(1)[matrix]
    delta = Delta.random(shape.width, draw, shape.height)
    return [
        sl.Steering((sl.Intervention(Site(1), sl.Shift(vector()), ALL),)),
        None,
        sl.Steering((sl.Intervention(Site(1, "mlp"), sl.Clamp.random(32, draw), GENERATED),)),
        sl.Steering((sl.Intervention(Site(2, "heads", 1), sl.Shift(vector(8)), ALL),)),
        sl.Steering((sl.Intervention(matrix, delta, ALL),)),
        sl.Steering((sl.Intervention(Site(1), sl.Shift(vector()), ALL, Gate(Site(0), vector(), 0.0, ahead=True)),)),
    ]


TEXTS = tiny.prompts(lengths=(3, 11, 6, 4, 2, 5))
EXAMPLES = [Example.ask(text, "w3 w5") for text in TEXTS]
PAIRS = [(Example.ask(f"w1 {text}", "w3"), Example.ask(f"w9 {text}", "w4 w5")) for text in TEXTS]


def test_it_is_the_same_model(pair):
    plain, moved = pair
    assert moved.fingerprint == plain.fingerprint
    assert moved.identity == plain.identity
    assert moved.device == plain.device == home(moved.model)
    for layer in range(plain.depth):
        assert moved.sites(layer) == plain.sites(layer)
        assert moved.matrices(layer) == plain.matrices(layer)


def test_tied_weights_are_told(pair):
    plain, moved = (
        {n: owners_of(e.model)[m] for n, m in e.model.named_modules() if m in owners_of(e.model)} for e in pair
    )
    assert moved == plain


def test_it_generates_and_reads_what_the_plain_one_does(pair):
    plain, moved = pair
    under = steerings(plain)
    assert moved.generate(TEXTS, under, GREEDY) == plain.generate(TEXTS, under, GREEDY)
    for a, b in zip(moved.logits(EXAMPLES, under), plain.logits(EXAMPLES, under), strict=True):
        assert torch.equal(a, b)
    sites = [Site(0), Site(1, "mlp"), Site(2, "q")]
    for site, read in moved.capture(EXAMPLES, sites, LAST_PROMPT, under).items():
        assert torch.equal(read.values, plain.capture(EXAMPLES, sites, LAST_PROMPT, under)[site].values)


def test_it_is_served_alike(pair):
    said = []
    for engine in pair:
        running = engine.running()
        asks = [
            Ask(engine.renderer.prompt(e.messages[:1]), s, GREEDY)
            for e, s in zip(EXAMPLES, steerings(engine), strict=True)
        ]
        rows = running.admit(asks[:3])
        running.step()
        rows += running.admit(asks[3:])
        while len(running):
            running.step()
        said.append([row.ids for row in rows])
    assert said[0] == said[1]


@pytest.mark.parametrize("method", ["diff_means", "lm_vector"])
def test_it_is_fitted_alike_and_left_as_it_was(pair, method):
    data = Contrast(*(tuple(side) for side in zip(*PAIRS, strict=True)), paired=True)
    settings = {} if method == "diff_means" else {"epochs": 2, "batch_size": 4, "held_out": 0.0}
    fits = []
    for engine in pair:
        wanted = {n: p.requires_grad for n, p in engine.model.named_parameters()}
        fits.append(named(method, {"site": "1", **settings}).fit(engine, data))
        assert {n: p.requires_grad for n, p in engine.model.named_parameters()} == wanted
    a, b = (fit.interventions[0].edit for fit in fits)
    assert torch.allclose(a.v, b.v, rtol=ONE, atol=FEW)


def test_it_is_exported_alike(pair, tmp_path):
    written, embed = [], sl.Intervention(Site(part="embed"), sl.Shift(torch.ones(32)), ALL)
    for n, engine in enumerate(pair):
        changed = steerings(engine)[4].interventions
        steering = sl.Steering(
            changed if engine.name == f"tiny {STACKED}" else (embed, *changed)
        )  # a tied head is untied
        exports.write(steering, tmp_path / str(n), "baked", engine=engine)
        files = sorted((tmp_path / str(n)).glob("*.safetensors"))
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_the_callers_own_calls_are_steered_alike(pair):
    steering, ids = steerings(pair[0])[0], torch.tensor([[1, 9, 12, 30]])
    with torch.no_grad():
        found = []
        for engine in pair:
            with engine.steer(steering):
                found.append(engine.model(ids).logits)
    assert torch.equal(*found)


def test_a_disk_holds_one_tensor_in_memory_at_a_time(pair):
    state, held = State(pair[1].model), pair[0].model.state_dict()
    assert list(state) == list(held)
    assert all(torch.equal(state[name], t) for name, t in held.items())
    assert state.again == State(pair[0].model).again


def test_a_model_without_weights_is_refused_with_the_reason():
    with torch.device("meta"):
        empty = type(tiny.model(PLAIN))(tiny.model(PLAIN).config)
    with pytest.raises(
        UnsupportedError, match="has no weights to run with: .*embed_tokens.weight is on the meta device"
    ):
        HFEngine(empty, tiny.tokenizer())
