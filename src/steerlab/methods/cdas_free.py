"""CDAS without gradients: the difference of means as the direction, and poles as far apart as the data wants them.

What is trained in CDAS begins here: class means over the tokens that the clamp will touch, each pole moved as far from
the other class as lowers the divergence of a few training pairs most. This stops there: a dozen passes over eight pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cdas import CDAS


@dataclass(frozen=True)
class CDASFree(CDAS):
    """Clamp the difference of means to poles that are read off the divergence."""

    rank: int = 1
    epochs: int = 0
