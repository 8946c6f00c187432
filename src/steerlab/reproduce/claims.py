"""The registry of claims (`claims.yaml`): what was published where, with which configuration, and what must show in small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..errors import ArtefactError, ConfigError, nearest

FILE = Path(__file__).parent / "claims.yaml"
Runner = Literal["axbench", "suite"]
UNVERIFIED = "unverified here"


@dataclass(frozen=True)
class Source:
    """Where a figure stands: the paper, its address, and the place in it."""

    title: str
    url: str
    where: str


@dataclass(frozen=True)
class Claim:
    """One published claim.

    `figures` are the published ones by setting (model and block), none where the source gives no number. `tolerance` is how
    far from it a figure may lie, beyond its own interval. `config` is locked. `pattern` is what must show on the built-in
    model.
    """

    name: str
    says: str
    source: Source
    runner: Runner
    config: dict[str, Any]
    figures: dict[str, float]
    tolerance: float
    pattern: dict[str, Any]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.source.url.startswith("https://") or not self.source.where:
            raise ConfigError(f"the claim {self.name!r} names no source that can be looked up; give url and where.")
        if self.tolerance < 0:
            raise ConfigError(f"the claim {self.name!r} has the tolerance {self.tolerance}; expected at least 0.")

    def setting(self, wanted: str | None) -> str | None:
        """The setting meant: the one named, or the only one; None where the claim has no figure. Raises `ConfigError`."""
        if wanted is None and len(self.figures) < 2:
            return next(iter(self.figures), None)
        if wanted not in self.figures:
            told = f"{wanted!r} is none of them" if wanted else "several are published"
            raise ConfigError(
                f"the claim {self.name!r} has figures for {', '.join(self.figures)}; {told}. Name one with --setting."
            )
        return wanted


@dataclass(frozen=True)
class _Registry:
    arms: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    claims: tuple[Claim, ...] = ()


@cache
def registry() -> tuple[Mapping[str, Claim], Mapping[str, Mapping[str, Any]]]:
    """The claims and the arms that patterns speak of, by name. Raises `ConfigError` for a registry that is no registry."""
    found = config.build(_Registry, config.read_yaml(FILE), where=FILE.name)
    claims = {c.name: c for c in found.claims}
    if len(claims) < len(found.claims):
        raise ConfigError(f"{FILE.name} names a claim twice.")
    return claims, found.arms


def claim(name: str) -> Claim:
    """The claim of this name. Raises `ConfigError` with the nearest one."""
    known, _ = registry()
    if name not in known:
        raise ConfigError(f"there is no claim {name!r}. {nearest(name, known)}")
    return known[name]


def receipts(folder: Path) -> list[dict[str, Any]]:
    """What earlier runs have left in a folder. Raises `ArtefactError` for a file there that is no receipt."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read["kind"] != "steerlab claim":
                raise KeyError("kind")
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ArtefactError(
                f"{path} is no receipt of `steerlab reproduce` ({problem!r}); keep other files elsewhere."
            ) from problem
        found.append(read)
    return found


def status(of: Claim, setting: str | None, done: list[dict[str, Any]]) -> str:
    """What is known here of a claim on the real weights: the figure that a run has reached, or that nobody has run it."""
    mine = [r for r in done if r["claim"] == of.name and r["scale"] == "full" and r["setting"] == setting]
    if not mine:
        return UNVERIFIED
    last = mine[-1]
    return f"reached {last['reached']['mean']:.3f}: {last['verdict']}"
