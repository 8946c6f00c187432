"""`verify --on server`: a real server passes, on a socket and in a process of its own, and each planted fault is caught."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace

import pytest
import torch

import faults
import steerlab as sl
from serving import Listening
from steerlab import cli
from steerlab.engines.hf import HFEngine
from steerlab.serve.keys import Keys
from steerlab.testing import tiny
from steerlab.verify import verify
from steerlab.verify.base import Options

WIDTH, TOKENS = 32, 4
USE, ALL = "u" * 32, "a" * 32


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def prompts(draw):
    return [sl.Example.ask(tiny.words(draw, n)) for n in (2, 7, 4)]


def shift(draw, positions=sl.ALL):
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.randn(WIDTH, generator=draw)), positions),))


def clamp(draw, positions=sl.NOT_TEMPLATE):
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Clamp.random(WIDTH, draw), positions),))


@functools.cache
def another(change=None, **settings):
    """An engine on a model of its own: the reference puts hooks on the one that the tests share."""
    model = copy.deepcopy(tiny.model("llama"))
    if change is not None:
        change(model)
    return HFEngine(model, copy.deepcopy(tiny.tokenizer()), name="tiny llama", **settings)


def receipt(folder, steering, prompts, engine=None, keys=None, key=None):
    with Listening(engine or another(), folder / "store", keys) as server:
        asked = Options(tokens=TOKENS, url=server.address, key=key)
        (found,) = verify(tiny.engine(), steering, ["server"], prompts=prompts, options=asked)
        kept = [entry.name for entry in server.service.store.all()]
    return found, kept


def failed(found):
    return {c.name for c in found.checks if c.passed is False} | ({"broke"} if found.broke else set())


@pytest.mark.parametrize("make", [shift, clamp])
def test_a_server_passes(make, draw, prompts, tmp_path):
    steering = make(draw)
    found, kept = receipt(tmp_path, steering, prompts)
    assert found.passed, found
    assert kept == []  # what was brought is taken away again
    told = {c.name: c for c in found.checks}
    assert {"reference", "tokens", "prompt", "mixed", "neighbours", "cache", "off", "applied"} <= told.keys()
    assert told["mixed"].passed
    assert told["effect"].value > 1e-2


def test_a_prompt_is_put_in(draw, prompts, tmp_path):
    steering = replace(clamp(draw), prompt=sl.Prompt("w1 w2 w3"))
    found, _ = receipt(tmp_path, steering, prompts)
    assert found.passed, found


FAULTS = {
    "off by one layer": (faults.off_by_one, clamp, "reference"),
    "half of the stream": (faults.half_stream, clamp, "reference"),
    "wrong sign": (faults.strength(lambda s: -s), shift, "reference"),
    "strength dropped": (faults.strength(torch.sign), shift, "reference"),
    "missing salt": (faults.unsalted, shift, "reference"),
    "stale": (faults.stale, shift, "applied"),
    "padding steered": (faults.padding_counts_at_once, lambda d: clamp(d, sl.first(1) | sl.last(1)), "mixed"),
    "template steered": (faults.template_steered, clamp, "reference"),
    "wrong dtype": (faults.wrong_dtype, clamp, "reference"),
    "one strength for all rows": (faults.strength(lambda s: s[:1].expand_as(s)), shift, "mixed"),
    "rows mixed up": (faults.rows_mixed_up, shift, "broke"),  # it asks for rows that have left
    "neighbours steered": (faults.leaks_to_neighbours, clamp, "neighbours"),
    "forgotten with a cache": (faults.forgotten_with_a_cache, shift, "reference"),
    "caches joined wrongly": (faults.wrongly_joined, shift, "mixed"),
    "not handed on": (faults.asked_without, shift, "reference"),
    "another strength than told": (faults.asked_at(lambda s: s.scaled(0.9)), shift, "reference"),
    "not off at 0": (faults.always_on, shift, "off"),
}


SLOWER = ("one strength for all rows", "rows mixed up", "neighbours steered", "forgotten with a cache")


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name, monkeypatch, draw, prompts, tmp_path, request):
    if name in SLOWER and not request.config.getoption("--full"):
        pytest.skip("the engine's own receipt catches it, too; `make test-all` runs it here")
    plant, make, check = FAULTS[name]
    steering = make(draw)
    plant(monkeypatch)
    found, _ = receipt(tmp_path, steering, prompts)
    assert check in failed(found), found


def damaged(model):
    """A place that fingerprints don't sample."""
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "layers.0" in n and p.ndim == 2).mul_(1.01)


