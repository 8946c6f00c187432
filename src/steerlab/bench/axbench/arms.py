"""The arms of AxBench unless others are named: prompting, a dozen methods, a random direction, and nothing at all.

Methods that read answers read them as AxBench does, on plain instructions; those that are trained have, on the built-in model,
the settings that they have for small models, each at the block where the comparison of all methods favours its family.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ... import plugins
from ...evals.unit import ArmPlan
from .units import UNSTEERED, Unsteered

READ: dict[str, dict[str, Any]] = {
    "diff_means": {"pooling": "token"}, "pca": {"pooling": "response"}, "probe": {"pooling": "response"},
    "raptor": {"pooling": "response"}, "random": {"pooling": "response"},
}  # fmt: skip
TRAINED = ("reft_r1", "lm_vector", "reps", "bipo", "split", "cdas")
LABELS = {
    "prompt": "Prompting", "diff_means": "DiffMean", "pca": "PCA", "probe": "Linear probe", "raptor": "RAPTOR",
    "random": "Random direction", "reft_r1": "ReFT-r1", "lm_vector": "LM vector (Lang.)", "reps": "RePS", "bipo": "BiPO",
    "split": "SPLIT", "cdas": "CDAS",
    UNSTEERED: "Unsteered",
}  # fmt: skip
SHORTER: dict[str, dict[str, Any]] = {  # epochs on the built-in model, so that all of it takes half an hour on two cores
    "reft_r1": {"epochs": 6}, "reps": {"epochs": 4}, "bipo": {"epochs": 6}, "split": {"epochs": 6},
}  # fmt: skip
PILOT_BLOCKS = {"read": 6, "trained": 4, "cdas": 2}  # of 8: what `make table` chose on dev


def usual(*, small: bool) -> tuple[ArmPlan, ...]:
    """The arms; `small` for a model of some million parameters with eight blocks, as the built-in one is."""
    made = [ArmPlan("prompt", "prompt", label=LABELS["prompt"]), Unsteered(UNSTEERED, label=LABELS[UNSTEERED])]
    for name in (*READ, *TRAINED):
        settings: dict[str, Any] = dict(READ.get(name, {}))
        if small:
            settings |= {**dict(getattr(plugins.load(name), "small", {})), **SHORTER.get(name, {})}
            block = PILOT_BLOCKS["read" if name in READ else "cdas" if name == "cdas" else "trained"]
            settings["site"] = str(block)
        made.append(ArmPlan(name, name, settings, label=LABELS[name]))
    return tuple(made)


def labelled(arm: ArmPlan) -> ArmPlan:
    """An arm with the name that papers use for its method."""
    return arm if arm.label or arm.name not in LABELS else replace(arm, label=LABELS[arm.name])
