"""What a format is: a file of another tool's that acts exactly as a steering does, or the reasons why it can't."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import plugins
from ..controls import Constant
from ..edits import AffineMap, Edit
from ..errors import ArtefactError, UnsupportedError
from ..positions import ALL, Positions
from ..sites import Site
from ..steering import Meta, Steering

if TYPE_CHECKING:
    from ..engines.hf import HFEngine


@dataclass(frozen=True, slots=True)
class Hints:
    """What a foreign file leaves unsaid: the block, which row of a dump, a clamp's poles, tokens left alone before it.

    Of bare vectors: the `sites` in the file's order, what their numbers are multiplied by, the positions, and how many blocks
    (`depth`) the model has, where it is known.
    """

    layer: int | None = None
    concept: int = 0
    positive: float | None = None
    negative: float | None = None
    prefix: int = 0
    sites: tuple[Site, ...] = ()
    scale: float | None = None
    positions: Positions | None = None
    depth: int | None = None


class Written(NamedTuple):
    """The files, and in words what of the steering they don't hold although they act as it does."""

    files: tuple[Path, ...]
    lost: tuple[str, ...]


class Static(NamedTuple):
    """An edit that acts alike on every token, at one strength."""

    site: Site
    edit: Edit
    strength: float

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.edit.kind} at {self.site}"


class Format(ABC):
    """A file, or a folder, of another tool's. Its reader and its writer are one class, so that they can't disagree."""

    what: ClassVar[str] = ""  # in a few words, for the list of formats
    holds: ClassVar[str] = ""  # what it can express
    suffix: ClassVar[str] = ""  # of a file; a folder has none
    reads: ClassVar[bool] = True
    why_not_read: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False
    fallback: ClassVar[bool] = False  # read a file as this one where no other format claims it
    takes: ClassVar[tuple[str, ...]] = ()  # the hints, beside layer, concept, poles and prefix, that its reader uses

    @property
    def name(self) -> str:
        """The name under which it is loaded."""
        return plugins.name_of(type(self), "exports")

    @abstractmethod
    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        """In words, all that the file would not do exactly; empty where it can be written."""

    @abstractmethod
    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        """Write it. Raises `UnsupportedError` with every reason."""

    def claims(self, path: Path) -> bool:
        """Whether a file looks like one of this format."""
        return False

    def read(self, path: Path, hints: Hints) -> Steering:
        """The steering in a file. Raises `ArtefactError`."""
        raise NotImplementedError

    def instead(self, steering: Steering) -> str | None:
        """The command that fits a steering which this format holds, where one is known."""
        return None

    def check(self, steering: Steering, engine: HFEngine | None = None) -> None:
        """Raise `UnsupportedError` where it is refused."""
        if reasons := self.refuses(steering, engine):
            command = self.instead(steering)
            instead = "" if command is None else f" What it can hold: `{command}`."
            raise UnsupportedError(f"{self.name} can't hold this steering: " + "; ".join(reasons) + f".{instead}")


class VectorFormat(Format):
    """A format that holds one vector for each block, added to its output at every token."""

    holds: ClassVar[str] = "vectors added to block outputs, at every token"
    first_layer: ClassVar[int] = 0
    why_first: ClassVar[str] = ""
    single: ClassVar[bool] = False

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        return self._vectors(steering)[1]

    def vectors(self, steering: Steering) -> dict[int, Tensor]:
        """Each block's vector, its strength folded in. Raises `UnsupportedError`."""
        self.check(steering)
        return self._vectors(steering)[0]

    def instead(self, steering: Steering) -> str | None:
        layers = [i.site.layer for i in steering.interventions if i.site.layer is not None] or [self.first_layer]
        sites = sorted({max(layer, self.first_layer) for layer in (layers[:1] if self.single else layers)})
        return refit(steering, "diff_means", ",".join(map(str, sites)))

    def _vectors(self, steering: Steering) -> tuple[dict[int, Tensor], list[str]]:
        found, reasons = static(steering, self.name)
        made: dict[int, Tensor] = {}
        for one in found:
            layer, bias = one.site.layer, pure_bias(one.edit.affine(one.strength)) if not one.site.on_weights else None
            if one.site.part != "resid" or layer is None:
                reasons.append(f"{one.name} isn't at a block's output, and {self.name} adds only there")
            elif layer < self.first_layer:
                reasons.append(f"{one.name} is at block {layer}: {self.why_first}")
            elif bias is None:
                reasons.append(
                    f"{one.name} depends on the activation that it edits (it isn't adding a fixed vector), and {self.name}"
                    " only adds"
                )
            else:
                made[layer] = made[layer] + bias if layer in made else bias
        if not found and not reasons:
            reasons.append("it edits nothing (no intervention with a strength other than 0)")
        if self.single and len(made) > 1:
            reasons.append(f"it edits blocks {', '.join(map(str, made))}, and {self.name} holds one vector")
        return made, reasons