def replaced(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)


def in_half(model):
    model.to(torch.bfloat16)


def test_another_model_is_caught(draw, prompts, tmp_path):
    """A steering that is bound to its model is refused with the server's own sentence; one that isn't shows by its figures."""
    found, _ = receipt(tmp_path, clamp(draw), prompts, another(damaged))
    assert failed(found) >= {"reference", "neighbours"}
    found, _ = receipt(tmp_path, clamp(draw).adopted(tiny.engine()), prompts, another(replaced))
    assert "fitted on" in found.refused


def test_a_model_in_another_dtype_is_caught(draw, prompts, tmp_path):
    found, _ = receipt(tmp_path, shift(draw), prompts, another(in_half))
    assert failed(found) >= {"reference", "neighbours"}


def test_another_template_is_caught(draw, prompts, tmp_path):
    engine = another(template="plain")
    found, _ = receipt(tmp_path, shift(draw), prompts, engine)
    assert "prompt" in failed(found)


def test_a_key_that_may_only_use_needs_a_steering_that_is_there(draw, prompts, tmp_path):
    (tmp_path / "keys.yaml").write_text(
        f"keys:\n  - {{name: a, key: {USE}, scopes: [use]}}\n  - {{name: b, key: {ALL}, scopes: [admin]}}\n"
    )
    keys, steering = Keys.read(tmp_path / "keys.yaml", None), shift(draw)
    for key, words in ((None, "answers 401"), (USE, "upload")):
        found, _ = receipt(tmp_path, steering, prompts, keys=keys, key=key)
        assert words in found.refused, found
    (tmp_path / "store").mkdir(exist_ok=True)
    steering.save(tmp_path / "store" / "mine.safetensors")
    found, kept = receipt(tmp_path, steering, prompts, keys=keys, key=USE)
    assert found.passed, found
    assert kept == ["mine"]


def test_nobody_at_the_address_is_told(draw, prompts):
    asked = Options(url="http://127.0.0.1:9", tokens=TOKENS)
    (found,) = verify(tiny.engine(), shift(draw), ["server"], prompts=prompts, options=asked)
    assert not found.passed
    assert "isn't reached" in found.broke


PLANTED = """
from steerlab.engines import hf_hooks

ready = hf_hooks.Group.ready


def wrong(self, device):
    rows, given = ready(self, device)
    return rows, -given


hf_hooks.Group.ready = wrong
"""


@pytest.fixture
def verified(draw, tmp_path, capsys):
    """Runs the command on a server that it starts; its exit code and receipt."""
    engine, made = tiny.engine(), tmp_path / "s.safetensors"
    engine.model.save_pretrained(tmp_path / "model")
    engine.tokenizer.save_pretrained(tmp_path / "model")
    clamp(draw).adopted(engine).save(made)

    def run():
        words = ["verify", str(made), "--model", str(tmp_path / "model"), "--on", "server", "--json"]
        with pytest.raises(SystemExit) as end:
            cli.main([*words, "-p", "w1 w2 w3 w4", "-p", "w5"])
        told = capsys.readouterr()
        assert told.out, told.err
        (found,) = json.loads(told.out)["receipts"]
        return end.value.code or 0, found

    return run


def test_the_command_starts_a_server_and_stops_it(verified):
    code, found = verified()
    assert (code, found["passed"]) == (0, True), found


@pytest.mark.full
def test_a_fault_inside_of_the_process_that_it_starts_is_caught(verified, tmp_path, monkeypatch, request):
    if not request.config.getoption("--full"):
        pytest.skip("it starts one more process: `make test-all` runs it")
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"), prepend=":")
    code, found = verified()
    assert code == 1
    assert "reference" in {c["name"] for c in found["checks"] if c["passed"] is False}
