"""The laws of sites: each is where it should be on thirteen architectures, found by structure, sliced, fused or adapted."""

from __future__ import annotations

import pytest
import torch

from steerlab.contrast import Example
from steerlab.edits import Clamp, Shift
from steerlab.positions import ALL
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
from steerlab.testing.precision import MANY
from steerlab.testing.tiny import prompts


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(tiny.ARCHITECTURES))


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
BY_NAME = {  # what a person who knows the architectures would have hooked: module below the block, or a third of one
    "llama": ("self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp", *QKV),
    "gpt2": ("attn.c_proj", "mlp.c_proj", "attn", "mlp", ("attn.c_attn", 0), ("attn.c_attn", 1), ("attn.c_attn", 2)),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h", "self_attention", "mlp", None, None, None),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", "attention", "mlp", None, None, None),
    "phi3": ("self_attn.o_proj", "mlp.down_proj", "self_attn", "mlp", None, None, None),
    "mixtral": ("self_attn.o_proj", None, "self_attn", "mlp", *QKV),
}  # fmt: skip
for _like_llama in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2"):
    BY_NAME[_like_llama] = BY_NAME["llama"]
BY_NAME["qwen3_moe"] = BY_NAME["mixtral"]


def test_sites_found_by_structure_are_the_ones_known_by_name(architecture):
    engine = tiny.engine(architecture)
    block = engine.anatomy.blocks[1]
    parts = ("heads", "neurons", "attn", "mlp", "q", "k", "v")
    for part, named in zip(parts, BY_NAME[architecture], strict=True):
        if named is None:
            continue
        point = engine.anatomy.point(Site(1, part))
        name, third = named if isinstance(named, tuple) else (named, None)
        assert point.module is block.get_submodule(name), part
        assert point.side == ("input" if part in ("heads", "neurons") else "output")
        if third is not None:
            assert torch.equal(point.columns, torch.arange(32) + 32 * third)


def test_fused_projections_are_told_apart(architecture):
    """Changing v alone changes what attention returns linearly: twice the change, twice the effect. q and k don't."""
    engine = tiny.engine(architecture)
    examples = [Example.ask(prompts()[0])]
    heads = Site(1, "heads")
    seen = {}
    for part in ("q", "k", "v"):
        v = torch.randn(engine.width(Site(1, part)), generator=torch.Generator().manual_seed(3))
        effects = []
        for k in (0.0, 1.0, 2.0):
            steering = Steering((Intervention(Site(1, part), Shift(v), ALL),)).scaled(k)
            effects.append(engine.capture(examples, [heads], ALL, steering)[heads].values)
        once, twice = effects[1] - effects[0], effects[2] - effects[0]
        assert once.abs().max() > 1e-4 or part == "k", part
        seen[part] = float((twice - 2 * once).abs().max() / once.abs().max().clamp_min(1e-9))
    # a difference of differences, as a share of the smallest of them: MANY of ten times its size
    assert seen["v"] < 1e-3
    assert seen["q"] > 1e-2


def test_heads_are_slices(architecture):
    """Steering head 1 changes the columns of head 1 and no other."""
    engine = tiny.engine(architecture)
    whole, one = Site(1, "heads"), Site(1, "heads", 1)
    size = engine.width(one)
    assert size * 4 == engine.width(whole)
    steering = Steering((Intervention(one, Shift(torch.ones(size)), ALL),))
    examples = [Example.ask(prompts()[0])]
    delta = (
        engine.capture(examples, [whole], ALL, steering)[whole].values
        - engine.capture(examples, [whole], ALL)[whole].values
    )
    torch.testing.assert_close(delta[:, size : 2 * size], torch.ones(len(delta), size))
    assert not delta[:, :size].any()
    assert not delta[:, 2 * size :].any()


def test_resid_is_the_output_of_its_block_and_the_input_of_the_next(architecture):
    engine = tiny.engine(architecture)
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    steering = Steering((Intervention(Site(0), Shift(v), ALL),))
    examples = [Example.ask(prompts()[0])]
    seen = {}
    handle = engine.anatomy.blocks[1].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.setdefault("h", []).append((args or (kwargs["hidden_states"],))[0].clone()),
        with_kwargs=True,
    )
    try:
        list(engine.logits([Example.ask(prompts()[0], "w1")]))
        list(engine.logits([Example.ask(prompts()[0], "w1")], steering))
    finally:
        handle.remove()
    torch.testing.assert_close(seen["h"][1] - seen["h"][0], v.expand_as(seen["h"][0]), rtol=MANY, atol=MANY)
    assert engine.capture(examples, [Site(0)], ALL)[Site(0)].values.shape[1] == 32


class Adapted(torch.nn.Module):
    """A projection with a low-rank adapter beside it, built as PEFT builds its own."""

    def __init__(self, base, width_in, width_out):
        super().__init__()
        self.base_layer = base
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(width_in, 2, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, width_out, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_sites_of_an_adapted_model_are_those_of_the_whole_projection(name):
    import copy

    from steerlab.engines.hf import HFEngine

    torch.manual_seed(0)
    model, plain = copy.deepcopy(tiny.model(name)), tiny.engine(name)
    block = plain.anatomy.blocks[1]
    names = {m: n for n, m in block.named_modules()}
    for part in ("q", "v", "heads", "neurons"):
        module = plain.anatomy.point(Site(1, part)).module
        path = names[module]
        parent, _, leaf = path.rpartition(".")
        mine = HFEngine(model, tiny.tokenizer()).anatomy.blocks[1]
        held = mine.get_submodule(parent)
        if isinstance(getattr(held, leaf), Adapted):
            continue  # q and v of a fused projection
        base = getattr(held, leaf)
        shape = tuple(base.weight.shape) if name == "gpt2" else tuple(base.weight.shape[::-1])
        setattr(held, leaf, Adapted(base, *shape))
    adapted = HFEngine(model, tiny.tokenizer())
    assert adapted.sites(1) == plain.sites(1)
    for part in ("q", "k", "v", "heads", "neurons"):
        one, other = plain.anatomy.point(Site(1, part)), adapted.anatomy.point(Site(1, part))
        assert (one.side, one.width) == (other.side, other.width)
        assert (one.columns is None) == (other.columns is None)
    assert isinstance(adapted.anatomy.point(Site(1, "v")).module, Adapted)
    assert isinstance(adapted.anatomy.point(Site(1, "heads")).module, Adapted)
    v = Clamp.random(adapted.width(Site(1, "v")), torch.Generator().manual_seed(0))
    steering = Steering((Intervention(Site(1, "v"), v, ALL),))
    read = adapted.capture([Example.ask(prompts()[0])], [Site(1, "v")], ALL, steering)[Site(1, "v")].values
    torch.testing.assert_close(read @ v.q.T, v.positive.expand(len(read), -1), rtol=MANY, atol=MANY)
