"""The public face: names, light imports, configuration, plug-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import children
import steerlab
from steerlab import config, plugins
from steerlab.methods.cdas import CDAS


def test_every_public_name_is_there_and_sorted():
    names = [n for n in steerlab.__all__ if not n.startswith("_")]
    assert names == sorted(names)
    for name in steerlab.__all__:
        assert getattr(steerlab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Steerng'"):
        _ = steerlab.Steerng


@pytest.mark.parametrize(
    "code", ["import steerlab", "import steerlab.cli", "import steerlab.pilot", "from steerlab import Contrast, Site"]
)
def test_importing_loads_neither_torch_nor_transformers(code):
    check = f"import sys; {code}; print(sorted(m for m in ('torch', 'transformers', 'vllm') if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_import_check_can_fail():
    check = "import sys, steerlab; steerlab.Shift; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


def test_the_laws_are_part_of_the_suite(pytestconfig):
    assert "src/steerlab/testing" in pytestconfig.getini("testpaths")


def test_an_edit_of_somebody_elses_is_known_once_a_file_holds_it(tmp_path):
    """A package with a method of its own and an edit of its own, installed beside; `steerlab show` has not imported it."""
    (tmp_path / "theirs.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nimport torch\n"
        "from steerlab.edits import Shift\nfrom steerlab.methods.diff_means import DiffMeans\n"
        "@dataclass(frozen=True, eq=False)\nclass Nudge(Shift):\n    pass\n"
        "@dataclass(frozen=True)\nclass Theirs(DiffMeans):\n    'Theirs.'\n"
    )
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[steerlab.methods]\ntheirs = theirs:Theirs\n")
    making = (
        "import torch, theirs, steerlab as sl\nedit = theirs.Nudge(torch.ones(4))\n"
        "sl.Steering((sl.Intervention(sl.Site(1), edit),)).save('x.safetensors')"
    )
    reading = (
        "import sys, steerlab as sl\nassert 'theirs' not in sys.modules\n"
        "print(type(sl.Steering.load('x.safetensors').interventions[0].edit).__name__)"
    )
    beside = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for code in (making, reading):
        found = children.run(["-c", code], cwd=tmp_path, env=beside)
        assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "Nudge"


def test_a_dataclass_is_its_own_configuration(tmp_path):
    made = CDAS(site="3", rank=2, epochs=4)
    path = tmp_path / "cdas.yaml"
    path.write_text(config.to_yaml(config.to_dict(made)))
    assert config.build(CDAS, config.read_yaml(path)) == made
    assert config.build(CDAS, {"batch-size": 4}).batch_size == 4


def test_every_method_has_a_file_of_its_name():
    assert {"cdas", "das", "kl_das", "pdas", "diff_means", "pca", "probe", "ablation", "random", "prompt"} <= set(
        plugins.names("methods")
    )
    for name in plugins.names("methods"):
        assert plugins.name_of(plugins.load(name)) == name


def test_every_method_is_in_the_list_of_methods():
    listed = set(re.findall(r"`(\w+)`", (Path(__file__).parents[1] / "docs/methods.md").read_text(encoding="utf-8")))
    assert set(plugins.names("methods")) <= listed
