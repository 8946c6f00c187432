"""A generator: writes steerings from descriptions on one model, and is one safetensors file without a second model inside.

A method that learns to write has `fit_generator(engine, contrasts) -> Generator`; `generator(description)` is a steering
like any other, which knows the digest of what wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from .. import artefact, config, progress
from ..contrast import Contrast
from ..edits import Shift
from ..engines.base import Conversation, Trainable, as_example
from ..errors import ArtefactError, ConfigError, DataError, SteerlabError, nearest
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Meta, Steering, same_model
from .base import assemble, method
from .frozen import Frozen
from .trained import Fit, Free, Given
from .writing import Ask, Writer, described

if TYPE_CHECKING:
    from os import PathLike

    from .hypersteer import HyperSteer
    from .keep import Keep

FORMAT = 1
KINDS = ("hypersteer",)


@dataclass(frozen=True, eq=False)
class Generator:
    """`generator(description)` is the steering that the network writes; with a prompt, where it reads one.

    `settings` are the method's, `tensors` the network's parameters and constants, all float32 on the CPU.
    """

    engine: Trainable
    settings: HyperSteer
    sites: tuple[Site, ...]
    positions: Positions
    tensors: Mapping[str, Tensor]
    meta: Meta

    def __post_init__(self) -> None:
        # products round by where memory begins: tensors mapped from a file would write other last bits than those trained
        kept = {name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}
        object.__setattr__(self, "tensors", kept)

    def __call__(self, description: str, prompt: Conversation | None = None) -> Steering:
        """The steering for a description. Raises `DataError` where it is empty or longer than the model's context.

        Raises `ConfigError` where a prompt is missing that the network reads, or given where it reads none.
        """
        description = described(description)
        reads = self.settings.context != "none"
        if reads != (prompt is not None):
            raise ConfigError(
                f"this generator has context={self.settings.context!r}, and a prompt was"
                f" {'not given' if reads else 'given'}; {'pass prompt=...' if reads else 'leave it out'}."
            )
        example = None if prompt is None else as_example(prompt)
        writer = self._writer
        with torch.no_grad():
            vectors = writer(self.tensors, [writer.ask(description, example)])
        made = [Intervention(s, Shift(v[0]), self.positions) for s, v in zip(self.sites, vectors, strict=True)]
        digest = self.digest
        data = {"concept": description, "source": f"generator {digest}", "generator": digest}
        if example is not None:
            data["prompt"] = example.instruction
        told = {**self.meta.method, "description": description}
        meta = replace(self.meta, method=told, data=data, figures={})
        return Steering(tuple(made), None, meta)

    @property
    def digest(self) -> str:
        """SHA-256 over what it writes by: two with the same digest write the same steerings on one model."""
        h = hashlib.sha256(json.dumps(self._writes(), sort_keys=True).encode())
        for name in sorted(self.tensors):
            h.update(f"{name} {list(self.tensors[name].shape)}".encode() + self.tensors[name].numpy().tobytes())
        return h.hexdigest()

    def fitted(self, made_by: HyperSteer, contrast: Contrast) -> Steering:
        """The steering for a contrast's description, as the fit of a method."""
        if made_by.site is not None and tuple(map(Site.parse, made_by.site.split(","))) != self.sites:
            raise ConfigError(
                f"the generator {made_by.generator} edits {', '.join(map(str, self.sites))}, and site={made_by.site!r} was"
                " asked for; leave the site out, or train a generator there."
            )
        steering = self(made_by.description or contrast.concept)
        told = {"generator": self.digest, "description": steering.meta.data["concept"]}
        return assemble(made_by, self.engine, contrast, steering.interventions, figures=told)

    # --- the file -----------------------------------------------------------------------------------------------------

    @classmethod
    def made(cls, settings: HyperSteer, fit: Fit, contrasts: Sequence[Contrast], figures: Mapping[str, Any]) -> Self:
        """What a fit of many concepts has come to."""
        given, engine = fit.given, fit.given.engine
        concepts = [{"description": c.concept, "digest": c.digest(), "pairs": len(c.positive)} for c in contrasts]
        told = settings.told(fit.best, given, fit.curve)
        meta = Meta(
            engine.name, engine.revision, engine.fingerprint, engine.template,
            method={"name": settings.name, **config.to_dict(settings)},
            data={"concepts": concepts},
            versions=engine.versions,
            figures={"loss": fit.losses, **told, **figures},
        )  # fmt: skip
        return cls(engine, settings, given.sites, given.positions, {**given.constants, **fit.best}, meta)

    def save(self, path: str | PathLike[str]) -> None:
        """One safetensors file with a JSON header, written beside and renamed. Raises `ArtefactError`."""
        named = {name: {"tensor": name} for name in sorted(self.tensors)}
        document = {"format": FORMAT, **self._writes(), "tensors": named, "meta": artefact.plain(asdict(self.meta))}
        artefact.write(path, document, self.tensors)

    @classmethod
    def load(cls, path: str | PathLike[str], engine: Trainable) -> Self:
        """Read a file that `save` wrote, for the model that it was trained on.

        Raises `ArtefactError` for an unreadable file, an unknown kind, a newer format, another model or chat template, or
        tensors that don't fit it.
        """
        document, tensors = artefact.read(path)
        kind, given = document.get("generator"), document.get("format")
        if kind is None and "interventions" in document:
            raise ArtefactError(f"{path} is a steering, not a generator; use it as it is.")
        if given != FORMAT:
            raise ArtefactError(f"{path} is of format {given!r}; this steerlab reads generators of format {FORMAT}.")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ArtefactError(f"{path} is a generator of the kind {kind!r}. {nearest(str(kind), KINDS)}")
        try:
            meta = Meta(**document["meta"])
            fields = {k: v for k, v in meta.method.items() if k != "name"}
            settings = cast("HyperSteer", method(kind, fields))
            sites = tuple(Site.parse(s) for s in document["sites"])
            positions = Positions.from_json(document["positions"])
        except ArtefactError:
            raise
        except (SteerlabError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            raise ArtefactError(f"{path} doesn't hold a valid generator: {problem}") from problem
        if meta.fingerprint is None or not same_model(meta.fingerprint, engine.fingerprint):
            raise ArtefactError(
                f"{path} is a generator for {meta.model}, and the model is {engine.name}; it reads hidden states of its own"
                " model alone. Load that one, or train a generator here."
            )
        if meta.template != engine.template:
            raise ArtefactError(
                f"{path} was trained under another chat template of {meta.model}; load the model with that."
            )
        if not sites:
            raise ArtefactError(f"{path} doesn't hold a valid generator: it has no sites.")
        made = cls(engine, settings, sites, positions, tensors, meta)
        try:
            made._fits(path)
            same = artefact.plain(made._writes()) == {k: document.get(k) for k in made._writes()}
        except ArtefactError:
            raise
        except (SteerlabError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            raise ArtefactError(f"{path} doesn't hold a valid generator: {problem}") from problem
        if not same:
            raise ArtefactError(f"{path}'s settings and its header disagree; it is not read.")
        return made

    @property
    def _writer(self) -> Writer:
        return Writer(self.settings, Frozen(self.engine, self.sites))

    def _writes(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "generator": settings.name,
            "sites": [str(s) for s in self.sites],
            "positions": self.positions.to_json(),
            "network": {k: getattr(settings, k) for k in ("context", "wording", "reads", "layers", "heads", "width")},
        }

    def _fits(self, path: str | PathLike[str]) -> None:
        wanted = self._writer.tensors
        for name in sorted({*wanted, *self.tensors}):
            found = tuple(self.tensors[name].shape) if name in self.tensors else None
            if found != wanted.get(name):
                raise ArtefactError(
                    f"{path} has {name!r} of the shape {found}; on {self.engine.name} it needs {wanted.get(name)}."
                )
            if not bool(torch.isfinite(self.tensors[name]).all()):
                raise ArtefactError(f"{path} has values in {name!r} that are NaN or infinite; train it again.")


def pooled(
    made: HyperSteer,
    engine: Trainable,
    contrasts: Sequence[Contrast],
    vectors: Sequence[Steering] | None,
    keep: Keep | None,
) -> Given:
    """What one network for many contrasts begins with: all their items, those of some whole concepts held out."""
    names = [described(c.concept) for c in contrasts]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{len(names)} contrasts with {len(set(names))} different descriptions were given; a generator learns from the"
            " difference between concepts: give at least 2, each once, with their descriptions as `concept`."
        )
    sites, positions = made.placed(engine), Positions.parse(made.positions)
    made.check(engine, sites)
    frozen = made.frozen(engine, sites, positions, keep)
    each = replace(made, held_out=0.0, description=None)
    givens = [each.given(engine, contrast, sites, positions, frozen) for contrast in contrasts]
    order = torch.randperm(len(givens), generator=torch.Generator().manual_seed(made.seed)).tolist()
    aside = {*order[: max(1, round(made.held_out * len(order)))]} if made.held_out and len(order) >= 5 else set[int]()
    train = [item for n, g in enumerate(givens) if n not in aside for item in g.train]
    held_out = [item for n, g in enumerate(givens) if n in aside for item in g.train]
    given = givens[0]._replace(train=train, held_out=held_out)
    given.constants.update(_targets(made, names, vectors, sites, aside))
    return given


def _targets(
    made: HyperSteer, names: Sequence[str], vectors: Sequence[Steering] | None, sites: Sequence[Site], aside: set[int]
) -> dict[str, Tensor]:
    """The given vectors of the concepts that are trained on, by name."""
    given = len(vectors or ())
    if given != (len(names) if made.reconstruct else 0):
        raise ConfigError(
            f"reconstruct={made.reconstruct} with {given} vectors for {len(names)} contrasts; give a vector for each and epochs"
            " to come close to them, or neither."
        )
    found: dict[str, Tensor] = {}
    for n, (name, steering) in enumerate(zip(names, vectors or (), strict=False)):
        edits = {i.site: i.edit for i in steering.interventions}
        if set(edits) != set(sites) or not all(isinstance(e, Shift) for e in edits.values()):
            raise ConfigError(f"the steering for {name!r} is no single vector at {', '.join(map(str, sites))}.")
        if n not in aside:
            found[f"target {name}"] = torch.cat([cast("Shift", edits[s]).v for s in sites])
    return found


def regressed(made: HyperSteer, free: Free, given: Given, asks: Sequence[Ask]) -> Free:
    """Parameters moved so that what is written comes close to the targets: 1 − cos + ‖v − v*‖²/‖v*‖², all concepts at once."""
    wanted = torch.stack([given.constants.pop(f"target {ask.description}") for ask in asks])
    optimiser, writer = made.optimisers(free, made.reconstruct), Writer(made, given.frozen)
    read = writer.read(asks)
    with torch.enable_grad():
        for _ in progress.track(range(made.reconstruct), "coming close to given vectors"):
            leaves = {name: t.detach().clone().requires_grad_() for name, t in optimiser.free.items()}
            found = torch.cat(writer.write({**given.constants, **leaves}, read), dim=1)
            off = (found - wanted).square().sum(dim=1) / wanted.square().sum(dim=1).clamp_min(1e-12)
            loss = (1 - torch.cosine_similarity(found, wanted, dim=1) + off).mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            optimiser.move(dict(zip(leaves, gradients, strict=True)))
    return optimiser.free
