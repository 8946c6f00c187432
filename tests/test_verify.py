"""`verify` passes what is right and catches what is wrong: each fault here was planted on purpose."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import faults
import steerlab as sl
from steerlab import cli, exports, plugins
from steerlab.exports import _gguf, linear
from steerlab.testing import tiny
from steerlab.verify import verify
from steerlab.verify.base import Options

WIDTH = 32


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def prompts(draw):
    return [sl.Example.ask(tiny.words(draw, n), answer=tiny.words(draw, 4)) for n in (2, 7, 4)]


def shift(draw, positions=sl.ALL):
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.randn(WIDTH, generator=draw)), positions),))


def clamp(draw, positions=sl.NOT_TEMPLATE):
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Clamp.random(WIDTH, draw), positions),))


def failed(receipt):
    return {c.name for c in receipt.checks if c.passed is False}


def mixed(draw):
    """Several sites, positions, edits and controls, one of them a gate that decides ahead."""
    gate = sl.Gate(sl.Site(0), torch.randn(WIDTH, generator=draw), 0.0)
    site, shape = list(tiny.engine().matrices(2).items())[-1]
    delta = sl.Delta(
        torch.randn(shape.height, 2, generator=draw) / 9, torch.randn(2, shape.width, generator=draw), symmetric=True
    )
    return sl.Steering(
        (
            sl.Intervention(sl.Site(1), sl.Clamp.random(WIDTH, draw), sl.first(2) | sl.last(1) | sl.GENERATED),
            sl.Intervention(sl.Site(2), sl.Push.random(WIDTH, draw), sl.ALL, gate),
            sl.Intervention(sl.Site(2, "heads", 1), sl.Rotate.random(8, draw), sl.DECODING, replace(gate, held=True)),
            sl.Intervention(sl.Site(2, "mlp"), sl.Scale.random(WIDTH, draw), sl.PROMPT, replace(gate, ahead=True)),
            sl.Intervention(site, delta, sl.ALL),
        )
    )


@pytest.mark.parametrize("make", [shift, clamp, mixed])
def test_the_engine_passes(make, draw, prompts):
    (receipt,) = verify(tiny.engine(), make(draw), ["hf"], prompts=prompts)
    assert receipt.passed, receipt
    effect = next(c for c in receipt.checks if c.name == "effect")
    assert effect.passed is None
    assert effect.value > 1e-2


def test_the_checkpoint_passes(draw, prompts):
    (receipt,) = verify(tiny.engine(), shift(draw), ["baked"], prompts=prompts)
    assert receipt.passed, receipt


def test_a_prompt_is_put_in(draw, prompts):
    steering = replace(clamp(draw), prompt=sl.Prompt("w1 w2 w3"))
    (receipt,) = verify(tiny.engine(), steering, ["hf"], prompts=prompts)
    assert receipt.passed, receipt


# --- planted faults --------------------------------------------------------------------------------------------------

FAULTS = {
    "off by one layer": (faults.off_by_one, clamp, "reference"),
    "half of the stream": (faults.half_stream, clamp, "reference"),
    "wrong sign": (faults.strength(lambda s: -s), shift, "reference"),
    "strength dropped": (faults.strength(torch.sign), shift, "reference"),
    "one strength for all rows": (faults.strength(lambda s: s[:1].expand_as(s)), shift, "mixed"),
    "template steered": (faults.template_steered, clamp, "reference"),
    "padding counted": (faults.padding_counts, lambda d: clamp(d, sl.first(1) | sl.last(1)), "cache"),
    "neighbours steered": (faults.leaks_to_neighbours, clamp, "neighbours"),
    "forgotten with a cache": (faults.forgotten_with_a_cache, shift, "cache"),
    "wrong dtype": (faults.wrong_dtype, clamp, "reference"),
    "not off at 0": (faults.always_on, shift, "off"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name, monkeypatch, draw, prompts):
    plant, make, check = FAULTS[name]
    steering, engine = make(draw), tiny.engine()
    plant(monkeypatch)
    (receipt,) = verify(engine, steering, ["hf"], prompts=prompts)
    assert not receipt.passed
    assert check in failed(receipt), receipt


def test_another_model_is_caught(draw, prompts):
    theirs = clamp(draw).adopted(tiny.engine("qwen2"))
    (receipt,) = verify(tiny.engine(), theirs, ["hf"], prompts=prompts)
    assert not receipt.passed
    assert "fitted on" in receipt.refused


@pytest.mark.parametrize("fault", ["sign", "dropped", "half", "wrong dtype", "next block"])
def test_faults_in_the_checkpoint_are_caught(fault, monkeypatch, draw, prompts):
    found = linear.Change.bias.fget
    if fault == "next block":
        module = linear._module
        monkeypatch.setattr(linear, "_module", lambda one, e: module(one._replace(site=sl.Site(one.site.layer + 1)), e))
    else:
        wrong = {
            "sign": lambda bias: -bias,
            "dropped": lambda bias: 0 * bias,
            "half": lambda bias: bias / 2,
            "wrong dtype": lambda bias: bias.bfloat16().to(bias.dtype),
        }[fault]
        monkeypatch.setattr(linear.Change, "bias", property(lambda self: wrong(found(self))))
    (receipt,) = verify(tiny.engine(), shift(draw), ["baked"], prompts=prompts)
    assert "reference" in failed(receipt)


def test_a_checkpoint_of_other_weights_is_caught(monkeypatch, draw, prompts):
    """Somebody's fine-tuned weights under the steering that belongs to the model before."""
    load = sl.HFEngine.load.__func__

    def other(cls, *given, **named):
        loaded = load(cls, *given, **named)
        with torch.no_grad():
            next(p for n, p in loaded.model.named_parameters() if "layers.0" in n and p.ndim == 2).mul_(1.01)
        return loaded

    monkeypatch.setattr(sl.HFEngine, "load", classmethod(other))
    (receipt,) = verify(tiny.engine(), shift(draw), ["baked"], prompts=prompts)
    assert "reference" in failed(receipt)


