"""Each line that the mutants break is still where they look for it (`make mutants` breaks them, which takes long)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_a_mutant_finds_what_it_breaks(mutant):
    text = (mutants.SOURCE / "steerlab" / mutant.file).read_text(encoding="utf-8")
    assert mutant.old in text and mutant.old != mutant.new
