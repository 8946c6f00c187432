"""Compiled models: hooks on what torch.compile or torch.jit made are ignored without a word, so they are refused by name."""

from __future__ import annotations

import copy

import pytest
import torch

from steerlab.edits import Shift
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.errors import UnsupportedError
from steerlab.positions import ALL
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny


def _forward_of_model(model):
    model.forward = torch.compile(model.forward)


def _forward_of_block(model):
    model.model.layers[1].forward = torch.compile(model.model.layers[1].forward)


def _forward_of_class(model):
    kind = type(model.model)
    model.model.__class__ = type("Compiled", (kind,), {"forward": torch.compile(kind.forward)})


def _forward_under_offload(model):
    pytest.importorskip("accelerate").cpu_offload(model)
    model.model.layers[1].mlp._old_forward = torch.compile(model.model.layers[1].mlp.forward)


def _block_in_place(model):
    model.model.layers[1].compile()


def _inner_model(model):
    model.model = torch.compile(model.model)


def _every_block(model):  # regional compilation
    for n, layer in enumerate(model.model.layers):
        model.model.layers[n] = torch.compile(layer)


def _traced_mlp(model):
    model.model.layers[1].mlp = torch.jit.trace(model.model.layers[1].mlp, torch.zeros(1, 2, 32))


@pytest.mark.parametrize(
    ("compiles", "told"),
    [
        (_forward_of_model, "the model's forward was compiled"),
        (_forward_of_block, r"model\.layers\.1's forward was compiled"),
        (_forward_of_class, "model's forward was compiled"),
        (_forward_under_offload, r"model\.layers\.1\.mlp's forward was compiled"),
        (_block_in_place, r"model\.layers\.1 was compiled in place"),
        (_inner_model, r"model is wrapped by torch.compile.*model\.model\._orig_mod"),
        (_every_block, r"model\.layers\.0 is wrapped by torch.compile"),
        pytest.param(
            _traced_mlp, r"model\.layers\.1\.mlp is TorchScript",
            marks=pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
        ),
    ],
)  # fmt: skip
def test_a_model_is_refused_however_a_part_of_it_was_compiled(compiles, told):
    model = copy.deepcopy(tiny.model("llama"))
    later = HFEngine(model, tiny.tokenizer())
    compiles(model)
    with pytest.raises(UnsupportedError, match=told):
        type(later)(model, tiny.tokenizer())
    with pytest.raises(UnsupportedError, match=told):
        later.generate(["w1"])


def test_a_leaf_whose_forward_is_compiled_is_steered_as_it_is():
    model, steering = copy.deepcopy(tiny.model("llama")), Steering((Intervention(Site(1), Shift(torch.ones(32)), ALL),))
    plain = tiny.engine("llama").generate(["w1 w2"], steering, Sampling(max_new_tokens=6))
    norm = model.model.layers[1].input_layernorm
    norm.forward = torch.compile(norm.forward, backend="eager")
    assert HFEngine(model, tiny.tokenizer()).generate(["w1 w2"], steering, Sampling(max_new_tokens=6)) == plain
