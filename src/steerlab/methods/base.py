"""What a method is: a frozen dataclass of hyper-parameters with `fit(engine, contrast) -> Steering`.

Two bases help where they fit: `FromActivations` (here) for methods that solve for an edit from activations, and
`Trained` (in `trained`) for those that train one through the model. A method's fields
are its configuration, its YAML and its flags.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import config, plugins
from ..contrast import Contrast, Example
from ..edits import Edit
from ..engines.base import Trainable
from ..errors import DataError, SiteError
from ..meter import Meter
from ..positions import GENERATED, LAST_PROMPT, NOT_TEMPLATE, Positions
from ..sites import Site
from ..steering import Intervention, Meta, Prompt, Steering

Pooling = Literal["last", "token", "response", "paired"]
Aim = Literal["elicit", "suppress", "control"]  # towards the positive class, away from it, or neither on purpose


@dataclass(frozen=True)
class Method(ABC):
    """Hyper-parameters with a `fit`. Fields are plain values, each with a default."""

    aim: ClassVar[Aim] = "elicit"  # what strength 1 does
    selective: ClassVar[bool] = False  # it acts on prompts of the positive class alone, and leaves others bit-identical
    symmetric: ClassVar[bool] = False  # fitted with the classes swapped, it acts like .scaled(-1)
    paper: ClassVar[str] = ""

    @abstractmethod
    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        """The steering that these hyper-parameters make of the data. Changes neither model nor data.

        Raises `DataError` for data that the method can't use, `SiteError` for a site that the model doesn't have.
        """

    @property
    def name(self) -> str:
        """The name under which it is loaded: its file's, or its entry point's."""
        return plugins.name_of(type(self))


def method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of this name with these settings. Raises `ConfigError` with the nearest name or setting."""
    return config.build(plugins.load(name), settings or {}, where=f"the method {name}")


@dataclass(frozen=True)
class FromActivations(Method):
    """A method that reads activations of both classes and solves for an edit.

    `site` is a block's number, a site such as `heads@3[5]`, or several with commas between (None: the block at two
    thirds of the depth). `pooling` says what is read: the `last` prompt token; every `token` after the template's head;
    the mean over each `response`; or `paired`, where each response is read under both prompts of its pair. `positions`
    is where it steers.
    """

    site: str | None = None
    pooling: Pooling = "last"
    positions: str = "not_template"
    seed: int = 0

    @abstractmethod
    def solve(self, positive: Tensor, negative: Tensor, paired: bool) -> Edit:
        """The edit from activations `[n, d]` of the one class and `[m, d]` of the other, in float32.

        `paired` says that row i of both belong together.
        """

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        sites = parse_sites(engine, self.site)
        positions = Positions.parse(self.positions)
        with Meter() as meter:
            read = read_classes(engine, contrast, sites, self.pooling)
            paired = self.pooling == "paired" or (contrast.paired and self.pooling != "token")
            made = [Intervention(site, self.solve(*read[site], paired), positions) for site in sites]
            figures = {"separation": {str(s): separation(*read[s]) for s in sites}}
        return assemble(self, engine, contrast, made, figures={**figures, **meter.figures()})


def parse_sites(engine: Trainable, text: str | None, up: float = 2 / 3) -> tuple[Site, ...]:
    """The sites that a setting names, each checked against the model. None is the block at that share of the depth."""
    if text is None:
        return (Site(int(engine.depth * up)),)
    sites = tuple(Site.parse(piece) for piece in str(text).split(","))
    if len(set(sites)) < len(sites):
        raise SiteError(f"the sites {text!r} name one twice; give each once.")
    for site in sites:
        engine.width(site)
    return sites


def sites_or_all(engine: Trainable, text: str | None) -> tuple[Site, ...]:
    """The sites that a setting names, in the order of a pass; None is every block's output."""
    named = parse_sites(engine, text) if text is not None else tuple(Site(n) for n in range(engine.depth))
    return tuple(sorted(named, key=lambda s: s.depth))


