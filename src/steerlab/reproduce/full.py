"""A claim on the real weights: its locked configuration run on the user's model and data, to the figure that was published."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import data
from ..bench.axbench.metrics import best_factor
from ..contrast import Contrast, Example
from ..engines.base import Sampling, Trainable
from ..errors import ConfigError, DataError, EditError
from ..evals.stats import Estimate, bootstrap
from ..judges.base import Judge
from ..judges.spec import parse_rule
from ..loading import read_data, read_prompts
from ..methods.base import Method, method
from ..methods.cdas import CDAS
from ..progress import track
from ..steering import Steering
from ..suites.base import suite
from ..suites.run import run
from .claims import Claim
from .scales import strength_of

WHOLE = 2.0  # of the published ratings; judges give degrees


class FactorsLeftOut(UserWarning):
    """Some of a claim's factors can't be run here, so that the best of the others is told."""


@dataclass(frozen=True)
class Given:
    """What a run needs beside the model: items (`data`), data to fit on, prompts, a judge; and how many concepts of the
    file.
    """

    data: str | None = None
    fit_on: str | None = None
    prompts: str | None = None
    judge: str | None = None
    concepts: int | None = None
    seed: int = 42


def reached(claim: Claim, setting: str | None, engine: Trainable, given: Given) -> Estimate:
    """The figure that the claim's configuration gives, with its interval. Raises `ConfigError` for what is not given."""
    return (
        _axbench(claim, setting, engine, given) if claim.runner == "axbench" else _suite(claim, setting, engine, given)
    )


def block_of(setting: str | None) -> str | None:
    """The block that a setting names ("gemma-2-2b-it layer 10")."""
    found = re.search(r"layer (\d+)", setting or "")
    return found.group(1) if found else None


def configured(config: Mapping[str, Any], setting: str | None) -> dict[str, Any]:
    """A claim's configuration for a setting: what all have in common, and what `by_model` says for its model or block."""
    made = {k: v for k, v in config.items() if k != "by_model"}
    for named, own in dict(config.get("by_model", {})).items():
        if setting is not None and setting.startswith(str(named)):
            made |= own
    return made


def method_of(config: Mapping[str, Any], site: str | None) -> Method:
    """The method of a configuration (`configured`) at a block."""
    if config.get("published"):
        return CDAS.published(site=site, **config.get("settings", {}))
    name = str(config["method"])
    settings = dict(config.get("settings", {}))
    if site is not None and "site" in method(name).__dataclass_fields__:
        settings["site"] = site
    return method(name, settings)


# --- AxBench's score ------------------------------------------------------------------------------------------------


def _axbench(claim: Claim, setting: str | None, engine: Trainable, given: Given) -> Estimate:
    for name, value in (("--data", given.data), ("--prompts", given.prompts), ("--judge", given.judge)):
        if value is None:
            raise ConfigError(
                f"the claim {claim.name!r} needs {name}: AxBench's concept rows (--data), instructions one in each line"
                " (--prompts), and a judge of three ratings (--judge llm,model=...,what=all)."
            )
    config = configured(claim.config, setting)
    told = {c.id or c.name: c.name for c in data.concepts(str(given.data))}
    if not told:
        raise DataError(f"{given.data} names no concepts; expected AxBench's rows.")
    asked = read_prompts(str(given.prompts), n=10**6)
    scores: list[list[list[float | None]]] = []
    for k, name in enumerate(track(list(told)[: given.concepts], f"{claim.name}: concepts")):
        contrast = data.read(str(given.data), concept=name)
        made = method_of(config, block_of(setting))
        steering = made.fit(engine, contrast)
        scale = str(config.get("scale", "strength"))
        factors = [float(f) for f in config["factors"]]
        strengths = reachable(factors, scale, made, steering, engine, contrast)
        if len(strengths) < len(factors):
            warnings.warn(
                f"{claim.name}, {told[name]}: {len(factors) - len(strengths)} of {len(factors)} published factors are left out,"
                " since no strength of a clamp sets its coordinate between the poles.",
                FactorsLeftOut,
                stacklevel=2,
            )
        rng = np.random.default_rng(given.seed + k)
        many = min(int(config["per_concept"]), len(asked))
        prompts = [asked[i] for i in rng.choice(len(asked), size=many, replace=False)]
        judge = parse_rule(f"{given.judge},concept={told[name].replace(',', ',,')}")
        scores.append([chosen(engine, steering, prompts, judge, config, given.seed + k, strengths)])
    return bootstrap(scores)


