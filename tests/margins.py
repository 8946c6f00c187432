"""How near comparisons come to their allowances: `pytest -p margins` (with tests/ on the path) writes it to STEERLAB_MARGINS.

Wraps `torch.testing.assert_close`, `torch.allclose` and `pytest.approx`. A line a comparison: what it was off by as a share of
what it may be off by (1 fails), and the test. What comes near 1 rests on the kernels of one processor: run it in float64
(`steerlab.testing.precision`), or derive what it may be off by.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

LEAST = 0.02  # shares below it are not written
_now = "?"


def pytest_runtest_setup(item):
    global _now
    _now = item.nodeid


def _note(share: float, what: str) -> None:
    if share >= LEAST and (path := os.environ.get("STEERLAB_MARGINS")):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{share:.4f}\t{what}\t{_now}\n")


def _share(a, b, rtol: float, atol: float) -> float:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)) or a.shape != b.shape or not a.numel():
        return 0.0
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    allowed = atol + rtol * b.abs()
    off = (a - b).abs()
    shares = torch.where(off == 0, 0, off / allowed.clamp_min(1e-300))
    return float(shares.max())


def _wrap() -> None:
    close, same = torch.testing.assert_close, torch.allclose

    def assert_close(actual, expected, *args, **how):
        if how.get("rtol") is not None:
            _note(
                _share(actual, expected, how["rtol"], how.get("atol") or 0),
                f"assert_close {how['rtol']:g} {how.get('atol')}",
            )
        elif isinstance(actual, torch.Tensor) and actual.dtype == torch.float32:
            _note(_share(actual, expected, 1.3e-6, 1e-5), "assert_close default")
        return close(actual, expected, *args, **how)

    def allclose(a, b, rtol=1e-5, atol=1e-8, **how):
        met = same(a, b, rtol=rtol, atol=atol, **how)
        if met:
            _note(_share(a, b, rtol, atol), f"allclose {rtol:g} {atol:g}")
        return met

    torch.testing.assert_close, torch.allclose = assert_close, allclose
    ApproxScalar = type(pytest.approx(1.0))

    equal = ApproxScalar.__eq__

    def approx_equal(self, actual):
        met = equal(self, actual)
        try:
            if met and isinstance(self.expected, float) and self.tolerance:
                _note(abs(actual - self.expected) / self.tolerance, f"approx {self.tolerance:.1e}")
        except (TypeError, ValueError):
            pass
        return met

    ApproxScalar.__eq__ = approx_equal


_wrap()
