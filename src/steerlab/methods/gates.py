"""Gates fitted from data: a probe that lets a steering act where it should, and nowhere else (CAST, arXiv 2409.05907).

The probe tells the prompts on which the steering is meant to act from all others: the other class of the contrast, its
neutral prompts, and a corpus of unrelated ones. Half of each is fitted on; on the other half the threshold is set, at a
chosen share of unrelated prompts that may open it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..contrast import Contrast, Example
from ..controls import Constant, Gate
from ..engines.base import Captured, Trainable
from ..errors import ConfigError, DataError
from ..positions import LAST_PROMPT
from ..sites import Site
from ..steering import Steering
from .probe import fit_probe

if TYPE_CHECKING:
    from jaxtyping import Float

When = Literal["ahead", "held", "token"]
Opens = Literal["positive", "negative", "both"]
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


class Fitted(NamedTuple):
    """A gate's direction and threshold at a site, and what it does on held-out prompts."""

    site: Site
    direction: Float[Tensor, " d"]
    threshold: float
    open_where_meant: float
    open_elsewhere: float
    margin: float  # between the scores of both, in standard deviations of the unrelated ones'


def gated(
    engine: Trainable,
    steering: Steering,
    contrast: Contrast,
    neutral: Sequence[Example] = (),
    *,
    opens: Opens = "positive",
    when: When = "ahead",
    site: Site | None = None,
    rate: float = 0.0,
    seed: int = 0,
) -> Steering:
    """The same steering behind a gate; its figures say how often that opens, where it is meant to and elsewhere.

    It opens on the contrast's `positive` prompts (to suppress a behaviour where it would come), on its `negative` ones, or
    on both. `ahead` decides by a pass of the untouched prompt before anything else; `held` at the last prompt token, for
    positions that start there; `token` at each token, fitted on all that the steering touches, answers with them. `site`
    None takes the block where held-out prompts are told apart best; a gate that isn't decided ahead reads at or before the
    first site that it acts on. At `rate` 0 the threshold lies halfway between the highest score of an unrelated prompt and
    the lowest of a meant one, where these are apart.

    Raises `DataError` for too few prompts, or where no threshold lets half of the meant ones through.
    """
    if not steering.interventions:
        raise ConfigError("this steering has no intervention to gate; a prompt arm has none.")
    if any(not isinstance(i.control, Constant) for i in steering.interventions):
        raise ConfigError("this steering has a control already; gate the one without.")
    if not 0 <= rate < 1:
        raise ConfigError(f"rate is {rate}; expected a share of unrelated prompts in [0, 1).")
    meant = {
        "positive": contrast.positive,
        "negative": contrast.negative,
        "both": contrast.positive + contrast.negative,
    }[opens]
    other = {"positive": contrast.negative, "negative": contrast.positive, "both": ()}[opens]
    elsewhere = [*other, *contrast.neutral, *neutral]
    whole = when == "token"  # each token of a prompt and its answer is a row, else each prompt's last one
    prompts = [list(dict.fromkeys(e if whole else e.without_answer() for e in side)) for side in (meant, elsewhere)]
    if min(len(side) for side in prompts) < 8:
        raise DataError(
            f"a gate needs at least 8 different prompts on which it opens and 8 on which it doesn't; got {len(prompts[0])} and"
            f" {len(prompts[1])}. Give unrelated prompts with --neutral."
        )
    first = min((s for s in steering.sites), key=lambda s: s.depth)
    sites = (
        [site]
        if site is not None
        else [Site(n) for n in range(engine.depth) if when == "ahead" or Site(n).depth <= first.depth]
    )
    if not sites:
        raise ConfigError(f"no block lies at or before {first} for a gate to read; give when='ahead', which reads any.")
    where = steering.interventions[0].positions if whole else LAST_PROMPT
    read = engine.capture([*prompts[0], *prompts[1]], sites, where)
    order = [torch.randperm(len(side), generator=torch.Generator().manual_seed(seed)) for side in prompts]
    found = [_fitted(s, read[s], order, rate, seed) for s in sites]
    best = max(found, key=lambda f: (f.open_where_meant, f.margin))
    if best.open_where_meant < 0.5:
        raise DataError(
            f"at a rate of {rate:g} the best probe (at {best.site}) opens on {best.open_where_meant:.0%} of the"
            f" {'tokens' if whole else 'prompts'} where it is meant to; these can't be told apart. Allow a higher rate, or give"
            " more data."
        )
    gate = Gate(best.site, best.direction, best.threshold, held=when == "held", ahead=when == "ahead")
    made = [
        replace(i, control=gate.scaled(i.control.value))
        for i in steering.interventions
        if isinstance(i.control, Constant)
    ]
    told = {
        "site": str(best.site), "when": when, "opens": opens, "rate": rate, "open_where_meant": round(best.open_where_meant, 4),
        "open_elsewhere": round(best.open_elsewhere, 4), "margin": round(best.margin, 3),
        "prompts": [len(side) - len(side) // 2 for side in prompts],
    }  # fmt: skip
    meta = replace(
        steering.meta, figures={**steering.meta.figures, "gate": told}, range=None
    )  # the gate changes what it costs
    return replace(steering, interventions=tuple(made), meta=meta)


def _fitted(site: Site, read: Captured, order: Sequence[Tensor], rate: float, seed: int) -> Fitted:
    halves: list[list[Tensor]] = []
    for side, before in ((order[0], 0), (order[1], len(order[0]))):
        parts = (side[: len(side) // 2], side[len(side) // 2 :])  # of examples, so that no prompt is in both
        halves.append([read.values[torch.isin(read.row, part + before)] for part in parts])
    weight, bias, _ = fit_probe(halves[0][0], halves[1][0], RIDGES, 0.25, seed)
    yes, no = (side[1] @ weight + bias for side in halves)
    highest = float(torch.quantile(no.double(), 1 - rate)) if rate else float(no.max())
    lowest = float(yes.min())
    threshold = (highest + lowest) / 2 if not rate and lowest > highest else highest
    spread = float(no.std().clamp_min(1e-12))
    return Fitted(
        site, weight, threshold - bias, float((yes > threshold).float().mean()), float((no > threshold).float().mean()),
        (float(yes.median()) - highest) / spread,
    )  # fmt: skip
