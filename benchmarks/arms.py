"""The arms of the comparison: every method of this repository, each in the settings that it has for a small model.

A method that is added to `methods/` is an arm here without being named. A family shares the block that dev favours for its
leader: the one block is the costliest choice there is, and the members of a family read and write alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerlab import plugins
from steerlab.config import to_dict
from steerlab.errors import ConfigError, nearest
from steerlab.evals.unit import ArmPlan
from steerlab.methods.cdas import CDAS


@dataclass(frozen=True)
class Family:
    """Arms that share a block: what they do there, whose dev score decides, and who they are."""

    name: str
    leader: str
    members: tuple[str, ...]


FAMILIES = (
    Family("subspaces, clamped", "cdas rank 8", ("cdas rank 1", "cdas rank 8", "cdas rank 16", "cdas push", "cdas_free", "das", "kl_das", "pdas", "random clamp")),
    Family("CDAS as published", "cdas published", ("cdas published",)),
    Family("directions, read", "diff_means", ("diff_means", "diff_means paired", "pca", "probe", "raptor", "ablation", "random")),
    Family("vectors, trained", "lm_vector", ("lm_vector", "reft_r1", "reps", "bipo", "split", "prosv")),
)  # fmt: skip
OWN = "their own"  # sites: several blocks, the answer's last token, or weights
USUAL_BLOCKS = {"subspaces, clamped": 2, "CDAS as published": 6, "directions, read": 6, "vectors, trained": 4}
BASELINES = (
    "unsteered", "diff_means", "diff_means paired", "pca", "probe", "ablation", "random", "random clamp", "prompt",
)  # fmt: skip
LEFT_OUT = {"hypersteer": "learns from many concepts' descriptions at once: `make hypersteer`"}
NAMED = (  # more than one arm of a method, or other settings than it has for small models
    ArmPlan("cdas rank 1", "cdas", {"rank": 1}), ArmPlan("cdas rank 8", "cdas", {"rank": 8}), ArmPlan("cdas rank 16", "cdas", {"rank": 16}),
    ArmPlan("cdas push", one_sided_of="cdas rank 8"),
    ArmPlan("cdas published", "cdas", {k: v for k, v in to_dict(CDAS.published()).items() if k not in ("site", "seed")}),
    ArmPlan("diff_means", "diff_means"), ArmPlan("diff_means paired", "diff_means", {"pooling": "paired"}),
    ArmPlan("random", "random"), ArmPlan("random clamp", "random", {"form": "clamp"}),
)  # fmt: skip
FIRST = ("cdas", "cdas_free", "das", "kl_das", "pdas", "cdas_reft")  # in the table's order; then all others by name


def arms() -> tuple[ArmPlan, ...]:
    """Every arm, the baselines last."""
    methods = [n for n in plugins.names("methods") if n not in LEFT_OUT]
    found: list[ArmPlan] = []
    for name in sorted(methods, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n)):
        named = [a for a in NAMED if name == a.method or (a.one_sided_of and name == "cdas")]
        found += named or [ArmPlan(name, name, small(name))]
    return tuple(sorted(found, key=lambda a: a.name in BASELINES))


def small(method: str) -> dict[str, Any]:
    """The settings that a method has for models of some million parameters; none where its defaults serve."""
    return dict(getattr(plugins.load(method), "small", {}))


def chosen(names: str | None) -> tuple[ArmPlan, ...]:
    """The arms of these names or methods, commas between; all of them for None. Raises `ConfigError` with the nearest."""
    every = arms()
    if not names:
        return every
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    for n in wanted:
        known = {a.name for a in every} | {a.method for a in every if a.method}
        if n not in known:
            raise ConfigError(f"the table has no arm {n!r}. {nearest(n, known)}")
    found = {a.name for a in every if a.name in wanted or a.method in wanted}
    methods = {a.name: a.method for a in every}
    found |= {a.name for a in every if a.one_sided_of and methods[a.one_sided_of] in wanted}
    found |= {a.one_sided_of for a in every if a.name in found and a.one_sided_of}
    return tuple(a for a in every if a.name in found)


def family(name: str) -> Family | None:
    """The family that an arm's block is chosen with; None where it has sites of its own."""
    return next((f for f in FAMILIES if name in f.members), None)


def families(of: tuple[ArmPlan, ...]) -> tuple[Family, ...]:
    """The families that some of these arms belong to."""
    return tuple(f for f in FAMILIES if any(a.name in f.members for a in of))


def at(of: tuple[ArmPlan, ...], blocks: dict[str, int]) -> tuple[ArmPlan, ...]:
    """The arms, each at its family's block."""
    found = []
    for arm in of:
        mine = family(arm.name)
        site = {} if mine is None else {"site": str(blocks[mine.name])}
        found.append(replace(arm, settings={**arm.settings, **site}))
    return tuple(found)


def blocks_in(folder: Path) -> dict[str, int]:
    """The blocks that an earlier run chose; none where there was none."""
    path = folder / "blocks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
