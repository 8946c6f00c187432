"""Bare vectors as people keep them: what is read acts where it says, and what doesn't say is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import steerlab as sl
from steerlab import exports
from steerlab.exports.base import Hints
from steerlab.exports.raw import site_of, sites_named

WIDTH = 32


@pytest.fixture
def vector():
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))


def saved(held, path):
    """A file of that kind which holds a tensor, or a mapping of tensors."""
    if path.suffix == ".pt":
        torch.save(held, path)
    elif path.suffix == ".npy":
        np.save(path, held.numpy())
    elif path.suffix == ".npz":
        np.savez(path, **{str(k): v.numpy() for k, v in held.items()})
    else:
        save_file({str(k): v for k, v in (held if isinstance(held, dict) else {"vector": held}).items()}, path)
    return path


def shifts(steering):
    return {str(i.site): i.edit.v for i in steering.interventions}


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".safetensors"])
def test_one_vector_acts_at_the_site_that_is_named_times_its_scale(suffix, vector, tmp_path):
    path = saved(vector, tmp_path / f"v{suffix}")
    read = exports.read(path, hints=Hints(sites=(sl.Site(1, "mlp"),), scale=-2.5, positions=sl.PROMPT))
    (one,) = read.interventions
    assert str(one.site) == "mlp@1"
    assert one.positions == sl.PROMPT
    assert torch.equal(one.edit.v, -2.5 * vector)
    with pytest.raises(sl.ArtefactError, match="name it with --site"):
        exports.read(path)


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_a_mapping_says_its_blocks_itself(suffix, vector, tmp_path):
    path = saved({"layer_2": vector, "blocks.1.hook_resid_pre": 2 * vector}, tmp_path / f"m{suffix}")
    assert {k: bool(torch.equal(v, f * vector)) for (k, v), f in zip(shifts(exports.read(path)).items(), (2, 1))} == {
        "resid@0": True,
        "resid@2": True,
    }
    with pytest.raises(sl.ArtefactError, match="leave --site and --layer out"):
        exports.read(path, hints=Hints(sites=(sl.Site(1),)))


def test_rows_are_blocks_where_there_are_as_many(vector, tmp_path):
    path = saved(torch.stack([vector, 0 * vector, 3 * vector]), tmp_path / "rows.pt")
    assert list(shifts(exports.read(path, hints=Hints(depth=3)))) == [
        "resid@0",
        "resid@2",
    ]  # a row of zeros does nothing
    assert list(shifts(exports.read(path, hints=Hints(sites=sites_named("embed,1-2"))))) == ["embed", "resid@2"]
    with pytest.raises(sl.ArtefactError, match=r"hidden states.*--site embed,0"):
        exports.read(path, hints=Hints(depth=2))
    with pytest.raises(sl.ArtefactError, match="3 vectors, and 2 sites"):
        exports.read(path, hints=Hints(sites=sites_named("0,1")))


def test_a_vector_beside_its_layer(vector, tmp_path):
    path = tmp_path / "v.pt"
    torch.save({"layer": 2, "direction": vector, "model": "some/model"}, path)
    assert list(shifts(exports.read(path))) == ["resid@2"]


@pytest.mark.parametrize(
    ("name", "site"),
    [
        (12, "resid@12"), ("12", "resid@12"), ("layer_12", "resid@12"), ("model.layers.12", "resid@12"), ("mlp@3", "mlp@3"),
        ("model.layers.4.mlp", "mlp@4"), ("transformer.h.4.attn", "attn@4"), ("blocks.4.hook_resid_post", "resid@4"),
        ("blocks.0.hook_resid_pre", "embed"), ("heads@3[5]", "heads@3[5]"),
    ],
)  # fmt: skip
def test_names_of_blocks(name, site):
    assert str(site_of(name)) == site


@pytest.mark.parametrize("name", ["vector", "model.layers.4.mlp.down_proj", "blocks.4.hook_mystery", ""])
def test_a_name_that_says_no_block_is_never_guessed(name):
    assert site_of(name) is None


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (torch.zeros(WIDTH), "nothing but zeros"),
        (torch.full((WIDTH,), float("nan")), "NaN"),
        (torch.ones(WIDTH, dtype=torch.int64), "floating-point"),
        (torch.ones(2, 2, WIDTH), r"\[2, 2, 32\]"),
        (torch.ones(0), r"\[0\]"),
        ({"a": torch.ones(WIDTH), "b": torch.ones(WIDTH)}, "say the block"),
        ({1: torch.ones(WIDTH), "layer_1": torch.ones(WIDTH)}, "two vectors for one site"),
    ],
)
def test_what_is_no_vector_is_told(held, words, tmp_path):
    path = saved(held, tmp_path / "v.pt")
    hints = Hints() if isinstance(held, dict) else Hints(sites=(sl.Site(1),))
    with pytest.raises(sl.ArtefactError, match=words):
        exports.read(path, hints=hints)


def test_a_pickled_array_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.save(tmp_path / "v.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(sl.ArtefactError, match="plain numbers"):
        exports.read(tmp_path / "v.npy", hints=Hints(sites=(sl.Site(1),)))
    assert not (tmp_path / "ran").exists()


def test_a_format_that_says_where_it_acts_takes_no_site(vector, tmp_path):
    steering = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(vector), sl.ALL),))
    exports.write(steering, tmp_path / "v.svec", "svec")
    with pytest.raises(sl.ConfigError, match="leave sites and scale out"):
        exports.read(tmp_path / "v.svec", hints=Hints(sites=(sl.Site(1),), scale=2.0))


def test_generate_and_import_take_a_bare_vector(tmp_path, steerlab, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted = sl.method("diff_means", {"site": "4", "positions": "all"}).fit(
        sl.load("pilot"), sl.read_data("pilot:pirate", n=8)
    )
    np.save("v.npy", fitted.interventions[0].edit.v.numpy())
    asks = ["-p", "Describe a kitchen.", "-s", "3", "--max-new-tokens", "12", "--json"]
    steerlab("import", "v.npy", "--site", "4", "--scale", "3", "--model", "pilot", "--out", "imported.safetensors")
    replies = []
    for words in (
        ["v.npy", "--site", "4", *asks],
        ["imported.safetensors", *asks[:2], "-s", "1", *asks[4:]],
    ):
        _, output, _ = steerlab("generate", *words)
        replies.append(json.loads(output)["replies"][0]["text"])
    steered = sl.load("pilot").generate(["Describe a kitchen."], fitted.scaled(3), sl.Sampling(12))[0].text
    assert replies == [steered, steered]
