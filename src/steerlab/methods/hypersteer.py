"""HyperSteer: a network that writes steering vectors from descriptions, trained on many concepts at once (arXiv 2506.03292).

The frozen model reads a description, a small transformer reads the model's hidden states, and its head gives the vector v
of h + v at all tokens after the template's head. Objective: mean cross-entropy of the concepts' answers under plain
prompts. The published network is a trained copy of the model's first blocks; here those blocks are the frozen model
itself, so that no second model is needed, and only what comes after them is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast
from ..edits import Edit, Shift
from ..engines.base import Batch, Trainable
from ..errors import ConfigError, UnsupportedError
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Steering
from .frozen import EditRows, Frozen
from .generator import Generator, pooled, regressed
from .keep import Keep
from .optimisers import Adam, Optimiser
from .trained import Fit, Free, Given, Row, Step, Trained
from .vectors import Pair, costs, elicited
from .writing import Ask, Writer, described

if TYPE_CHECKING:
    from jaxtyping import Float


class Item(NamedTuple):
    """A pair and the description of its concept."""

    description: str
    pair: Pair


@dataclass(frozen=True)
class HyperSteer(Trained):
    """A network from descriptions to vectors: `fit_generator` trains one on many contrasts, to write for any description.

    `fit` on one contrast writes its vector with the saved generator that `generator` names: nothing is trained and no answer
    read, so that a table can hold it beside methods that are fitted. Without one, a network is trained on this contrast
    alone, which is one vector the long way round. The description is the contrast's concept, or `description`.

    `context` says what is read beside the description: nothing (`none`); the prompt, in one conversation (`prompt`); or the
    prompt apart, which each layer attends to (`cross`). A vector is then of that prompt, and `fit`, which owes one for all
    prompts, refuses. `wording` is what the model is given to read, `reads` the site where its states are taken (none: the
    block that is edited), `width` the network's (none: the model's); without `layers` it is a linear map of the mean state.
    `reconstruct` epochs bring what it writes close to given vectors before it is trained on answers.
    """

    paper: ClassVar[str] = "arXiv 2506.03292"
    small: ClassVar[Mapping[str, Any]] = {"step": 0.01, "layers": 1, "width": 32}
    context: Literal["none", "prompt", "cross"] = "none"
    wording: str = "{}"
    reads: str | None = None
    layers: int = 2
    heads: int = 4
    width: int | None = None
    epochs: int = 10
    batch_size: int = 12
    step: float = 8e-5
    weight_decay: float = 0.0
    reconstruct: int = 0
    generator: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 0 or self.heads < 1 or (self.width or 1) < 1 or self.reconstruct < 0 or self.weight_decay < 0:
            raise ConfigError(
                f"hypersteer has layers={self.layers}, heads={self.heads}, width={self.width},"
                f" reconstruct={self.reconstruct}, weight_decay={self.weight_decay}; expected heads and width from 1, the"
                " others from 0."
            )
        if self.wording.count("{}") != 1:
            raise ConfigError(f"the wording is {self.wording!r}; expected one {{}} where the description goes.")
        if self.context == "cross" and not self.layers:
            raise ConfigError("context='cross' has no layers that could attend to the prompt; expected layers from 1.")

    # --- what is trained ----------------------------------------------------------------------------------------------

    def initial(self, given: Given) -> Free:
        writer, first = Writer(self, given.frozen), {item.description: item for item in reversed([*given.train])}
        asks = [writer.ask(description, item.pair[1]) for description, item in first.items()]
        free, constants = writer.begun(asks, given.generator)
        given.constants.update(constants)
        return regressed(self, free, given, asks) if self.reconstruct else free

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        return Adam(free, step=self.step, steps=steps, weight_decay=self.weight_decay)

    def items(self, part: Contrast, whole: Contrast) -> list[Any]:
        description = described(self.description or whole.concept)
        return [Item(description, pair) for pair in part.pairs]

    def rows(self, item: Item, draw: torch.Generator) -> list[Row]:
        return [Row(elicited(item.pair), tag=item.description)]

    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        return costs(step.said).mean()

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        writer = Writer(self, given.frozen)
        asks = [writer.ask(row.tag, row.example) for row in rows]
        once = list(dict.fromkeys(asks))
        which = torch.tensor([once.index(ask) for ask in asks])
        vectors = writer({**given.constants, **free}, once)
        return {site: _adding(v, which, given.positions) for site, v in zip(given.sites, vectors, strict=True)}

    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        ask = Ask(given.train[0].description)
        return [Shift(v[0]) for v in Writer(self, given.frozen)({**given.constants, **free}, [ask])]

    # --- fits ---------------------------------------------------------------------------------------------------------

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        if self.generator is not None:
            raise UnsupportedError(
                f"hypersteer trains nothing with generator={self.generator!r}: it writes, in one pass."
            )
        _ = Writer(self, Frozen(engine, sites)).shape

    def fit_many(self, engine: Trainable, contrasts: Sequence[Contrast], *, keep: Keep | None = None) -> list[Steering]:
        if self.generator is not None:
            writes = Generator.load(self.generator, engine)
            return [writes.fitted(self, contrast) for contrast in contrasts]
        if self.reconstruct:
            raise ConfigError(
                f"reconstruct={self.reconstruct} needs vectors to come close to, which fit_generator is given; leave it out."
            )
        if self.context != "none":
            raise ConfigError(
                f"with context={self.context!r} a vector is of one prompt, and a fit is one steering for all; train a"
                " generator (fit_generator, `steerlab generator train`) and give it the prompt, or set context='none'."
            )
        return super().fit_many(engine, contrasts, keep=keep)

    def fit_generator(
        self,
        engine: Trainable,
        contrasts: Sequence[Contrast],
        *,
        vectors: Sequence[Steering] | None = None,
        keep: Keep | None = None,
    ) -> Generator:
        """One network for all concepts, each described by its contrast's `concept`.

        `vectors` are steerings of these contrasts, to come close to in `reconstruct` epochs. `held_out` is a share of the
        concepts: these aren't trained on, and the iterate that does best for them is kept. Raises `DataError` for fewer
        than two descriptions or one that comes twice.
        """
        with Meter() as meter:
            given = pooled(self, engine, contrasts, vectors, keep)
            fit = Fit(self, given)
            with progress.task(f"training {self.name}", fit.steps) as bar:
                self.learn([fit], given.frozen, bar)
        return Generator.made(self, fit, contrasts, meter.figures())


def _adding(vectors: Float[Tensor, "n d"], which: Tensor, positions: Positions) -> EditRows:
    """Each row's own vector at some positions."""

    def at(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
        mask = batch.mask(positions).to(h.device)[..., None]
        mine = vectors.to(h.device)[which.to(h.device)[index]][:, None]
        return torch.where(mask, (h.float() + mine).to(h.dtype), h)

    return at
