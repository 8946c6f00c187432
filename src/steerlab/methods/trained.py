"""Methods that train an edit through the frozen model: one loop, for one concept or for many at once.

A method says which rows a training item becomes, how its free parameters make edits (`edits` maps any values to valid
ones, so that no loop has to restore anything), and what a step costs (`loss`). All else is here: passes without what
never changes (`frozen`), batches, held-out items, the best iterate, and `fit_many`, which runs the rows of many fits in
one pass, each under its own edits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import progress
from ..contrast import Contrast, Example
from ..controls import Constant, Control
from ..edits import Edit
from ..engines.base import Batch, Trainable
from ..errors import ConfigError, DataError
from ..meter import Meter
from ..positions import Positions
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Method, assemble, parse_sites
from .frozen import EditRows, Frozen, Said
from .keep import Keep
from .optimisers import Adam, Optimiser

if TYPE_CHECKING:
    from jaxtyping import Float

Free = Mapping[str, Tensor]  # what is trained, by name


class Row(NamedTuple):
    """One sequence of a step: a prompt with an answer, how strongly it is edited, and whose answer it is compared with."""

    example: Example
    strength: float = 1.0
    source: Example | None = None  # the same answer under another prompt, untouched
    tag: str = ""
    seed: int = 0  # of noise, where an edit draws any


class Step(NamedTuple):
    """What a loss gets: the rows, and what the model says in their answers under the edits."""

    rows: Sequence[Row]
    said: Said
    frozen: Frozen
    positions: Positions
    gone: float = 1.0  # the share of all steps that lies behind; 1 when measuring

    def only(self, *tags: str) -> Step:
        """The rows with one of these tags."""
        chosen = [n for n, row in enumerate(self.rows) if row.tag in tags]
        if len(chosen) == len(self.rows):
            return self
        return self._replace(rows=[self.rows[n] for n in chosen], said=self.said.take(chosen))

    @property
    def target(self) -> Said:
        """What the untouched model says under each row's source, token by token like `said`."""
        return self.frozen.untouched([_source(row) for row in self.rows])

    @property
    def reference(self) -> Said:
        """What the untouched model says in the same rows."""
        return self.frozen.untouched([row.example for row in self.rows])


class Given(NamedTuple):
    """What a fit begins with."""

    engine: Trainable
    contrast: Contrast
    sites: tuple[Site, ...]
    positions: Positions
    frozen: Frozen
    train: Sequence[Any]
    held_out: Sequence[Any]
    generator: torch.Generator
    constants: dict[str, Tensor]  # what `initial` leaves for `edits`