def static(steering: Steering, name: str) -> tuple[list[Static], list[str]]:
    """The interventions of one strength, in order, and all that keeps any from acting alike on every token.

    Those of strength 0 do nothing and are left out.
    """
    found: list[Static] = []
    reasons: list[str] = []
    if steering.prompt is not None and steering.prompt.strength:
        reasons.append(
            f"it has a prompt, which is text in the conversation and not in {name}; send it with your messages"
        )
    for i in steering.interventions:
        what = f"{i.edit.kind} at {i.site}"
        if not isinstance(i.control, Constant):
            reasons.append(
                f"{what} has a {i.control.kind} control, which decides its strength while the model runs, and {name} has one"
                " fixed strength"
            )
        elif i.control.value:
            found.append(Static(i.site, i.edit, i.control.value))
            if i.positions != ALL:
                reasons.append(
                    f"{what} acts at the positions {i.positions}, and {name} acts on every token, BOS and template included"
                    " (positions=all)"
                )
    return found, reasons


def pure_bias(made: AffineMap | None) -> Tensor | None:
    """The vector that a map adds, where that is all it does."""
    if made is None or made.bias is None:
        return None
    if made.diag is not None and bool(made.diag.any()):
        return None
    if made.down is not None and made.up is not None and bool((made.up.T @ made.down).any()):
        return None
    return made.bias.detach().cpu().contiguous()


def refit(steering: Steering, method: str, site: str) -> str:
    """The command that fits the same data with another method and at all positions."""
    data = str(steering.meta.data.get("source") or "DATA")
    name = method.replace("_", "-")
    words = ["steerlab", "fit", name, "--data", data, "--site", site, "--positions", "all", "--out", "FILE.safetensors"]
    return shlex.join(words)


def provenance_lost(steering: Steering, *, kept: Sequence[str] = ()) -> list[str]:
    """What a bare file of vectors says nothing of."""
    lost: list[str] = []
    strengths = {i.control.value for i in steering.interventions if isinstance(i.control, Constant)} - {0.0}
    if strengths != {1.0}:
        told = ", ".join(f"{s:g}" for s in sorted(strengths))
        lost.append(f"the strength {told} is folded into the vectors: in the file it is 1")
    if any(isinstance(i.control, Constant) and i.control.value == 0 for i in steering.interventions):
        lost.append("interventions of strength 0 are left out")
    held = {"model": steering.meta.model, "method": steering.meta.method, "data": steering.meta.data}
    names = [name for name, value in held.items() if value and name not in kept]
    if names:
        lost.append(f"where it comes from ({', '.join(names)}) isn't in the file")
    return lost


def imported(path: Path, name: str, **known: str | None) -> Meta:
    """Where an imported steering comes from."""
    method = {"name": known.get("method") or f"imported from {name}"}
    return Meta(model=known.get("model"), method=method, data={"source": str(path), "concept": known.get("concept")})


def same_width(vectors: Sequence[Tensor], path: Path) -> None:
    """Raise `ArtefactError` where vectors of one file differ in width."""
    widths = {v.shape[-1] for v in vectors}
    if len(widths) > 1:
        raise ArtefactError(f"{path} holds vectors of the widths {sorted(widths)}; expected one width for all.")


def as_vector(value: object, what: str, path: Path) -> Tensor:
    """A list of numbers, or a tensor, as a float32 vector. Raises `ArtefactError`."""
    try:
        made = value.detach().float() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise ArtefactError(f"{path} holds no vector at {what} ({problem}); expected numbers.") from problem
    if made.ndim == 2 and made.shape[0] == 1:
        made = made[0]
    if made.ndim != 1 or made.numel() == 0:
        raise ArtefactError(f"{path} holds the shape {list(made.shape)} at {what}; expected a vector [d].")
    if not bool(torch.isfinite(made).all()):
        raise ArtefactError(f"{path} holds values at {what} that are NaN or infinite.")
    return made.contiguous()
