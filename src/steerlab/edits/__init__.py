"""What: functions on activations, `edit(h [*n, d], s) -> [*n, d]`, that know no model.

Strength has one unit. `edit(h, 0)` is `h`; +1 is the effect as fitted; an edit with two poles reaches the other one at
−1. Each edit carries the `domain` of its strength and refuses what lies outside.

Arithmetic runs in float32 and is cast back once. An edit that is affine in `h` at a strength says so (`affine`): engines
that batch many steerings, exports and weight baking work on that normal form alone.

A new kind is a subclass of `Edit` with a field for every tensor, in a file of this folder or behind an entry point of the group
`steerlab.edits`; saving, loading, showing, exports by its normal form, and the laws find it by themselves.
"""

import importlib
import pkgutil

from .base import TWO_SIDED, UNIT, AffineMap, Domain, Edit, Strength, kinds
from .checks import TOLERANCE
from .learned import ACTIVATIONS, SLOPES, Adapter, Descend, Rule, Transport
from .linear import Ablate, Affine, Clamp, OffsetShift, Push, Scale, Shift
from .plane import PointTo, Rotate
from .wrapped import OneSided

for _file in pkgutil.iter_modules(__path__):  # a file is all that a new kind takes
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "ACTIVATIONS",
    "SLOPES",
    "TOLERANCE",
    "TWO_SIDED",
    "UNIT",
    "Ablate",
    "Adapter",
    "Affine",
    "AffineMap",
    "Clamp",
    "Descend",
    "Domain",
    "Edit",
    "OffsetShift",
    "OneSided",
    "PointTo",
    "Push",
    "Rotate",
    "Rule",
    "Scale",
    "Shift",
    "Strength",
    "Transport",
    "kinds",
]
