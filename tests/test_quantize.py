"""Models in 4 and 8 bits: loaded, steered, fitted on and served as others are, and told apart from them."""

from __future__ import annotations

import copy
import importlib.util
import logging

import pytest
import torch

import steerlab as sl
from mistakes import told
from steerlab.data import write
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.engines.hf_quantize import precision, taken_apart
from steerlab.engines.likeness import likeness
from steerlab.errors import ConfigError, SiteError, UnsupportedError
from steerlab.loading import load_vllm
from steerlab.positions import ALL
from steerlab.testing import tiny
from steerlab.testing.precision import ONE

KINDS = ("8bit", "4bit")
BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
quantised = pytest.mark.skipif(
    not BITSANDBYTES, reason="bitsandbytes isn't installed (pip install 'steerlab[quantize]', or make test-quantized)"
)
GREEDY = Sampling(12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama as anybody would have it."""
    where = tmp_path_factory.mktemp("models") / "llama"
    tiny.model("llama").save_pretrained(where)
    tiny.tokenizer().save_pretrained(where)
    return where


@pytest.fixture(scope="module", params=KINDS)
def engine(request, folder):
    """The model in so many bits."""
    return sl.load(str(folder), quantize=request.param)


def contrast() -> sl.Contrast:
    asks = [f"w{n} w3" for n in range(10, 18)]
    sides = [tuple(sl.Example.ask(f"{a} {said}", f"{said} w9") for a in asks) for said in ("w5", "w6")]
    return sl.Contrast(*sides, paired=True, concept="w5")


def shift(engine, size: float = 1.0) -> sl.Steering:
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(size * torch.ones(32)), ALL),))


@quantised
def test_the_matrices_are_packed_and_what_is_steered_is_what_they_say(engine):
    packed = [m for m in engine.model.modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert len(packed) == 3 * 7
    texts = tiny.prompts()
    steered = engine.generate(texts, shift(engine, 3.0), GREEDY)
    assert [r.ids for r in steered] != [r.ids for r in engine.generate(texts, None, GREEDY)]
    read = engine.capture([sl.Example.ask(t) for t in texts], [sl.Site(1)])[sl.Site(1)].values
    under = engine.capture([sl.Example.ask(t) for t in texts], [sl.Site(1)], steerings=shift(engine))[sl.Site(1)].values
    torch.testing.assert_close(under, read + 1, rtol=ONE, atol=ONE)
    with torch.no_grad():
        for text, mine in zip(texts, read, strict=True):
            ids = torch.tensor([engine.renderer.prompt(sl.Example.ask(text).messages).ids])
            layers = engine.model(ids, output_hidden_states=True).hidden_states
            torch.testing.assert_close(mine, layers[2][0, -1], rtol=ONE, atol=ONE)
    full = tiny.engine("llama").capture([sl.Example.ask(t) for t in texts], [sl.Site(1)])[sl.Site(1)].values
    assert 1e-3 < float((read - full).norm() / full.norm()) < 0.5  # a copy of the model, and not the model


@quantised
def test_replies_are_those_of_transformers_own_generate(engine):
    text = tiny.prompts()[1]
    ids = torch.tensor([engine.renderer.prompt(sl.Example.ask(text).messages).ids])
    wanted = engine.generate([text], shift(engine), GREEDY)[0].ids
    with engine.steer(shift(engine)):
        out = engine.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert out[: len(wanted)].tolist() == list(wanted)


@quantised
@pytest.mark.parametrize("method", ["diff_means", "reps"])
def test_a_fit_says_in_which_precision_it_was_made_and_is_told_apart(engine, folder, method, tmp_path):
    data = contrast()
    settings = {} if method == "diff_means" else {"epochs": 1, "batch_size": 4, "held_out": 0.0}
    fitted = sl.method(method, {"site": "1", **settings}).fit(engine, data)
    fitted.save(tmp_path / "fit.safetensors")
    again = sl.Steering.load(tmp_path / "fit.safetensors")
    bits = again.meta.fingerprint["quantised"]
    assert bits.startswith("bitsandbytes")
    engine.accept(again)
    engine.generate(["w1"], again, GREEDY)
    plain = sl.load(str(folder))
    with told(UnsupportedError, "a changed copy", f"{bits} there and not quantised here"):
        plain.accept(again)
    plain.accept(again.adopted(plain))
    (other,) = [kind for kind in KINDS if kind[0] not in bits]
    with told(UnsupportedError, "a changed copy", f"weights are {bits} there and bitsandbytes {other[0]} bit"):
        sl.load(str(folder), quantize=other).accept(again)


@quantised
def test_a_weight_edit_is_refused_with_its_reason(engine):
    site = sl.Site.parse("w:mlp.down_proj@1")
    assert engine.matrices(1) == {}
    with told(SiteError, "weight is quantised", "load the model in bfloat16 or float32"):
        engine.width(site)


@quantised
def test_it_is_served_as_it_speaks_alone(engine, tmp_path):
    serving = pytest.importorskip("serving", reason="the server's libraries are an extra")
    steering = serving.shift(engine, 1)
    with serving.holding(engine, tmp_path, {"one": steering}) as here:
        for name, under in ((None, None), ("one", steering)):
            given = {} if name is None else {"steering": name}
            answer = serving.text_of(here.chat("w5 w6", max_tokens=12, temperature=0, **given))
            assert answer == engine.generate(["w5 w6"], under, GREEDY)[0].text


@quantised
def test_the_command_line_takes_it(folder, tmp_path, steerlab):
    where, out, data = str(folder), str(tmp_path / "s.safetensors"), tmp_path / "pairs.jsonl"
    write(contrast(), data)
    fit = ("fit", "diff-means", "--data", str(data), "--out", out, "-m", where, "--site", "1", "--quantize", "4bit")
    assert steerlab(*fit, "--device-map", "auto")[0] == 0
    assert sl.Steering.load(out).meta.fingerprint["quantised"] == "bitsandbytes 4 bit nf4"
    ask = ("generate", out, "-m", where, "-p", "w1 w2")
    code, said, _ = steerlab(*ask, "--quantize", "4bit")
    assert (code, bool(said.strip())) == (0, True)
    code, _, errors = steerlab(*ask)
    assert code != 0
    assert "bitsandbytes 4 bit nf4 there and not quantised here" in errors


@quantised
def test_what_is_quantised_already_is_not_quantised_again(engine, tmp_path):
    engine.model.save_pretrained(tmp_path / "packed")
    tiny.tokenizer().save_pretrained(tmp_path / "packed")
    with told(ConfigError, "quantised already (bitsandbytes", "leave --quantize out"):
        sl.load(str(tmp_path / "packed"), quantize="4bit")
    again = sl.load(str(tmp_path / "packed"))
    assert likeness(engine.fingerprint, again.fingerprint).kind == "same"


@quantised
def test_the_note_on_casts_comes_once(folder, caplog):
    engine = sl.load(str(folder), quantize="8bit")
    with caplog.at_level(logging.WARNING):
        engine.generate(["w1 w2"], None, GREEDY)
    assert sum("inputs will be cast" in r.getMessage() for r in caplog.records) <= 1


@pytest.mark.skipif(BITSANDBYTES, reason="bitsandbytes is installed, so there is nothing to refuse")
def test_without_bitsandbytes_it_says_what_to_install(folder):
    with told(ConfigError, "quantize=8bit needs bitsandbytes", "pip install 'steerlab[quantize]'"):
        sl.load(str(folder), quantize="8bit")


@pytest.mark.parametrize("kind", KINDS)
def test_a_precision_is_one_line_of_text(kind):
    assert precision("auto", None) == "auto"
    assert taken_apart(precision("auto", kind)) == ("auto", kind)
    assert taken_apart(precision("bfloat16", kind)) == ("bfloat16", kind)
    assert precision(f"bfloat16+{kind}", kind) == f"bfloat16+{kind}"
    assert taken_apart("float16") == ("float16", None)
    (other,) = {*KINDS} - {kind}
    with told(ConfigError, "quantised already", other):
        precision(kind, other)
    with told(ConfigError, "no quantisation '2bit'", "4bit or 8bit"):
        precision("auto", "2bit")
    with told(ConfigError, "no quantisation 'int4bit'"):
        taken_apart("int4bit")
    with told(ConfigError, "isn't a dtype and a quantisation", "bfloat16"):
        taken_apart(f"bfloat61+{kind}")


def test_where_it_has_no_place():
    with told(ConfigError, "vLLM quantises a model itself", "--engine-options"):
        load_vllm("pilot", dtype="4bit")
    from steerlab.cli.evaluate import pilot_suite

    with told(ConfigError, "measured in float32", "leave --quantize out"):
        pilot_suite("pilot", {"batch_size": 4, "device": None, "dtype": "4bit"}, 4)


def test_a_steering_fitted_before_precisions_were_written_down_is_taken_as_it_was():
    full = tiny.engine("llama").fingerprint
    packed = {**full, "sketch": {"embed": full["sketch"]["embed"]}}
    said = {**packed, "quantised": "bitsandbytes 4 bit nf4"}
    assert likeness(packed, said).kind == "same"
    assert likeness(said, packed).kind == "copy"
    assert "bitsandbytes 4 bit nf4 there and not quantised here" in likeness(said, full).differences[0]


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao isn't installed (make test-quantized)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_that_torchao_quantised_is_steered_and_told_apart():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(tiny.model("llama"))
    quantize_(model, Int8WeightOnlyConfig())
    engine, plain = HFEngine(model, tiny.tokenizer()), tiny.engine("llama")
    assert engine.identity not in (plain.identity, "")
    assert engine.identity == HFEngine(model, tiny.tokenizer()).identity
    assert engine.fingerprint["quantised"] == "Int8Tensor"
    assert likeness(plain.fingerprint, engine.fingerprint).kind == "copy"
    assert (
        engine.generate(["w1 w2"], shift(engine, 3.0), GREEDY)[0].ids != engine.generate(["w1 w2"], None, GREEDY)[0].ids
    )
    with told(SiteError, "weight is quantised"):
        engine.width(sl.Site.parse("w:mlp.down_proj@1"))
