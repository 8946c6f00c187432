"""The public face: names, light imports, configuration, plug-ins."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
