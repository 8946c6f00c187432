"""The file of a sweep: its mistakes, its arms, its model's device, and the units that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import steerlab as sl
from steerlab.errors import ConfigError
from steerlab.sweep.config import Sweep
from steerlab.sweep.units import planned
from steerlab.testing import planted
from steerlab.testing.precision import ONE
from sweeping import asked, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("sweep"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("methods: [cdas]\nstrenghts: [1]\n", "no setting 'strenghts'.*line 2.*'strengths'"),
        ("methods:\n  cdas: {epoch: 1}\n", "no setting 'epoch'.*line 2.*'epochs'"),
        ("methods:\n  cdsa:\n", "line 2.*no method called 'cdsa'.*'cdas'"),
        ("methods:\n  cdas: {rank: 1}\n  cdas: {rank: 4}\n", "line 3 names 'cdas' again.*line 2"),
        ("methods: [cdas]\nseeds: some\n", "seeds.*line 2.*'some'"),
        ("methods: [cdas]\nprompts: 1\n", "prompts: 1.*at least 2"),
        ("methods: [cdas]\nconcepts: {a: {data: x}}\n", "list of names"),
        ("methods: [cdas]\nmodel: mine\n", "its data and its rule"),
        ("methods: [cdas]\nlayers: [1, 1]\n", "name one twice"),
        ("seeds: 1\n", "needs methods"),
        ("methods: []\n", "at least one method"),
    ],
)
def test_a_mistake_in_the_file_names_its_line_and_the_nearest_key(tmp_path, text, told):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        Sweep.read(path)


def test_concepts_that_do_not_exist_are_refused(tmp_path, folder):
    path = tmp_path / "sweep.yaml"
    path.write_text("methods: [cdas]\nconcepts: [pirat]\n")
    with pytest.raises(ConfigError, match="no concept 'pirat'.*'pirate'"):
        Sweep.read(path).suite()
    with pytest.raises(ConfigError, match="needs its data and a rule"):
        replace(Sweep.read(asked(folder)), concepts={"a": {"data": "x"}}).suite()


def test_arms_are_methods_at_layers(folder):
    sweep = Sweep.read(asked(folder, methods={"das": {"site": "0"}, "mine": {"method": "pca"}}, controls=["prompt"]))
    assert [(a.name, a.method, a.settings) for a in sweep.arms(2)] == [
        ("das", "das", {"site": "0"}), ("mine@0", "pca", {"site": "0"}), ("mine@1", "pca", {"site": "1"}),
        ("prompt", "prompt", {}),
    ]  # fmt: skip
    assert [a.name for a in replace(sweep, layers="all", methods=["pca"], controls=[]).arms(3)] == [
        "pca@0",
        "pca@1",
        "pca@2",
    ]
    assert [a.name for a in replace(sweep, layers=[], methods=["pca"], controls=[]).arms(3)] == ["pca"]


def test_a_unit_is_named_by_what_its_result_rests_on(folder):
    def units(**settings):
        sweep = Sweep.read(asked(folder, **settings))
        suite = sweep.suite()
        found = planned(suite, sweep.plan(suite, 2), sweep.together)
        return {kind: {u.inputs for u in found.all if u.kind == kind} for kind in ("plain", "fit", "measure")}

    base, stronger, apart = units(), units(strengths=[1.0, 2.0]), units(together=1)
    assert stronger["fit"] == base["fit"]
    assert stronger["plain"] == base["plain"]
    assert not stronger["measure"] & base["measure"]
    assert len(apart["fit"] & base["fit"]) == 8, "groups are part of a fit: those of one concept stay"
    named_twice = units(methods={"diff_means": None, "same": {"method": "diff_means"}, "das": {"epochs": 1, "rank": 1}})
    assert named_twice == base
    data = folder / "key.jsonl"
    before = data.read_text()
    try:
        data.write_text(before + before.splitlines()[0] + "\n")
        assert not units()["fit"] & base["fit"]
    finally:
        data.write_text(before)


def test_a_model_is_spread_by_a_device_map(folder):
    pytest.importorskip("accelerate", reason="accelerate isn't installed (pip install 'steerlab[accelerate]')")
    sweep = Sweep.read(asked(folder))
    examples = sweep.suite().contrast("key", 0).positive[:2]
    plain = list(planted.engine().logits(examples))
    for name in ("auto", "balanced", "balanced_low_0", "sequential"):
        spread = replace(sweep, device=name).suite().engine().logits(examples)
        assert all(torch.allclose(s.cpu(), p, atol=ONE) for s, p in zip(spread, plain, strict=True)), name
    with pytest.raises(ConfigError, match="no device 'balansed'.*'balanced'"):
        replace(sweep, device="balansed").suite().engine()


def test_the_worked_example_is_the_one_that_the_page_shows():
    page = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    example = Path(__file__).parents[1] / "docs" / "examples" / "sweep.yaml"
    sweep = Sweep.read(example)
    assert shown.items() <= sl.config.read_yaml(example).items()
    assert len(planned(sweep.suite(), sweep.plan(sweep.suite(), 8), sweep.together).all) == 34
