"""What the tests of ranges share: a range by hand, and a steering that has one."""

from __future__ import annotations

import torch

from steerlab.edits import Shift
from steerlab.sites import Site
from steerlab.steering import Intervention, Meta, Steering

RANGE = {
    "rule": 2,
    "directions": {
        "elicit": {"sign": 1, "min_useful": 0.5, "default": 1.0, "max_safe": 1.2, "max_unresolved": 1.4},
        "suppress": {"sign": -1, "min_useful": -0.4, "default": -0.8, "max_safe": -1.6, "max_unresolved": -1.6},
    },
    "budget": {"lost": 0.02, "kl": 0.1, "perplexity": 0.05},
}


def steering(told=RANGE, edit=None) -> Steering:
    made = edit or Shift(torch.ones(4))
    return Steering((Intervention(Site(1), made),), meta=Meta(range=told))
