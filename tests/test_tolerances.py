"""Every tolerance of tests and laws says why it is enough, and docs/tolerances.md lists them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from steerlab.testing.precision import EXACT, FEW, MANY, ONE, SUMMED, rounding

TOOL = Path(__file__).resolve().parents[1] / "tools" / "tolerances.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tolerances", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_none_goes_without_a_reason_and_the_page_has_them_all(tool, capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


def test_a_number_without_a_reason_is_found(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    path = tmp_path / "test_one.py"
    path.write_text(
        "def test_a():\n    assert x == approx(1, abs=3e-3)\n    assert y == approx(1, abs=3e-3)  # three digits\n"
        "    assert off < 1e-5\n    assert off > 1e-5\n    assert z == approx(1, abs=ONE)\n"
    )
    every = list(tool.tolerances(path))
    assert [(t.line, t.values, t.why, t.named) for t in sorted(every, key=lambda t: t.line)] == [
        (2, ("abs 0.003",), "", False),
        (3, ("abs 0.003",), "three digits", False),
        (4, ("< 1e-05",), "", False),
        (6, ("abs ONE",), "", True),
    ]


def test_names_are_what_rounding_derives():
    assert rounding(8, 1) == pytest.approx(FEW, rel=0.06)  # as whole terms come nearest
    assert rounding(84, 1) == pytest.approx(ONE, rel=0.01)  # as whole terms come nearest
    assert rounding(840, 1) == pytest.approx(MANY, rel=0.01)  # as whole terms come nearest
    assert rounding(4500, 1, torch.float64) == pytest.approx(SUMMED, rel=0.01)  # as whole hundreds come nearest
    assert rounding(4_500_000, 1, torch.float64) == pytest.approx(
        EXACT, rel=0.01
    )  # as whole hundred thousands come nearest