def test_a_checkpoint_with_another_template_is_caught(monkeypatch, draw, prompts):
    load = sl.HFEngine.load.__func__

    def other(cls, *given, **named):
        loaded = load(cls, *given, **named)
        loaded.tokenizer.chat_template = str(loaded.tokenizer.chat_template) + " "
        return loaded

    monkeypatch.setattr(sl.HFEngine, "load", classmethod(other))
    (receipt,) = verify(tiny.engine(), shift(draw), ["baked"], prompts=prompts)
    assert "template" in failed(receipt)


# --- the command, and llama.cpp --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    engine = tiny.engine()
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def steerlab(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(w) for w in words])
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err

    return run


def test_the_commands(steerlab, model, draw, tmp_path):
    made, out, back = tmp_path / "s.safetensors", tmp_path / "v.gguf", tmp_path / "b.safetensors"
    shift(draw).save(made)
    asked = ("-p", "w1 w2 w3 w4", "-p", "w5")
    code, shown, said = steerlab("export", "gguf", made, "--out", out, "-s", "0.5")
    assert code == 0, said
    assert str(out) in shown
    assert "0.5 is folded" in said
    code, shown, said = steerlab("import", out, "--out", back, "--model", model, "--json")
    assert code == 0, said
    assert json.loads(shown)["interventions"][0]["where"] == "resid@1"
    code, shown, said = steerlab("verify", back, "--model", model, "--on", "hf,baked", *asked, "--json")
    assert code == 0, said
    told = json.loads(shown)
    assert told["passed"]
    assert [r["engine"] for r in told["receipts"]] == ["hf", "baked"]
    clamp(draw).save(tmp_path / "c.safetensors")
    code, shown, _ = steerlab("verify", tmp_path / "c.safetensors", "--model", model, "--on", "hf,baked", *asked)
    assert code == 1
    assert "hf: PASSED" in shown
    assert "baked: FAILED" in shown
    code, _, said = steerlab("export", "gguf", made, "--out", out)
    assert code == 2
    assert "--force" in said
    code, _, said = steerlab("verify", made, "--model", model, "--on", "vlm", *asked)
    assert code == 2
    assert "no engine called" in said
    code, shown, _ = steerlab("formats", "--json")
    assert {row["name"] for row in json.loads(shown)} == set(exports.formats())


