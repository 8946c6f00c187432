"""Steerings in weights: baked checkpoints that plain transformers loads, and adapters that PEFT loads."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import steerlab as sl
from steerlab import exports
from steerlab.engines.hf import HFEngine
from steerlab.testing import tiny
from steerlab.testing.precision import FEW, ONE

WIDTH = 32


def asked(draw):
    return [sl.Example.ask(tiny.words(draw, n), answer=tiny.words(draw, 4)) for n in (3, 7)]


def everywhere(q, depth=3, *, embed=True):
    """Directional ablation of all that is written to the stream."""
    sites = [sl.Site(layer, part) for layer in range(depth) for part in ("attn", "mlp")]
    sites += [sl.Site(part="embed")] if embed else []
    return sl.Steering(tuple(sl.Intervention(s, sl.Ablate(q), sl.ALL) for s in sites))


def case(name, engine, draw):
    q = torch.linalg.qr(torch.randn(WIDTH, 1, generator=draw))[0].T.contiguous()
    if name == "shift":
        return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.randn(WIDTH, generator=draw)), sl.ALL),))
    if name in ("ablate", "ablate and embed"):
        return everywhere(q, embed=name != "ablate")
    if name == "delta":
        site, shape = list(engine.matrices(1).items())[-1]
        left, right = torch.randn(shape.height, 2, generator=draw), torch.randn(2, shape.width, generator=draw)
        full = torch.randn(shape.height, shape.width, generator=draw) / 10
        made = sl.Delta(left / 10, right), sl.Delta(full=full)
        return sl.Steering(
            tuple(sl.Intervention(site, d, sl.ALL, sl.Constant(s)) for d, s in zip(made, (1.0, 0.5), strict=True))
        )
    sites = [sl.Site(1, "heads"), sl.Site(1, "q"), sl.Site(0, "attn"), sl.Site(2, "k", 1), sl.Site(2, "mlp")]
    edits = []
    for site in sites:  # what is read and what is given, a slice, diagonals and biases, two at one place
        for _ in range(2):
            w = engine.width(site)
            bias, diag, down, up = (torch.randn(*shape, generator=draw) / 5 for shape in ((w,), (w,), (2, w), (2, w)))
            edits.append(sl.Intervention(site, sl.Affine(bias, diag, down, up), sl.ALL, sl.Constant(0.7)))
    return sl.Steering(tuple(edits))


def off(engine, other, steering, draw):
    """How far a model's logits are from the hook's, and how far the hook moves them."""
    examples = asked(draw)
    hooked, bare, got = (list(e.logits(examples, s)) for e, s in ((engine, steering), (engine, None), (other, None)))
    return tuple(max(float((a - b).abs().max()) for a, b in zip(hooked, x, strict=True)) for x in (got, bare))


def loaded(folder):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return HFEngine(model.eval(), tiny.tokenizer())


BAKED = [
    ("llama", "shift"), ("llama", "all"), ("llama", "ablate and embed"), ("llama", "delta"),
    ("qwen2", "ablate"), ("gpt2", "shift"), ("gpt2", "ablate"), ("gemma2", "ablate and embed"), ("phi3", "delta"),
    ("gpt_neox", "all"), ("falcon", "shift"), ("mixtral", "delta"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what"), BAKED, ids=lambda x: x.replace(" ", "_"))
def test_a_baked_checkpoint_is_the_hook(name, what, tmp_path):
    draw, engine = torch.Generator().manual_seed(0), tiny.engine(name)
    steering = case(what, engine, draw)
    before = {k: v.clone() for k, v in engine.model.state_dict().items()}
    exports.write(steering, tmp_path / "baked", "baked", engine=engine)
    far, moved = off(engine, loaded(tmp_path / "baked"), steering, draw)
    assert far <= ONE
    assert moved > 1e-2
    assert all(torch.equal(v, before[k]) for k, v in engine.model.state_dict().items())
    notes = json.loads((tmp_path / "baked" / "steerlab.json").read_text())
    assert notes["digest"] == steering.digest


def test_a_tied_head_keeps_its_rows(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig.from_dict({**tiny.GATED, "tie_word_embeddings": True})).eval()
    engine = HFEngine(model, tiny.tokenizer())
    draw = torch.Generator().manual_seed(1)
    steering = case("ablate and embed", engine, draw)
    exports.write(steering, tmp_path / "baked", "baked", engine=engine)
    other = loaded(tmp_path / "baked")
    assert torch.equal(other.model.lm_head.weight, model.lm_head.weight)
    assert off(engine, other, steering, draw)[0] <= ONE
    q = steering.interventions[0].edit.q
    writers = [p for n, p in other.model.named_parameters() if n.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(writers) == 6
    assert all(float((q @ w.detach()).abs().max()) <= FEW for w in writers)


REFUSED = [
    ("gemma2", "shift", "passes a norm"),
    ("qwen2", "shift", "no place for the bias"),
    ("mixtral", "shift", "no single down projection"),
    ("gpt2", "ablate and embed", "position vectors"),
]


@pytest.mark.parametrize(("name", "what", "words"), REFUSED)
def test_what_a_checkpoint_cant_hold_is_refused(name, what, words, tmp_path):
    engine = tiny.engine(name)
    with pytest.raises(sl.UnsupportedError, match=words):
        exports.write(case(what, engine, torch.Generator().manual_seed(0)), tmp_path / "baked", "baked", engine=engine)
    assert not list(tmp_path.iterdir())


def test_a_block_outputs_projection_is_refused_with_what_to_do(tmp_path):
    steering = sl.Steering((sl.Intervention(sl.Site(1), sl.Ablate(torch.eye(WIDTH)[:1]), sl.ALL),))
    for name in ("baked", "lora"):
        with pytest.raises(sl.UnsupportedError, match="attn@L and mlp@L"):
            exports.write(steering, tmp_path / name, name, engine=tiny.engine())


def test_shards_and_folders_of_others(tmp_path, monkeypatch):
    draw, engine = torch.Generator().manual_seed(0), tiny.engine()
    monkeypatch.setattr("steerlab.exports.baked.SHARD", 20_000)
    steering = case("shift", engine, draw)
    exports.write(steering, tmp_path / "baked", "baked", engine=engine)
    assert len(list((tmp_path / "baked").glob("model-*.safetensors"))) > 3
    assert off(engine, loaded(tmp_path / "baked"), steering, draw)[0] <= ONE
    exports.write(steering, tmp_path / "baked", "baked", engine=engine)  # an export is replaced
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("keep")
    with pytest.raises(sl.ArtefactError, match="no export wrote"):
        exports.write(steering, other, "baked", engine=engine)
    assert [p.name for p in other.iterdir()] == ["notes.txt"]


def test_another_models_steering_is_refused(tmp_path):
    draw = torch.Generator().manual_seed(0)
    theirs = case("shift", tiny.engine(), draw).adopted(tiny.engine("qwen2"))
    with pytest.raises(sl.UnsupportedError, match="fitted on"):
        exports.write(theirs, tmp_path / "baked", "baked", engine=tiny.engine())


ADAPTED = [
    ("llama", "shift"),
    ("llama", "all"),
    ("qwen2", "shift"),
    ("qwen2", "ablate"),
    ("gpt2", "all"),
    ("llama", "delta"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "what"), ADAPTED)
def test_an_adapter_in_peft_is_the_hook(name, what, tmp_path):
    peft = pytest.importorskip("peft")
    draw, engine = torch.Generator().manual_seed(0), tiny.engine(name)
    steering = case(what, engine, draw)
    exports.write(steering, tmp_path / "adapter", "lora", engine=engine)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(engine.model), tmp_path / "adapter").eval()
    far, moved = off(engine, HFEngine(model, tiny.tokenizer()), steering, draw)
    assert far <= ONE
    assert moved > 1e-2
    if name == "llama":  # and read back it is the hook again
        back = exports.read(tmp_path / "adapter")
        examples = asked(draw)
        both = [list(engine.logits(examples, s)) for s in (steering, back)]
        assert max(float((a - b).abs().max()) for a, b in zip(*both, strict=True)) <= ONE
        if what == "shift":
            assert [str(i.site) for i in back.interventions] == ["mlp@1"]


def test_a_low_rank_delta_keeps_its_factors(tmp_path):
    engine = tiny.engine()
    site, shape = next(iter(engine.matrices(0).items()))
    made = sl.Delta(torch.randn(shape.height, 3), torch.randn(3, shape.width))
    exports.write(sl.Steering((sl.Intervention(site, made, sl.ALL),)), tmp_path / "a", "lora", engine=engine)
    (back,) = exports.read(tmp_path / "a").interventions
    assert back.site == site
    assert torch.equal(back.edit.left, made.left)
    assert torch.equal(back.edit.right, made.right)


@pytest.mark.filterwarnings("ignore")
def test_rank_stabilised_adapters_are_scaled_as_peft_scales_them(tmp_path):
    peft = pytest.importorskip("peft")
    engine = tiny.engine()
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(copy.deepcopy(engine.model), config).eval()
    model.save_pretrained(tmp_path / "a")
    back = exports.read(tmp_path / "a")
    draw = torch.Generator().manual_seed(0)
    far, moved = off(engine, HFEngine(model, tiny.tokenizer()), back, draw)
    assert far <= ONE
    assert moved > 1e-3


@pytest.mark.parametrize("what", ["dora", "kind", "r", "alpha", "pickle", "tensor", "json", "shape"])
def test_adapters_that_arent_plain_are_refused(what, tmp_path):
    from safetensors.torch import load_file, save_file

    engine, folder = tiny.engine(), tmp_path / "a"
    exports.write(case("delta", engine, torch.Generator().manual_seed(0)), folder, "lora", engine=engine)
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    held, tensors = json.loads(config.read_text()), load_file(weights)
    changed = {"dora": {"use_dora": True}, "kind": {"peft_type": "IA3"}, "r": {"r": 9, "rank_pattern": {}},
               "alpha": {"lora_alpha": "x", "alpha_pattern": {}}}.get(what, {})  # fmt: skip
    config.write_text("{" if what == "json" else json.dumps({**held, **changed}))
    if what == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif what == "tensor":
        save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2)}, weights)
    elif what == "shape":
        save_file({k: (v[:, :1].contiguous() if "lora_B" in k else v) for k, v in tensors.items()}, weights)
    with pytest.raises(sl.ArtefactError):
        exports.read(folder)
