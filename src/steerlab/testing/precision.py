"""Precision of laws: the whole library in double precision, and what float32 itself may be off by.

Where two orders of summation must agree, float32 can't tell a fault from its own rounding: how far two orders differ depends on
the processor's kernels. `doubled` runs the same code in float64, where rounding is some 10⁻¹⁵ of what is summed, and a law
may demand `EXACT` on every machine. Where float32 is what is to be tested, `rounding` bounds what it may be off by.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def doubled() -> Generator[None]:
    """Inside, all that asks for single precision gets float64: the library's own code, and the model's.

    The names by which code asks for it are replaced (`torch.float32`, `Tensor.float`, the default), so that what runs is the very
    code that ships. A model must be in float64 already (`tiny.engine(name, dtype="float64")`).
    """
    single, cast, usual = torch.float32, torch.Tensor.float, torch.get_default_dtype()
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[misc, method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = single, cast  # type: ignore[misc, method-assign]
        torch.set_default_dtype(usual)


def rounding(terms: int, magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """What a sum of `terms` numbers, the largest partial sum of which is `magnitude`, may be off by in any order.

    Each addition rounds by at most eps / 2 of the partial sum, so two orders differ by at most terms · eps · magnitude
    (Higham, Accuracy and Stability of Numerical Algorithms, 4.2).
    """
    return terms * torch.finfo(dtype).eps * magnitude


# What two ways of computing the same may differ by, as a share of the value or beside magnitudes near 1 (docs/tolerances.md).
EXACT = 1e-9  # whole passes and fits in float64: `rounding` of four million additions in a row, far more than a tiny model makes
SUMMED = 1e-12  # one sum in float64, of some thousand numbers at most: `rounding(4500, 1, torch.float64)`
FEW = 1e-6  # a few roundings in float32 of numbers near 1, as where the same pass runs twice: `rounding(8, 1)`
ONE = 1e-5  # one sum in float32, of a tiny model's 32 to 97 numbers: `rounding(84, 1)`
MANY = 1e-4  # sums one after another in float32, a pass through three blocks (nine products of up to 97): `rounding(840, 1)`
