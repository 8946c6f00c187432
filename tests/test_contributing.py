"""The example in CONTRIBUTING.md, run as it stands: a package with one file and one entry point, held to the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_method_keeps_the_whole_contract(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    entry = re.search(r'median_gap = "your_package.median_gap:(\w+)"', text).group(1)
    package = tmp_path / "site"
    info = package / "median-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "median_gap.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: median\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[steerlab.methods]\nmedian_gap = median_gap:{entry}\n")
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
        "--pyargs", "steerlab.testing.test_methods", "--steerlab-methods", "median_gap",
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout
    broken = code.replace("positive.median(dim=0).values - negative", "negative.median(dim=0).values - negative")
    (package / "median_gap.py").write_text(broken.replace("along(gap, positive, negative)", "gap + 1e-3"))
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.returncode == 1, "a wrong method must fail the contract"