def read_classes(
    engine: Trainable, contrast: Contrast, sites: Sequence[Site], pooling: Pooling
) -> dict[Site, tuple[Tensor, Tensor]]:
    """Activations of the positive and of the negative class at each site, `[n, d]` and `[m, d]`.

    Raises `DataError` where the pooling needs answers or pairs that the data lacks.
    """
    if pooling == "paired":
        positive, negative = same_responses(contrast)
    else:
        positive, negative = contrast.positive, contrast.negative
    if pooling in ("response", "paired"):
        _need_answers([*positive, *negative], f"pooling={pooling!r}")
    if pooling == "last":
        positive, negative = ([e.without_answer() for e in side] for side in (positive, negative))
    where: Positions = {"last": LAST_PROMPT, "token": NOT_TEMPLATE}.get(pooling, GENERATED)
    captured = engine.capture([*positive, *negative], sites, where)
    found: dict[Site, tuple[Tensor, Tensor]] = {}
    for site, read in captured.items():
        if pooling in ("response", "paired"):
            values = read.mean_by_row(len(positive) + len(negative))
            found[site] = (values[: len(positive)], values[len(positive) :])
        else:
            mine = read.row < len(positive)
            found[site] = (read.values[mine], read.values[~mine])
    return found


def same_responses(contrast: Contrast) -> tuple[list[Example], list[Example]]:
    """Each response of each pair under the positive and under the negative prompt: what differs is the prompt alone."""
    positive: list[Example] = []
    negative: list[Example] = []
    for p, n in contrast.pairs:
        for answer in (p.answer, n.answer):
            if answer:
                positive.append(replace(p, answer=answer))
                negative.append(replace(n, answer=answer))
    if not positive:
        raise DataError(
            "pooling='paired' reads responses, and no example has an answer; use pooling='last', or add answers."
        )
    return positive, negative


def mean_gap(positive: Tensor, negative: Tensor) -> Tensor:
    """The difference of the class means, `[d]`. Raises `DataError` where there is none."""
    gap = positive.double().mean(dim=0) - negative.double().mean(dim=0)
    if float(gap.norm()) <= 1e-6 * float(positive.double().norm(dim=1).mean()):
        raise DataError(
            "both classes have the same mean activation here, so there is no direction between them. Are the examples of"
            " the two classes identical at the positions that are read? Try another pooling, or another layer."
        )
    return gap.float()


def along(direction: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The direction from the negative to the positive class, as long as the gap between the class means along it."""
    unit = direction / direction.norm()
    return float(mean_gap(positive, negative) @ unit) * unit


def separation(positive: Tensor, negative: Tensor) -> float | None:
    """Gap of the class means along their difference over the pooled standard deviation; None for single examples."""
    gap = positive.mean(dim=0) - negative.mean(dim=0)
    if len(positive) < 2 or len(negative) < 2 or float(gap.norm()) == 0:
        return None
    unit = gap / gap.norm()
    spread = torch.cat([(positive @ unit) - (positive @ unit).mean(), (negative @ unit) - (negative @ unit).mean()])
    return round(float(gap.norm() / spread.std().clamp_min(1e-12)), 4)


def assemble(
    made_by: Method,
    engine: Trainable,
    contrast: Contrast,
    interventions: Sequence[Intervention] = (),
    *,
    prompt: Prompt | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Steering:
    """The steering with where it comes from: model, method, data, versions, and what the fit measured."""
    meta = Meta(
        model=engine.name,
        revision=engine.revision,
        fingerprint=engine.fingerprint,
        template=engine.template,
        method={"name": made_by.name, **config.to_dict(made_by)},
        data={
            "concept": contrast.concept,
            "source": contrast.source,
            "digest": contrast.digest(),
            "positive": len(contrast.positive),
            "negative": len(contrast.negative),
            "neutral": len(contrast.neutral),
            "paired": contrast.paired,
            **({"rendering": engine.rendering} if engine.rendering else {}),
        },
        versions=engine.versions,
        figures=dict(figures or {}),
    )
    return Steering(tuple(interventions), prompt, meta)


def _need_answers(examples: Sequence[Example], what: str) -> None:
    without = sum(not e.answer for e in examples)
    if without:
        raise DataError(
            f"{what} reads responses, and {without} of {len(examples)} examples have no answer; add them, or read the"
            " prompts with pooling='last'."
        )
