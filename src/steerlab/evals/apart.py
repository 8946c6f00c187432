"""Prompts that choose and prompts that certify, apart: what a setting or a strength was chosen by can't vouch for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
SHARE = 4  # one part in so many chooses, at most


class Apart(NamedTuple, Generic[T]):
    """What is chosen by, and what certifies; nothing is in both."""

    choose: list[T]
    certify: list[T]


def apart(
    values: Sequence[T], choose: int, certify: int, seed: int, used: Collection[str] = (), key: Callable[[T], str] = str
) -> Apart[T]:
    """Values in an order of no meaning, `choose` of them to choose by (a quarter at most) and `certify` of the rest to certify.

    Those whose `key` is among the `used` were chosen by elsewhere, and don't certify.
    """
    order = np.random.default_rng(seed).permutation(len(values))
    mixed = [values[i] for i in order]
    fresh, known = [v for v in mixed if key(v) not in used], [v for v in mixed if key(v) in used]
    taken = [*known[:choose]]
    if (rest := min(choose, max(1, len(values) // SHARE)) - len(taken)) > 0:
        taken, fresh = taken + fresh[:rest], fresh[rest:]
    seen = {key(v) for v in taken}
    return Apart(taken, [v for v in fresh if key(v) not in seen][:certify])
