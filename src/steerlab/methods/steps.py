"""What a trained method and its loop hand each other: rows, a step, what a fit begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..contrast import Contrast, Example
from ..edits import Edit
from ..engines.base import Batch, Trainable
from ..errors import DataError
from ..positions import Positions
from ..sites import Site
from .frozen import EditRows, Frozen
from .said import Said

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
