"""Runs a claim and writes its receipt: what was published, what was reached, with what, and what that says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engines.base import Trainable
from ..evals.stats import Estimate
from ..files import code_digest, write_text
from ..meter import Meter
from .claims import Claim
from .full import Given, agrees, reached
from .small import Compared, Size, pattern


def locked(claim: Claim) -> str:
    """SHA-256 of a claim's configuration: a receipt of another one is of another claim."""
    return hashlib.sha256(json.dumps(claim.config, sort_keys=True).encode()).hexdigest()


def run_small(claim: Claim, engine: Trainable, size: Size, variant: str) -> dict[str, Any]:
    """The claim's pattern on the built-in model, as a receipt."""
    with Meter() as meter:
        parts = pattern(claim, engine, size, variant)
    return {
        **_head(claim, engine, "pilot", None), "verdict": verdict(parts), "size": asdict(size),
        "pattern": [{"words": p.words, "finding": p.finding, "difference": p.difference.to_json()} for p in parts],
        "meter": meter.figures(),
    }  # fmt: skip


def run_full(claim: Claim, setting: str | None, engine: Trainable, given: Given) -> dict[str, Any]:
    """The claim's figure on the user's model, as a receipt."""
    with Meter() as meter:
        found: Estimate = reached(claim, setting, engine, given)
    published = None if setting is None else claim.figures[setting]
    told = "no figure is published" if published is None else agrees(found, published, claim.tolerance)
    return {
        **_head(claim, engine, "full", setting), "verdict": told, "published": published, "reached": found.to_json(),
        "given": asdict(given), "meter": meter.figures(),
    }  # fmt: skip


def verdict(parts: Sequence[Compared]) -> str:
    """held, where every part is; reversed, where one is; else not told apart."""
    findings = {p.finding for p in parts}
    if not findings:
        return "nothing to see at this scale"
    return "reversed" if "reversed" in findings else "held" if findings == {"held"} else "not told apart"


def write(receipt: dict[str, Any], folder: Path) -> Path:
    """The receipt as `CLAIM-SCALE[-SETTING].json`, whole or not at all."""
    setting = "" if receipt["setting"] is None else "-" + str(receipt["setting"]).replace(" ", "-")
    name = f"{receipt['claim']}-{receipt['scale']}{setting}.json"
    return write_text(folder / name, json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")


def _head(claim: Claim, engine: Trainable, scale: str, setting: str | None) -> dict[str, Any]:
    return {
        "kind": "steerlab claim", "claim": claim.name, "says": claim.says, "source": asdict(claim.source), "scale": scale,
        "setting": setting, "config": claim.config, "locked": locked(claim), "tolerance": claim.tolerance, "note": claim.note,
        "model": engine.name, "identity": engine.identity, "versions": engine.versions, "code": code_digest(),
    }  # fmt: skip