def test_every_format_is_on_the_page():
    page = (Path(__file__).parents[1] / "docs" / "exports.md").read_text(encoding="utf-8")
    for name in plugins.names("exports"):
        assert f"`{name}`" in page


def llamacpp():
    """A Python that has llama-cpp-python, or a skip that says how to get one."""
    named = os.environ.get("STEERLAB_LLAMACPP")
    if not named:
        pytest.skip("llama.cpp isn't installed: `make test-llamacpp` builds it and runs this")
    return Options(llamacpp=named)


@pytest.fixture(params=["tiny", "pilot"])
def real(request):
    return tiny.engine() if request.param == "tiny" else sl.load("pilot")


def test_llama_cpp_gives_the_hooks_logits(real, draw):
    options = llamacpp()
    width, last = real.width(sl.Site(0)), real.depth - 1
    scale = 3.0 if width > WIDTH else 1.0
    made = [
        sl.Intervention(sl.Site(n), sl.Shift(scale * torch.randn(width, generator=draw) / width**0.5), sl.ALL)
        for n in (1, last)
    ]
    asked = [sl.Example.ask(text, answer="w7 w8 w9") for text in ("w1 w2", "w3 w4 w5 w6 w7 w8 w9", "w5 w1 w4")]
    (receipt,) = verify(real, sl.Steering(tuple(made)).scaled(-0.7), ["gguf"], prompts=asked, options=options)
    assert receipt.passed, receipt
    assert {c.name for c in receipt.checks} >= {"reference", "logits", "neighbours", "cache", "mixed", "off"}


@pytest.mark.parametrize("fault", ["one layer late", "sign", "half", "dropped", "wrong dtype"])
def test_llama_cpp_shows_a_wrong_file(fault, monkeypatch, draw, prompts):
    options = llamacpp()
    written = _gguf.write

    changes = {
        "sign": lambda t: -t,
        "half": lambda t: t / 2,
        "dropped": lambda t: 0 * t,
        "wrong dtype": lambda t: torch.as_tensor(t).bfloat16().float(),
    }

    def wrong(path, tensors, metadata, kind):
        late = {f"direction.{int(n.split('.')[1]) + 1}": t for n, t in tensors.items()}
        given = late if fault == "one layer late" else {n: changes[fault](t) for n, t in tensors.items()}
        written(path, given, metadata, kind)

    monkeypatch.setattr(_gguf, "write", wrong)
    (receipt,) = verify(tiny.engine(), shift(draw), ["gguf"], prompts=prompts, options=options)
    assert failed(receipt) >= {"reference", "logits"}


def test_llama_cpp_refuses_a_block_0(tmp_path, draw):
    from steerlab.verify._llama_model import write_model
    from steerlab.verify.gguf import run

    options = llamacpp()
    made = sl.Steering((sl.Intervention(sl.Site(0), sl.Shift(torch.randn(WIDTH, generator=draw)), sl.ALL),))
    exports.write(made, tmp_path / "v.gguf", "repeng")  # which has a block 0
    write_model(tiny.engine(), tmp_path / "m.gguf")
    with pytest.raises(sl.ArtefactError, match=r"direction\.0"):
        run(options.llamacpp, tmp_path / "m.gguf", tmp_path / "v.gguf", [[1, 5, 9]], tmp_path)