def reachable(
    factors: Sequence[float], scale: str, made: Method, steering: Steering, engine: Trainable, contrast: Contrast
) -> list[float]:
    """The strengths of published factors; a multiplier of a pole that no strength reaches is left out."""
    found: list[float] = []
    for factor in factors:
        with suppress(EditError):
            found.append(strength_of(factor, scale, made, steering, engine, contrast))
    return found


def chosen(
    engine: Trainable,
    steering: Steering,
    prompts: Sequence[Example],
    judge: Judge,
    config: Mapping[str, Any],
    seed: int,
    strengths: Sequence[float],
) -> list[float | None]:
    """The ratings of half of the prompts at the strength that is best on the other half. What can't be rated is None."""
    if len(prompts) < 2:
        raise ConfigError(
            f"there are {len(prompts)} prompts for a concept; half of them choose the factor, so give two at least."
        )
    low, high = steering.domain
    inside = [s for s in strengths if low - 1e-9 <= s <= high + 1e-9]
    if not inside:
        raise ConfigError(
            f"this steering takes strengths from {low:g} to {high:g}, and no factor of the claim lies there"
            f" (as strengths: {', '.join(f'{s:g}' for s in strengths) or 'none can be reached'})."
        )
    sampling = Sampling(int(config["tokens"]), float(config["temperature"]), seed=seed)
    table: list[list[float | None]] = []
    for strength in inside:
        replies = engine.generate(list(prompts), steering.scaled(strength), sampling)
        rated = judge.scores([r.text for r in replies], list(prompts))
        table.append([None if s.value is None else WHOLE * s.value for s in rated])
    half = len(prompts) // 2
    best = best_factor([row[:half] for row in table])
    return [None] * (len(prompts) - half) if best is None else table[best][half:]


# --- a suite's metric -----------------------------------------------------------------------------------------------


def _suite(claim: Claim, setting: str | None, engine: Trainable, given: Given) -> Estimate:
    config = configured(claim.config, setting)
    made = suite(str(config["suite"]), {"n": 10**6, **config.get("suite_settings", {})})
    if given.data is None:
        raise ConfigError(f"the claim {claim.name!r} needs --data: {made.layout}.")
    steering, strength = None, float(config.get("strength", 0))
    if "method" in config:
        if given.fit_on is None:
            raise ConfigError(
                f"the claim {claim.name!r} needs --fit-on: the contrast data that its steering is fitted on."
            )
        way, contrast = method_of(config, block_of(setting)), read_data(given.fit_on)
        steering = way.fit(engine, contrast)
        if "factor" in config:
            strength = strength_of(float(config["factor"]), str(config["scale"]), way, steering, engine, contrast)
    items = made.read(given.data)
    result = run(made, engine, items, steering, strengths=[strength] if strength else None, tokens=128, data=given.data)
    found = result.found[result.conditions[-1].label]
    name = str(config["metric"])
    if name not in found:
        raise DataError(f"{given.data} gives no figure {name!r}; it gives {', '.join(found)}.")
    return _turned(found[name]) if config.get("value") == "one_minus" else found[name]


def _turned(e: Estimate) -> Estimate:
    """1 − x."""
    if e.mean is None or e.low is None or e.high is None:
        return e
    return Estimate(1 - e.mean, 1 - e.high, 1 - e.low, e.n, e.missing)


def agrees(found: Estimate, published: float, tolerance: float) -> str:
    """Whether a figure is the published one: within its tolerance, or its interval reaches it."""
    if found.mean is None or found.low is None or found.high is None:
        return "nothing could be measured"
    if abs(found.mean - published) <= tolerance:
        return "within the tolerance"
    if found.low - tolerance <= published <= found.high + tolerance:
        return "the interval reaches it"
    return "above it" if found.mean > published else "below it"