@dataclass(frozen=True)
class Trained(Method):
    """`site` is a block's number, a site, or several with commas between; `positions` where it is edited.

    `step` is the optimiser's, `held_out` the share of items on which the loss is measured after each epoch and the best
    iterate kept (0: the last one is). `answer_tokens` leaves out all that comes after so many.
    """

    up: ClassVar[float] = 2 / 3  # of the depth, where no site is given
    referring: ClassVar[bool] = False  # whether the loss asks for `Step.reference`
    small: ClassVar[
        Mapping[str, Any]
    ] = {}  # settings for models of some million parameters, where the paper's can't work
    site: str | None = None
    positions: str = "not_template"
    epochs: int = 6
    batch_size: int = 8
    step: float = 0.01
    held_out: float = 0.0
    answer_tokens: int | None = None
    close: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = [n for n in (self.batch_size, self.answer_tokens) if n is not None]
        if min(counts) < 1 or self.epochs < 0 or not self.step > 0:
            raise ConfigError(
                f"{type(self).__name__} has epochs={self.epochs}, batch_size={self.batch_size}, step={self.step},"
                f" answer_tokens={self.answer_tokens}; expected a batch size and answer tokens (where given) from 1, epochs"
                " from 0 and a positive step."
            )
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}; expected a share in [0, 1).")

    # --- what a method says -------------------------------------------------------------------------------------------

    @abstractmethod
    def initial(self, given: Given) -> Free:
        """The free parameters to begin with, in float32 on the CPU."""

    @abstractmethod
    def edits(self, free: Free, given: Given) -> Sequence[Edit]:
        """The edit at each site, differentiable in the free parameters."""

    @abstractmethod
    def rows(self, item: Any, draw: torch.Generator) -> list[Row]:
        """The sequences of one item; what is drawn is drawn anew each time it comes up."""

    def batch(self, items: Sequence[Any], draw: torch.Generator) -> list[Row]:
        """The sequences of a batch."""
        return [row for item in items for row in self.rows(item, draw)]

    @abstractmethod
    def loss(self, step: Step, free: Free) -> Float[Tensor, ""]:
        """What a step costs, in nats."""

    def items(self, part: Contrast, whole: Contrast) -> list[Any]:
        """What is shuffled and put into batches: the pairs of a part of the data."""
        return list(part.pairs)

    def optimisers(self, free: Free, steps: int) -> Optimiser:
        """What moves the free parameters; Adam with linear decay to 0 unless a method says otherwise."""
        return Adam(free, step=self.step, steps=steps)

    def pools(self, sites: Sequence[Site], positions: Positions) -> list[tuple[Site, Positions]]:
        """Mean activations that `initial` will ask for."""
        return []

    def alike(self, row: Row) -> Hashable | None:
        """What rows of one prompt have in common that are edited alike on it, token by token; None: nothing is known of it.

        Such rows run their prompt once.
        """
        return None

    def touching(self, rows: Sequence[Row], free: Free, given: Given) -> Mapping[Site, EditRows]:
        """What happens at each site to some of these rows."""
        strength = torch.tensor([row.strength for row in rows])
        return {
            site: put(edit, strength, given.positions)
            for site, edit in zip(given.sites, self.edits(free, given), strict=True)
        }

    def judged(self, step: Step, free: Free) -> dict[str, float]:
        """Figures of held-out rows; `loss` picks the best iterate."""
        return {"loss": float(self.loss(step, free))}

    def served(self, free: Free, given: Given) -> Sequence[Edit]:
        """The edit at each site that a steering gets."""
        return self.edits(free, given)

    def controls(self, free: Free, given: Given) -> Sequence[Control]:
        """How strongly each site's edit acts in a steering: at a strength of 1, unless a method says otherwise."""
        return [Constant()] * len(given.sites)

    def told(self, free: Free, given: Given, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Figures of the fit: those of held-out items before and after each epoch."""
        return {"held_out": {name: [round(c[name], 6) for c in curve] for name in curve[0]}} if curve else {}

    # --- the loop -----------------------------------------------------------------------------------------------------

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        return self.fit_many(engine, [contrast])[0]

    def fit_many(self, engine: Trainable, contrasts: Sequence[Contrast], *, keep: Keep | None = None) -> list[Steering]:
        """A steering for each contrast, trained together: every step is one pass over the rows of all fits.

        Equal to fitting each alone, but for rounding.
        """
        sites, positions = self.placed(engine), Positions.parse(self.positions)
        self.check(engine, sites)
        with Meter() as meter:
            frozen = self.frozen(engine, sites, positions, keep)
            fits = [Fit(self, self.given(engine, contrast, sites, positions, frozen)) for contrast in contrasts]
            self.learn(fits, frozen)
            with torch.no_grad():
                made = [fit.made() for fit in fits]
        return [
            assemble(self, engine, fit.given.contrast, interventions, figures={**figures, **meter.figures()})
            for fit, (interventions, figures) in zip(fits, made, strict=True)
        ]

    def learn(self, fits: Sequence[Fit], frozen: Frozen) -> None:
        """Train fits from their beginning to their end: every step is one pass over the rows of all."""
        with torch.no_grad():
            frozen.prepare(*self.needed([row for fit in fits for row in fit.every_row()]))
            for fit in fits:
                fit.begin()
        with progress.task(f"training {self.name}", sum(fit.steps for fit in fits)) as bar:
            while turn := [fit for fit in fits if fit.unfinished]:
                together(turn, frozen)
                bar.advance(len(turn))
                bar.tell(turn[0].told())

    def frozen(
        self, engine: Trainable, sites: Sequence[Site], positions: Positions, keep: Keep | None = None
    ) -> Frozen:
        """The passes of its fits."""
        pool = self.pools(sites, positions)
        return Frozen(engine, sites, close=self.close, answer_tokens=self.answer_tokens, pool=pool, keep=keep)

    def needed(self, rows: Sequence[Row]) -> tuple[list[Example], list[Example]]:
        """The examples of rows that are edited, and those that are compared with."""
        edited = [row.example for row in rows]
        compared = [row.source for row in rows if row.source is not None]
        return list(dict.fromkeys(edited)), list(dict.fromkeys([*compared, *edited] if self.referring else compared))

    def placed(self, engine: Trainable) -> tuple[Site, ...]:
        """Where it is edited."""
        return parse_sites(engine, self.site, up=self.up)

    def check(self, engine: Trainable, sites: Sequence[Site]) -> None:
        """Raise `ConfigError` for settings that this model or these sites can't have."""

    def given(
        self, engine: Trainable, contrast: Contrast, sites: tuple[Site, ...], positions: Positions, frozen: Frozen
    ) -> Given:
        """What a fit begins with. Raises `DataError` for data that it can't learn from."""
        without = sum(not e.answer for pair in contrast.pairs for e in pair)
        if without:
            raise DataError(
                f"{self.name} trains on answers, and {without} of {2 * len(contrast.pairs)} examples have none. Add answers"
                " (`steerlab data make` lets the model write them), or use diff_means."
            )
        if all((p.messages, p.answer) == (n.messages, n.answer) for p, n in contrast.pairs):
            raise DataError(
                f"the examples of both classes are identical in all {len(contrast.pairs)} pairs, so there is nothing to learn."
                " Do the columns hold what they should?"
            )
        parts = [contrast]
        if self.held_out and len(contrast.pairs) >= 5:
            parts = self._parts(replace(contrast, neutral=()))
        items, *held_out = [self.items(part, contrast) for part in parts]
        generator = torch.Generator().manual_seed(self.seed)
        return Given(engine, contrast, sites, positions, frozen, items, held_out[0] if held_out else [], generator, {})

    def _parts(self, contrast: Contrast) -> tuple[Contrast, ...]:
        """What is trained on and what is held out: whole families, or rows where that leaves a part without any."""
        shares = (1 - (held_out := max(self.held_out, 1 / len(contrast.pairs))), held_out)
        if len({n.family or p.family for p, n in contrast.pairs}) >= 4:
            with suppress(DataError):
                return contrast.split(*shares, seed=self.seed)
        sides = (contrast.positive, contrast.negative)
        positive, negative = (tuple(replace(e, family=None) for e in side) for side in sides)
        return replace(contrast, positive=positive, negative=negative).split(*shares, seed=self.seed)


@dataclass
class Fit:
    """One concept's training as it stands; `rows_taken` were the last batch, of `taken` items."""

    method: Trained
    given: Given
    best: Free = field(default_factory=dict[str, Tensor])
    losses: list[float] = field(default_factory=list[float])
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def begin(self, trial: Sequence[int] = ()) -> None:
        """Start, and measure the start; a trial takes these items instead, and measures nothing."""
        self.optimiser = self.method.optimisers(self.method.initial(self.given), self.steps)
        self.best, self._least = self.optimiser.free, None
        self._epoch, self._order, self._total, self._seen = 0, list[int](), 0.0, 0
        self._orders, self.taken = torch.Generator().manual_seed(self.method.seed), 0
        if trial:
            self._order = list(trial)
            return
        self._judge()
        self._shuffle()

    @property
    def steps(self) -> int:
        return -(-len(self.given.train) // self.method.batch_size) * self.method.epochs

    @property
    def unfinished(self) -> bool:
        return bool(self._order)

    @property
    def gone(self) -> float:
        """The share of all steps that lies behind."""
        return len(self.losses) / self.method.epochs + self._seen / (len(self.given.train) * self.method.epochs)

    def every_row(self) -> list[Row]:
        """Those of all its items."""
        draw = torch.Generator().manual_seed(0)
        return self.method.batch([*self.given.train, *self.given.held_out], draw)

    def rows(self) -> list[Row]:
        """Those of the next batch."""
        size = self.method.batch_size
        chosen, self._order = self._order[:size], self._order[size:]
        self.taken = len(chosen)
        self.rows_taken = self.method.batch([self.given.train[i] for i in chosen], self.given.generator)
        return self.rows_taken

    def learn(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """One step; at the end of an epoch, what it has come to."""
        if not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
            raise DataError(
                f"the gradient of {self.method.name} is NaN or infinite (loss {loss}); the model overflows on this data. Try"
                " bfloat16 or float32, or look for empty or damaged rows with `steerlab data check`."
            )
        self.optimiser.move(gradients)
        self._total, self._seen = self._total + loss * self.taken, self._seen + self.taken
        if not self._order:
            self.losses.append(round(self._total / self._seen, 6))
            self._total, self._seen, self._epoch = 0.0, 0, self._epoch + 1
            self._judge()
            self._shuffle()

    def told(self) -> str:
        """In a few words."""
        words = f"loss {self._total / self._seen if self._seen else self.losses[-1]:.4f}"
        if self.curve:
            words += f", held-out loss {self.curve[-1]['loss']:.4f} ({self.curve[0]['loss']:.4f} to begin with)"
        return words

    def made(self) -> tuple[list[Intervention], dict[str, Any]]:
        """What is served, and the figures of the fit."""
        given, edits = self.given, self.method.served(self.best, self.given)
        controls = self.method.controls(self.best, given)
        made = [Intervention(s, e, given.positions, c) for s, e, c in zip(given.sites, edits, controls, strict=True)]
        return made, {"loss": self.losses, **self.method.told(self.best, given, self.curve)}

    def _shuffle(self) -> None:
        if self._epoch < self.method.epochs:
            self._order = torch.randperm(len(self.given.train), generator=self._orders).tolist()

    def _judge(self) -> None:
        """Measure on what is held out, and keep the best."""
        free = {name: t.detach().clone() for name, t in self.optimiser.free.items()}
        if not self.given.held_out:
            self.best = free
            return
        draw = torch.Generator().manual_seed(self.method.seed)
        rows = self.method.batch(self.given.held_out, draw)
        with torch.no_grad():
            touching, alike = self.method.touching(rows, free, self.given), [self.method.alike(row) for row in rows]
            found = self.method.judged(ran(self.given, rows, touching, alike), free)
        self.curve.append(found)
        if self._least is None or found["loss"] < self._least:
            self._least, self.best = found["loss"], free


def ran(
    given: Given,
    rows: Sequence[Row],
    touching: Mapping[Site, EditRows] | None = None,
    alike: Sequence[Hashable | None] | None = None,
) -> Step:
    """Some rows under edits, or without any."""
    said = given.frozen.run([row.example for row in rows], touching, alike)
    return Step(rows, said, given.frozen, given.positions)


def together(turn: Sequence[Fit], frozen: Frozen) -> None:
    """A step of every fit, in one pass."""
    rows = [fit.rows() for fit in turn]
    leaves = [{name: t.detach().clone().requires_grad_() for name, t in fit.optimiser.free.items()} for fit in turn]
    ends = torch.tensor([len(r) for r in rows]).cumsum(0).tolist()
    touching = [fit.method.touching(r, free, fit.given) for fit, r, free in zip(turn, rows, leaves, strict=True)]
    alike = [_of_fit(n, fit.method.alike(row)) for n, (fit, r) in enumerate(zip(turn, rows, strict=True)) for row in r]
    said = frozen.run([row.example for r in rows for row in r], _merged(touching, ends), alike)
    losses = [
        fit.method.loss(Step(r, said.part(end - len(r), end), frozen, fit.given.positions, fit.gone), free)
        for fit, r, free, end in zip(turn, rows, leaves, ends, strict=True)
    ]
    flat = [t for free in leaves for t in free.values()]
    gradients = iter(torch.autograd.grad(torch.stack(losses).sum(), flat, materialize_grads=True))
    for fit, free, loss in zip(turn, leaves, losses, strict=True):
        fit.learn(float(loss.detach()), {name: next(gradients) for name in free})


def _of_fit(n: int, alike: Hashable | None) -> Hashable | None:
    return None if alike is None else (n, alike)


def _merged(touching: Sequence[Mapping[Site, EditRows]], ends: Sequence[int]) -> Mapping[Site, EditRows]:
    """Each fit's edits on its own rows."""
    if len(touching) == 1:
        return touching[0]
    begins = [0, *ends[:-1]]

    def at(site: Site) -> EditRows:
        def put(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
            out = None if site.on_weights else h  # all that a matrix reads is in one fit or another
            for mine, begin, end in zip(touching, begins, ends, strict=True):
                here = ((index >= begin) & (index < end)).nonzero()[:, 0]
                if len(here):
                    made = mine[site](h[here], index[here] - begin, batch.take(here))
                    out = made.new_empty(*h.shape[:-1], made.shape[-1]) if out is None else out
                    out = out.index_copy(0, here, made)
            return h if out is None else out

        return put

    return {site: at(site) for site in touching[0]}


def put(edit: Edit, strength: Float[Tensor, " b"], positions: Positions) -> EditRows:
    """An edit at some positions of rows, each at its own strength."""

    def at(h: Tensor, index: Tensor, batch: Batch) -> Tensor:
        mask = batch.mask(positions).to(h.device)[..., None]
        return torch.where(mask, edit.to(h.device)(h, strength.to(h.device)[index][:, None, None]), h)

    return at


def _source(row: Row) -> Example:
    if row.source is None:
        raise DataError("a row without a source is compared with one; this is a mistake in the method's rows.")
    return row.source
